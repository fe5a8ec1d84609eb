"""TRL's side of a row, seen from outside: what goes into the student's `generate` and comes out, lengths forced there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PrinterCallback

from opdkit.types import Prompt, Rollout
from trainers import PEERS, make
from weights import Weights
from work import HELD_OUT, Work


class EndAt(LogitsProcessor):
    """Row i ends at lengths[i]: its end token is banned before and forced there."""

    def __init__(self, lengths: list[int], *, prompt_width: int, end: int):
        self.lengths, self.prompt_width, self.end = torch.tensor(lengths), prompt_width, end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        last = input_ids.shape[1] - self.prompt_width + 1 >= self.lengths
        scores = scores.masked_fill(last[:, None], -torch.inf)
        scores[:, self.end] = torch.where(last, 0.0, -torch.inf)
        return scores


@dataclass
class Generations:
    """Stands before the model's `generate`: forces lengths, and keeps what went in and what came out."""

    generate: Callable[..., Any]
    work: Work
    end: int
    calls: int = 0
    prompts: list[Prompt] = field(default_factory=list)  # of the latest step, each once
    contexts: list[tuple[int, ...]] | None = None  # what a self-teacher reads, per row of the latest step
    first: list[Rollout] = field(default_factory=list)
    first_contexts: list[tuple[int, ...]] | None = None

    def __call__(self, **kwargs: Any) -> Any:
        ids, lengths = kwargs["input_ids"], self.work.of_step(self.calls)
        assert bool(kwargs["attention_mask"].all()), "prompts are of one length, so nothing is padded"
        assert len(ids) == self.work.rows, f"{len(ids)} rows were asked for in one call, not {self.work.rows}"
        if lengths is not None:
            forced = EndAt(lengths, prompt_width=ids.shape[1], end=self.end)
            kwargs["logits_processor"] = LogitsProcessorList([forced])
        made = self.generate(**kwargs)
        responses = (made if torch.is_tensor(made) else made.sequences)[:, ids.shape[1] :]
        each = self.work.responses
        self.prompts = [
            Prompt(id=f"{self.calls}-{i}", ids=tuple(row)) for i, row in enumerate(ids[::each].tolist())
        ]
        self.first = self.first or self._rollouts(responses)
        self._check(responses, lengths)
        self.calls += 1
        return made

    def _rollouts(self, responses: torch.Tensor) -> list[Rollout]:
        found = []
        prompts = [prompt for prompt in self.prompts for _ in range(self.work.responses)]
        for prompt, row in zip(prompts, responses.tolist(), strict=True):
            response = row[: row.index(self.end) + 1] if self.end in row else row
            found.append(Rollout(prompt, tuple(response), "stop" if self.end in row else "length"))
        return found

    def _check(self, responses: torch.Tensor, lengths: list[int] | None) -> None:
        """The same number of tokens on both sides, or the ratio is of two different things."""
        made = [r.length for r in self._rollouts(responses)]
        assert made == (lengths or [self.work.new_tokens] * self.work.rows), (
            f"lengths were not forced: {made}"
        )

    def watch(self, builder: Any) -> None:
        """Stands before the builder of a self-teacher's prompts, and keeps them without padding."""
        build = builder.build

        def seen(*args: Any, **kwargs: Any) -> Any:
            made = build(*args, **kwargs)
            prompts = slice(None, -self.work.new_tokens)
            ids, masks = (made[f"teacher_{name}"][:, prompts] for name in ("input_ids", "attention_mask"))
            self.contexts = [tuple(i[m.bool()].tolist()) for i, m in zip(ids, masks, strict=True)]
            self.first_contexts = self.first_contexts or self.contexts
            return made

        builder.build = seen


def trainer(work: Work, weights: Weights, folder: str) -> tuple[Any, Generations]:
    """TRL's trainer with its `generate` watched, ready to train."""
    peer, tokenizer, student = PEERS[work.peer], weights.tokenizer(), weights.student()
    generations = Generations(student.generate, work, tokenizer.eos_token_id)
    student.generate = generations
    made = make(
        peer,
        work,
        folder=folder,
        student=str(weights.student_folder) if peer.named else student,
        teacher=weights.teacher() if peer.teacher_model else None,
        tokenizer=tokenizer,
        rows=weights.prompts()[HELD_OUT:],
    )
    made.remove_callback(PrinterCallback)  # stdout is for records
    if hasattr(made, "teacher_context_builder"):
        generations.watch(made.teacher_context_builder)
    return made, generations
