"""TRL's trainers that distil, each through its public configuration, with the objective that it and opdkit both have.

distillation           DistillationTrainer: reverse KL over the vocabulary (beta 1); ours `full`
gkd                    generalised JS, beta .5; ours `gkd`
gold                   reverse KL over the vocabulary, one tokenizer (no ULD); ours `full`
iw_opd                 the sampled token's log-ratio, prefix weights off (gamma 0); ours `sampled`: the same gradient; TRL's
                       loss is log-ratio · log p, ours the log-ratio, so only gradient norms are compared
iw_opd_top_16          the same trainer's KL(p̄‖q̄) over the student's top 16, no tail; ours `paper-eq5`
sdft                   the student as it was, under a longer prompt, is the teacher; reverse KL over the vocabulary; ours `full`
sdpo                   the same with a rollout that was right in the prompt (all are), 8 per prompt; its default, the sampled
                       token; ours `sampled`: the same gradient
server_distillation, async_distillation    need a vLLM server

A class of TRL is a distilling one if its configuration has a field teacher_…; what has none of the names above is told of.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from work import SEED, Work

# A template that adds nothing: a conversation of one turn has exactly the prompt's tokens.
PLAIN = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)
Rows = list[dict[str, Any]]  # prompt, ids


@dataclass(frozen=True)
class Peer:
    """How one trainer is made. `compared`: what of its first step must be ours on the same tokens."""

    module: str
    trainer: str
    config: str
    settings: Callable[[Work], Mapping[str, Any]]
    data: Callable[[Rows, Work, Any], Dataset]
    compared: tuple[str, ...] = ("loss", "gradient")
    teacher_model: bool = True
    own_groups: bool = False  # it repeats prompts by itself
    named: bool = False  # it opens the student by its folder
    bans_end_later: bool = False  # min_new_tokens goes onto its generation_config
    more: Mapping[str, Any] = field(default_factory=dict)  # arguments of the trainer


def _text(rows: Rows, work: Work, tokenizer: Any) -> Dataset:
    return Dataset.from_dict({"prompt": [row["prompt"] for row in rows]})


def _filler(work: Work, tokenizer: Any) -> list[int]:
    """A completion that is never trained on (lmbda 1). TRL 1.16 divides by the tokens of the data set's completion."""
    text = " The answer is 12." * work.new_tokens
    return list(tokenizer(text, add_special_tokens=False)["input_ids"][: work.new_tokens])


def _completed(rows: Rows, work: Work, tokenizer: Any) -> Dataset:
    filler = _filler(work, tokenizer)
    return Dataset.from_list(
        [
            {
                "prompt": row["prompt"],
                "input_ids": row["ids"] + filler,
                "completion_mask": [0] * len(row["ids"]) + [1] * len(filler),
            }
            for row in rows
        ]
    )


def _messages(rows: Rows, work: Work, tokenizer: Any) -> Dataset:
    tokenizer.chat_template = PLAIN
    filler = tokenizer.decode(_filler(work, tokenizer))
    said = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": filler}] for row in rows
    ]
    return Dataset.from_dict({"messages": said})


def _told(rows: Rows, work: Work, tokenizer: Any) -> Dataset:
    hints = ["Hint: the answer is 12."] * len(rows)
    return Dataset.from_dict({"prompt": [row["prompt"] for row in rows], "privileged_context": hints})


def _generation(work: Work) -> dict[str, Any]:
    kwargs = {"min_new_tokens": work.new_tokens} if work.lengths is None else None
    return {"max_completion_length": work.max_tokens, "generation_kwargs": kwargs, "temperature": 1.0}


def _on_policy(work: Work, **more: Any) -> dict[str, Any]:
    return {"max_completion_length": work.max_tokens, "max_length": 1024, "temperature": 1.0, "lmbda": 1.0, **more}  # fmt: skip


def _right(completions: list[Any], **_: Any) -> list[float]:
    """Every rollout is right, so that each has another's in its teacher's prompt and all are trained on."""
    return [1.0] * len(completions)


