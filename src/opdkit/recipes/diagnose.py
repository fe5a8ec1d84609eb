"""`opd diagnose`: the same numbers and the same verdict for rollouts made by anyone.

    a file of rollouts → ids as the student reads them → both models read them, piece by piece → rules → verdict

Pieces are kept as they are read, so a long reading that was stopped goes on; the file itself is never whole in memory.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from opdkit.config import Config, LocalTeacher
from opdkit.diagnostics.verdict import Value, judge
from opdkit.models.load import (
    LoadedModel,
    check_weights,
    open_model,
    open_tokenizer,
    pick_device,
    shared_rows,
)
from opdkit.models.load import open_config as read_config
from opdkit.models.pair import Reader
from opdkit.recipes.coherence import bounded_dimensions, coherence, refuse_others
from opdkit.recipes.document import Opinion, document
from opdkit.recipes.preflight import Say, remedies
from opdkit.recipes.probe import Number, Piece, numbers, read
from opdkit.run.disk import append_line
from opdkit.run.rows import read_rows, to_json
from opdkit.tasks import encode
from opdkit.tasks.rollouts import Said, read_rollouts
from opdkit.types import Finding, Grade, Prompt, Rollout, UserError

PIECE = 32
"""Rollouts read at once."""


def diagnose(
    config: Config,
    path: Path,
    *,
    layout: str,
    limit: int | None,
    keep: Path | None,
    source: str,
    say: Say,
    gradients: int = 0,
) -> dict[str, Any]:
    """The document of the rollouts in `path` under `config.student` and `config.teacher`.

    `keep`: a JSONL file of pieces read so far; the same reading begun again goes on behind them. `limit`: at most so
    many rollouts. `gradients`: of the first so many, the gradient of every position as well.

    UserError for a file that cannot be read and for models that do not share their ids.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    began = time.perf_counter()
    teacher = config.teacher
    assert teacher is not None and teacher.type == "local"
    if gradients:
        refuse_others(config.objective)
    left_out: list[str] = []
    first = next(
        iter(read_rollouts(path, layout=layout))
    )  # damage in the file shows before a model is loaded
    ours, theirs, rows = _readers(config, teacher)
    student = ours.loaded
    say(f"{path}: prompts as {first.form} text" if first.prompt_ids is None else f"{path}: prompts as ids")
    piece, refused = Piece(), 0
    with _Pieces(keep, key=_key(config, path, layout)) as kept:
        piece, start = kept.piece, kept.read
        if start:
            say(f"going on behind {start} rollouts")
        said = read_rollouts(path, layout=layout, start=start, left_out=left_out)
        for some in _chunks(islice(said, None if limit is None else max(0, limit - start))):
            rollouts = rollouts_of(
                some, student, config, room=min(student.max_length, theirs.loaded.max_length)
            )
            refused += len(some) - len(rollouts)
            new = read(rollouts, student=ours, teacher=theirs, max_tokens=config.sampling.max_tokens)
            kept.add(new, read=some[-1].index + 1)
            piece += new
            say(f"{len(piece.rows)} rollouts read")
    if not piece.rows:
        raise UserError(
            f"no rollout of {path} could be read by both models", hint="are they of this student?"
        )
    metrics = numbers(piece, vocabulary=rows, seed=config.seed)
    if gradients:
        metrics |= _gradients(config, path, ours, theirs, layout=layout, count=gradients, say=say)
    verdict, findings = judge(
        {n: Value(m.value, m.low, m.high) for n, m in metrics.items()},
        remedies=remedies(config, source=source),
        static=_reservations(first, left_out, refused, piece),
        counts={n: m.count for n, m in metrics.items()},
    )
    return document(
        "diagnose",
        Opinion(teacher.model, verdict, findings, metrics, piece),
        student=config.student.model,
        cost={
            "rollouts": len(piece.rows),
            "tokens": sum(row.length for row in piece.rows),
            "seconds_expected": None,
            "seconds": time.perf_counter() - began,
        },
    )


def _readers(config: Config, teacher: LocalTeacher) -> tuple[Reader, Reader, int]:
    """Student and teacher, and how many ids they share. UserError where they do not."""
    tokenizers = open_tokenizer(config.student), open_tokenizer(teacher)
    rows = shared_rows(
        *tokenizers, student_config=read_config(config.student), teacher_config=read_config(teacher)
    )
    check_weights(config.student)
    check_weights(teacher)
    device = pick_device(config.device)
    ours = _reader(open_model(config.student, device=device, rows=rows), config.sampling.temperature)
    return ours, _reader(open_model(teacher, device=device, rows=rows), teacher.temperature), rows


def _gradients(
    config: Config, path: Path, student: Reader, teacher: Reader, *, layout: str, count: int, say: Say
) -> dict[str, Number]:
    """Of the first `count` rollouts of the file, whatever was read before a stop."""
    room = min(student.loaded.max_length, teacher.loaded.max_length)
    said = list(islice(read_rollouts(path, layout=layout, left_out=[]), count))
    rollouts = rollouts_of(said, student.loaded, config, room=room)
    dimensions = bounded_dimensions(student.loaded, rollouts)
    sketched = "" if dimensions is None else f", sketched to {dimensions} numbers each"
    say(f"gradients of {sum(r.length for r in rollouts)} positions{sketched}")
    return coherence(
        student.loaded,
        teacher.loaded,
        rollouts,
        objective=config.objective,
        temperature=student.temperature,
        teacher_temperature=teacher.temperature,
        dimensions=dimensions,
        seed=config.seed,
    )


