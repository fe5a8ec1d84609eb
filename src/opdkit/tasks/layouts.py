"""How others write a prompt and a response to it: one row in, what was said out.

layout    a row is known by                         ids   finish  prompt as    read in (file of their repository)
opdkit    prompt or prompt_ids, response(_ids)      yes   yes     raw          train/record.py, here
trl       prompt, completion                        no    no      stripped *   trl/trainer/{distillation,grpo}_trainer.py
verl      input, output                             no    no      stripped     verl/trainer/ppo/ray_trainer.py
slime     tokens, response_length                   yes   yes     templated    slime/utils/types.py; miles alike
lm_eval   arguments, resps                          no    no      templated    lm_eval/loggers/evaluation_tracker.py
several   prompt, and a list responses or completions
messages  messages, the last one the assistant's    no    no      raw          the API of chat completions

`several` is any row with more than one response; its `scores`, `finish_reasons` and `response_ids` are lists, too.
* A table of TRL's has a column `step`; without one, `prompt` and `completion` are a data set's, and raw.

Nothing here is guessed: what a layout does not write (a finish reason, ids) is None. A score is given as it was
written, in its own unit.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from opdkit.types import FinishReason, UserError

Row = Mapping[str, Any]
Messages = tuple[Mapping[str, str], ...]
Form = Literal["raw", "templated", "stripped"]


@dataclass(frozen=True)
class Said:
    """A prompt and one response to it, written by anyone. Where ids are there, they are the truth and text is for
    people.

    `form` says what the prompt's text is: "raw" goes through the chat template; "templated" is what the model read;
    "stripped" is that without its special tokens, so the exact context is lost.
    """

    index: int  # of the response, in file order, from 0: `start=` of a reader that goes on
    prompt_text: str | None
    prompt_messages: Messages | None
    prompt_ids: tuple[int, ...] | None
    response_text: str | None
    response_ids: tuple[int, ...] | None
    finish_reason: FinishReason | None  # None: the writer did not say
    score: float | None  # in the writer's unit; None where ungraded
    prompt_id: str  # responses to one prompt share it
    source: str  # "file:line", counted from 1 (parquet: row)
    form: Form = "raw"

    @property
    def empty(self) -> bool:
        return not (self.response_text if self.response_ids is None else self.response_ids)


@dataclass(frozen=True)
class Layout:
    """`needs`: each group is met by any one of its columns. `shape` is a row that can be typed."""

    name: str
    needs: tuple[tuple[str, ...], ...]
    shape: str
    read: Callable[[Row, str], Iterator[Said]]

    def fits(self, row: Row) -> bool:
        return all(any(row.get(name) is not None for name in group) for group in self.needs)

    def missing(self, row: Row) -> int:
        return sum(not any(name in row for name in group) for group in self.needs)


# --- one reader per layout ----------------------------------------------------------------------------------


def _opdkit(row: Row, where: str) -> Iterator[Said]:
    yield _said(
        where,
        prompt=row.get("prompt", row.get("messages")),
        prompt_ids=_ids(row, "prompt_ids", where),
        response=row.get("response"),
        response_ids=_ids(row, "response_ids", where),
        finish=_finish(row.get("finish_reason"), where),
        score=_number(row.get("score")),
        prompt_id=row.get("prompt_id", row.get("id")),
    )


def _trl(row: Row, where: str) -> Iterator[Said]:
    form: Form = "stripped" if "step" in row and isinstance(row["prompt"], str) else "raw"
    score = _number(row.get("reward")) if "reward" in row else _only_reward(row)
    yield _said(where, prompt=row["prompt"], response=row["completion"], score=score, form=form)


def _verl(row: Row, where: str) -> Iterator[Said]:
    """`acc`, where a reward function gave it, is in [0, 1]; `score` is whatever the reward was."""
    score = _number(row.get("acc"))
    score = _number(row.get("score")) if score is None else score
    yield _said(where, prompt=row["input"], response=row["output"], score=score, form="stripped")


def _slime(row: Row, where: str) -> Iterator[Said]:
    tokens, length = _ids(row, "tokens", where) or (), row["response_length"]
    if isinstance(length, bool) or not isinstance(length, int) or not 0 <= length <= len(tokens):
        raise UserError(
            f"{where}: response_length is {length!r}, and there are {len(tokens)} tokens",
            hint="`tokens` holds the prompt and then response_length tokens of the response",
        )
    cut = len(tokens) - length
    yield _said(
        where,
        prompt=row.get("prompt"),
        prompt_ids=tokens[:cut] or None,
        response=row.get("response"),
        response_ids=tokens[cut:],
        finish={"completed": "stop", "truncated": "length"}.get(str(row.get("status"))),  # type: ignore[arg-type]
        score=_number(row.get("reward")),
        prompt_id=row.get("group_index"),
        form="templated",
    )


def _lm_eval(row: Row, where: str) -> Iterator[Said]:
    """One request per entry of `arguments`, as many responses to it as `resps` holds there."""
    requests, score = _requests(row["arguments"], where), _metric(row)
    answers = row["resps"]
    if not isinstance(answers, list) or len(answers) != len(requests):
        raise UserError(f"{where}: resps is not one list per request", hint=LAYOUTS["lm_eval"].shape)
    for context, given in zip(requests, answers, strict=True):
        for response in given if isinstance(given, list) else [given]:
            form: Form = "templated" if isinstance(context, str) else "raw"
            yield _said(
                where, prompt=context, response=response, score=score, prompt_id=row.get("doc_id"), form=form
            )


def _several(row: Row, where: str) -> Iterator[Said]:
    responses = next((row[name] for name in ("responses", "completions") if name in row), None)
    ids = row.get("response_ids", row.get("completion_ids"))
    count = len(responses if isinstance(responses, list) else ids if isinstance(ids, list) else ())
    columns = {
        "response": responses,
        "ids": ids,
        "score": row.get("scores", row.get("rewards")),
        "finish": row.get("finish_reasons"),
    }
    for name, column in columns.items():
        if column is not None and (not isinstance(column, list) or len(column) != count):
            raise UserError(f"{where}: the row has {count} responses and another number under {name!r}",
                            hint=LAYOUTS["several"].shape)  # fmt: skip
    for i in range(count):
        at = {name: None if column is None else column[i] for name, column in columns.items()}
        yield _said(
            where,
            prompt=row.get("prompt", row.get("messages")),
            prompt_ids=_ids(row, "prompt_ids", where),
            response=at["response"],
            response_ids=_ids(at, "ids", where),
            finish=_finish(at["finish"], where),
            score=_number(at["score"]),
            prompt_id=row.get("id"),
        )


def _messages_row(row: Row, where: str) -> Iterator[Said]:
    turns = _messages(row["messages"], where)
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        last = turns[-1]["role"] if turns else "nobody"
        raise UserError(
            f"{where}: the last of {len(turns)} messages is from {last!r}, so there is no response to read",
            hint=LAYOUTS["messages"].shape,
        )
    yield _said(
        where,
        prompt=list(turns[:-1]),
        response=turns[-1]["content"],
        finish=_finish(row.get("finish_reason"), where),
        score=_number(row.get("score", row.get("reward"))),
        prompt_id=row.get("id"),
    )


# fmt: off
LAYOUTS: Mapping[str, Layout] = {layout.name: layout for layout in (
    # the narrowest first: the first that fits is taken
    Layout("slime", (("tokens",), ("response_length",)),
           '{"prompt": "text", "tokens": [1, 2, 3], "response_length": 1, "response": "text", "status": "completed"}', _slime),
    Layout("lm_eval", (("arguments",), ("resps",)),
           '{"doc_id": 0, "arguments": {"gen_args_0": {"arg_0": "text"}}, "resps": [["text"]]}', _lm_eval),
    Layout("several", (("prompt", "messages", "prompt_ids"), ("responses", "completions")),
           '{"prompt": "text", "responses": ["text", "text"]}', _several),
    Layout("opdkit", (("prompt", "messages", "prompt_ids"), ("response", "response_ids")),
           '{"prompt": "text", "response": "text"}, with prompt_ids and response_ids where known', _opdkit),
    Layout("trl", (("prompt",), ("completion",)), '{"prompt": "text", "completion": "text"}', _trl),
    Layout("verl", (("input",), ("output",)), '{"input": "text", "output": "text", "score": 1.0}', _verl),
    Layout("messages", (("messages",),),
           '{"messages": [{"role": "user", "content": "text"}, {"role": "assistant", "content": "text"}]}', _messages_row),
)}
# fmt: on


def layout_of(row: Row) -> Layout | None:
    return next((layout for layout in LAYOUTS.values() if layout.fits(row)), None)


def nearest(row: Row) -> Layout:
    """The layout of which the fewest columns are missing; the plainest where all are."""
    plain = LAYOUTS["opdkit"]
    least = min((layout.missing(row) / len(layout.needs), name) for name, layout in LAYOUTS.items())
    return plain if least[0] == 1 else LAYOUTS[least[1]]


# --- parts of a row -----------------------------------------------------------------------------------------


def _said(
    where: str,
    *,
    prompt: Any = None,
    prompt_ids: tuple[int, ...] | None = None,
    response: Any = None,
    response_ids: tuple[int, ...] | None = None,
    finish: FinishReason | None = None,
    score: float | None = None,
    prompt_id: Any = None,
    form: Form = "raw",
) -> Said:
    messages = _messages(prompt, where) if isinstance(prompt, list | tuple) else None
    if prompt is not None and messages is None and not isinstance(prompt, str):
        raise UserError(f"{where}: the prompt is a {type(prompt).__name__}", hint="make it text or messages")
    text = _whole(prompt, where) if isinstance(prompt, str) else None
    if not (prompt_ids or messages or text):
        raise UserError(f"{where}: the prompt is empty", hint="fill the row, or take it out")
    return Said(
        index=0,  # the reader of the file counts
        prompt_text=text,
        prompt_messages=messages,
        prompt_ids=prompt_ids or None,
        response_text=None if response is None and response_ids is not None else _response(response, where),
        response_ids=None if response and not response_ids else response_ids,
        finish_reason=finish,
        score=score,
        prompt_id=_digest(text, messages, prompt_ids) if prompt_id is None else str(prompt_id),
        source=where,
        form="raw" if messages else form,
    )


def _response(value: Any, where: str) -> str:
    """Text, or the messages of one assistant turn. Several turns are a conversation: which one is meant?"""
    if isinstance(value, str):
        return _whole(value, where)
    turns = _messages(value, where) if isinstance(value, list | tuple) else ()
    if len(turns) == 1 and turns[0]["role"] == "assistant":
        return turns[0]["content"]
    what = f"{len(turns)} messages" if turns else f"a {type(value).__name__}"
    raise UserError(
        f"{where}: the response is {what}, not text or one assistant message",
        hint="one response per row; of a conversation, write the turns before the last as the prompt",
    )


def _messages(value: Any, where: str) -> Messages:
    if not isinstance(value, list | tuple):
        raise UserError(
            f"{where}: messages is a {type(value).__name__}, not a list", hint=LAYOUTS["messages"].shape
        )
    turns = []
    for turn in value:
        role, content = (
            (turn.get("role"), _content(turn.get("content"))) if isinstance(turn, dict) else ("", None)
        )
        if not isinstance(role, str) or not role or content is None:
            raise UserError(
                f"{where}: a message needs `role` and `content`, both text", hint=LAYOUTS["messages"].shape
            )
        turns.append({"role": _whole(role, where), "content": _whole(content, where)})
    return tuple(turns)


def _whole(text: str, where: str) -> str:
    """JSON can spell half a character (\\ud83d alone), which no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: half a character, \\u{ord(text[error.start]):04x}, at {error.start} of a text",
            hint="write the row again, cut between characters",
        ) from error
    return text


