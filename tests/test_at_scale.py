"""The study at the paper's scale, in small: what every arm resolves to, that it is planned, every config run for two steps."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest

from commands import findings, metrics, opd, save_model
from models import tiny_tokenizer
from opdkit.config import Config, LocalTeacher, MathTask, load_config
from opdkit.recipes.coldstart_config import refuse
from opdkit.studies.at_scale import AT_SCALE, CONFIGS, command_at_scale, config_at_scale
from opdkit.tasks.wrappers import BOXED, DAPO
from opdkit.train.plan import make_plan
from opdkit.types import UserError
from test_math_task import SMALL, build_data, deepmath, save, thoughts

pytest.importorskip("math_verify")
pytest.importorskip("pyarrow")

FOLDER = Path(__file__).parent.parent / CONFIGS
FILES = sorted(FOLDER.glob("*.toml"))
ARMS = [(question, arm) for question, arms in AT_SCALE.items() for arm in arms]

R1, JUSTRL = "deepseek-ai/DeepSeek-R1-Distill-Qwen-", "hbx/JustRL-DeepSeek-1.5B"
PAIRS: Mapping[str, tuple[str, str | None]] = {
    "justrl-r1-1.5b": (JUSTRL, f"{R1}1.5B"),
    "justrl-r1-7b": (JUSTRL, f"{R1}7B"),
    "qwen3-1.7b-4b": ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B"),
    "qwen3-1.7b-4b-rl-math": ("Qwen/Qwen3-1.7B", "Keven16/Qwen3-4B-Non-Thinking-RL-Math-Step500"),
    "qwen3-1.7b-base-4b": ("Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-4B"),
    "qwen3-1.7b-base-4b-coldstart": ("Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-4B"),
    "qwen3-1.7b-base-4b-grpo": ("Qwen/Qwen3-1.7B-Base", "lllyx/Qwen3-4B-Base-GRPO"),
    "qwen3-1.7b-base-4b-grpo-deepmath": ("Qwen/Qwen3-1.7B-Base", "lllyx/Qwen3-4B-Base-GRPO"),
    "qwen3-4b-base-grpo": ("Qwen/Qwen3-4B-Base", None),
    "r1-1.5b-justrl": (f"{R1}1.5B", JUSTRL),
    "r1-1.5b-r1-7b": (f"{R1}1.5B", f"{R1}7B"),
    "r1-1.5b-skywork-7b": (f"{R1}1.5B", "Skywork/Skywork-OR1-Math-7B"),
    "r1-7b-r1-14b": (f"{R1}7B", f"{R1}14B"),
    "r1-7b-skywork-7b": (f"{R1}7B", "Skywork/Skywork-OR1-Math-7B"),
}
"""File → student and teacher of the paper."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Stand-ins for all models and all data; what DeepMath does not share with DAPO is made as its config says."""
    shop = tmp_path_factory.mktemp("shop")
    for seed, name in enumerate(("student", "teacher")):
        save_model(shop / name, seed=seed, tokenizer=tiny_tokenizer(), max_position_embeddings=1024)
    build_data(shop / "data")
    save(shop / "data" / "openthoughts3.jsonl", [thoughts(i) for i in range(24)])
    save(shop / "data" / "deepmath.jsonl", [deepmath(i) for i in range(6)])
    return shop


@pytest.fixture
def here(shop, tmp_path, monkeypatch, capfd):
    """A working folder with data/, in it the file that DeepMath's config and the mixtures read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(shop / "data")
    if not (shop / "data" / "deepmath-apart.jsonl").is_file():
        for words in _told_commands(FOLDER / "qwen3-1.7b-base-4b-grpo-deepmath.toml"):
            # sums are all near each other, so only equal texts are dropped here
            said = opd(capfd, *words, *_stand_in(shop), "prompts.embedding=ngrams", "prompts.near=1")
            assert said.code == 0, said.err
    return tmp_path


def _told_commands(path: Path) -> list[list[str]]:
    """The `opd …` lines that a config's comment tells to type, as words after `opd`."""
    lines = path.read_text().replace("\\\n#", "").splitlines()
    told = [shlex.split(line)[2:] for line in lines if line.startswith("#   opd ")]
    return [[w.replace(f"{CONFIGS}/", f"{FOLDER}/") for w in words] for words in told]


def _stand_in(shop: Path, *, teacher: bool = True) -> list[str]:
    student = ["student.model=" + str(shop / "student")]
    return [*student, *([f"teacher.model={shop}/teacher"] if teacher else []), f"task.data={shop}/data"]


COLD = ["coldstart.prompts=12", "coldstart.max_tokens=8", "coldstart.probe_prompts=8", "coldstart.probe_responses=1",
        "coldstart.probe_every=1", "coldstart.prompts_per_step=2", "coldstart.steps=1", "coldstart.until={steps=1}",
        "coldstart.filters={no_answer=false,truncated=false,repetitive=false,ngram_share=1.0}"]  # fmt: skip


