"""The instructions that mathematics data sets put around a problem: taken off, and put on.

The paper's template experiment (arXiv 2604.13016, 5.2) compares the first two on the same problems.
"""

from __future__ import annotations

DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.",
    'Remember to put your answer on its own line after "Answer:".',
)
"""Before and after the problem, as in BytedTsinghua-SIA/DAPO-Math-17k."""
BOXED = r"Please reason step by step, and put your final answer within \boxed{}."
_ENDINGS = (BOXED, BOXED.replace("{}", "{{}}"))  # the paper's released file has the braces twice


def unwrapped(text: str) -> str:
    """The problem alone: every wrapper of either kind taken off, white space at the ends as well.

    >>> unwrapped(wrapped("1 + 1?", "dapo")), unwrapped(wrapped("1 + 1?", "boxed"))
    ('1 + 1?', '1 + 1?')
    """
    before, after = DAPO
    while True:
        text = text.strip()
        if text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after):
            text = text[len(before) : -len(after)]
        elif ending := next((e for e in _ENDINGS if text.endswith(e)), None):
            text = text.removesuffix(ending)
        else:
            return text


def wrapped(problem: str, wrapper: str) -> str:
    """`problem` inside `wrapper`: `dapo`, `boxed`, or `as_is` for nothing.

    >>> wrapped("1 + 1?", "boxed")
    '1 + 1? Please reason step by step, and put your final answer within \\\\boxed{}.'
    """
    if wrapper == "dapo":
        return f"{DAPO[0]}\n\n{problem}\n\n{DAPO[1]}"
    return f"{problem} {BOXED}" if wrapper == "boxed" else problem
