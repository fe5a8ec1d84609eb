"""Every example runs, is short, and is right in what it claims; the pedagogical twin has the package's gradient."""

import ast
import io
import math
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from functools import lru_cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from models import IM_END, tiny_loaded, tiny_model, tiny_tokenizer
from opdkit.config import LearnerConfig, ObjectiveConfig, OptimConfig
from opdkit.diagnostics import measure
from opdkit.models.student import Student
from opdkit.models.teacher import LocalTeacher
from opdkit.objectives import Objective
from opdkit.run.rows import as_lines, read_rows
from opdkit.run.world import World
from opdkit.support import RowDist
from opdkit.train.collate import collate
from opdkit.train.learner import Learner, Part
from opdkit.types import Needs, Prompt, Rollout
from ranks import rollouts

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))
PADDED = 400  # rows of the embeddings; the tokenizer has 384 tokens
LONGEST = {"minimal": 149}  # lines; the others 60


def load(name: str) -> ModuleType:
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@lru_cache
def claims(name: str) -> tuple[ModuleType, Any, list[str]]:
    """The example's module, what its `main` returned, and the lines it printed. The global generator stays as it was."""
    module, said = load(name), io.StringIO()
    with torch.random.fork_rng(devices=[]), redirect_stdout(said):
        return module, module.main(), said.getvalue().splitlines()


# --- all of them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_runs_on_its_own(name: str, tmp_path: Path) -> None:
    """As a user starts it: another process, another folder, offline, no argument; numbers on stdout, nothing on stderr."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONWARNINGS": "default"}, capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr == ""
    assert 3 <= len(done.stdout.splitlines()) <= 12 and re.search(r"\d", done.stdout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_is_short_and_plain(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= LONGEST.get(name, 60)
    assert f"python examples/{name}.py" in (ast.get_docstring(tree) or "")
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {
        node.module or "" if isinstance(node, ast.ImportFrom) else a.name
        for node in nodes
        for a in node.names
    }
    rooms = {module.split(".")[0] for module in imported}
    assert "argparse" not in rooms
    assert not any(part.startswith("_") for module in imported for part in module.split("."))
    assert rooms <= {"torch", "transformers", "tokenizers", "opdkit", *sys.stdlib_module_names}
    if name == "minimal":
        assert rooms == {"sys", "torch", "transformers"}
    if name == "read_a_run":
        assert rooms <= set(sys.stdlib_module_names)


def test_readme_has_one_line_per_example() -> None:
    lines = (EXAMPLES / "README.md").read_text().splitlines()
    assert sorted(line.split("`")[1] for line in lines if line.startswith("- `")) == [
        f"{n}.py" for n in NAMES
    ]


# --- minimal: the pedagogical twin --------------------------------------------------------------------------


def ragged() -> list[Rollout]:
    """Twelve rollouts of 1 to 13 tokens; some end by an end token, which is read and trained like any other."""
    found = rollouts(len(tiny_tokenizer()))
    ended = [Rollout(r.prompt, (*r.response_ids, IM_END), "stop", sample=r.sample) for r in found[::3]]
    return [*found, *ended]


def package_step(rows: list[Rollout], *, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The gradient one `Learner.update` hands to its optimizer, and the step's means. Small forwards and chunks."""
    student = Student(tiny_loaded(kind, seed=1, dtype=torch.float64, vocab_size=PADDED), k=16, chunk_rows=7)
    teacher = LocalTeacher(tiny_loaded("llama", seed=2, dtype=torch.float64, hidden=48, vocab_size=PADDED))
    learner = Learner(
        student,
        optim=OptimConfig(clip=1e9),
        learner=LearnerConfig(batch_tokens=50),
        steps=1,
        world=World(torch.device("cpu")),
        max_tokens=16,
    )
    caught: dict[str, torch.Tensor] = {}

    def catch(*_: Any) -> None:
        caught.update({n: p.grad.clone() for n, p in student.model.named_parameters() if p.grad is not None})

    learner.optimizer.register_step_pre_hook(catch)
    objective = Objective(ObjectiveConfig(preset="paper"))
    batch = collate(rows, {"teacher": teacher.score(rows, needs=Needs(sampled=True))})
    update = learner.update(
        Part(batch, objective.prepare(batch), objective), heads={"teacher": teacher.head}, step=0
    )
    assert not update.skipped
    return caught, update.tally.means()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "smollm"])
