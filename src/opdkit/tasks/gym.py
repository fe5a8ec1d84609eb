"""Prompts from a reasoning-gym generator, made in the child (see `gym_child`): distinct, and held out for
evaluation."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

from opdkit.tasks.worker import Worker
from opdkit.types import Prompt, UserError

if TYPE_CHECKING:
    from opdkit.config import GymTask

ITEMS_PER_REQUEST = 16
MAKE_SECONDS = 600.0  # for one request; the slowest generators take half a second per item
SEED_STRIDE = (
    1_000_003  # generators draw item i from seed + i: runs' seeds must lie further apart than sets are long
)
_TOKEN = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|[^\w\s]|_")


def gym_setup(cfg: GymTask, *, base_seed: int) -> dict[str, Any]:
    """What the child needs to know. Raises UserError for arguments that the task's own keys decide."""
    for key, instead in (("seed", "task.seed"), ("size", "task.train_size and task.eval_size")):
        if key in cfg.args:
            raise UserError(f"task.args.{key} is not for the generator", hint=f"set {instead}")
    seed = (cfg.seed + base_seed * SEED_STRIDE) % 2**32
    return {"type": "gym", "name": cfg.name, "args": cfg.args, "seed": seed, "extract": cfg.extract}


def gym_prompts(worker: Worker, cfg: GymTask) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """(train, evaluation): the first `eval_size` distinct questions are held out, the next `train_size` are
    for training, so evaluation stays the same whatever the size of the training set.

    Distinct by `question_key`. Raises UserError when the generator runs dry before both sets are full: no new
    question in 10 × as many draws as there are questions, and 100 more.
    """
    wanted = cfg.eval_size + cfg.train_size
    seen: set[str] = set()
    prompts: list[Prompt] = []
    draws, last_new = 0, 0
    while len(prompts) < wanted:
        if draws - last_new > 10 * len(prompts) + 100:
            raise _too_small(cfg, len(prompts))
        items = _make(worker, start=draws, count=min(1024, max(32, wanted - len(prompts))))
        for item in items:
            key = question_key(item["question"])
            if key not in seen and len(prompts) < wanted:
                seen.add(key)
                prompts.append(_prompt(item, cfg, seed=worker.setup["seed"]))
                last_new = draws
            draws += 1
    return tuple(prompts[cfg.eval_size :]), tuple(prompts[: cfg.eval_size])


def question_key(question: str) -> str:
    """Equal for questions that differ in case, space, or the order of operands.

    A line with numbers counts as the bag of its words, numbers and signs: "3 + 5" and "5 + 3" are one
    question, and so are "3 - 5" and "5 - 3", which costs some questions but lets none slip into both sets.
    Lines with brackets or without numbers keep their order, for there it is the question (grids, lists of
    lists, words to be sorted).

    >>> question_key("What is 3 + 5?") == question_key("what is  5 + 3?")
    True
    >>> question_key("[[0, 1]]") == question_key("[[1, 0]]")
    False
    """
    return "\n".join(_line_key(line) for line in question.casefold().splitlines() if line.strip())


def refusal(greeting: dict[str, Any], cfg: GymTask) -> UserError:
    """The child's reason for not opening the generator, as the user's error."""
    if greeting["refused"] == "missing":
        return UserError(f"task.type=gym needs {greeting['module']}", hint="pip install 'opdkit[tasks]'")
    message = greeting["message"].partition(": ")[2]
    if greeting["refused"] == "unknown":
        names = message.split()
        near = difflib.get_close_matches(cfg.name, names, n=1, cutoff=0.5)
        hint = f"task.name={near[0]}" if near else f"known: {', '.join(names)}"
        return UserError(f"no generator {cfg.name!r} in reasoning-gym", hint=hint)
    return UserError(f"task.args do not suit {cfg.name}: {message}", hint=f"change task.args, now {cfg.args}")


def _line_key(line: str) -> str:
    tokens = _TOKEN.findall(line)
    if any(token[0].isdigit() for token in tokens) and not {"[", "{"} & set(tokens):
        tokens.sort()
    return " ".join(tokens)


def _make(worker: Worker, *, start: int, count: int) -> list[dict[str, Any]]:
    stops = range(start, start + count, ITEMS_PER_REQUEST)
    requests = [{"op": "make", "start": i, "count": min(ITEMS_PER_REQUEST, start + count - i)} for i in stops]
    items: list[dict[str, Any]] = []
    for reply in worker.ask(requests, timeout_seconds=MAKE_SECONDS):
        if "failed" in reply:
            raise UserError(f"the generator failed: {reply['failed']}", hint="change task.args or task.seed")
        items += reply["items"]
    return items


def _prompt(item: dict[str, Any], cfg: GymTask, *, seed: int) -> Prompt:
    return Prompt(
        id=f"{cfg.name}:{seed}:{item['index']}",
        text=item["question"],
        answer=item["answer"],
        source=f"{cfg.name}[{item['index']}]",
        extra={"index": item["index"]},
    )


def _too_small(cfg: GymTask, found: int) -> UserError:
    left = found - cfg.eval_size
    hint = (
        f"task.train_size={left}"
        if left > 0
        else f"task.eval_size={found // 5} task.train_size={found - found // 5}"
    )
    return UserError(
        f"{cfg.name} gave {found} distinct questions, {cfg.eval_size} + {cfg.train_size} are wanted",
        hint=f"{hint}, or task.args with a larger range",
    )
