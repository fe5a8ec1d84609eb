"""Run folders made by hand for the report's tests: paper-sized ones, the testbed's short ones, hostile ones."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from opdkit.report import text

VOCABULARY = 151_936
BINS = tuple(range(0, 2048, 256))


def make_run(folder: Path, *, success: bool, steps: int = 120, seed: int = 0, graded: bool = True) -> Path:
    """A run folder: aligning with its teacher when `success`, standing still when not."""
    folder.mkdir(parents=True)
    draw = random.Random(seed)
    teacher = "JustRL-DeepSeek-1.5B" if success else "DeepSeek-R1-Distill-Qwen-7B"
    (folder / "config.toml").write_text(config_text(teacher, steps, folder.name), encoding="utf-8")
    (folder / "env.json").write_text(json.dumps(ENV), encoding="utf-8")
    write_rows(folder / "metrics.jsonl", [metrics_row(s, steps, success, draw) for s in range(1, steps + 1)])
    if graded:
        write_rows(
            folder / "eval.jsonl", [eval_row(s, steps, success) for s in range(0, steps + 1, steps // 4 or 1)]
        )
    (folder / "rollouts").mkdir()
    for step in sorted({1, steps // 2 or 1, steps}):
        write_rows(folder / "rollouts" / f"step_{step}.jsonl", [rollout_row(step, i, draw) for i in range(4)])
    if not success:
        write_rows(folder / "findings.jsonl", [FINDING])
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def config_text(teacher: str, steps: int, name: str) -> str:
    return f"""story = "distill"