def _reader(loaded: LoadedModel, temperature: float) -> Reader:
    return Reader(loaded, temperature, loaded.stop_ids)


def _chunks(said: Iterator[Said]) -> Iterator[list[Said]]:
    while some := list(islice(said, PIECE)):
        yield some


def rollouts_of(said: Sequence[Said], student: LoadedModel, config: Config, *, room: int) -> list[Rollout]:
    """With ids as the student reads them; what has no room in both contexts, or no row in both models, is left out."""
    found = []
    for one in said:
        prompt = _prompt(one, student, config)
        ids = one.response_ids or _ids(one, student)
        fits = len(prompt.ids) + len(ids) <= room and max((*prompt.ids, *ids), default=0) < student.head.rows
        if ids and prompt.ids and fits:
            found.append(
                Rollout(
                    prompt=prompt,
                    response_ids=ids,
                    finish_reason=one.finish_reason or ("stop" if ids[-1] in student.stop_ids else "unknown"),
                    text=one.response_text or "",
                    grade=None if one.score is None else Grade(one.score),
                    sampler="file",
                )
            )
    return found


def _ids(said: Said, student: LoadedModel) -> tuple[int, ...]:
    """Of text; a response that is known to have ended by itself gets the end token it lost as text."""
    ids = student.tokenizer(said.response_text or "", add_special_tokens=False)["input_ids"]
    end = student.tokenizer.eos_token_id
    if ids and said.finish_reason == "stop" and end is not None and ids[-1] not in student.stop_ids:
        ids = [*ids, end]
    return tuple(ids)


def _prompt(said: Said, student: LoadedModel, config: Config) -> Prompt:
    bare = Prompt(
        id=said.prompt_id, text=said.prompt_text, messages=said.prompt_messages, ids=said.prompt_ids or ()
    )
    if bare.ids:
        return bare
    raw = said.form == "raw" and bool(getattr(student.tokenizer, "chat_template", None))
    task = config.task.model_copy(update={"chat_template": raw and config.task.chat_template})
    return encode([replace(bare, source=said.source)], student.tokenizer, task)[0]


def _reservations(first: Said, left_out: Sequence[str], refused: int, piece: Piece) -> list[Finding]:
    """What limits what can be said of these rollouts."""
    found = []
    if first.prompt_ids is None and first.form == "stripped":
        found.append(
            Finding(
                "context_stripped",
                "warning",
                "prompts were written without their special tokens, so the models read another context than the "
                "sampler did: the first positions are not to be trusted",
                remedy="",
                rule="prompts as ids, or as the model read them",
                source="docs/check.md",
            )
        )
    if first.response_ids is None:
        found.append(
            Finding(
                "responses_as_text",
                "info",
                "responses are text: encoded anew, tokens may differ from those drawn",
            )
        )
    if left_out or refused:
        found.append(
            Finding(
                "rows_left_out",
                "warning",
                f"{len(left_out)} rows hold no response, {refused} have no room or no token in both models"
                + (f"; the first: {left_out[0]}" if left_out else ""),
                numbers={"unreadable": len(left_out), "refused": refused, "read": len(piece.rows)},
            )
        )
    return found


class _Pieces:
    """Pieces on disk: one line says what is read, then a line per piece. Without a place, nothing is kept."""

    def __init__(self, place: Path | None, *, key: str):
        self.place, self.key = place, key
        self.piece, self.read = Piece(), 0

    def __enter__(self) -> _Pieces:
        if self.place is None:
            return self
        rows = read_rows(self.place)
        if not rows:
            self.place.parent.mkdir(parents=True, exist_ok=True)
            append_line(self.place, line=to_json({"reading": self.key}).encode())
        elif rows[0].get("reading") != self.key:
            raise UserError(
                f"{self.place} holds another reading (other models, settings or rollouts)",
                hint="--keep another file, or delete it",
            )
        for row in rows[1:]:
            self.piece += Piece.from_json(row["piece"])
            self.read = int(row["read"])
        return self

    def __exit__(self, *error: object) -> None: ...

    def add(self, piece: Piece, *, read: int) -> None:
        if self.place is not None:
            append_line(self.place, line=to_json({"read": read, "piece": piece.as_json()}).encode())


def _key(config: Config, path: Path, layout: str) -> str:
    """Of what a piece depends on."""
    told: Mapping[str, Any] = {
        "student": config.student.model_dump(mode="json"),
        "teacher": None if config.teacher is None else config.teacher.model_dump(mode="json"),
        "task": config.task.model_dump(mode="json"),
        "sampling": [config.sampling.temperature, config.sampling.max_tokens],
        "rollouts": str(path.resolve()),
        "layout": layout,
    }
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=16).hexdigest()
