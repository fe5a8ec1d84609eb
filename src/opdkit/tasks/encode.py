"""From text to token ids: the chat template, the system message, the beginning of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from opdkit.types import Prompt, Rollout, UserError

if TYPE_CHECKING:
    from opdkit.config import TaskConfig


def encode(
    prompts: Sequence[Prompt],
    tokenizer: Any,
    cfg: TaskConfig,
    *,
    system: str | Sequence[str] | None = None,
    renderer: Any = None,
) -> list[Prompt]:
    """The prompts with `ids` filled: templated as `cfg` says, then `cfg.prefix` without special tokens.

    `renderer` is the tokenizer whose chat template writes the text, unset `tokenizer` itself; ids are always
    `tokenizer`'s. `system` is a context that only this reader gets (a teacher's), one for all or one for each: it comes
    before the system message the prompt has or `cfg.system` gives, in the same message, for many templates take only one.
    Raises UserError where the tokenizer's template is missing or refuses, and for messages without a template.
    """
    if not prompts:
        return []
    rows = (
        _templated(prompts, tokenizer, renderer or tokenizer, cfg, system)
        if cfg.chat_template
        else _plain(prompts, tokenizer, cfg, system)
    )
    prefix = tokenizer(cfg.prefix, add_special_tokens=False)["input_ids"] if cfg.prefix else []
    encoded = []
    for prompt, row in zip(prompts, rows, strict=True):
        ids = tuple(_one_bos(row, tokenizer.bos_token_id)) + tuple(prefix)
        if not ids:
            raise UserError(
                f"{prompt.source or prompt.id}: no tokens", hint="check the prompt and the tokenizer"
            )
        encoded.append(replace(prompt, ids=ids))
    return encoded


def fit(prompts: Sequence[Prompt], *, max_prompt_tokens: int) -> tuple[list[Prompt], list[Prompt]]:
    """(kept, dropped): encoded prompts of at most `max_prompt_tokens` tokens, and those longer, which the
    caller counts.

    Raises UserError when not one is kept.
    """
    kept = [p for p in prompts if len(p.ids) <= max_prompt_tokens]
    dropped = [p for p in prompts if len(p.ids) > max_prompt_tokens]
    if dropped and not kept:
        shortest = min(len(p.ids) for p in dropped)
        raise UserError(
            f"no prompt fits: the shortest has {shortest} tokens, the context leaves {max_prompt_tokens}",
            hint=f"lower sampling.max_tokens by {shortest - max_prompt_tokens}, or use a longer context",
        )
    return kept, dropped


def demonstrations(prompts: Sequence[Prompt], tokenizer: Any, *, stop_ids: Sequence[int]) -> list[Rollout]:
    """Encoded prompts with their `response` as rollouts that somebody else made: ids end in an end token.

    A text that does not say its end gets the tokenizer's. Raises UserError for a prompt without a response.
    """
    without = [p for p in prompts if p.response is None]
    if without:
        raise UserError(
            f"{len(without)} of {len(prompts)} prompts have no demonstration to imitate, the first is "
            f"{without[0].source or without[0].id}",
            hint="task.response_key=COLUMN with the text that answers each prompt",
        )
    ends = set(stop_ids)
    if tokenizer.eos_token_id is None and not ends:
        raise UserError("the tokenizer has no end token", hint="set eos_token in its tokenizer_config.json")
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else min(ends)
    texts = [p.response or "" for p in prompts]
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return [
        Rollout(
            prompt=prompt,
            response_ids=tuple(row) if row and row[-1] in ends else (*row, end),
            finish_reason="stop",
            text=text,
            sampler="demonstration",
        )
        for prompt, row, text in zip(prompts, rows, texts, strict=True)
    ]


# --- the two ways -------------------------------------------------------------------------------------------


def _templated(
    prompts: Sequence[Prompt],
    tokenizer: Any,
    renderer: Any,
    cfg: TaskConfig,
    system: str | Sequence[str] | None,
) -> list[list[int]]:
    if not getattr(renderer, "chat_template", None):
        raise UserError(
            "the tokenizer has no chat template", hint="task.chat_template=false feeds the text as it is"
        )
    options = {} if cfg.thinking is None else {"enable_thinking": cfg.thinking}
    contexts = [system] * len(prompts) if system is None or isinstance(system, str) else system
    texts = [
        _render(p, renderer, _with_system(_messages(p), cfg.system, context), options)
        for p, context in zip(prompts, contexts, strict=True)
    ]
    return tokenizer(texts, add_special_tokens=False)[
        "input_ids"
    ]  # the template has written the special ones


def _render(
    prompt: Prompt, tokenizer: Any, messages: list[Mapping[str, str]], options: dict[str, bool]
) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    except TemplateError as error:  # templates refuse by raising: a system role, roles that do not alternate
        raise UserError(
            f"{prompt.source or prompt.id}: the chat template refuses this prompt: {error}",
            hint="change its roles, leave out task.system, or set task.chat_template=false",
        ) from error


def _plain(
    prompts: Sequence[Prompt], tokenizer: Any, cfg: TaskConfig, system: str | Sequence[str] | None
) -> list[list[int]]:
    if cfg.system or system:
        raise UserError(
            "a system message needs a chat template", hint="task.chat_template=true, or put it in the text"
        )
    for prompt in prompts:
        if prompt.text is None:
            raise UserError(
                f"{prompt.source or prompt.id}: messages need a chat template", hint="task.chat_template=true"
            )
    texts = [p.text for p in prompts]
    rows = tokenizer(texts)["input_ids"]
    bare = tokenizer(texts, add_special_tokens=False)["input_ids"]
    # Some tokenizers close every text with an end token; a response begun after it would be a new document.
    return [
        row[:-1] if row and row[-1] == tokenizer.eos_token_id and row[-1:] != plain[-1:] else row
        for row, plain in zip(rows, bare, strict=True)
    ]


# --- parts --------------------------------------------------------------------------------------------------


def _messages(prompt: Prompt) -> list[Mapping[str, str]]:
    if prompt.messages is not None:
        return list(prompt.messages)
    return [{"role": "user", "content": prompt.text or ""}]


def _with_system(
    messages: list[Mapping[str, str]], default: str | None, context: str | None
) -> list[Mapping[str, str]]:
    """One system message in front: the context, then the prompt's own or the default. Nothing to say, no
    message."""
    has_own = messages[0]["role"] == "system"
    own = messages[0]["content"] if has_own else default
    said = "\n\n".join(part for part in (context, own) if part)
    rest = messages[1:] if has_own else messages
    return [{"role": "system", "content": said}, *rest] if said else rest


def _one_bos(ids: list[int], bos: int | None) -> list[int]:
    """Text or template may already begin with what the tokenizer adds."""
    while bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    return ids
