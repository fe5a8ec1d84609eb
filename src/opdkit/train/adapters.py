"""The student of a run as it is opened: all its weights, or a frozen base with an adapter that is trained."""

from __future__ import annotations

from pathlib import Path

import torch

from opdkit.config import Config, ModelConfig, SelfTeacher
from opdkit.models.adapter import adapt, merged_state, require_peft, take_up
from opdkit.models.adapter_folder import adapter_folder, read_tensors, refuse_another_shape
from opdkit.models.load import LoadedModel, check_weights, open_model
from opdkit.types import UserError

_APART = {torch.bfloat16: 3e-2}
"""How far a merged weight may be from the one saved, of its largest: sums in another order. Others: 1e-5."""


def open_student(config: Config, *, rows: int, device: torch.device, saved: Path | None) -> LoadedModel:
    """As the run begins, or as the checkpoint `saved` has it.

    All weights: those of the checkpoint's model. An adapter: the base that the config names, which is not in a
    checkpoint, and the adapter that is; a run that begins from an adapter folder goes on with that one.
    """
    ref, lora = config.student, config.student.lora
    if lora is None:
        if saved is not None:
            ref = ModelConfig(model=str(saved / "model"), dtype=ref.dtype)
        return open_model(ref, device=device, rows=rows)
    loaded = open_model(ref, device=device, rows=rows, merge=False)
    begun = adapter_folder(ref.model)
    if begun is not None:
        refuse_another_shape(begun, lora)
    adapt(loaded.model, lora, seed=config.seed, name=loaded.name)
    folder = saved / "adapter" if saved is not None else None if begun is None else begun.folder
    if folder is not None:
        take_up(loaded.model, read_tensors(folder), source=str(folder))
    if saved is not None:
        _refuse_another_base(loaded, saved)
    return loaded


def check_student(config: Config, *, resumed: bool) -> None:
    """UserError where what will be read is missing or damaged; headers only. A resumed run has its student in its checkpoint."""
    if config.student.lora is not None:
        require_peft()
    if not resumed or config.student.lora is not None:
        check_weights(config.student)


def check_engine(config: Config) -> None:
    """UserError where an engine would have to read an adapter folder."""
    if adapter_folder(config.student.model) is not None:
        raise UserError(
            f"sampling.type=vllm reads the student's folder itself, and {config.student.model} is an adapter",
            hint="student.model=CHECKPOINT/model, which is the merged model, or 'sampling={type=\"local\"}'",
        )


def base_is_teacher(config: Config, cfg: SelfTeacher, *, ranks: int) -> bool:
    """Whether the student of step 0 is in memory already: a fresh adapter's base, whole and of the teacher's dtype."""
    student = config.student
    fresh = student.lora is not None and adapter_folder(student.model) is None
    return fresh and cfg.moves_every == 0 and cfg.dtype == student.dtype and ranks == 1


def _refuse_another_base(loaded: LoadedModel, saved: Path) -> None:
    """UserError where the base is not the one that was trained on: with its adapter it must be the model that was saved."""
    from safetensors import safe_open

    ours = merged_state(loaded.model, loaded.model.state_dict())
    for path in sorted((saved / "model").glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                held, mine = file.get_tensor(name), ours.get(name)
                if mine is None or mine.shape != held.shape or not _near(mine.cpu(), held):
                    raise UserError(
                        f"{loaded.name} is not the base that {saved} was trained on: {name} differs",
                        hint=f"put the base back, or begin from the merged model: student.model={saved}/model run=NAME",
                    )


def _near(ours: torch.Tensor, held: torch.Tensor) -> bool:
    largest = float(held.abs().max()) if held.numel() else 0.0
    return float((ours.double() - held.double()).abs().max()) <= _APART.get(held.dtype, 1e-5) * largest
