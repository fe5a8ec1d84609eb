"""What kind of run it is, in its own words: every story is judged by what it set out to do, and by nothing else."""

from collections.abc import Callable, Mapping
from pathlib import PurePath

from opdkit.report.change import HARDLY, STILL_FOLD, change, response_tokens, responses_per_step
from opdkit.report.read import Run
from opdkit.report.text import number, percent, shown
from opdkit.report.words import FEWEST_STEPS, Verdict, alignment, read_first, told

NOTABLE = 0.03  # of accuracy: below it two stretches of training rollouts differ by chance


def introduction(run: Run) -> str:
    """What was trained how, on what, for how long."""
    what = _INTRODUCTIONS.get(run.story, _other)(run)
    tokens = response_tokens(run)
    amount = f", about {shown(tokens)} response tokens" if tokens else ""
    return f"{student(run)} {what}: {_steps(run)}{amount}."


def heading(run: Run) -> str:
    """What `progress` is about."""
    return "Alignment" if run.taught else "Training"


def progress(run: Run) -> Verdict:
    """Whether the run did what its story is for."""
    return _VERDICTS.get(run.story, alignment)(run)


# --- in one sentence ----------------------------------------------------------------------------------------


def _distill(run: Run) -> str:
    objective = run.config.get("objective.preset")
    aim = f" with the objective “{objective}”" if objective else ""
    return f"learned from {teacher(run)} on its own rollouts{_on(run)}{aim}"


def _sft(run: Run) -> str:
    return f"imitated {_count(run, 'demonstrations')}{_on(run)}, word for word (supervised fine-tuning)"


def _grpo(run: Run) -> str:
    group = number(run.config.get("sampling.responses"))
    compared = f", {shown(group)} responses to a problem compared with each other" if group else ""
    return f"was trained by group-relative policy gradient on the grader's word alone{_on(run)}{compared}"


def _improve(run: Run) -> str:
    kept = run.values("kept_fraction")
    share = f" ({percent(kept[-1])} of the last round's responses)" if kept else ""
    return f"imitated those of its own responses that turned out right{share}{_on(run)} (expert iteration)"


def _push_down(run: Run) -> str:
    share = number(run.config.get("push_down.share"))
    told_share = f" least likely {percent(share)} of its own tokens" if share else " own unlikely tokens"
    return f"made the{told_share} less likely still{_on(run)}: the control, in which no teacher takes part"


def _other(run: Run) -> str:
    return f"was trained by the story “{run.story}”{_on(run)}"


_INTRODUCTIONS: Mapping[str, Callable[[Run], str]] = {
    "distill": _distill,
    "sft": _sft,
    "grpo": _grpo,
    "improve": _improve,
    "push_down": _push_down,
}


def student(run: Run) -> str:
    """What the student is called in a sentence."""
    return _model(run.config.get("student.model") or run.config.get("student") or "An unnamed student")


def _model(name: object) -> str:
    """A hub's name as it is, a folder of this machine by its end; the whole path is under the settings.

    >>> _model("Qwen/Qwen3-1.7B"), _model("/data/models/tiny"), _model("/runs/a/checkpoints/step_4/model")
    ('Qwen/Qwen3-1.7B', '“tiny”', '“step_4/model”')
    """
    path = PurePath(str(name))
    if not path.is_absolute() and len(path.parts) < 3 and ".." not in path.parts:
        return str(name)
    return f"“{path.parent.name}/{path.name}”" if path.name == "model" else f"“{path.name}”"


def teacher(run: Run) -> str:
    """What the teacher is called in a sentence."""
    kind = run.config.get("teacher.type")
    if kind == "self":
        return "its own earlier copy"
    if kind == "server" and not run.config.get("teacher.model"):
        return f"the model served at {run.config.get('teacher.url')}"
    if kind == "router":
        groups = {key.split(".")[2] for key in run.config if key.startswith("teacher.teachers.")}
        return f"{len(groups)} teachers ({', '.join(sorted(groups))})"
    return _model(run.config.get("teacher.model") or run.config.get("teacher") or "an unnamed teacher")


def _on(run: Run) -> str:
    """Where the prompts came from."""
    config = run.config
    if config.get("task.type") == "testbed":
        return (
            f" in world {config.get('task.world', 0)} of the testbed ({config.get('task.family', 'chain')})"
        )
    task = (
        config.get("task.name") or config.get("task.train") or config.get("task.path") or config.get("task")
    )
    return f" on {task}" if task else ""


def _steps(run: Run) -> str:
    planned, done = run.config.get("steps"), len(run.metrics)
    of_planned = f" of {planned}" if isinstance(planned, int) and planned != done else ""
    return f"{done}{of_planned} step{'s' * (done != 1)}"


def _count(run: Run, noun: str) -> str:
    each = responses_per_step(run)
    return f"{shown(each * len(run.metrics))} {noun}" if each and run.metrics else noun


# --- whether it worked --------------------------------------------------------------------------------------


def _fits(run: Run) -> Verdict:
    """Imitation of texts: the loss is what is wanted, so its fall is told and no alignment is looked for."""
    what, loss = read_first(run)
    if loss is None or loss.count < FEWEST_STEPS:
        return _too_short(what, run)
    clause = told(what, loss)
    if loss.rose:
        return Verdict(
            "Loss rises", f"{clause}: the texts became less likely. Look at lr and grad_norm.", "bad"
        )
    if loss.still:
        return Verdict(
            "Loss hardly moves", f"{clause}: little was left to learn from these texts, or lr is low.", "weak"
        )
    return Verdict("Loss falls", f"{clause}: the texts it imitates became likelier.", "good")


def _earns(run: Run) -> Verdict:
    """Policy gradient: its loss means nothing by itself; the score of its rollouts is what it is for."""
    it = change(run, "accuracy")
    if it is None or it.count < FEWEST_STEPS:
        return _too_short("accuracy", run)
    gain, clause = it.last - it.first, f"Of its training rollouts {it.percents} were right"
    if gain >= NOTABLE:
        return Verdict("Scores rise", f"{clause}.", "good")
    if gain <= -NOTABLE:
        return Verdict("Scores fall", f"{clause}. Look at entropy_student and lr.", "bad")
    return Verdict(
        "Scores hardly move", f"{clause}: groups that are all right or all wrong teach nothing.", "weak"
    )


def _sharpens(run: Run) -> Verdict:
    """The control: it can only sharpen, and what accuracy does meanwhile no teacher taught."""
    it = change(run, "entropy_student")
    if it is None or it.count < FEWEST_STEPS:
        return _too_short("entropy_student", run)
    fold = it.fold or 1.0
    title = (
        "Sharpened"
        if fold >= STILL_FOLD
        else "Sharpened a little"
        if fold > 1 + HARDLY
        else "Hardly sharpened"
    )
    why = "what accuracy does meanwhile, no teacher taught."
    return Verdict(title, f"{told('entropy_student', it)}: {why}", "plain")


def _too_short(what: str, run: Run) -> Verdict:
    name = what.removeprefix("The ")
    count = len(run.values(name))
    why = (
        f"{count} steps logged {name}: too few to tell a trend from noise."
        if count
        else f"No step logged {name}."
    )
    return Verdict("Too short to read", why, "plain")


_VERDICTS: Mapping[str, Callable[[Run], Verdict]] = {
    "sft": _fits,
    "improve": _fits,
    "grpo": _earns,
    "push_down": _sharpens,
}