def _content(value: Any) -> str | None:
    """Text, or parts that are all text; None for what a text model cannot read."""
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else [None]
    texts = [
        part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts
    ]
    return "".join(texts) if texts and all(isinstance(text, str) for text in texts) else None  # type: ignore[arg-type]


def _ids(row: Row, name: str, where: str) -> tuple[int, ...] | None:
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(i) is int and i >= 0 for i in value):
        raise UserError(
            f"{where}: {name} is not a list of token ids", hint=f"{name}: [1, 2, 3], or leave it out"
        )
    return tuple(value)


def _finish(value: Any, where: str) -> FinishReason | None:
    """A server's other reasons ("tool_calls", "abort") are neither an end nor the limit."""
    if value is None or isinstance(value, str):
        return value if value in ("stop", "length") else None  # type: ignore[return-value]
    raise UserError(f"{where}: finish_reason is a {type(value).__name__}", hint='"stop", "length" or null')


def _number(value: Any) -> float | None:
    """Also a number under `score` or `acc` of an object: what reward functions of slime and verl return."""
    if isinstance(value, dict):
        value = value.get("score", value.get("acc"))
    if not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _only_reward(row: Row) -> float | None:
    """TRL names a column after each reward function; of several, their weights are not in the table."""
    told = {"step", "advantage", "prompt", "completion"}
    rewards = [value for name, value in row.items() if name not in told and _number(value) is not None]
    return _number(rewards[0]) if len(rewards) == 1 else None


