"""How TRL's trainers are listened to: the student's own rollouts, as they come by on their way into the loss.

A tap stands before one method of one trainer object and hands on what it was given, untouched. What it copies are
token ids that were sampled anyway: no model is asked, nothing is drawn.

    DistillationTrainer   compute_loss(model, inputs): prompt_ids, prompt_mask, completion_ids, completion_mask
    GKDTrainer            generate_on_policy_outputs(model, inputs, …): only some steps are on-policy (lmbda), and
                          with seq_kd the teacher generates through the same method

Letters: B rows, P padded prompt width, T padded response width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from jaxtyping import Int
from torch import Tensor

from opdkit.types import Prompt, Rollout, UserError

Take = Callable[[list[Rollout]], None]
Wanted = Callable[[], bool]


def tap(trainer: Any, take: Take, *, wanted: Wanted) -> Callable[[], None]:
    """Hand rollouts to `take` whenever they are `wanted`; the returned function takes the tap away again."""
    if hasattr(trainer, "generate_on_policy_outputs"):
        return replace_method(trainer, "generate_on_policy_outputs", _gkd(trainer, take, wanted))
    return replace_method(trainer, "compute_loss", _distillation(trainer, take, wanted))


def refuse_unreadable(trainer: Any) -> None:
    """UserError for a trainer whose models or rollouts cannot be read from here."""
    if not (
        hasattr(trainer, "generate_on_policy_outputs") or hasattr(trainer, "_generate_and_score_completions")
    ):
        raise UserError(
            f"{type(trainer).__name__} has no student rollouts that opdkit knows how to read",
            hint="attach to TRL's DistillationTrainer or GKDTrainer; for saved rollouts: opd diagnose --help",
        )
    if getattr(trainer, "teacher_model", None) is None:
        raise UserError(
            f"{type(trainer).__name__} holds no teacher in this process: there is nothing to compare with",
            hint="give it teacher_model=…; for saved rollouts: opd diagnose --help",
        )
    if hasattr(trainer.processing_class, "image_processor"):
        raise UserError("only text is read, and this trainer has images", hint="leave OpdCallback out")
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise UserError(
            "weights sharded by DeepSpeed or FSDP cannot be read by one process alone",
            hint="train on one GPU or under plain DDP, or leave OpdCallback out",
        )


def replace_method(thing: Any, name: str, method: Callable[..., Any]) -> Callable[[], None]:
    """Put `method` before the one of the class, on this object only; the returned function undoes it."""
    setattr(thing, name, method)

    def undo() -> None:
        if (
            vars(thing).get(name) is method
        ):  # somebody may stand before us by now: then we stay, and hear nothing
            delattr(thing, name)

    return undo


def _distillation(trainer: Any, take: Take, wanted: Wanted) -> Callable[..., Any]:
    compute_loss = trainer.compute_loss

    @functools.wraps(compute_loss)
    def listening(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if model.training and wanted():  # not in its evaluations
            take(
                _rollouts(
                    trainer,
                    inputs["prompt_ids"],
                    inputs["prompt_mask"],
                    inputs["completion_ids"],
                    inputs["completion_mask"],
                    stop_ids=trainer.eos_token_ids,
                    trained=inputs.get("tool_mask"),
                )
            )
        return compute_loss(model, inputs, *args, **kwargs)

    return listening


def _gkd(trainer: Any, take: Take, wanted: Wanted) -> Callable[..., Any]:
    generate = trainer.generate_on_policy_outputs

    @functools.wraps(generate)
    def listening(model: Any, inputs: Any, generation_config: Any, *args: Any, **kwargs: Any) -> Any:
        made = generate(model, inputs, generation_config, *args, **kwargs)
        if wanted() and model is not trainer.accelerator.unwrap_model(trainer.teacher_model):
            ids, mask, _ = made
            width = inputs["prompts"].shape[1]
            take(
                _rollouts(
                    trainer,
                    ids[:, :width],
                    mask[:, :width],
                    ids[:, width:],
                    mask[:, width:],
                    stop_ids=_listed(generation_config.eos_token_id),
                )
            )
        return made

    return listening


def _rollouts(
    trainer: Any,
    prompt_ids: Int[Tensor, "B P"],
    prompt_mask: Int[Tensor, "B P"],
    response_ids: Int[Tensor, "B T"],
    response_mask: Int[Tensor, "B T"],
    *,
    stop_ids: Iterable[int],
    trained: Int[Tensor, "B T"] | None = None,
) -> list[Rollout]:
    """Padded rows as rollouts; rows without a response are left out. Ids only: texts are for those that are kept."""
    step, stops = trainer.state.global_step + 1, frozenset(stop_ids)
    prompts, responses = _unpadded(prompt_ids, prompt_mask), _unpadded(response_ids, response_mask)
    own = [None] * len(responses) if trained is None else _unpadded(trained, response_mask)
    return [
        Rollout(
            prompt=Prompt(id=f"{step}-{row}", ids=tuple(prompt), source=type(trainer).__name__),
            response_ids=tuple(response),
            finish_reason="stop" if response[-1] in stops else "length",
            trained=None if flags is None else tuple(map(bool, flags)),
            temperature=float(trainer.temperature),
            sampler=type(trainer).__name__,
        )
        for row, (prompt, response, flags) in enumerate(zip(prompts, responses, own, strict=True))
        if response
    ]


def _unpadded(values: Int[Tensor, "B T"], mask: Int[Tensor, "B T"]) -> list[list[int]]:
    """Per row what the mask keeps. A pad token inside a text is a token: its mask says so."""
    return [row[keep].tolist() for row, keep in zip(values.cpu(), mask.cpu().bool(), strict=True)]


def _listed(ids: int | Iterable[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