@pytest.mark.parametrize("rows_at_once", [1, 5, 100])
def test_minimal_has_the_gradient_of_the_package(
    kind: str, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preset paper, float64: another layout, other forwards, objective and normalisation written anew, one gradient.

    Embeddings have 16 rows more than the tokenizer has tokens: both leave them out.
    """
    minimal, rows = load("minimal"), ragged()
    monkeypatch.setattr(minimal, "ROWS_AT_ONCE", rows_at_once)
    wanted, means = package_step(rows, kind=kind)
    student = tiny_model(kind, seed=1, dtype=torch.float64, vocab_size=PADDED)
    teacher = tiny_model("llama", seed=2, dtype=torch.float64, hidden=48, vocab_size=PADDED)
    pairs = [(list(r.prompt.ids), list(r.response_ids)) for r in rows]
    numbers = minimal.backward(student, teacher, pairs, vocabulary=len(tiny_tokenizer()))

    ours = {n: p.grad for n, p in student.named_parameters() if p.grad is not None}
    assert ours.keys() == wanted.keys()
    norm = math.sqrt(sum(float(g.square().sum()) for g in wanted.values()))
    largest = max(float((ours[n] - g).abs().max()) for n, g in wanted.items())
    error = math.sqrt(sum(float((ours[n] - g).square().sum()) for n, g in wanted.items()))
    print(
        f"{kind}, {rows_at_once} rows: off by {error / norm:.1e} of the norm {norm:.3f}, at most {largest:.1e}"
    )
    assert norm > 1e-2 and error <= 1e-12 * norm and largest <= 1e-10 * norm
    for name, value in numbers.items():
        assert value == pytest.approx(means[name], rel=1e-12), name
    assert tuple(numbers) == minimal.TOLD


def test_minimal_measures_what_the_diagnostics_measure() -> None:
    """At every position, not only on average; on models that agree, disagree and share nothing."""
    minimal = load("minimal")
    p, q = 3 * torch.randn(2, 60, 90, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q[:20] = p[:20] + 0.1 * q[:20]
    q[20:30] = -p[20:30]
    theirs = measure(RowDist(p), RowDist(q), k=minimal.K, ks=[])
    ours = minimal.measure(p.log_softmax(-1), q.log_softmax(-1))
    for name, values in ours.items():
        sums, counts = theirs[name]
        assert bool((counts == 1).all())
        torch.testing.assert_close(values, sums, rtol=1e-12, atol=1e-12)
    assert ours["overlap_ratio"].min() == 0 and ours["overlap_ratio"].max() > 0.8


def test_minimal_samples_until_an_end_token_from_its_own_generator() -> None:
    minimal, student = load("minimal"), tiny_model("llama", seed=1, spread=0.05)
    ends = list(range(60))

    def draw(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return minimal.sample(student, [5, 6, 7], vocabulary=300, end_ids=ends, generator=generator)

    before = torch.random.get_rng_state()
    responses = [response for seed in range(8) for response in draw(seed)]
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator was drawn from"
    assert draw(3) == draw(3) != draw(4)
    assert all(token < 300 for response in responses for token in response)
    for response in responses:
        assert not set(response[:-1]) & set(ends)
        assert response[-1] in ends or len(response) == minimal.MAX_TOKENS
    assert len({len(response) for response in responses}) > 3
    assert minimal.until_end([7, 8, 2, 9], [2, 3]) == [7, 8, 2] and minimal.until_end([7, 8], [2]) == [7, 8]


def test_minimal_draws_from_the_student(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frequencies of the first two tokens against p(y1)·p(y2 | y1): the cache holds the right prefix."""
    minimal, student = load("minimal"), tiny_model("llama", seed=1, spread=0.05)
    monkeypatch.setattr(minimal, "RESPONSES", 20000)
    monkeypatch.setattr(minimal, "MAX_TOKENS", 2)
    generator = torch.Generator().manual_seed(0)
    drawn = minimal.sample(student, [5, 6, 7], vocabulary=6, end_ids=[99], generator=generator)
    seen = torch.bincount(torch.tensor([6 * a + b for a, b in drawn]), minlength=36) / len(drawn)
    with torch.no_grad():
        first = student(torch.tensor([[5, 6, 7]])).logits[0, -1, :6].softmax(-1)
        then = student(torch.tensor([[5, 6, 7, a] for a in range(6)])).logits[:, -1, :6].softmax(-1)
    wanted = (first[:, None] * then).flatten()
    chi_squared = float(((seen - wanted).square() / wanted).sum() * len(drawn))
    assert chi_squared < 75, chi_squared  # 35 degrees of freedom: p = 1e-4; the seed is fixed


def test_minimal_learns_from_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Model folders and texts, as on its first line; the generation config's end token counts too."""
    for name, seed in (("student", 1), ("teacher", 2)):
        model = tiny_model("llama", seed=seed, spread=0.1)
        model.generation_config.eos_token_id = [IM_END, 1]
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    minimal = load("minimal")
    minimal.main(str(tmp_path / "student"), str(tmp_path / "teacher"), "Compute 3 + 4.", "Ada has 7 apples.")
    told = capsys.readouterr().out.splitlines()
    assert len(told) == minimal.STEPS
    assert all(
        re.fullmatch(r"step \d  loss [\d.]+  KL [\d.]+  overlap@16 [\d.]+  mass there: .*", x) for x in told
    )


def test_minimal_teaches_its_toy(capsys: pytest.CaptureFixture[str]) -> None:
    """Same numbers every time, and the student comes nearer: KL over the vocabulary, not only the loss on its top-k."""
    minimal = load("minimal")
    with torch.random.fork_rng(devices=[]):
        minimal.toy()
        first = capsys.readouterr().out
        minimal.toy()
    assert capsys.readouterr().out == first
    loss, kl = ([float(x) for x in re.findall(rf"  {name} ([\d.]+)", first)] for name in ("loss", "KL"))
    assert loss[-1] < 0.6 * loss[0] and kl[-1] < 0.6 * kl[0]


# --- the others: what they claim ----------------------------------------------------------------------------


def by_hand(p: list[float], q: list[float], k: int) -> dict[str, float | None]:
    """Eqs. 4 and 6 to 10 at one position, with Python's sets and floats."""
    tops = [set(sorted(range(len(x)), key=lambda v, x=x: -x[v])[:k]) for x in (p, q)]  # type: ignore[misc]
    O = sorted(tops[0] & tops[1])  # noqa: E741  the paper's letter
    P, Q = sum(p[v] for v in O), sum(q[v] for v in O)
    eq7 = sum(p[v] / P * math.log(q[v] / Q / (p[v] / P)) for v in O) / len(O) if O else None
    entropy = [-sum(a * math.log(a) for a in x) for x in (p, q)]
    return {
        "reverse_kl": sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)),
        "overlap_ratio": len(O) / k,
        "overlap_mass_student": P,
        "overlap_mass_teacher": Q,
        "overlap_advantage": eq7,
        "overlap_empty_fraction": float(not O),
        "entropy_gap": abs(entropy[1] - entropy[0]),
    }