X = "trl.experimental."
PEERS: dict[str, Peer] = {
    "distillation": Peer(
        "trl", "DistillationTrainer", "DistillationConfig",
        lambda work: {**_generation(work), "beta": 1.0, "shuffle_dataset": work.responses == 1}, _text,
    ),
    "gkd": Peer(
        X + "gkd", "GKDTrainer", "GKDConfig",
        lambda work: {"temperature": 1.0, "lmbda": 1.0, "beta": 0.5, "max_new_tokens": work.new_tokens, "max_length": 1024},
        _completed, bans_end_later=True,
    ),
    "gold": Peer(
        X + "gold", "GOLDTrainer", "GOLDConfig",
        lambda work: _on_policy(work, top_p=1.0, beta=1.0, use_uld_loss=False), _messages, bans_end_later=True,
    ),
    "iw_opd": Peer(
        X + "iw_opd", "IWOPDTrainer", "IWOPDConfig",
        lambda work: _on_policy(work, top_p=1.0, distillation_objective="iw_opd", iw_opd_gamma=0.0), _messages,
        compared=("gradient",), bans_end_later=True,
    ),
    "iw_opd_top_16": Peer(
        X + "iw_opd", "IWOPDTrainer", "IWOPDConfig",
        lambda work: _on_policy(
            work, top_p=1.0, distillation_objective="jsd", beta=1.0, loss_top_k=16, loss_add_tail=False
        ), _messages, bans_end_later=True,
    ),
    "sdft": Peer(
        X + "sdft", "SDFTTrainer", "SDFTConfig",
        lambda work: {
            **_generation(work), "num_generations": 1, "max_prompt_length": 256, "distillation_mode": "full_logits",
            "distillation_alpha": 1.0, "distillation_topk": None, "teacher_model_kind": "base",
        }, _told, teacher_model=False,
    ),
    "sdpo": Peer(
        X + "sdpo", "SDPOTrainer", "SDPOConfig",
        lambda work: {
            **_generation(work), "num_generations": work.responses, "max_prompt_length": 512,
            "teacher_model_kind": "base",
        }, _text, compared=("gradient",), teacher_model=False, own_groups=True, more={"reward_funcs": _right},
    ),
    "server_distillation": Peer(
        X + "server_distillation", "ServerDistillationTrainer", "ServerDistillationConfig",
        lambda work: {**_generation(work), "beta": 1.0, "teacher_model_server_url": "http://127.0.0.1:9"}, _text,
        teacher_model=False,
    ),
    "async_distillation": Peer(
        X + "async_distillation", "AsyncDistillationTrainer", "AsyncDistillationConfig",
        lambda work: {"max_completion_length": work.max_tokens, "beta": 1.0, "vllm_server_timeout": 5.0}, _text,
        teacher_model=False, named=True,
    ),
}  # fmt: skip
SAME = {"trl.experimental.distillation": "another name of trl.DistillationTrainer"}


def common(work: Work, folder: str) -> dict[str, Any]:
    """What every trainer is told."""
    return {
        "output_dir": folder,
        "max_steps": work.steps,
        "per_device_train_batch_size": work.rows,
        "gradient_accumulation_steps": 1,
        "learning_rate": work.lr,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_num_workers": 0,
        "seed": SEED,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def make(peer: Peer, work: Work, *, folder: str, student: Any, teacher: Any, tokenizer: Any, rows: Rows) -> Any:  # fmt: skip
    """The constructed trainer; raises what it raises."""
    module = importlib.import_module(peer.module)
    repeated = [row for row in rows for _ in range(1 if peer.own_groups else work.responses)]
    data = peer.data(repeated, work, tokenizer)
    config = getattr(module, peer.config)(**{**common(work, folder), **peer.settings(work)})
    models = {"model": student} | ({"teacher_model": teacher} if peer.teacher_model else {})
    trainer = getattr(module, peer.trainer)(
        **models, args=config, train_dataset=data, processing_class=tokenizer, **peer.more
    )
    if peer.bans_end_later:
        trainer.generation_config.min_new_tokens = work.new_tokens
    return trainer


def unknown() -> dict[str, str]:
    """Modules of the installed TRL with a distilling trainer that PEERS does not have → why, or the error of the import."""
    import trl.experimental

    ours = {peer.module for peer in PEERS.values()}
    found = {}
    for info in pkgutil.iter_modules(trl.experimental.__path__, X):
        if info.name in ours or not info.ispkg:
            continue
        try:
            distils = _distils(importlib.import_module(info.name))
        except Exception as error:  # whatever an experimental module raises when imported: it is told
            found[info.name] = f"{type(error).__name__}: {error}"
            continue
        if distils:
            found[info.name] = SAME.get(info.name, "no adapter in benchmarks/trainers.py")
    return found


def _distils(module: Any) -> bool:
    configs = [c for name, c in vars(module).items() if name.endswith("Config") and dataclasses.is_dataclass(c)]  # fmt: skip
    return any(f.name.startswith("teacher_") for c in configs for f in dataclasses.fields(c))


if __name__ == "__main__":
    print(json.dumps(unknown()))