student.model = "DeepSeek-R1-Distill-Qwen-1.5B"
student.dtype = "float32"
teacher.type = "local"
teacher.model = "{teacher}"
task.type = "file"
task.path = "dapo-math-17k.jsonl"
objective.preset = "paper"
objective.support = "student_top_k"
objective.k = 16
sampling.responses = 4
sampling.max_tokens = 2048
optim.lr = 1e-06
optim.betas = [0.9, 0.999]
diagnostics.ks = [1, 4, 16, 64]
run = "runs/{name}"
steps = {steps}
prompts_per_step = 64
"""


ENV = {
    "versions": {"torch": "2.13.0", "transformers": "5.16.0"},
    "commit": "a39f92b",
    "command": "opd train configs/paper.toml --token hf_abcdefghijklmnopqrstuvwx",
    "index": "https://me:canary-secret@packages.example.org/simple",
}

FINDING = {
    "name": "stagnation",
    "severity": "warning",
    "message": "overlap_advantage has not moved for 100 steps.",
    "numbers": {"overlap_advantage": -0.031, "loss": 0.021},
    "remedy": "opd train … teacher=JustRL-DeepSeek-1.5B",
    "step": 100,
}


def metrics_row(step: int, steps: int, success: bool, draw: random.Random) -> dict[str, float]:
    done = step / steps
    fall = math.exp(-4.5 * done) if success else 1 - 0.1 * math.sin(9 * done)

    def noisy(value: float, share: float = 0.04) -> float:
        return value * (1 + share * draw.gauss(0, 1))

    loss = noisy(0.455 * fall + 0.01 if success else 0.031 * fall, 0.08)
    overlap = 0.72 + 0.19 * (1 - math.exp(-3 * done)) if success else 0.745 + 0.03 * math.sin(3 * done)
    student = 0.42 - 0.08 * done if success else 0.40 + 0.02 * math.sin(7 * done)
    length = noisy(1450 - (250 * done if success else -120 * done))
    row = {
        "step": step,
        "loss": loss,
        "reverse_kl": noisy(loss * 1.15),
        "overlap_ratio": noisy(overlap, 0.006),
        "overlap_mass_student": noisy(0.982, 0.002),
        "overlap_mass_teacher": noisy(0.974, 0.002),
        "overlap_advantage": -noisy(0.024 * fall + 0.0009 if success else 0.031 * fall, 0.08),
        "training_advantage_overlap": -noisy(0.05 * fall + 0.002),
        "training_advantage_student_only": -noisy(0.0042 * fall),
        "training_advantage_teacher_only": noisy(0.0021 * fall),
        "entropy_student": noisy(student),
        "entropy_teacher": noisy(student - 0.16 * fall),
        "entropy_gap": noisy(0.21 * fall + 0.05 if success else 0.24 * fall),
        "entropy_gap_of_means": noisy(0.16 * fall + 0.02),
        "sequence_reward": -noisy(loss),
        "sequence_reward_auroc": noisy(0.74, 0.02),
        "grad_norm": noisy(2.9 * (0.35 + 0.65 * fall) if success else 0.44, 0.12),
        "learning_rate": 1e-6 * min(1.0, step / 10),
        "response_length": length,
        "truncated_fraction": max(0.0, noisy(0.22 - 0.09 * done, 0.1)),
        "repetition_fraction": max(0.0, noisy(0.03, 0.3)),
        "sampler_mismatch": abs(noisy(0.0021, 0.2)),
        "staleness": 0.0,
        "reverse_kl_sampled": loss + 0.05 * draw.gauss(0, 1),
        "top1_agreement": noisy(overlap, 0.01),
        "top1_student_p": noisy(0.79, 0.01),
        "top1_student_teacher_p": noisy(0.79 - 0.12 * fall, 0.02),
        "probability_gap_at_max_advantage": noisy(0.19 * fall),
        "measured_positions": 256.0,
        "support_mismatch": abs(noisy(0.0007, 0.3)),
        "accuracy": noisy(0.36 + 0.16 * done if success else 0.37, 0.05),
        "ungraded_fraction": 0.0,
        "skipped_steps": 0.0 if done < 0.6 else 1.0,
        "tokens_per_second": noisy(5200.0),
        "memory/peak_mb": 61_000 + 40 * draw.random(),
        "seconds/sample": noisy(41.0),
        "seconds/score": noisy(9.0),
        "seconds/update": noisy(19.0),
        "seconds/sync": noisy(1.6, 0.2),
        "seconds/step": noisy(71.5),
        "shuffle_entropy": noisy(3.0),
    }
    for k in (1, 4, 16, 64):
        row[f"overlap_ratio_at_{k}"] = min(1.0, noisy(overlap * (1.12 - 0.03 * math.log2(k)), 0.006))
        row[f"overlap_chance_at_{k}"] = k / VOCABULARY
    for place, start in enumerate(BINS):
        depth = place / len(BINS)
        row[f"by_position/{start}/overlap_ratio"] = noisy(overlap - 0.08 * depth, 0.01)
        row[f"by_position/{start}/entropy_student"] = noisy(student * (1 + 0.8 * depth * done), 0.03)
        row[f"by_position/{start}/entropy_teacher"] = noisy(student * (0.8 + 0.4 * depth), 0.03)
        row[f"by_position/{start}/reverse_kl"] = noisy(loss * (0.7 + 0.9 * depth), 0.06)
        row[f"by_position/{start}/top1_agreement"] = noisy(overlap * (1 - 0.1 * depth), 0.02)
    return row


def eval_row(step: int, steps: int, success: bool) -> dict[str, Any]:
    score = 0.378 + (0.145 * (1 - math.exp(-3 * step / steps)) if success else 0.012 * step / steps)
    return {
        "step": step,
        "avg_at_k": score,
        "low": score - 0.041,
        "high": score + 0.043,
        "pass_at_k": {"1": score, "4": score + 0.14, "16": score + 0.26},
        "truncated_fraction": 0.11,
        "problems": 143,
        "responses": 16,
    } | ({"teacher_avg_at_k": 0.55} if step == 0 else {})


def rollout_row(step: int, index: int, draw: random.Random) -> dict[str, Any]:
    return {
        "step": step,
        "prompt": f"Let a = {index}. Find the remainder of a² + 7 when it is divided by 5.",
        "response": f"First square a.\n\nThen a² + 7 = {index**2 + 7}, and the remainder is "
        f"\\boxed{{{(index**2 + 7) % 5}}}.",
        "finish_reason": "stop" if index else "length",
        "score": float(index % 2),
        "length": 900 + 71 * index,
        "sequence_reward": -draw.random() / 3,
        "response_ids": [1, 2, 3],
        "overlap_ratio": draw.random(),
    }


def bare_run(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    write_rows(folder / "metrics.jsonl", rows)
    return folder


# --- the testbed: short responses in words, looked at token by token ----------------------------------------


def make_chain_run(folder: Path, *, works: bool, steps: int = 100, seed: int = 0) -> Path:
    """A working or a failing pair of the testbed, in numbers like those of docs/testbed-notes.md."""
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(chain_config(works, steps, folder.name), encoding="utf-8")
    (folder / "env.json").write_text(json.dumps(ENV), encoding="utf-8")
    write_rows(folder / "metrics.jsonl", [chain_metrics(s, steps, works, draw) for s in range(1, steps + 1)])
    write_rows(folder / "eval.jsonl", [chain_eval(s, works, steps) for s in (0, steps)])
    write_rows(folder / "sequences.jsonl", [sequences_row(s, works, draw) for s in (10, 50, steps)])
    (folder / "rollouts").mkdir()
    for step in (10, steps):
        rows = [chain_rollout(step, i, works and step == steps, draw) for i in range(6)]
        write_rows(folder / "rollouts" / f"step_{step}.jsonl", rows)
    return folder


def chain_config(works: bool, steps: int, name: str) -> str:
    return f"""story = "distill"
