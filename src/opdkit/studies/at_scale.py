"""The study's questions at the paper's own scale: every arm as a file of configs/paper and what is typed after it.

Nothing here was run at that scale by us: arms are loaded, planned and run for two steps with tiny stand-ins
(tests/test_at_scale.py). Questions 1 to 12 are those of arXiv 2604.13016, 13 and 14 are about it. Data and two functions, and no
torch: what an arm needs is on the machine that runs it.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from opdkit.config import Config, load_config
from opdkit.types import UserError

Arm = tuple[str, ...]
"""(stem of a file in configs/paper, key=value, …)."""

_PAIR = "r1-1.5b-justrl"  # where the paper's ablations start: the pair that works
_BASE = "qwen3-1.7b-base-4b-grpo"  # a student of high entropy: its candidates hold less of its mass
_MATCHED = ("task.train_size=14116", "steps=220")  # as many problems as DeepMath has, one epoch
_OTHERS = (
    "widen.path=data/deepmath-apart.jsonl"  # made by the command in qwen3-1.7b-base-4b-grpo-deepmath.toml
)
_WHOLE_STEPS = (
    "save.rollouts_every=20",
    "save.rollouts=256",
)  # where a checkpoint is; 64 prompts, 4 responses
_REST = "objective.support=symmetric_difference"


def _mixed(share: float) -> Arm:
    """DAPO with a fixed share of other prompts."""
    return (_BASE, *_MATCHED, _OTHERS, f"widen.share={share}", "widen.guard=false")


AT_SCALE: Mapping[str, Mapping[str, Arm]] = {
    # 1: two teachers of like score, of which one thinks as the student does (3.1, Figs. 2 and 3)
    "consistency": {
        "teacher without thinking": ("qwen3-1.7b-base-4b",),
        "teacher after RL": (_BASE,),
        # the second teacher from its own base on, for who doubts the one that was released (Table 1)
        "make the teacher": ("qwen3-4b-base-grpo",),
    },
    # 2: a higher score is not new knowledge: two families, the next larger model or the same after RL (3.2, Fig. 4)
    "new-knowledge": {
        "R1: same pipeline": ("r1-1.5b-r1-7b",),
        "R1: after RL": ("r1-1.5b-skywork-7b",),
        "Qwen3: same pipeline": ("qwen3-1.7b-4b",),
        "Qwen3: after RL": ("qwen3-1.7b-4b-rl-math",),
    },
    # 3: a student after RL learns from what it was before, or from that one's larger sibling (3.3, Fig. 5)
    "reverse": {"own start": ("justrl-r1-1.5b",), "larger": ("justrl-r1-7b",)},
    # 4: what moves in a run that works and stands still in one that does not, for two students (4.1, Figs. 6 and 18 to 20)
    "dynamics": {
        "1.5B: success": (_PAIR,),
        "1.5B: failure": ("r1-1.5b-r1-7b",),
        "7B: success": ("r1-7b-skywork-7b",),
        "7B: failure": ("r1-7b-r1-14b",),
    },
    # 5: which tokens carry it (4.2, Fig. 7); the last four arms are not in the paper's figure
    "which-tokens": {
        "student top-k": (_PAIR,),
        "overlap": (_PAIR, "objective.support=overlap"),
        "rest, raw": (_PAIR, _REST, "objective.normalisation=none"),
        "rest, renormalised": (_PAIR, _REST, "objective.normalisation=weights"),
        "teacher top-k": (_PAIR, "objective.support=teacher_top_k"),
        "union": (_PAIR, "objective.support=union"),
        "full": (_PAIR, "objective.preset=full"),
    },
    # 6: imitate the teacher first, then distil (5.1, Figs. 8 and 21)
    "cold-start": {
        "from the base": ("qwen3-1.7b-base-4b-coldstart", "coldstart=unset"),
        "cold start": ("qwen3-1.7b-base-4b-coldstart",),
        "cold start, until overlap rests": ("qwen3-1.7b-base-4b-coldstart", "coldstart.until=unset"),
        "the paper's SFT student": (
            "qwen3-1.7b-base-4b-coldstart",
            "coldstart=unset",
            "student.model=lllyx/Qwen3-1.7B-SFT",
        ),
    },
    # 7: the wrapper of the prompts, the data set's or that of the teacher's RL (5.2, Figs. 9 and 22)
    "template": {"original": (_PAIR,), "teacher's": (_PAIR, "task.wrapper=boxed")},
    # 8: the teacher's own RL prompts or others (5.2, Fig. 10), and the mixtures that the paper advises and does not try
    "content": {
        "teacher's own": (_BASE, *_MATCHED),
        "others": ("qwen3-1.7b-base-4b-grpo-deepmath",),
        "a tenth others": _mixed(0.1),
        "a quarter others": _mixed(0.25),
        "half others": _mixed(0.5),
        "others by the guard of entropy": (_BASE, *_MATCHED, _OTHERS),
    },
    # 9: how long responses may be (6.1, Figs. 11a, 12, 13 and 23); the paper's collapse comes at steps 200 to 220
    "length": {
        str(tokens): (_PAIR, f"sampling.max_tokens={tokens}")
        for tokens in (512, 1024, 3072, 7168, 10240, 15360)
    },
    # 10: does the teacher still know how to go on, by depth (6.1, Fig. 11b)? Measured afterwards on the rollouts and checkpoints
    # of a trained pair: opd diagnose CONFIG --rollouts RUN --depth FOLDER --continue N. Bins of 1,024 tokens begin at all of the
    # paper's depths, 1K to 16K, and its rollouts are longer than those.
    "continuation": {
        name: (stem, "sampling.max_tokens=20480", "diagnostics.bins=20", *_WHOLE_STEPS)
        for name, stem in (("new capability", _PAIR), ("same pipeline", "r1-1.5b-r1-7b"))
    },
    # 11: a reward that tells right from wrong responses and is of no use token by token (6.2, Fig. 14). Measured afterwards in
    # the same way: opd diagnose CONFIG --rollouts RUN/rollouts/step_N.jsonl, its sequence_reward_auroc, and --depth for signs.
    "local-reward": {
        "new capability": (_PAIR, *_WHOLE_STEPS),
        "same pipeline": ("r1-1.5b-r1-7b", *_WHOLE_STEPS),
    },
    # 12: one sampled token or the student's top k, and how many (6.3, Figs. 15 and 16)
    "candidates": {
        "sampled": (_PAIR, "objective.preset=sampled"),
        **{f"top {k}": (_PAIR, f"objective.k={k}") for k in (1, 4, 16, 64)},
    },
    # 13: what a claim has to beat, and what others dispute
    "controls": {
        "top 16": (_PAIR,),
        "full": (_PAIR, "objective.preset=full"),
        "sampled": (_PAIR, "objective.preset=sampled"),
        "shuffled": (_PAIR, "objective.preset=sampled", "objective.signal.control=shuffled"),
        "random sign": (_PAIR, "objective.preset=sampled", "objective.signal.control=random_sign"),
        # no teacher at all (arXiv 2608.31046)
        "push down": (_PAIR, "story=push_down", "teacher=unset"),
        "reward alone": (_PAIR, "story=grpo", "teacher=unset", "sampling.responses=8"),
        "teacher and reward": (_PAIR, "objective.signal.reward=additive"),
        "teacher, then reward": (
            _PAIR,
            "objective.signal.reward=sequential",
            "objective.signal.switch_step=140",
        ),
        # a pair whose overlap is high from the start: an independent run gained nothing by imitating first
        "same style": ("qwen3-1.7b-4b-rl-math",),
        "same style, cold start": (
            "qwen3-1.7b-4b-rl-math",
            "coldstart.lr=1e-5",
            "coldstart.max_tokens=12288",
            "coldstart.steps=540",  # two epochs
        ),
    },
    # 14: the released code is not Eq. 5 but for a term on the mass of the candidates, which is small where they hold nearly all:
    # so here, on a student of high entropy
    "code-or-equation": {
        "released code": (_BASE,),
        "Eq. 5": (_BASE, "objective.preset=paper-eq5"),
        "full": (_BASE, "objective.preset=full"),
        "top 16 and the sampled tail": (_BASE, "objective.preset=tt-opd"),
    },
}
"""Question → arm → how it is run, in the order of the paper."""

CONFIGS = Path("configs/paper")
"""Where the files are in a clone of the repository; an installed package has none."""


def config_at_scale(
    question: str, arm: str, *, folder: Path, run: Path, changes: Sequence[str] = ()
) -> Config:
    """The run of an arm, of the files in `folder`, into `run`; `changes` as typed, laid over it. One with a `coldstart` table is
    of `opd coldstart`.

    Raises UserError for a question or an arm that is none, and where `folder` does not have the file.
    """
    stem, *own = _arm(question, arm)
    path = folder / f"{stem}.toml"
    if not path.is_file():
        where = " ".join(_typed([CONFIGS / f"{stem}.toml", *own, f"run={run}"]))
        raise UserError(
            f"{folder} has no {path.name}", hint=f"in a clone of the repository: opd train {where}"
        )
    return load_config(path, [*own, f"run={run}", *changes])


def command_at_scale(question: str, arm: str, *, folder: Path, run: Path) -> str:
    """What a person types to run the arm: `opd train …`, or `opd coldstart …` where imitation comes first.

    Raises UserError as `config_at_scale` does.
    """
    config = config_at_scale(question, arm, folder=folder, run=run)
    stem, *changes = _arm(question, arm)
    verb = "train" if config.coldstart is None else "coldstart"
    return " ".join(["opd", verb, *_typed([folder / f"{stem}.toml", *changes, f"run={run}"])])


def _arm(question: str, arm: str) -> Arm:
    arms = AT_SCALE[_known(question, AT_SCALE, what="question")]
    return arms[_known(arm, arms, what=f"arm of {question}")]


def _known(name: str, names: Mapping[str, object], *, what: str) -> str:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        raise UserError(f"there is no {what} {name!r}", hint=near[0] if near else " | ".join(names))
    return name


def _typed(words: list[object]) -> list[str]:
    return [shlex.quote(str(word)) for word in words]
