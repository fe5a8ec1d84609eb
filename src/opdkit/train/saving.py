"""A checkpoint of a run: what another start needs to go on bit for bit."""

from __future__ import annotations

from pathlib import Path

from opdkit.models.adapter import write_adapter
from opdkit.models.adapter_folder import base_of
from opdkit.models.teacher import LocalTeacher
from opdkit.run.checkpoint import save_checkpoint
from opdkit.train.stage import Stage
from opdkit.train.teachers import known_of


def save(stage: Stage, done: int) -> None:
    """A checkpoint after `done` updates: a Hugging Face folder, optimizer tensors, counters.

    Gathered by all ranks, written by one.
    """
    learner = stage.learner
    weights, tensors = learner.weights(), {"optimizer": learner.optimizer_tensors()}
    adapter, (base, _) = learner.adapter(), base_of(stage.config.student)
    teacher, cfg = stage.teacher, stage.config.teacher
    if isinstance(teacher, LocalTeacher) and cfg is not None and cfg.type == "self" and cfg.moves_every:
        tensors["teacher"] = {k: v.clone() for k, v in teacher.loaded.model.state_dict().items()}

    def write(folder: Path) -> None:
        learner.student.model.save_pretrained(folder / "model", state_dict=weights)
        learner.student.loaded.tokenizer.save_pretrained(folder / "model")
        if adapter:
            place = folder / "adapter"
            write_adapter(place, learner.student.model, adapter, base=base.model, revision=base.revision)

    if stage.folder is not None:
        save_checkpoint(
            stage.folder.path / "checkpoints",
            done,
            write=write,
            tensors=tensors,
            state={"learner": learner.state(), "world": stage.world.size, "known": known_of(teacher)},
            keep=stage.config.save.keep,
        )
    stage.world.barrier()