def test_compare_two_models_by_hand() -> None:
    module, (later, stranger), told = claims("compare_two_models")
    generator = torch.Generator().manual_seed(0)
    p, q = 3 * torch.randn(2, 40, module.VOCABULARY, generator=generator, dtype=torch.float64)
    q[:20] += 2 * p[:20]
    found = module.compare(p, q)
    rows = zip(p.softmax(-1).tolist(), q.softmax(-1).tolist(), strict=True)
    wanted = [by_hand(a, b, module.K) for a, b in rows]
    assert found.keys() >= module.WORDS.keys() == wanted[0].keys()
    for name in module.WORDS:
        values = [value for row in wanted if (value := row[name]) is not None]
        assert found[name] == pytest.approx(sum(values) / len(values), abs=1e-12), name

    chance = module.K / module.VOCABULARY
    assert later["overlap_ratio"] > 4 * chance and stranger["overlap_ratio"] == pytest.approx(
        chance, abs=0.03
    )
    assert later["reverse_kl"] < stranger["reverse_kl"] / 2
    # what the docstring warns of: by Eq. 7 alone the stranger is the better teacher
    assert later["overlap_advantage"] < stranger["overlap_advantage"] <= 0
    assert stranger["overlap_empty_fraction"] > 0.4 and len(told) == 2 + len(module.WORDS)