def _in_small(shop: Path, config: Config) -> list[str]:
    """What is typed after an arm so that it runs here in a second."""
    words = [*_stand_in(shop, teacher=config.teacher is not None), *SMALL]
    return words + (COLD if config.coldstart is not None else [])


# --- what is asked, and with what -------------------------------------------------------------------------------


def test_the_questions_are_those_of_the_study_in_its_order():
    assert list(AT_SCALE) == [
        "consistency", "new-knowledge", "reverse", "dynamics", "which-tokens", "cold-start", "template", "content", "length",
        "continuation", "local-reward", "candidates", "controls", "code-or-equation",
    ]  # fmt: skip
    used = {stem for arms in AT_SCALE.values() for stem, *_ in arms.values()}
    assert used == {path.stem for path in FILES} == set(PAIRS)
    for arms in AT_SCALE.values():
        assert len(set(arms.values())) == len(arms) >= 2  # no arm is another one again


@pytest.mark.parametrize(("question", "arm"), ARMS)
def test_an_arm_has_the_papers_models_and_numbers(question, arm):
    config = config_at_scale(question, arm, folder=FOLDER, run=Path("runs/x"))
    stem, *changes = AT_SCALE[question][arm]
    student, teacher = PAIRS[stem]
    if "the paper's SFT student" in arm:
        student = "lllyx/Qwen3-1.7B-SFT"
    assert config.student.model == student and config.student.dtype == "float32"
    if "teacher=unset" in changes or teacher is None:
        assert config.teacher is None and config.story in ("grpo", "push_down")
        assert config.sampling.responses == (8 if config.story == "grpo" else 4)
    else:
        assert isinstance(config.teacher, LocalTeacher) and config.teacher.model == teacher
        assert config.story == "distill" and config.sampling.responses == 4
    assert (config.optim.lr, config.optim.clip, config.optim.schedule, config.optim.warmup_steps) == (
        1e-6,
        1.0,
        "constant",
        0,
    )
    assert (config.optim.weight_decay, config.optim.betas) == (0.01, (0.9, 0.999))
    assert (config.prompts_per_step, config.sampling.temperature, config.sampling.top_p) == (64, 1.0, 1.0)
    assert config.sampling.max_tokens == int(_typed(changes, "sampling.max_tokens", 7168))
    assert config.steps == {"reverse": 600, "content": 220, "cold-start": 469}.get(question, 279)
    spec = config.objective
    if not any(word.startswith("objective") for word in changes):
        assert (spec.preset, spec.support, spec.k, spec.normalisation, spec.weights) == (
            *("paper", "student_top_k", 16, "weights", "student"),
        )
    task, exam = config.task, config.eval
    assert (
        isinstance(task, MathTask)
        and task.eval == ["aime24", "aime25", "amc23-83"]
        and task.eval_wrapper == "boxed"
    )
    boxed = {"cold-start", "make the teacher", "teacher's"}
    assert task.wrapper == ("boxed" if boxed & {question, arm} else "dapo")
    assert task.thinking is (False if "qwen3" in stem else None)
    assert (exam.responses, exam.temperature, exam.top_p, exam.max_tokens) == (16, 0.7, 0.95, 31744)
    assert (
        config.run == Path("runs/x")
        and config.save.every == 20
        and config.save.keep * 20 >= config.steps  # step 200 can be read afterwards
    )
    if config.coldstart is not None:
        assert (config.coldstart.lr, config.coldstart.max_tokens, config.coldstart.temperature) == (
            1e-5,
            12288,
            0.7,
        )


def _typed(changes, key, usual):
    return dict(word.split("=", 1) for word in changes).get(key, usual)


def test_the_objectives_of_an_ablation_are_different_ones():
    """A preset or a key that another one overrules would make two arms the same run."""
    for question in ("which-tokens", "candidates", "controls", "code-or-equation"):
        seen: dict[str, str] = {}
        for arm in AT_SCALE[question]:
            config = config_at_scale(question, arm, folder=FOLDER, run=Path("r"))
            text = repr((config.story, config.student, config.coldstart, config.sampling, config.objective))
            assert text not in seen, f"{question}: {arm} is {seen[text]} again"
            seen[text] = arm


@pytest.mark.parametrize(("question", "arm"), ARMS)
def test_an_arm_is_planned(question, arm, shop):
    """By its own settings, vLLM and widths included; only weights and data are small."""
    stand_in = _stand_in(
        shop, teacher=config_at_scale(question, arm, folder=FOLDER, run=Path("r")).teacher is not None
    )
    stem, *changes = AT_SCALE[question][arm]
    config = load_config(FOLDER / f"{stem}.toml", [*changes, *stand_in])
    plan = make_plan(config)
    assert plan.rows == 384
    if config.coldstart is not None:
        refuse(config)


