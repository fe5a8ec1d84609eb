"""What static checks read of both models: configs, tokenizers, end tokens; and how remedies are typed.

Nothing here runs a model, and what cannot be opened is a finding, never a traceback.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from opdkit.config import Config
from opdkit.models.adapter_folder import ModelRef, base_of
from opdkit.models.load import (
    check_weights,
    context_length,
    open_config,
    open_tokenizer,
    vocabulary_rows,
)
from opdkit.tasks import Task
from opdkit.types import Finding, UserError

# --- remedies -----------------------------------------------------------------------------------------------


def command(verb: Literal["check", "train", "coldstart", "prompts"], source: str, *changes: str) -> str:
    """A command about the pair that the user named as `source`: a config file, or the options of `opd check`.

    >>> command("check", "my.toml", "sampling.stop_ids=[1, 2]")
    "opd check my.toml 'sampling.stop_ids=[1, 2]'"
    >>> command("train", "--student S --teacher T --prompts F.jsonl", "steps=10")
    'opd train student=S teacher=T task=F.jsonl steps=10'
    >>> command("check", "my.toml steps=5 seed=1", "steps=10")
    'opd check my.toml seed=1 steps=10'
    """
    words = _words(source)
    if verb != "check":
        words = _without_options(words)
    again = {change.partition("=")[0] for change in changes}
    kept = [word for word in words if "=" not in word or word.partition("=")[0] not in again]
    return shlex.join(["opd", verb, *kept, *changes])


def prompts_command(config: Config, source: str, *changes: str) -> str:
    """`opd prompts` for the pair that the user named as `source`; the file it writes lies beside the run folder."""
    out = config.run.with_name(f"{config.run.name}-prompts.jsonl")
    return f"{command('prompts', source, *changes)} --out {shlex.quote(str(out))}"


def _words(source: str) -> list[str]:
    if Path(source).is_file():  # a name with a space or a quote in it
        return [source]
    try:
        return shlex.split(source)
    except ValueError:
        return [source]


_KEYS = {"--student": "student", "--teacher": "teacher", "--prompts": "task"}


def _without_options(words: Sequence[str]) -> list[str]:
    """`opd train` and `opd coldstart` take keys where `opd check` takes options too; what only a check has is left out."""
    kept, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            kept.append(word)
        elif rest:
            value = rest.pop(0)
            kept += [f"{_KEYS[word]}={value}"] if word in _KEYS else []
    return kept


# --- one model ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """One of the two models as its files describe it; None for what cannot be opened."""

    who: Literal["student", "teacher"]
    ref: ModelRef
    config: Any
    tokenizer: Any
    end_source: Any  # who names end tokens: the generation config, else the model's config
    end_file: str  # its file
    readable_weights: bool

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of special and of added tokens: those that no text is split into."""
        return frozenset(self.tokenizer.all_special_ids) | frozenset(self.tokenizer.added_tokens_decoder)

    @cached_property
    def named_ends(self) -> tuple[int, ...]:
        """`eos_token_id` of the generation config (or config), as a list."""
        named = getattr(self.end_source, "eos_token_id", None)
        return tuple(int(i) for i in named) if isinstance(named, list | tuple) else _one(named)

    @cached_property
    def ends(self) -> frozenset[int]:
        """All that ends a response of this model: named in its files, or the tokenizer's."""
        return frozenset(self.named_ends) | frozenset(_one(self.tokenizer.eos_token_id))

    @cached_property
    def template_end(self) -> int | None:
        """The first special token that the chat template writes after an assistant's words."""
        said = "Blue is a colour."
        text = render(self, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": said}])
        if said not in text:
            return None
        ids = self.tokenizer(text.rpartition(said)[2], add_special_tokens=False)["input_ids"]
        return next((i for i in ids if i in self.special_ids), None)

    @cached_property
    def natural_end(self) -> int | None:
        """What it most likely ends with: the template's end token if that stops it, else the tokenizer's."""
        if self.template_end in self.ends:
            return self.template_end
        eos = self.tokenizer.eos_token_id
        return eos if eos is not None else min(self.ends, default=None)

    @property
    def has_template(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    @cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """Token → id. A tokenizer makes it anew whenever it is asked: 35 ms for 50,000 tokens."""
        return self.tokenizer.get_vocab()

    @cached_property
    def rows(self) -> int:
        return vocabulary_rows(self.tokenizer, self.config)

    @property
    def context(self) -> int:
        return context_length(self.config)

    def token(self, i: int) -> str:
        """`'<|im_end|>' (id 3)`."""
        name = self.tokenizer.convert_ids_to_tokens(i) if 0 <= i < len(self.tokenizer) else None
        return f"no token (id {i})" if name is None else f"{name!r} (id {i})"


def _one(i: int | None) -> tuple[int, ...]:
    return () if i is None else (int(i),)


PROBES: Mapping[str, list[dict[str, str]]] = {
    "question": [{"role": "user", "content": "What is 2 + 3?"}],
    "system": [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "What is 2 + 3?"},
    ],
    "turns": [
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": "It is 5."},
        {"role": "user", "content": "And twice that?"},
    ],
}
"""Conversations on which templates are compared."""


def named(sides: Iterable[Side]) -> str:
    """`student and teacher`."""
    return " and ".join(side.who for side in sides)


def counted(count: int, what: str) -> str:
    """
    >>> counted(1, "token"), counted(1200, "token")
    ('1 token', '1,200 tokens')
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"


REFUSED = "refused by the chat template: "


def render(
    side: Side, messages: list[dict[str, str]], *, thinking: bool | None = None, ask: bool = False
) -> str:
    """The conversation in the words of a model's template; `ask`: up to where an answer begins.

    Empty without a template. A refusal is a text too, so that it shows beside the other model's rendering.
    """
    if not side.has_template:
        return ""
    options = {} if thinking is None else {"enable_thinking": thinking}
    try:
        return side.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=ask, **options
        )
    except Exception as error:  # a template is somebody's program: it may fail in any way
        return f"{REFUSED}{error}"


# --- both ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """What is checked. `teacher` is None for stories without one and for a student's own copy."""

    config: Config
    task: Task
    source: str  # how the user names it, for remedies
    student: Side
    teacher: Side | None

    @property
    def sides(self) -> list[Side]:
        return [self.student] if self.teacher is None else [self.student, self.teacher]

    @property
    def templated(self) -> bool:
        return self.config.task.chat_template

    @property
    def renderer(self) -> Side:
        """Whose template writes the prompts."""
        wanted = self.templated and self.config.task.render == "teacher"
        return self.teacher if wanted and self.teacher is not None else self.student

    @cached_property
    def rows(self) -> int:
        """Ids that both models know."""
        return min(side.rows for side in self.sides)

    @cached_property
    def differing_ids(self) -> list[int]:
        """Ids that both tokenizers have, for different tokens; lowest first."""
        if self.teacher is None:
            return []
        ours, theirs = ({i: t for t, i in side.vocabulary.items()} for side in self.sides)
        return sorted(i for i in ours.keys() & theirs.keys() if ours[i] != theirs[i])

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """What ends a rollout."""
        ids = self.config.sampling.stop_ids or self.student.ends
        return frozenset(i for i in ids if 0 <= i < self.rows)

    def again(self, *changes: str) -> str:
        """The check once more, with changes."""
        return command("check", self.source, *changes)


def read_subject(config: Config, *, task: Task, source: str) -> tuple[Subject | None, list[Finding]]:
    """Everything opened, or None and what could not be."""
    found: list[Finding] = []
    student = _read_side("student", config.student, found)
    teacher = None
    if config.teacher is not None and config.teacher.type == "local":
        teacher = _read_side("teacher", config.teacher, found)
    if any(side is not None and None in (side.config, side.tokenizer) for side in (student, teacher)):
        return None, found
    return Subject(config, task, source, student, teacher), found


def _read_side(who: Literal["student", "teacher"], ref: ModelRef, found: list[Finding]) -> Side:
    config = _opened(who, "config", lambda: open_config(ref), found)
    tokenizer = _opened(who, "tokenizer", lambda: open_tokenizer(ref), found)
    count = len(found)
    _opened(who, "weights", lambda: check_weights(ref), found)
    end_source, end_file = _end_source(ref, config)
    return Side(who, ref, config, tokenizer, end_source, end_file, readable_weights=len(found) == count)


def _opened(who: str, what: str, opener: Callable[[], Any], found: list[Finding]) -> Any:
    try:
        return opener()
    except UserError as error:
        found.append(
            Finding(
                name=f"{what}_unreadable",
                severity="error",
                message=f"the {who}: {error}; {error.hint}",
                rule=f"the {what} opens",
            )
        )
        return None


def _end_source(ref: ModelRef, config: Any) -> tuple[Any, str]:
    from transformers import GenerationConfig

    try:
        base, _ = base_of(ref)
        named = GenerationConfig.from_pretrained(base.model, revision=base.revision or "main")
        return named, "generation_config.json"
    except (OSError, ValueError, TypeError):  # many have none: then it is what the model's config says
        return config, "config.json"