def test_own_objective_serves_both_divergences() -> None:
    _, lost, _ = claims("own_objective")
    for divergence, own, other in (
        ("reverse_kl", "student_top_k", "teacher_top_k"),
        ("forward_kl", "teacher_top_k", "student_top_k"),
    ):
        assert lost[divergence, "full"] <= 1e-14
        assert lost[divergence, own] < 0.5 < 0.9 < lost[divergence, other]
        assert lost[divergence, "union"] == pytest.approx(lost[divergence, own], abs=0.02)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
def test_own_objective_is_its_formula(divergence: str) -> None:
    """−Σ over the union of p·A·∇log p by explicit sets: nothing counted twice, nothing left out."""
    module = load("own_objective")
    p, q = torch.randn(2, 12, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    support = module.union(RowDist(p), RowDist(q))
    ours = module.gradient(p, q, divergence=divergence, estimator="score_function", support="union")
    for n in range(len(p)):
        S = sorted({*p[n].topk(module.K).indices.tolist(), *q[n].topk(module.K).indices.tolist()})
        assert sorted(support.ids[n][support.keep[n]].tolist()) == S
        z = p[n].clone().requires_grad_()
        student, teacher = z.softmax(-1), q[n].softmax(-1)
        advantage = (teacher / student).log() if divergence == "reverse_kl" else teacher / student
        pushed = -sum((student[v] * advantage[v]).detach() * student[v].log() for v in S)
        (wanted,) = torch.autograd.grad(pushed, z)
        torch.testing.assert_close(ours[n], wanted, rtol=0, atol=1e-14)


def test_teacher_payloads_agree_and_refuse() -> None:
    _, found, told = claims("teacher_scores")
    assert found["worst"] <= 1e-6 and found["refused"]
    assert told[-1].endswith("the log-prob of an id that was not sent was asked for")


def test_why_top1_fails() -> None:
    module, norms, _ = claims("why_top1_fails")
    truth, others = norms.pop("the truth, ∇KL(p‖q)"), list(norms.values())
    top1, top2, top8, constant, direct, unbiased, off = others
    assert truth > 0.1 and top1 == 0 and min(top2, top8) > 0.1
    assert max(constant, direct, off) <= 1e-15 and unbiased == pytest.approx(truth)
    with pytest.raises(ValueError, match=r"identically 0, Eq\. 5 at k = 1"):
        ObjectiveConfig(preset="paper-eq5", k=1)
    with pytest.raises(ValueError, match="mean zero"):
        ObjectiveConfig(preset="sampled", estimator="exact")
    student, teacher = torch.randn(2, 30, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    objective = Objective(ObjectiveConfig(preset="paper-eq5", k=6))
    p, q = RowDist(student[None]), RowDist(teacher[None])
    packaged = objective.local(p, q, objective.support(p, q, sampled_ids=torch.zeros(1, dtype=torch.long)))
    assert float(module.eq5(student, teacher, k=6)) == pytest.approx(packaged.item(), abs=1e-14)


def test_truncated_support_identity_and_bias() -> None:
    module, found, _ = claims("truncated_support_bias")
    assert max(row["off"] for row in found.values()) <= 1e-14
    masses, cosines = [row["mass"] for row in found.values()], [row["paper"] for row in found.values()]
    assert masses == sorted(masses, reverse=True) and masses[0] > 10 and masses[-1] <= 1e-10
    assert cosines == sorted(cosines) and cosines[-1] == pytest.approx(1) == found[module.VOCABULARY]["eq5"]
    assert all(row["paper"] >= row["eq5"] - 1e-12 for row in found.values())  # here: two unrelated models


def test_masked_tokens_neither_train_nor_count() -> None:
    module, found, _ = claims("mask_tokens")
    assert found["reached"].tolist() == found["trained"].tolist() and found["changed"] == 0
    # the mean is that of the same responses with the tool's words taken out of the packed positions
    prompt = Prompt(id="x", ids=(1,))
    masked = Rollout(prompt, (5, 6, 7), "length", trained=(True, False, True))
    p, q = torch.randn(
        2, 3, module.VOCABULARY, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    kept = torch.tensor([0, 2])
    mean, gradient = module.step(collate([masked], {}), p, q)
    without = collate([Rollout(prompt, (5, 7), "length")], {})
    alone, its_gradient = module.step(without, p[kept], q[kept])
    assert mean == alone and torch.equal(gradient[kept], its_gradient) and bool((gradient[1] == 0).all())


def test_an_adapter_learns_from_its_base() -> None:
    _, found, _ = claims("adapter_on_its_base")
    assert found["losses"][-1] < 0.85 * found["losses"][0] and found["same"] and found["shared"]
    assert len(found["moved"]) == 14 and all("_proj" in name for name in found["moved"])


def test_sampled_rollouts_are_their_own_and_verified() -> None:
    module, found, _ = claims("sample_rollouts")
    assert found["same"] and found["mismatch"] <= 1e-5 and float(found["gain"].min()) >= -1e-5
    assert float(found["gain"].max()) <= -math.log(module.SAMPLING.top_p) + 1e-5
    assert {r.finish_reason for r in found["rollouts"]} == {"stop", "length"}
    assert all((r.response_ids[-1] == 0) == (r.finish_reason == "stop") for r in found["rollouts"])


def test_reward_tells_right_from_wrong_by_hand() -> None:
    module, found, _ = claims("reward_tells_right")
    areas = [area for area, _, _ in found.values()]
    assert areas == sorted(areas) and abs(areas[0] - 0.5) < 0.05 and areas[-1] > 0.95
    for knows, (_, good, bad) in found.items():
        assert good - bad == pytest.approx(knows, abs=0.05)
    p, q, row, right = module.responses(knows=0.2, generator=torch.Generator().manual_seed(7))
    means = [float((q - p)[row == r].double().mean()) for r in range(len(right))]
    pairs = [
        (means[a], means[b])
        for a in range(len(right))
        for b in range(len(right))
        if right[a] and not right[b]
    ]
    area = sum(good > bad for good, bad in pairs) / len(pairs)
    assert module.sorts(p, q, row, right)[0] == pytest.approx(area, abs=1e-12)


def test_read_a_run_reads_what_a_run_writes(tmp_path: Path) -> None:
    """Rows as the package writes them, with a torn last line; names as diagnostics and learner give them."""
    module = load("read_a_run")
    _, means = package_step(ragged()[:3], kind="llama")
    assert means.keys() >= set(module.NAMES)
    written = [
        {"step": 1, **means},
        {"step": 2, **means, "loss": math.nan},
        {"step": 3, **means, "loss": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_bytes(as_lines(written) + b'{"step": 4, "lo')
    steps = module.rows(tmp_path)
    assert steps == read_rows(tmp_path / "metrics.jsonl") and len(steps) == 3
    curves = module.main(tmp_path)
    assert curves["loss"] == [(1, means["loss"]), (3, 0.5)]
    assert [step for step, _ in curves["overlap_ratio"]] == [1, 2, 3]
    bins = module.along_the_response(steps[0], "reverse_kl")
    assert list(bins) == sorted(bins) and bins[0] == means["by_position/0/reverse_kl"]


def test_read_a_run_on_its_own_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = load("read_a_run")
    curves = module.main(module.made_up(tmp_path))
    assert curves == {
        "loss": [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)],
        "entropy_gap": [(s, 0.1) for s in (1, 3, 4)],
    }
    first = capsys.readouterr().out.splitlines()[0]
    assert re.fullmatch(r"loss +step 1 +1\.0000 +→ +step 4 +0\.2500", first)