_METRICS = ("exact_match", "acc", "acc_norm", "pass@1", "math_verify", "prompt_level_strict_acc")


def _metric(row: Row) -> float | None:
    named = row.get("metrics")
    names: Sequence[Any] = named if isinstance(named, list) else _METRICS
    values = (_number(row.get(name)) for name in names if isinstance(name, str))
    return next((value for value in values if value is not None), None)


def _requests(value: Any, where: str) -> list[Any]:
    """{"gen_args_0": {"arg_0": context, "arg_1": {…}}}, or the same as lists, → [context]."""
    requests = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(requests, list) or not requests:
        raise UserError(f"{where}: arguments holds no request", hint=LAYOUTS["lm_eval"].shape)
    return [_context(request, where) for request in requests]


def _context(request: Any, where: str) -> Any:
    parts = list(request.values()) if isinstance(request, dict) else request
    if not isinstance(parts, list) or not parts:
        raise UserError(f"{where}: a request without a context", hint=LAYOUTS["lm_eval"].shape)
    if len(parts) > 1 and isinstance(parts[1], str):
        raise UserError(
            f"{where}: a log-likelihood request: the model chose among given texts and generated nothing",
            hint="a task with output_type: generate_until, and --log_samples",
        )
    context = parts[0][0] if isinstance(parts[0], list) and len(parts[0]) == 1 else parts[0]
    return _chat(context) or context


def _chat(context: Any) -> list[Any] | None:
    """Models behind an API are asked in messages, written as JSON inside the text."""
    if not isinstance(context, str) or not context.startswith("[{"):
        return None
    try:
        turns = json.loads(context)
    except (ValueError, RecursionError):
        return None
    is_chat = isinstance(turns, list) and all(isinstance(turn, dict) and "role" in turn for turn in turns)
    return [{"role": turn["role"], "content": turn.get("content")} for turn in turns] if is_chat else None


def _digest(text: str | None, messages: Messages | None, ids: tuple[int, ...] | None) -> str:
    """A name for a prompt that has none, the same for the same prompt."""
    told = json.dumps([text, messages, ids if text is None and messages is None else None], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:12]
