"""The noun of `opd prompts`: a prompt on its way from the task's file to the one that is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from opdkit.recipes.prompts_embed import normalised
from opdkit.tasks.prompt_rows import Written, question
from opdkit.types import Prompt


@dataclass(frozen=True)
class Judged:
    """`dropped`: why it is not kept, "" while it is. `numbers`: what was measured. `notes`: what speaks for it, in words."""

    found: Written
    numbers: Mapping[str, Any] = field(default_factory=dict)
    dropped: str = ""
    notes: tuple[str, ...] = ()

    @property
    def prompt(self) -> Prompt:
        return self.found.prompt

    @property
    def kept(self) -> bool:
        return not self.dropped

    def told(self, note: str = "", **numbers: Any) -> Judged:
        return replace(
            self, numbers={**self.numbers, **numbers}, notes=(*self.notes, note) if note else self.notes
        )

    def drop(self, why: str, **numbers: Any) -> Judged:
        return replace(self, dropped=why, numbers={**self.numbers, **numbers})

    @property
    def reason(self) -> str:
        """One sentence, for a kept row and for a dropped one."""
        return self.dropped or "; ".join(self.notes) or "nothing speaks against it"


def kept(rows: Sequence[Judged]) -> list[Judged]:
    return [row for row in rows if row.kept]


def asked(prompt: Prompt) -> str:
    """What is compared with other prompts: the question without wrappers; of a conversation all that was said."""
    if prompt.messages is None or sum(m["role"] != "system" for m in prompt.messages) <= 1:
        return question(prompt)
    return "\n".join(m["content"] for m in prompt.messages)


def key(prompt: Prompt) -> str:
    """Equal for prompts that ask the same but for case, kinds of letters, space and wrapper."""
    return normalised(asked(prompt))


def where(prompt: Prompt) -> str:
    return prompt.source or prompt.id


def excerpt(prompt: Prompt, most: int = 160) -> str:
    text = " ".join(asked(prompt).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