student.model = "models/student"
teacher.type = "local"
teacher.model = "models/{"t1" if works else "t2"}"
task.type = "testbed"
task.family = "chain"
task.world = 3
objective.preset = "paper"
objective.k = 16
sampling.responses = 1
sampling.max_tokens = 13
optim.lr = 0.0003
run = "runs/{name}"
steps = {steps}
prompts_per_step = 128
"""


def chain_metrics(step: int, steps: int, works: bool, draw: random.Random) -> dict[str, float]:
    done = step / steps
    fall = math.exp(-3.5 * done) if works else 1 - 0.27 * done

    def noisy(value: float, share: float = 0.05) -> float:
        return value * (1 + share * draw.gauss(0, 1))

    overlap = 0.838 + 0.05 * done if works else 0.397 + 0.004 * done
    row = {
        "step": step,
        "loss": noisy((0.164 if works else 0.2) * fall),
        "reverse_kl": noisy((0.17 if works else 0.21) * fall),
        "overlap_ratio": noisy(overlap, 0.01),
        "overlap_mass_student": noisy(0.985 if works else 0.9, 0.003),
        "overlap_mass_teacher": noisy(0.985 if works else 0.88, 0.003),
        "overlap_advantage": -noisy((0.02 if works else 0.031) * (fall if works else 1 - 0.17 * done)),
        "entropy_student": noisy(0.42 - 0.1 * done),
        "entropy_teacher": noisy(0.33),
        "entropy_gap": noisy(0.18 * fall + 0.02 if works else 0.31),
        "sequence_reward": -noisy(0.16 * fall),
        "sequence_reward_auroc": noisy(0.72, 0.05),
        "grad_norm": noisy(1.9 * fall + 0.2 if works else 1.3),
        "learning_rate": 3e-4,
        "response_length": noisy(9.4, 0.02),
        "truncated_fraction": 0.0,
        "accuracy": noisy(0.3 + 0.3 * done if works else 0.3 - 0.05 * done),
        "tokens_per_second": noisy(8000.0),
        "seconds/sample": noisy(0.08),
        "seconds/update": noisy(0.06),
        "seconds/step": noisy(0.15),
    }
    for place, start in enumerate((0, 3, 6, 9)):
        row[f"by_position/{start}/overlap_ratio"] = min(1.0, noisy(overlap * (0.9 + 0.05 * place), 0.01))
        row[f"by_position/{start}/entropy_student"] = noisy(0.3 + 0.15 * (place % 2))
        row[f"by_position/{start}/entropy_gap"] = noisy(0.2 * fall * (1 + place / 3))
        row[f"by_position/{start}/overlap_advantage"] = -noisy(0.02 * fall * (1 + place / 3))
        row[f"by_position/{start}/reverse_kl"] = noisy(0.17 * fall * (1 + place / 3))
        row[f"by_position/{start}/top1_agreement"] = noisy(0.9, 0.01)
    return row


def chain_eval(step: int, works: bool, steps: int) -> dict[str, Any]:
    after = 0.637 if works else 0.303
    score = 0.354 + (after - 0.354) * step / steps
    return {
        "step": step,
        "avg_at_k": score,
        "low": score - 0.02,
        "high": score + 0.02,
        "pass_at_k": {"1": score},
        "by_group": {"easy": 0.97, "wrong": 0.27 + (0.53 if works else -0.12) * step / steps, "table": 0.31},
        "greedy_avg": score + 0.01,
        "problems": 1024,
        "responses": 1,
        "response_length": 9.4,
        "graded": True,
    } | ({"teacher_avg_at_k": 0.641 if works else 0.658} if step == 0 else {})


def sequences_row(step: int, works: bool, draw: random.Random, count: int = 128) -> dict[str, Any]:
    right = [draw.random() < 0.4 for _ in range(count)]
    center = 0.15 * (1 - step / 120) if works else 0.2
    return {
        "step": step,
        "sequence_reward": [draw.gauss(-center * (0.5 if r else 1.3), 0.06) for r in right],
        "score": [float(r) for r in right],
        "length": [draw.randint(6, 13) for _ in right],
        "truncated": [draw.random() < 0.02 for _ in right],
    }


def chain_rollout(step: int, index: int, aligned: bool, draw: random.Random) -> dict[str, Any]:
    value, words = draw.randint(0, 96), ["run"]
    operands = [draw.choice(("+3", "-7", "t2", "+9")) for _ in range(draw.randint(2, 4))]
    for joint in draw.sample(("so", "now", "next", "thus"), len(operands)):
        value = (value + draw.randint(1, 20)) % 97
        words += [joint, str(value)]
    words += ["answer", str(value), "<done>"]
    cut = index == 4
    words = words[:-1] if cut else words
    return {
        "step": step,
        "id": f"chain:{index}",
        "group": ("easy", "wrong", "table")[index % 3],
        "sample": 0,
        "prompt": f"read number {value} " + " ".join(f"then {o}" for o in operands) + " please =>",
        "response": " ".join(word for word in words if not word.startswith("<")),
        "finish_reason": "length" if cut else "stop",
        "score": float(index in (0, 2, 5)),
        "length": len(words),
        "sequence_reward": -0.1,
        "overlap_ratio": 0.8,
        "tokens": tokens_object(words, 0.1 if aligned else 1.2, draw),
    }


def tokens_object(words: list[str], spread: float, draw: random.Random) -> dict[str, Any]:
    """What both models thought of `words`, with five candidates each."""
    student = [-abs(draw.gauss(0, 0.6)) for _ in words]
    teacher = [
        min(-0.001, s + spread * draw.gauss(0, 1) * (1 if w.isdigit() else 0.2))
        for s, w in zip(student, words, strict=True)
    ]
    tops = [_candidates(w, s, t, draw) for w, s, t in zip(words, student, teacher, strict=True)]
    return {
        "text": words,
        "student_logp": student,
        "teacher_logp": teacher,
        "student_top": [sorted(rows, key=lambda row: -row[1])[:5] for rows in tops],
        "teacher_top": [sorted(rows, key=lambda row: -row[2])[:5] for rows in tops],
    }


def _candidates(word: str, student: float, teacher: float, draw: random.Random) -> list[list[Any]]:
    others = (
        ["so", "now", "thus", "then"] if not word.isdigit() else [str(draw.randint(0, 96)) for _ in range(6)]
    )
    rows = [[word, student, teacher]]
    for other in dict.fromkeys(o for o in others if o != word):
        rows.append([other, -1.5 - 4 * draw.random(), -1.5 - 4 * draw.random()])
    return rows


def make_story_run(folder: Path, story: str, *, steps: int = 60) -> Path:
    """A run without a teacher: what its story logs and nothing else."""
    draw = random.Random(story)
    folder.mkdir(parents=True)
    lines = [f'story = "{story}"', 'student.model = "models/base"', 'task.type = "testbed"', "task.world = 3"]
    lines += ["sampling.responses = 8", "push_down.share = 0.2", f"steps = {steps}", "prompts_per_step = 48"]
    (folder / "config.toml").write_text("\n".join(lines), encoding="utf-8")
    (folder / "env.json").write_text(json.dumps(ENV), encoding="utf-8")
    rows = []
    for step in range(1, steps + 1):
        done = step / steps
        row = {
            "step": step,
            "loss": 3 * math.exp(-3 * done) + 0.2 * draw.random(),
            "grad_norm": 1 + draw.random(),
            "entropy_student": 2 - 1.4 * done,
            "learning_rate": 1e-3,
            "response_length": 9.5,
            "seconds/update": 0.1,
            "seconds/step": 0.2,
        }
        if story != "sft":
            row |= {"accuracy": 0.3 + 0.3 * done, "truncated_fraction": 0.0}
        if story == "improve":
            row["kept_fraction"] = 0.4
        rows.append(row)
    write_rows(folder / "metrics.jsonl", rows)
    write_rows(
        folder / "eval.jsonl",
        [
            {
                "step": s,
                "avg_at_k": 0.3 + s / 300,
                "low": 0.28 + s / 300,
                "high": 0.32 + s / 300,
                "problems": 512,
                "responses": 1,
            }
            for s in (0, steps)
        ],
    )
    if story != "sft":
        (folder / "rollouts").mkdir()
        row = chain_rollout(steps, 0, True, draw)
        del row["tokens"]
        write_rows(folder / "rollouts" / f"step_{steps}.jsonl", [row])
    return folder


# --- hostile ones: a model may write anything ----------------------------------------------------------------

PAYLOADS = (
    "</script><script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "<a href='javascript:window.hit = 1'>press</a>",
    "javascript:window.hit=1",
    "' onmouseover='window.hit = 1' x='",
    '" autofocus onfocus="window.hit = 1" x="',
    "<!--<script>",
    "]]><svg/onload=window.hit=1>",
    "{{7*7}}{% raw %}${7*7}",
    "&lt;script&gt;window.hit=1&lt;/script&gt;",
    "<b>bold</b><style>*{display:none}</style>",
    "$\\href{javascript:window.hit=1}{x}$",
    "%{y}<extra>x</extra>",
    "\u202e\u2066\x1b[31m\x07\u2028\ud800",
    "__proto__",
    "constructor",
)


def hostile_run(folder: Path, payload: str) -> Path:
    """A run that says `payload` wherever a run can say something, its name included."""
    folder = folder / payload.replace("/", "∕").encode("utf-8", "replace").decode()
    (folder / "rollouts").mkdir(parents=True)
    quoted = json.dumps(text.visible(payload))  # TOML strings hold no control characters or surrogates
    keys = ("student.model", "teacher.model", "task.path", "objective.preset", quoted)
    (folder / "config.toml").write_text("".join(f"{key} = {quoted}\n" for key in keys), encoding="utf-8")
    (folder / "env.json").write_text(json.dumps({payload: payload, "versions": {payload: [payload]}}))
    names = (payload, f"by_position/0/{payload}", f"seconds/{payload}")
    rows = [{"step": s, "loss": 0.1 * s, **dict.fromkeys(names, 0.5 + s)} for s in range(1, 4)]
    write_rows(folder / "metrics.jsonl", rows)
    evaluation = {"step": 0, "avg_at_k": 0.4, "low": 0.3, "high": 0.5, "pass_at_k": {payload: 1, "4": 0.5}}
    write_rows(
        folder / "eval.jsonl", [evaluation | {payload: payload, "by_group": {payload: 0.5, "easy": payload}}]
    )
    finding = dict.fromkeys(("name", "severity", "message", "remedy"), payload) | {"numbers": {payload: 1.0}}
    write_rows(folder / "findings.jsonl", [finding])
    rollout = dict.fromkeys(("prompt", "response", "finish_reason", "group", payload), payload)
    rollouts = [rollout | {"tokens": hostile_tokens(payload)}, rollout | {"tokens": {payload: payload}}]
    write_rows(folder / "rollouts" / "step_1.jsonl", rollouts)
    sequences = {"step": 1, "sequence_reward": [-0.1, payload], "score": [1.0, payload], "truncated": payload}
    write_rows(folder / "sequences.jsonl", [sequences, {"step": 2, payload: payload}])
    return folder


def hostile_tokens(payload: str) -> dict[str, Any]:
    """`payload` as the token taken and as the other candidate, one the teacher would far rather have."""
    top = [[payload, -3.0, -0.1], ["plain", -0.2, -4.0], [payload, "x", None], payload, []]
    return {
        "text": [payload, "plain"],
        "student_logp": [-3.0, -0.2],
        "teacher_logp": [-0.1, -4.0],
        "student_top": [top, top],
        "teacher_top": [top, top],
    }


SCHEMA = "opdkit.verdict/1"


def said(name: str = "go", **more: Any) -> dict[str, Any]:
    """A document of opd check, as far as the page reads it."""
    number = {"value": 0.75, "low": 0.7, "high": 0.8, "count": 628}
    finding = {
        "name": "lead", "severity": "info", "message": "the teacher solves 56% of the prompts",
        "numbers": {"teacher_lead": 0.24}, "remedy": "", "step": None, "rule": "teacher_lead ≥ 0.05", "source": "ours",
    }  # fmt: skip
    return {
        "schema": SCHEMA, "kind": "check", "student": "S", "teacher": "T", "prompts": 64, "rollouts": 128,
        "positions": 4000, "graded": True,
        "cost": {"rollouts": 128, "tokens": 8192, "seconds": 12.0, "seconds_expected": 10.0},
        "metrics": {"teachable_share": number, "teacher_lead": number, "overlap_ratio_at_4": number,
                    "overlap_chance_at_4": {"value": 0.02, "low": None, "high": None, "count": 1}},
        "by_position": {"0": {"overlap_ratio": {"value": 0.8, "count": 9}}, "8": {"overlap_ratio": {"value": 0.7, "count": 9}}},
        "by_depth": {}, "continuation": [], "findings": [finding],
        "verdict": {"name": name, "reason": "because of this", "remedy": "opd train my.toml", "exit_code": 0,
                    "because": ["lead"]},
        "prediction": {"gap": 0.24, "gap_recovery": {"low": 0.9, "high": 1.2}, "slope": 0.3, "slope_low": 0.2,
                       "slope_high": 0.4, "basis": "pairs of the testbed"},
        "ranking": [], "between": [], "renderings": [],
        **more,
    }  # fmt: skip
