"""One thread reads the model; requests that came while it was busy, and ask for the same, are read together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

from torch import Tensor

from opdkit.models.load import LoadedModel
from opdkit.models.teacher import LocalTeacher
from opdkit.serve.scoring import Job
from opdkit.types import Needs, Rollout, Scores


class Full(RuntimeError):
    """More requests wait than may."""


class Batcher:
    """`submit` from any thread; `close` ends the thread, unanswered jobs are cancelled."""

    def __init__(self, loaded: LoadedModel, *, batch_tokens: int = 16384, waiting: int = 256):
        self.loaded, self.batch_tokens = loaded, batch_tokens
        self.batches = self.requests = 0  # read together / in all
        self._jobs: queue.Queue[tuple[Job, Future[list[Scores]]] | None] = queue.Queue(waiting)
        self._held: tuple[Job, Future[list[Scores]]] | None = None  # of another kind: the next batch's first
        self._thread = threading.Thread(target=self._run, name="opd-serve", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Future[list[Scores]]:
        """Raises Full when the queue is."""
        future: Future[list[Scores]] = Future()
        try:
            self._jobs.put_nowait((job, future))
        except queue.Full:
            raise Full(f"{self._jobs.maxsize} requests wait already") from None
        return future

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join(30.0)

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            live = [(job, future) for job, future in batch if future.set_running_or_notify_cancel()]
            if not live:
                continue
            self.batches, self.requests = self.batches + 1, self.requests + len(live)
            try:
                parts = self._read([job for job, _ in live])
            except BaseException as error:  # goes to whoever waits; this thread serves on
                for _, future in live:
                    future.set_exception(error)
                continue
            for (_, future), part in zip(live, parts, strict=True):
                future.set_result(part)

    def _next(self) -> list[tuple[Job, Future[list[Scores]]]] | None:
        """The first job that waits and those of its kind that wait right behind it, up to four forwards of tokens."""
        first, self._held = self._held or self._jobs.get(), None
        if first is None:
            return None
        batch, tokens = [first], first[0].tokens
        while tokens < 4 * self.batch_tokens:
            try:
                following = self._jobs.get_nowait()
            except queue.Empty:
                break
            if following is None:
                self._jobs.put(None)
                break
            if following[0].kind != first[0].kind:
                self._held = following
                break
            batch.append(following)
            tokens += following[0].tokens
        return batch

    def _read(self, jobs: Sequence[Job]) -> list[list[Scores]]:
        first = jobs[0]
        head = replace(self.loaded.head, rows=first.rows)
        rollouts = [r for job in jobs for r in job.rollouts]
        ids = None if first.ids is None else [i for job in jobs for i in job.ids or ()]
        scores = self._scores(replace(self.loaded, head=head), first, rollouts, ids)
        parts, start = [], 0
        for job in jobs:
            parts.append(scores[start : start + len(job.rollouts)])
            start += len(job.rollouts)
        return parts

    def _scores(
        self, loaded: LoadedModel, first: Job, rollouts: Sequence[Rollout], ids: Sequence[Tensor] | None
    ) -> list[Scores]:
        """Numbers at ids from the head, hidden states as they are; a forward for each, since few ask for both."""
        teacher = LocalTeacher(
            loaded, temperature=first.temperature, payload="ids", batch_tokens=self.batch_tokens
        )
        if not first.needs.full:
            return teacher.score(rollouts, needs=first.needs, ids=ids)
        hidden = LocalTeacher(loaded, batch_tokens=self.batch_tokens).score(rollouts, needs=Needs(full=True))
        rest = replace(first.needs, full=False)
        if rest == Needs():
            return hidden
        return [
            replace(named, hidden=states.hidden)
            for named, states in zip(teacher.score(rollouts, needs=rest, ids=ids), hidden, strict=True)
        ]
