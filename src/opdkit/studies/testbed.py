"""`opd study build testbed`: the models of a family, made by the product's own stories and cached by content.

    OUT/runs/NAME-KEY     the run that made a model: metrics, report, checkpoint, as of any run
    OUT/models/NAME-KEY   the model, rounded to bfloat16; made.json beside it: key, cost, scores

A model whose key is there is not made again; a run that was cut short goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opdkit.config import Config, WorldTask, build, dump_toml
from opdkit.models.load import open_model, pick_device
from opdkit.models.sampler import LocalSampler
from opdkit.run.disk import erase
from opdkit.run.rows import as_lines
from opdkit.studies.bodies import rounded_copy, write_body
from opdkit.studies.recipes import Family, Recipe
from opdkit.tasks import encode, load_task, worlds
from opdkit.train import Talk, run_story
from opdkit.train.examine import examine
from opdkit.types import UserError

READINGS: Mapping[str, Mapping[str, float]] = {
    "T = 0.7, top-p 0.95": {"temperature": 0.7, "top_p": 0.95},
    "greedy": {"temperature": 0.0, "top_p": 1.0},
    "T = 1": {"temperature": 1.0, "top_p": 1.0},
}
"""How accuracy is read: the paper's protocol, the mode, the distribution trained on."""


@dataclass(frozen=True)
class Made:
    """A model of the testbed. `seconds` of wall clock it took; `scores` by reading, each with its kinds."""

    name: str
    key: str
    path: Path
    seconds: float
    parameters: int
    scores: Mapping[str, Mapping[str, Any]]


class Workshop:
    """A family's models in a folder. `make` builds what is asked for and what that needs."""

    def __init__(self, family: Family, out: Path, *, talk: Callable[[Config], Talk], problems: int = 1024):
        self.family, self.out, self.talk, self.problems = family, out, talk, problems
        self.world = worlds.open_world(WorldTask(**family.task))
        self.content = _content(self.world)

    def make(self, name: str) -> Made:
        """The model, from the cache if its content is there."""
        recipe, key = self.family.recipe(name), self.family.key(name, world=self.content)
        place = self.out / "models" / f"{name}-{key}"
        if (place / "made.json").is_file():
            return _read(place)
        parents = {parent: self.make(parent) for parent in recipe.needs}
        began = time.perf_counter()
        run = self._train(recipe, key, parents)
        parameters = rounded_copy(run / "checkpoints" / f"step_{recipe.settings['steps']}" / "model", place)
        seconds = time.perf_counter() - began
        scores = {reading: self.score(place, dials) for reading, dials in READINGS.items()}
        made = {"name": name, "key": key, "seconds": seconds, "parameters": parameters, "scores": scores}
        (place / "made.json").write_text(json.dumps(made, indent=1) + "\n")
        return _read(place)

    def score(self, model: Path, reading: Mapping[str, float]) -> dict[str, Any]:
        """The evaluation row on the held-out problems."""
        settings = {"task": {"train_size": 1}, "eval": {"responses": 1, **reading}}
        return examine(self.config(settings, student=str(model)))

    def config(self, settings: Mapping[str, Any], *, student: str, **more: Any) -> Config:
        """A run in this world: `settings` over what all runs of the testbed share."""
        shared: dict[str, Any] = {
            "student": student,
            "eval": {"responses": 1},
            "save": {"every": 0, "rollouts_every": 100},
            "diagnostics": {"bins": 4},
            "threads": 1,  # models this small gain nothing from more
        }
        task = {**self.family.task, "eval_size": self.problems, **settings.get("task", {})}
        sampling = {"max_tokens": self.world.max_tokens, "batch_rows": 1024, **settings.get("sampling", {})}
        merged = {**shared, **settings, **more, "task": task, "sampling": sampling}
        return build(merged, origin=f"the testbed's recipe for {student}")

    def _train(self, recipe: Recipe, key: str, parents: Mapping[str, Made]) -> Path:
        run = self.out / "runs" / f"{recipe.name}-{key}"
        start = self.out / "models" / f"start-{recipe.name}-{key}"
        if recipe.body is not None:
            write_body(start, recipe.body, world=self.world, seed=recipe.seed)
        else:
            assert recipe.start is not None
            start = parents[recipe.start].path
        settings = dict(recipe.settings)
        if recipe.source != "texts":
            assert recipe.of is not None
            settings["task"] = {**settings["task"], "demonstrations": str(self._shown(recipe, key, parents))}
        config = self.config(settings, student=str(start), run=str(run))
        _begin_anew_if_cut_short_under_other_settings(run, config)
        finish(config, talk=self.talk(config))
        return run

    def _shown(self, recipe: Recipe, key: str, parents: Mapping[str, Made]) -> Path:
        """A file of what is imitated instead of the world's texts."""
        path = self.out / "models" / f"shown-{recipe.name}-{key}.jsonl"
        assert recipe.of is not None
        other = parents[recipe.of]
        if recipe.source == "kept":
            kept = self.out / "runs" / f"{other.name}-{other.key}" / "kept_0.jsonl"
            rows = [json.loads(line) for line in kept.read_text().splitlines()]
            rows = [{**row, "response": f"{row['response']} {self.world.ends[1]}"} for row in rows]
        elif recipe.source == "mixed":
            assert recipe.start is not None
            own = self._samples(parents[recipe.start].path, recipe)
            rows = every_other(own, self._samples(other.path, recipe))
        else:
            rows = self._samples(other.path, recipe)
        path.write_bytes(as_lines(rows))
        return path

    def _samples(self, model: Path, recipe: Recipe) -> list[dict[str, Any]]:
        """Responses of a model to the recipe's own prompts, at T = 1; those that came to an end."""
        config = self.config(recipe.settings, student=str(model))
        loaded = open_model(config.student, device=pick_device("cpu"))
        with load_task(config.task) as task:
            prompts = encode(task.train, loaded.tokenizer, config.task)
        drawn = LocalSampler(loaded).sample(
            prompts, sampling=config.sampling.model_copy(update={"responses": 1}), seed=config.seed, step=0
        )
        return [
            {
                "id": r.prompt.id,
                "prompt": r.prompt.text,
                "response": loaded.tokenizer.decode(r.response_ids),
            }
            for r in drawn
            if r.finish_reason == "stop"
        ]


