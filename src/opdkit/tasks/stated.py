"""The answer that a response states, and grading by it.

The paper's protocol asks for a box (arXiv 2604.13016 and its released evaluation): a number that merely occurs
in a response is no answer, where math-verify alone would take the last one it sees.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from opdkit.tasks.grading import MAX_CHARACTERS, ChildGrading
from opdkit.types import Grade, Rollout

_BOX = r"\boxed{"
_BRACE = re.compile(r"\\boxed\{|\\.|[{}]", re.DOTALL)  # an escaped brace is a character
_LINE = re.compile(r"^[ \t*#>]*(?:Final )?Answer[ \t]*(?:\*\*)?:(.*)$", re.IGNORECASE | re.MULTILINE)


class StatedGrading:
    """The stated answer of each response, compared by the `math` grader; without one a response is wrong."""

    def __init__(self, math: ChildGrading):
        self.worker, self._math = math.worker, math

    def grades(self, rollouts: Sequence[Rollout]) -> list[Grade | None]:
        stated = [stated_answer(r.text[-MAX_CHARACTERS:]) for r in rollouts]
        asked = [i for i, answer in enumerate(stated) if answer is not None]
        found = self._math.grades([replace(rollouts[i], text=f"{_BOX}{stated[i]}}}") for i in asked])
        judged = dict(zip(asked, found, strict=True))
        return [judged.get(i, _silent(r)) for i, r in enumerate(rollouts)]

    def close(self) -> None:
        self._math.close()


def stated_answer(text: str) -> str | None:
    r"""The inside of the last complete \boxed{…}, else what follows the last "Answer:" on its line; or None.

    >>> stated_answer(r"\boxed{3}, no: \boxed{\frac{1}{2}}"), stated_answer("so\n**Answer:** $42$.")
    ('\\frac{1}{2}', '42')
    >>> stated_answer("that makes 42") is None
    True
    """
    boxed = _last_boxed(text)
    if boxed is None:
        lines = _LINE.findall(text)
        boxed = lines[-1] if lines else ""
    return _bare(boxed) or None


def _last_boxed(text: str) -> str | None:
    """The complete box that begins last. A box that a cut response left open is none; one pass, whatever the
    text: a model that says nothing but open boxes must not cost more."""
    opened: list[int] = []  # where the inside of each open brace begins; −1 for one that opens no box
    found = (-1, -1)
    for token in _BRACE.finditer(text):
        if token.group().endswith("{") and token.group() != r"\{":
            opened.append(token.end() if token.group() == _BOX else -1)
        elif token.group() == "}" and opened:
            found = max(found, (opened.pop(), token.start()))
    return text[found[0] : found[1]] if found[0] >= 0 else None


def _bare(answer: str) -> str:
    r"""Without the marks that Markdown and LaTeX put around it, which math-verify stumbles over in a box.

    >>> _bare(" **42.** "), _bare("$42$."), _bare(r"\(x + 1\)"), _bare("1.5")
    ('42', '42', 'x + 1', '1.5')
    """
    bare = answer.strip().strip("*").strip().rstrip(".").strip()
    if bare.count("$") == 2 and bare[0] == bare[-1] == "$":
        bare = bare[1:-1]
    return bare.removeprefix(r"\(").removesuffix(r"\)").strip()


def _silent(rollout: Rollout) -> Grade | None:
    return None if rollout.prompt.answer is None else Grade(0.0)