# --- what is typed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("question", "arm"), ARMS)
def test_the_command_is_the_arm(question, arm):
    """Its words after the file, read by a shell, are the arm's."""
    words = shlex.split(command_at_scale(question, arm, folder=FOLDER, run=Path("runs/a b")))
    config = config_at_scale(question, arm, folder=FOLDER, run=Path("runs/a b"))
    stem, *changes = AT_SCALE[question][arm]
    verb = "coldstart" if config.coldstart is not None else "train"
    assert words == ["opd", verb, str(FOLDER / f"{stem}.toml"), *changes, "run=runs/a b"]


def test_only_an_arm_that_imitates_first_is_a_cold_start():
    verbs = {
        arm: command_at_scale("cold-start", arm, folder=FOLDER, run=Path("r")).split()[1]
        for arm in AT_SCALE["cold-start"]
    }
    assert verbs == {
        "from the base": "train",
        "cold start": "coldstart",
        "cold start, until overlap rests": "coldstart",
        "the paper's SFT student": "train",
    }


@pytest.mark.parametrize(
    ("question", "arm", "error", "hint"),
    [
        ("lenght", "512", "no question 'lenght'", "length"),
        ("length", "513", "no arm of length '513'", "512"),
        ("length", "512", "has no r1-1.5b-justrl.toml",
         "opd train configs/paper/r1-1.5b-justrl.toml sampling.max_tokens=512 run=r"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_with_what_is(question, arm, error, hint, tmp_path):
    for act in (config_at_scale, command_at_scale):
        with pytest.raises(UserError, match=error) as caught:
            act(question, arm, folder=tmp_path, run=Path("r"))
        assert caught.value.hint is not None and caught.value.hint.endswith(hint)


# --- two steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_papers_configs_run_in_small(path, shop, here, capfd):
    run = here / "run"
    words = [*_stand_in(shop, teacher=PAIRS[path.stem][1] is not None), f"run={run}", *SMALL]
    said = opd(capfd, "train", path, *words)
    assert said.code == 0, said.err
    assert [row["step"] for row in metrics(run)] == [1, 2]
    before, after = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    for row in (before, after):
        assert set(row["by_group"]) == {"aime24", "aime25", "amc23-83"} and row["problems"] == 6
        assert row["avg_of_benchmarks"] == pytest.approx(sum(row["by_group"].values()) / 3)
    told = findings(run)
    assert told["benchmark_size"]["numbers"]["problems"] in (1, 2, 3)
    assert "mean of benchmarks" in said.err and "not its usual 83" in said.err
    assert ("training_ungraded" in told) == path.stem.endswith("coldstart")
    if not path.stem.endswith(("coldstart", "deepmath")):
        assert told["problems_repeated"]["numbers"] == {"rows": 18, "dropped": 12, "kept": 6}
    kept = (run / "rollouts" / "step_1.jsonl").read_text()
    boxed = path.stem in ("qwen3-1.7b-base-4b-coldstart", "qwen3-4b-base-grpo")
    assert (_json(BOXED) in kept, _json(DAPO[0]) in kept) == (boxed, not boxed)


def _json(text: str) -> str:
    return json.dumps(text)[1:-1]


def _read_afterwards(config: str, run: Path, words: list[str], maps: Path, capfd) -> None:
    """By depth, and right from wrong by the sequence's reward: what the arms of questions 10 and 11 are run for."""
    words = [*words, "sampling={max_tokens=8}", "diagnostics.bins=2"]
    by_depth = opd(capfd, "diagnose", config, *words, "--rollouts", run, "--depth", maps, "--continue", 1)
    assert by_depth.code == 0 and [row["step"] for row in metrics(maps)] == [1, 2], by_depth.err
    kept = run / "rollouts" / "step_2.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    # nothing that stand-ins say is right, and without right and wrong there is no AUROC
    save(kept, [row | {"score": float(i % 2)} for i, row in enumerate(rows)])
    said = opd(capfd, "diagnose", config, *words, "--rollouts", kept, "--json")
    assert "sequence_reward_auroc" in json.loads(said.out)["metrics"], said.err


OTHER_KINDS = [
    ("which-tokens", "rest, renormalised"),
    ("cold-start", "cold start"),
    ("template", "teacher's"),
    ("content", "half others"),
    ("continuation", "same pipeline"),
    ("candidates", "sampled"),
    ("controls", "shuffled"),
    ("controls", "push down"),
    ("controls", "reward alone"),
    ("controls", "teacher, then reward"),
    ("code-or-equation", "Eq. 5"),
    ("code-or-equation", "top 16 and the sampled tail"),
]
"""Arms whose overrides differ in kind: a support, a stage, a wrapper, a mixture, what is kept, a control, a story, a preset."""


@pytest.mark.parametrize(("question", "arm"), OTHER_KINDS)
def test_an_arm_runs_in_small(question, arm, shop, here, capfd):
    config = config_at_scale(question, arm, folder=FOLDER, run=here / "run")
    words = shlex.split(command_at_scale(question, arm, folder=FOLDER, run=here / "run"))[1:]
    said = opd(capfd, *words, *_in_small(shop, config))
    assert said.code == 0, said.err
    run = here / "run" / "distill" if config.coldstart is not None else here / "run"
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2]
    if question == "content":
        assert [row["off_prompts"] for row in rows] == [1.0, 1.0]
    if question == "cold-start":
        assert [row["step"] for row in metrics(here / "run" / "sft")] == [1]
    if question == "continuation":
        _read_afterwards(words[1], run, _stand_in(shop), here / "maps", capfd)
    if question == "template":
        assert _json(BOXED) in (run / "rollouts" / "step_1.jsonl").read_text()


# --- opd study run --scale gpu, --scale real ----------------------------------------------------------------------


def _set(words):
    return [part for word in words for part in ("--set", word)]


def test_a_question_is_run_at_scale_an_arm_after_the_other(shop, here, capfd):
    (here / "configs").symlink_to(FOLDER.parent)
    words = ["study", "run", "reverse", "--scale", "gpu", "--out", here / "out"]
    changes = _set([*_stand_in(shop), *SMALL])
    said = opd(capfd, *words, *changes)
    assert said.code == 0 and "[2/2] reverse · larger" in said.err, said.err
    kept = json.loads((here / "out" / "reverse.json").read_text())
    assert [(r["scale"], r["family"], r["arm"], r["recovery"]) for r in kept["rows"]] == [
        ("gpu", "paper", arm, None) for arm in AT_SCALE["reverse"]
    ]
    assert all(
        len(metrics(here / "out" / "runs" / "gpu" / "reverse" / name)) == 2
        for name in ("own-start", "larger")
    )
    assert "| paper | own start | 1 |" in said.out and kept["outcome"]["all"] == "not run"
    began = (here / "out" / "runs" / "gpu" / "reverse" / "larger" / "metrics.jsonl").stat().st_mtime_ns
    again = opd(capfd, *words, *changes, "--json")
    assert json.loads(again.out)["studies"][0]["rows"] == kept["rows"]
    assert (
        here / "out" / "runs" / "gpu" / "reverse" / "larger" / "metrics.jsonl"
    ).stat().st_mtime_ns == began


def test_a_question_on_the_real_model_is_decided_by_the_testbeds_rules(shop, here, capfd):
    (here / "configs").symlink_to(FOLDER.parent)
    sums = [{"prompt": f"Compute {i} + 2", "answer": str(i + 2)} for i in range(6)]
    data = save(here / "sums.jsonl", sums)
    words = ["study", "run", "dynamics", "cold-start", "--scale", "real", "--out", here / "out"]
    small = ["steps=2", "prompts_per_step=2", "sampling.max_tokens=4", "eval.prompts=4", "save.every=2"]
    files = [
        f"student.model={shop}/student",
        f"task.path={data}",
        f"task.eval_path={data}",
        "task.grader.type=exact",
    ]
    refused = opd(capfd, *words, *_set([*files, *small]))
    assert refused.code == 2 and "was not taught yet" in refused.error and "scripts/real.py" in refused.hint
    files += [f"teacher.model={shop}/teacher"]
    said = opd(capfd, *words[:3], *words[4:], *_set([*files, *small]), "--json")
    assert said.code == 0, said.err
    told = json.loads(said.out)["studies"][0]
    assert [r["arm"] for r in told["rows"]] == ["works", "fails"] and set(told["outcome"]) == {
        "smollm2",
        "all",
    }
    assert told["decisions"]["loss falls"]["smollm2"]["count"] == 1 and told["outcome"]["all"] == "not run"
    more = opd(capfd, *words[:3], *words[4:], *_set([*files, *small]), "--json", "--seed", "7")
    told = json.loads(more.out)["studies"][0]
    assert [(r["seed"], r["arm"]) for r in told["rows"]] == [
        (0, "works"),
        (0, "fails"),
        (7, "works"),
        (7, "fails"),
    ]
    assert (here / "out" / "runs" / "real" / "dynamics" / "works-7" / "metrics.jsonl").is_file()
    assert told["decisions"]["loss falls"]["smollm2"]["count"] == 2
    assert "has no families" in opd(capfd, *words, "--family", "chain").error