def every_other(
    own: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Of the prompts that both answered, in their order: first an own answer, then the other's, and so on.

    >>> own, others = ([{"id": i, "by": who} for i in ids] for who, ids in (("own", "abc"), ("other", "bcd")))
    >>> every_other(own, others)
    [{'id': 'b', 'by': 'own'}, {'id': 'c', 'by': 'other'}]
    """
    theirs = {row["id"]: row for row in others}
    both = [(row, theirs[row["id"]]) for row in own if row["id"] in theirs]
    return [dict(pair[i % 2]) for i, pair in enumerate(both)]


def _begin_anew_if_cut_short_under_other_settings(run: Path, config: Config) -> None:
    """How many problems it is examined on is no part of a model; a half-made one of another size could not be gone on with."""
    written = run / "config.toml"
    if written.is_file() and written.read_text() != dump_toml(config):
        erase(run)


def finish(config: Config, *, talk: Talk) -> Path:
    """Run a story to its end: begun, gone on with, or left alone if it is done.

    Raises UserError where another run is in its place; ends the program as `opd train` does if a signal stops it.
    """
    if (config.run / "config.toml").is_file():
        if (config.run / "config.toml").read_text() != dump_toml(config):
            raise UserError(
                f"{config.run} is another run", hint=f"choose another folder, or rm -r {config.run}"
            )
        done = (config.run / "checkpoints" / f"step_{config.steps}" / "manifest.json").is_file()
        if done:
            talk.note(
                f"{config.run} was finished before and is read as it is (rm -r {config.run} to run again)"
            )
        code = 0 if done else run_story(config, resume=config.run, talk=talk)
    else:
        code = run_story(config, talk=talk)
    if code:
        raise SystemExit(code)
    return config.run


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table.

    >>> table(["a", "b"], [["1", "|2|"]])
    ['| a | b |', '| --- | --- |', '| 1 | \\\\|2\\\\| |']
    """
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [head, ["---"] * len(head), *rows]]
    return [" | ".join(["", *row, ""]).strip() for row in cells]


def model_lines(made: Sequence[Made]) -> list[str]:
    """The table of cost and scores."""
    rows = [
        [m.name, f"{m.parameters:,}", f"{m.seconds:.0f}", *(_cell(m.scores[r]) for r in READINGS)]
        for m in made
    ]
    return table(["model", "parameters", "seconds", *READINGS], rows)


def _cell(score: Mapping[str, Any]) -> str:
    kinds = " · ".join(f"{name} {value:.2f}" for name, value in score["by_group"].items())
    return f"{score['avg_at_k']:.3f} ({kinds})"


def _read(place: Path) -> Made:
    return Made(path=place, **json.loads((place / "made.json").read_text()))


def _content(world: Any) -> str:
    """A hash of a world's dials and of what it says: words and some texts. Not of its code: that may move."""
    texts = [world.texts(100, seed=0, noisy=noisy) for noisy in (True, False)]
    told = [dataclasses.asdict(world), world.vocabulary, world.ends, texts]
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=8).hexdigest()
