"""Static checks: planted mismatches are named with the culprit, sound pairs raise no doubt, remedies work."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file

from commands import save_model, write_rows
from models import CHAT_TEMPLATE, tiny_tokenizer
from opdkit.cli.app import app
from opdkit.config import dump_toml, load_config
from opdkit.models.load import open_tokenizer
from opdkit.recipes.prompts import align
from opdkit.recipes.static import command, static_findings, static_renderings
from opdkit.recipes.static_templates import Rendering, side_by_side
from opdkit.tasks import Task, load_task
from opdkit.train.plan import make_plan
from opdkit.train.prompts import encoded_prompts
from opdkit.types import Finding, Prompt, UserError

SHIPPED = Path(__file__).parent.parent / "src" / "opdkit" / "studies" / "shipped"

# --- families -----------------------------------------------------------------------------------------------

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_TOKENS = ("<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
QWEN3 = CHAT_TEMPLATE.replace(
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}",
)
QUIET = QWEN3.replace("enable_thinking is defined and not", "not (enable_thinking is defined and").replace(
    "enable_thinking %}{{ '<th", "enable_thinking) %}{{ '<th"
)  # does not think unless told to
POLITE = CHAT_TEMPLATE.replace("{% for", "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% for", 1)
OTHER_ROLE = CHAT_TEMPLATE.replace("'<|im_start|>assistant\n'", "'<|im_start|>model\n'")
THINK = ("<think>", "</think>")


def tokens(template: str | None = CHAT_TEMPLATE, *, extra: tuple[str, ...] = (), **named: str) -> Any:
    """A tokenizer of 384 tokens, `extra` ones behind them; `named`: eos_token, pad_token, bos_token."""
    tokenizer = deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens({"extra_special_tokens": list(extra)})
    for key, token in named.items():
        setattr(tokenizer, key, token)
    tokenizer.chat_template = template
    return tokenizer


def llama3() -> Any:
    """Begins with a token that the template writes and the tokenizer adds as well."""
    from tokenizers import processors

    tokenizer = tokens(LLAMA3, extra=LLAMA3_TOKENS, bos_token="<|begin|>", eos_token="<|eot_id|>")
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", bos)]
    )
    return tokenizer


# --- a pair in a folder -------------------------------------------------------------------------------------


@dataclass
class Shop:
    """A pair that is sound until something is done to it, under a config that names it."""

    place: Path
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def student(self) -> Path:
        return self.place / "student"

    @property
    def teacher(self) -> Path:
        return self.place / "teacher"

    @property
    def source(self) -> Path:
        return self.place / "pair.toml"

    def models(self, student: Any = None, teacher: Any = None, **same: Any) -> None:
        """Both models, with these tokenizers."""
        save_model(self.student, tokenizer=student or tokens(), seed=0, **same)
        save_model(self.teacher, tokenizer=teacher or student or tokens(), seed=1, hidden=48, **same)

    def rows(self, name: str, prompts: list[Any], **more: Any) -> str:
        rows = [p if isinstance(p, dict) else {"prompt": p} for p in prompts]
        return str(write_rows(self.place / name, [row | more for row in rows]))

    def edit(self, file: str, **values: Any) -> None:
        """Values in a model's JSON file: `teacher/config.json`; None removes a key."""
        path = self.place / file
        data = json.loads(path.read_text()) | values
        path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))

    def findings(self, *changes: str) -> list[Finding]:
        base = {
            "student.model": str(self.student),
            "teacher.model": str(self.teacher),
            "task.path": str(self.place / "train.jsonl"),
            "sampling.max_tokens": 20,
        }
        given = {key: value for key, value in (base | self.settings).items() if value is not None}
        config = load_config(None, [f"{key}={json.dumps(value)}" for key, value in given.items()])
        self.source.write_text(dump_toml(config))
        return check(self.source, *changes)


def check(source: Path, *changes: str) -> list[Finding]:
    config = load_config(source, changes)
    with load_task(config.task) as task:
        return static_findings(config, task=task, source=str(source))


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path)
    shop.rows("train.jsonl", [f"Compute {i} + 2" for i in range(6)])
    return shop


# --- planted mismatches -------------------------------------------------------------------------------------

Plant = Callable[[Shop], None]
PLANTED: dict[str, tuple[Plant, str, str, list[str]]] = {}
"""What is planted → who plants it, the finding's name, its severity, what its message names."""


def planted(what: str, name: str, severity: str, *names: str) -> Callable[[Plant], Plant]:
    def keep(plant: Plant) -> Plant:
        assert what not in PLANTED
        PLANTED[what] = (plant, name, severity, list(names))
        return plant

    return keep


@planted(
    "base student, post-trained teacher",
    "end_tokens_differ",
    "error",
    "'<|im_end|>' (id 3)",
    "'<|endoftext|>' (id 1)",
)
def _(shop: Shop) -> None:
    shop.models(tokens(eos_token="<|endoftext|>"), tokens())


@planted(
    "stop at both, trained as two", "end_tokens_differ", "warning", "'<|endoftext|>' (id 1)", "not merged yet"
)
def _(shop: Shop) -> None:
    shop.models(tokens(eos_token="<|endoftext|>"), tokens())
    shop.settings = {"sampling.stop_ids": [1, 3]}


@planted("two base models under a chat template", "end_token_not_stopping", "warning", "'<|im_end|>' (id 3)")
def _(shop: Shop) -> None:
    shop.models(tokens(eos_token="<|endoftext|>"))


@planted(
    "generation config ends with another special token",
    "generation_end_differs",
    "warning",
    "teacher's generation_config.json",
    "'<|im_start|>' (id 2)",
)
def _(shop: Shop) -> None:
    shop.models()
    shop.edit("teacher/generation_config.json", eos_token_id=2)


@planted("generation config ends with a word", "wrong_special_id", "error", "eos_token_id = 300", "(id 300)")
def _(shop: Shop) -> None:
    shop.models()
    shop.edit("student/generation_config.json", eos_token_id=[3, 300])


@planted("generation config ends with nothing", "wrong_special_id", "error", "no token (id 9000)")
def _(shop: Shop) -> None:
    shop.models()
    shop.edit("teacher/generation_config.json", eos_token_id=9000)


@planted(
    "config ends with a word, no generation config", "wrong_special_id", "error", "config.json", "(id 77)"
)
def _(shop: Shop) -> None:
    shop.models()
    (shop.student / "generation_config.json").unlink()
    shop.edit("student/config.json", eos_token_id=77)


@planted("no end token at all", "no_end_token", "error", "nothing ends a response")
def _(shop: Shop) -> None:
    shop.models()
    for side in ("student", "teacher"):
        shop.edit(f"{side}/tokenizer_config.json", eos_token=None)
        shop.edit(f"{side}/generation_config.json", eos_token_id=None)


@planted(
    "the teacher's end token is unknown to the student", "end_token_unknown", "error", "'<|bye|>' (id 384)"
)
def _(shop: Shop) -> None:
    shop.models(tokens(), tokens(extra=("<|bye|>",), eos_token="<|bye|>"))


@planted("a stop id beyond the vocabulary", "stop_ids_unknown", "error", "holds 384", "0 to 383")
def _(shop: Shop) -> None:
    shop.models()
    shop.settings = {"sampling.stop_ids": [3, 384]}


@planted("pad is the end token", "pad_is_end", "info", "'<|im_end|>' (id 3)")
def _(shop: Shop) -> None:
    shop.models(tokens(pad_token="<|im_end|>"))


@planted("permuted vocabulary", "vocabulary_permuted", "error", "id 300 is ", "id 301 is ", " | ")
def _(shop: Shop) -> None:
    shop.models()
    path = shop.teacher / "tokenizer.json"
    data = json.loads(path.read_text())
    words = {i: token for token, i in data["model"]["vocab"].items()}
    data["model"]["vocab"] |= {words[300]: 301, words[301]: 300}
    path.write_text(json.dumps(data))


@planted("another tokenizer", "token_ids_differ", "error", "two families", "id ")
def _(shop: Shop) -> None:
    other = deepcopy(tiny_tokenizer(vocab=380, seed=9))
    other.chat_template = CHAT_TEMPLATE
    shop.models(tokens(), other)


@planted(
    "a renamed special token",
    "token_ids_differ",
    "error",
    "id 1 is '<|endoftext|>' | '<|end|>'",
    "only special",
)
def _(shop: Shop) -> None:
    shop.models()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        path = shop.teacher / file
        path.write_text(path.read_text().replace("<|endoftext|>", "<|end|>"))


@planted("padded embeddings", "rows_padded", "info", "400", "448", "384")
def _(shop: Shop) -> None:
    save_model(shop.student, tokenizer=tokens(), vocab_size=400)
    save_model(shop.teacher, tokenizer=tokens(), vocab_size=448, seed=1)


@planted(
    "tokens of the teacher's template are its own",
    "added_tokens_one_side",
    "warning",
    "'<think>' (id 384)",
    "teacher's",
)
def _(shop: Shop) -> None:
    shop.models(tokens(), tokens(QWEN3, extra=THINK))


@planted("added tokens that nobody writes", "added_tokens_one_side", "info", "'<tool>' (id 384)")
def _(shop: Shop) -> None:
    shop.models(tokens(), tokens(extra=("<tool>",)))


@planted(
    "a template's token is unknown to the teacher", "prompt_token_unknown", "error", "'<|im_begin|>' (id 384)"
)
def _(shop: Shop) -> None:
    begin = CHAT_TEMPLATE.replace("<|im_start|>", "<|im_begin|>")
    shop.models(tokens(begin, extra=("<|im_begin|>",)), tokens())


@planted("pad token without a row", "pad_token_without_row", "warning", "'<|fill|>' (id 384)", "384 rows")
def _(shop: Shop) -> None:
    fill = tokens(extra=("<|fill|>",), pad_token="<|fill|>")
    save_model(shop.student, tokenizer=fill, vocab_size=384, pad_token_id=0)
    save_model(shop.teacher, tokenizer=fill, seed=1)


@planted(
    "end token without a row", "end_token_without_row", "error", "'<|bye|>' (id 384)", "its own end token"
)
def _(shop: Shop) -> None:
    bye = tokens(extra=("<|bye|>",), eos_token="<|bye|>")
    save_model(shop.student, tokenizer=bye, vocab_size=384, eos_token_id=3)
    save_model(shop.teacher, tokenizer=bye, seed=1)


@planted("the same tokens, cut differently", "text_splits_differ", "warning", "student '", "teacher '")
def _(shop: Shop) -> None:
    shop.models()
    path = shop.teacher / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["merges"] = data["model"]["merges"][:20]
    path.write_text(json.dumps(data))


@planted("k wider than the vocabulary", "wider_than_vocabulary", "error", "diagnostics.k = 500", "384")
def _(shop: Shop) -> None:
    shop.models()
    shop.settings = {"diagnostics.k": 500}


@planted(
    "another template",
    "chat_template_differs",
    "warning",
    "'question'",
    "▶system\\nBe brief.",
    "▶user\\nWhat",
)
def _(shop: Shop) -> None:
    shop.models(tokens(), tokens(POLITE))


@planted("another word for the answerer", "chat_template_differs", "warning", "▶assistant", "▶model")
def _(shop: Shop) -> None:
    shop.models(tokens(), tokens(OTHER_ROLE))


@planted(
    "a teacher that refuses a system message",
    "chat_template_differs",
    "warning",
    "no system role",
    "'system'",
)
def _(shop: Shop) -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    shop.models(tokens(), tokens(strict + CHAT_TEMPLATE))
    shop.settings = {"task.system": "Answer with a number."}


@planted(
    "templates differ in turns that no prompt has",
    "chat_template_differs",
    "info",
    "'turns'",
    "no prompt here",
)
def _(shop: Shop) -> None:
    forgetful = CHAT_TEMPLATE.replace("in messages", "in messages[-2:]")
    shop.models(tokens(), tokens(forgetful))


@planted("the student has no template", "template_missing", "error", "the student has no chat template")
def _(shop: Shop) -> None:
    shop.models(tokens(None), tokens())


@planted("nobody has a template", "template_missing", "error", "the student has no chat template")
def _(shop: Shop) -> None:
    shop.models(tokens(None))


@planted(
    "the teacher has no template", "teacher_template_missing", "warning", "the teacher has no chat template"
)
def _(shop: Shop) -> None:
    shop.models(tokens(), tokens(None))


@planted("templates left out", "template_unused", "info", "the student and the teacher have")
def _(shop: Shop) -> None:
    shop.models()
    shop.settings = {"task.chat_template": False}


@planted(
    "one thinks by default, the other does not",
    "thinking_differs",
    "warning",
    "the student thinks",
    "the teacher does not think",
)
def _(shop: Shop) -> None:
    shop.models(tokens(QWEN3, extra=THINK), tokens(QUIET, extra=THINK))


@planted(
    "only the teacher can think",
    "thinking_differs",
    "warning",
    "student has no thinking mode",
    "teacher thinks",
)
def _(shop: Shop) -> None:
    shop.models(tokens(CHAT_TEMPLATE, extra=THINK), tokens(QWEN3, extra=THINK))


@planted(
    "a thinking flag that nobody reads here",
    "thinking_ignored",
    "warning",
    "task.thinking=false changes nothing",
)
def _(shop: Shop) -> None:
    shop.models(tokens(CHAT_TEMPLATE, extra=THINK), tokens(QWEN3, extra=THINK))
    shop.settings = {"task.thinking": False}


@planted("the begin token twice", "bos_doubled", "warning", "'<|begin|>' (id 384)", "writes it twice")
def _(shop: Shop) -> None:
    twice = llama3()
    twice.chat_template = "{{ bos_token }}" + LLAMA3
    shop.models(twice)


@planted(
    "the begin token added to a template's", "bos_doubled", "info", "'<|begin|>' (id 384)", "adds it again"
)
def _(shop: Shop) -> None:
    shop.models(llama3())


@planted(
    "the begin token on one side",
    "bos_differs",
    "warning",
    "'<|begin|>' (id 384)",
    "those of this run do not",
)
def _(shop: Shop) -> None:
    without = llama3()
    without.chat_template = LLAMA3.replace("{{ bos_token }}", "")
    shop.models(without, llama3())


@planted(
    "a short context", "context_too_short", "error", "the student's context of 256", "sampling.max_tokens"
)
def _(shop: Shop) -> None:
    shop.models()
    shop.settings = {"sampling.max_tokens": 250}


@planted("a teacher with a shorter context", "context_too_short", "error", "the teacher's context of 30")
def _(shop: Shop) -> None:
    shop.models()
    shop.edit("teacher/config.json", max_position_embeddings=30)


@planted("an answer that no row has", "prompts_unreadable", "error", "train.jsonl:1", "{answer}")
def _(shop: Shop) -> None:
    shop.models()
    shop.rows("train.jsonl", ["Compute 1", "Compute 2"])
    shop.settings = {"teacher.context": "It ends in {answer}."}


@planted("a demonstration that leaves no room", "context_too_short", "error", "the teacher's context of 256")
def _(shop: Shop) -> None:
    shop.models()
    shop.rows("train.jsonl", ["Compute 1", "Compute 2"], response="First add 1, then say what comes. " * 40)
    shop.settings = {"teacher.context": "Somebody wrote: {response}", "task.response_key": "response"}


@planted("over-long prompts", "prompts_too_long", "warning", "1 of 4 training prompts", "train.jsonl:3")
def _(shop: Shop) -> None:
    shop.models()
    shop.rows("train.jsonl", ["Compute 1", "Compute 2", "Compute 3 " * 100, "Compute 4"])


@planted(
    "over-long evaluation prompts",
    "prompts_too_long",
    "warning",
    "evaluation",
    "eval.jsonl:2",
    "eval.max_tokens",
)
def _(shop: Shop) -> None:
    shop.models()
    shop.settings = {
        "eval.max_tokens": 100,
        "task.eval_path": shop.rows("eval.jsonl", ["Say 1", "Say " * 50]),
    }


@planted(
    "a prompt twice",
    "prompts_duplicated",
    "warning",
    "1 of 4",
    "word for word",
    "train.jsonl:4",
    "'Compute 1'",
)
def _(shop: Shop) -> None:
    shop.models()
    shop.rows("train.jsonl", ["Compute 1", "Compute 2", "Compute 3", "Compute 1"])


@planted("a prompt twice but for case and space", "prompts_nearly_duplicated", "warning", "train.jsonl:3")
def _(shop: Shop) -> None:
    shop.models()
    shop.rows("train.jsonl", ["Compute 1", "Compute 2", "compute  1 "])


@planted("two answers to a question", "answers_conflict", "warning", "'1' and '2'", "'Compute 1'")
def _(shop: Shop) -> None:
    shop.models()
    shop.rows("train.jsonl", [{"prompt": "Compute 1", "answer": "1"}, {"prompt": "Compute 1", "answer": "2"}])


@planted(
    "evaluation prompts among the training's", "train_eval_overlap", "warning", "2 of 3", "(1 word for word"
)
def _(shop: Shop) -> None:
    shop.models()
    shop.settings = {"task.eval_path": shop.rows("eval.jsonl", ["Compute 1 + 2", "COMPUTE  2 + 2", "Say 4"])}


@planted("prompts templated before", "prompt_holds_special_tokens", "warning", "'<|im_start|>'", "6 prompts")
def _(shop: Shop) -> None:
    shop.models()
    prompts = [f"<|im_start|>user\nSay {i}<|im_end|>\n<|im_start|>assistant\n" for i in range(6)]
    shop.rows("train.jsonl", prompts)


@planted("a conversation that ends in silence", "prompts_empty", "warning", "train.jsonl:2")
def _(shop: Shop) -> None:
    shop.models()
    silent = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": " "}]
    shop.rows("train.jsonl", ["Compute 1", {"messages": silent}, "Compute 3"])


@planted(
    "messages without a template", "prompts_unreadable", "error", "train.jsonl:1", "task.chat_template=true"
)
def _(shop: Shop) -> None:
    shop.models()
    shop.rows("train.jsonl", [{"messages": [{"role": "user", "content": "Hi"}]}])
    shop.settings = {"task.chat_template": False}


@planted("a template that refuses the prompts", "prompts_unreadable", "error", "train.jsonl:1", "no roles")
def _(shop: Shop) -> None:
    shop.models(tokens("{{ raise_exception('no roles') }}"))


@planted("identical weights", "weights_identical", "error", "number for number", "nothing to learn")
def _(shop: Shop) -> None:
    save_model(shop.student, tokenizer=tokens())
    save_model(shop.teacher, tokenizer=tokens())


@planted("identical weights, rounded", "weights_identical", "error", "up to rounding (BF16 and F32)")
def _(shop: Shop) -> None:
    save_model(shop.student, tokenizer=tokens())
    save_model(shop.teacher, tokenizer=tokens())
    change(shop.teacher, lambda weight: weight.to(torch.bfloat16))


@planted("nearly identical weights", "weights_nearly_identical", "warning", "hardly anything to learn")
def _(shop: Shop) -> None:
    save_model(shop.student, tokenizer=tokens())
    save_model(shop.teacher, tokenizer=tokens())
    change(shop.teacher, lambda weight: weight * (1 + 1e-4))


@planted("one number of one tensor changed", "weights_nearly_identical", "warning", "1 of 20 tensors differ")
def _(shop: Shop) -> None:
    save_model(shop.student, tokenizer=tokens(), tie=True)
    save_model(shop.teacher, tokenizer=tokens(), tie=True)
    path = shop.teacher / "model.safetensors"
    weights = load_file(path)
    weights["model.embed_tokens.weight"][0, 0] += 1e-3  # not among the rows that are sampled
    save_file(weights, path, metadata={"format": "pt"})


@planted("masters in bfloat16", "masters_in_bfloat16", "warning", "optim.lr is 1e-06", "rounds to no change")
def _(shop: Shop) -> None:
    shop.models()
    shop.settings = {"student.dtype": "bfloat16"}


@planted("float32 weights held as bfloat16", "dtype_narrowed", "info", "the teacher's", "F32")
def _(shop: Shop) -> None:
    shop.models()
    shop.settings = {"teacher.dtype": "bfloat16"}


@planted("a truncated sampler", "sampling_truncated", "info", "top_p = 0.9", "top_k = 20")
def _(shop: Shop) -> None:
    shop.models()
    shop.settings = {"sampling.top_p": 0.9, "sampling.top_k": 20}


@planted("two temperatures", "temperatures_differ", "info", "0.7", "1")
def _(shop: Shop) -> None:
    shop.models()
    shop.settings = {"sampling.temperature": 0.7}


@planted("no weights", "weights_unreadable", "error", "teacher", "model.safetensors is not there")
def _(shop: Shop) -> None:
    shop.models()
    (shop.teacher / "model.safetensors").unlink()


@planted("no tokenizer", "tokenizer_unreadable", "error", "student", "holds no tokenizer")
def _(shop: Shop) -> None:
    shop.models()
    for path in shop.student.glob("tokenizer*"):
        path.unlink()


@planted("a damaged config", "config_unreadable", "error", "the teacher", "cannot open the config")
def _(shop: Shop) -> None:
    shop.models()
    (shop.teacher / "config.json").write_text("{")


@planted("an objective that the teacher cannot serve", "plan_refused", "error", "full rows")
def _(shop: Shop) -> None:
    shop.models()
    shop.settings = {"objective.support": "full", "teacher.payload": "ids"}


def change(folder: Path, how: Callable[[torch.Tensor], torch.Tensor]) -> None:
    path = folder / "model.safetensors"
    weights = {name: how(weight).contiguous() for name, weight in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("what", PLANTED)
def test_planted_mismatches_are_named(shop: Shop, what: str) -> None:
    plant, name, severity, names = PLANTED[what]
    plant(shop)
    findings = shop.findings()
    finding = next((f for f in findings if f.name == name), None)
    assert finding is not None, [f.name for f in findings]
    assert finding.severity == severity, finding
    assert all(text in finding.message for text in names), finding.message
    assert finding.rule or severity == "info"
    doubts = [f for f in findings if f.severity != "info"]
    assert all(len(f.message) < 900 and f.message.isprintable() and f.rule for f in doubts)
    assert [f.severity for f in findings] == sorted((f.severity for f in findings), key=ORDER.index)
    for f in findings:
        parses(f.remedy)
        json.dumps(f.numbers, allow_nan=False)
        assert all(isinstance(n, int | float) for n in f.numbers.values())
    if finding.remedy and severity != "info":
        helps(finding, shop.source)


ORDER = ["error", "warning", "info"]


def helps(finding: Finding, source: Path) -> None:
    """What the remedy says, done: the finding is gone, or no longer as bad."""
    program, verb, named, *changes = shlex.split(finding.remedy)
    assert (program, named) == ("opd", str(source))
    if verb == "prompts":
        place = source.parent / "aligned.jsonl"
        align(
            load_config(source, changes[: changes.index("--out")]),
            out=place,
            source=named,
            say=lambda _: None,
        )
        changes = [f"task.path={place}"]
    before, after = check(source), check(source, *changes)
    same = [f for f in after if f.name == finding.name]
    assert all(ORDER.index(f.severity) > ORDER.index(finding.severity) for f in same), same
    assert errors(after) <= errors(before), after


def errors(found: list[Finding]) -> set[str]:
    return {f.name for f in found if f.severity == "error"}


def parses(remedy: str) -> None:
    """With the real command line, where the command is there already; its changes are keys of a config."""
    if not remedy:
        return
    program, verb, *words = shlex.split(remedy)
    assert program == "opd" and verb in ("check", "train", "prompts")
    cli = typer.main.get_command(app)
    assert isinstance(cli, click.Group | typer.core.TyperGroup)
    known = cli.commands.get(verb)
    if known is not None:
        known.make_context(verb, list(words))
    load_config(Path(words[0]), words[1 : words.index("--out")] if "--out" in words else words[1:])


def test_enough_is_planted() -> None:
    assert len(PLANTED) >= 15 and len({name for _, name, _, _ in PLANTED.values()}) >= 15


# --- sound pairs --------------------------------------------------------------------------------------------

SOUND: dict[str, Plant] = {}


def sound(what: str) -> Callable[[Plant], Plant]:
    def keep(plant: Plant) -> Plant:
        assert what not in SOUND
        SOUND[what] = plant
        return plant

    return keep


@sound("same family, two sizes")
def _(shop: Shop) -> None:
    shop.models()


@sound("embeddings padded to two widths")
def _(shop: Shop) -> None:
    save_model(shop.student, tokenizer=tokens(), vocab_size=400)
    save_model(shop.teacher, tokenizer=tokens(), vocab_size=448, seed=1)


@sound("the demo's student and its improved copy")
def _(shop: Shop) -> None:
    demo_pair(shop, "improved")


@sound("the demo's student and its bigger sister")
def _(shop: Shop) -> None:
    demo_pair(shop, "bigger")


def demo_pair(shop: Shop, teacher: str) -> None:
    shop.settings = {
        "student.model": str(SHIPPED / "student"),
        "teacher.model": str(SHIPPED / teacher),
        "task.path": None,
        "task.type": "testbed",
        "task.train_size": 512,
        "task.eval_size": 128,
    }


@sound("base and post-trained, which share end tokens")
def _(shop: Shop) -> None:
    shop.models(tokens(eos_token="<|endoftext|>"), tokens())
    for side in ("student", "teacher"):
        shop.edit(f"{side}/generation_config.json", eos_token_id=[1, 3])


@sound("a file of prompts and one of evaluation")
def _(shop: Shop) -> None:
    shop.models()
    shop.settings = {
        "task.eval_path": shop.rows("eval.jsonl", ["Say 1", "Say 2"], answer="1"),
        "task.grader.type": "exact",
        "task.path": shop.rows("sums.jsonl", ["Add 1", "Add 2"], answer="1"),
    }


@sound("Llama 3 in miniature")
def _(shop: Shop) -> None:
    shop.models(llama3())


@sound("Qwen3 in miniature, thinking left to the template")
def _(shop: Shop) -> None:
    shop.models(tokens(QWEN3, extra=THINK))


@sound("Qwen3 in miniature, not thinking")
def _(shop: Shop) -> None:
    shop.models(tokens(QWEN3, extra=THINK))
    shop.settings = {"task.thinking": False}


@sound("two base models on plain text")
def _(shop: Shop) -> None:
    shop.models(tokens(None, eos_token="<|endoftext|>"))
    shop.settings = {"task.chat_template": False}


@sound("the same weights under a context of the teacher's")
def _(shop: Shop) -> None:
    save_model(shop.student, tokenizer=tokens())
    save_model(shop.teacher, tokenizer=tokens())
    shop.settings = {"teacher.context": "The answer is a number."}


@sound("a teacher that is told the answer, or what came of a response")
def _(shop: Shop) -> None:
    shop.models()
    shop.rows("train.jsonl", ["Compute 1", "Compute 2"], answer="3")
    shop.settings = {"teacher.context": "It ends in {answer}. You read: {feedback}", "task.grader": "exact"}


@sound("a student's own copy")
def _(shop: Shop) -> None:
    shop.models()
    shop.settings = {"teacher.model": None, "teacher.type": "self"}


@sound("a teacher trained on from the student, stored in bfloat16")
def _(shop: Shop) -> None:
    save_model(shop.student, tokenizer=tokens())
    save_model(shop.teacher, tokenizer=tokens())
    noise = torch.Generator().manual_seed(0)
    change(
        shop.teacher,
        lambda w: (
            (w + 0.01 * w.std() * torch.randn(w.shape, generator=noise)).to(torch.bfloat16)
            if w.ndim > 1
            else w.to(torch.bfloat16)
        ),
    )


@sound("one tied and one untied head, pad and end the same")
def _(shop: Shop) -> None:
    same = tokens(pad_token="<|im_end|>")
    save_model(shop.student, tokenizer=same, tie=True)
    save_model(shop.teacher, tokenizer=same, tie=False, seed=1)


@sound("reserved tokens on one side")
def _(shop: Shop) -> None:
    shop.models(tokens(), tokens(extra=("<|reserved_0|>", "<|reserved_1|>")))


@sound("two templates, prompts in the teacher's")
def _(shop: Shop) -> None:
    shop.models(tokens(), tokens(POLITE))
    shop.settings = {"task.render": "teacher"}


@sound("demonstrations without a teacher")
def _(shop: Shop) -> None:
    shop.models()
    shop.settings = {
        "story": "sft",
        "teacher.model": None,
        "task.path": shop.rows("shown.jsonl", ["Say 1", "Say 2"], response="one"),
    }


@sound("conversations with a system message and earlier turns")
def _(shop: Shop) -> None:
    shop.models()
    roles = ("system", "user", "assistant", "user")
    shop.rows(
        "train.jsonl",
        [{"messages": [{"role": r, "content": f"{r} says {i}"} for r in roles]} for i in range(4)],
    )


@pytest.mark.parametrize("what", SOUND)
def test_nothing_is_invented_on_sound_pairs(shop: Shop, what: str) -> None:
    SOUND[what](shop)
    findings = shop.findings()
    assert [f for f in findings if f.severity != "info"] == []
    for f in findings:
        parses(f.remedy)
    assert len(SOUND) >= 10


# --- parts --------------------------------------------------------------------------------------------------


def test_nothing_raises_where_a_plan_is_refused(shop: Shop) -> None:
    """What training would refuse is a finding, with the refusal's own words or better ones."""
    refused = 0
    for number, (plant, _, severity, _) in enumerate(PLANTED.values()):
        own = Shop(shop.place / str(number))
        own.place.mkdir()
        own.rows("train.jsonl", [f"Compute {i} + 2" for i in range(6)])
        plant(own)
        findings = own.findings()
        try:
            config = load_config(own.source)
            with load_task(config.task) as task:
                encoded_prompts(config, task, make_plan(config))
        except UserError:
            refused += 1
            assert findings[0].severity == severity == "error"
    assert refused >= 10


def test_the_first_difference_is_marked() -> None:
    row = Rendering("question", None, "<s>user\nHi", "<s>system\nHi", 3)
    assert side_by_side(row) == "student: <s>▶user\\nHi   teacher: <s>▶system\\nHi"
    far = side_by_side(
        Rendering("question", None, "a" * 100 + "b" + "c" * 100, "a" * 100 + "d", 100), before=4, after=4
    )
    assert far == "student: …aaaa▶bccc…   teacher: …aaaa▶d"


def test_renderings_are_there_in_full(shop: Shop) -> None:
    shop.models(tokens(QWEN3, extra=THINK), tokens(POLITE, extra=THINK))
    shop.findings()
    config = load_config(shop.source)
    with load_task(config.task) as task:
        rows = static_renderings(config, task=task, source=str(shop.source))
    assert [(r.probe, r.thinking) for r in rows if r.probe == "question"] == [
        ("question", None),
        ("question", False),
    ]
    assert rows[1].student.endswith("<think>\n\n</think>\n\n") and "Be brief." in rows[1].teacher
    assert all(r.first is not None for r in rows)


def test_a_template_cannot_speak_to_the_terminal(shop: Shop) -> None:
    loud = CHAT_TEMPLATE.replace("'<|im_start|>assistant\n'", "'\x1b[2J\u202e<|im_start|>assistant\n'")
    shop.models(tokens(), tokens(loud))
    messages = [f.message for f in shop.findings()]
    assert any("\\x1b[2J" in m for m in messages) and all(m.isprintable() for m in messages)


def test_a_command_is_typed_as_the_pair_was_named(tmp_path: Path) -> None:
    spaced = tmp_path / "my pair's.toml"
    spaced.touch()
    assert shlex.split(command("check", str(spaced), "steps=1")) == ["opd", "check", str(spaced), "steps=1"]
    named = "--student 'a b' --teacher T --budget 100 --prompts p.jsonl task.thinking=false"
    assert shlex.split(command("train", named)) == [
        *("opd", "train", "student=a b", "teacher=T", "task=p.jsonl", "task.thinking=false"),
    ]
    assert command("check", named, "task.render=teacher").endswith("task.thinking=false task.render=teacher")


def test_generators_may_repeat(shop: Shop) -> None:
    shop.models()
    shop.findings()
    config = load_config(shop.source, ['task={type="gym", name="chain_sum"}'])
    repeated = Task(tuple(Prompt(id=str(i), text="Compute 1") for i in range(3)), (), grading=None)
    findings = static_findings(config, task=repeated, source=str(shop.source))
    assert [f.severity for f in findings if f.name == "prompts_duplicated"] == ["info"]


# --- prompts in the teacher's words -------------------------------------------------------------------------


def test_prompts_in_the_teachers_template(shop: Shop) -> None:
    shop.models(tokens(), tokens(POLITE))
    assert shop.findings("task.render=teacher")
    config = load_config(shop.source, ["task.render=teacher"])
    with load_task(config.task) as task:
        prompts = encoded_prompts(config, task, make_plan(config)).train
    text = open_tokenizer(config.student).decode(prompts[0].ids)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nCompute 0 + 2")
    own = load_config(shop.source, ["task.render=teacher", 'teacher={type="self"}'])
    with load_task(own.task) as task:
        prompts = encoded_prompts(own, task, make_plan(own)).train
    assert "Be brief." not in open_tokenizer(own.student).decode(prompts[0].ids)


def test_a_context_stands_in_the_teachers_template_too(shop: Shop) -> None:
    shop.models(tokens(), tokens(OTHER_ROLE))
    shop.findings()
    config = load_config(shop.source, ["task.render=teacher", "teacher.context=know this"])
    with load_task(config.task) as task:
        read = encoded_prompts(config, task, make_plan(config)).teacher_ids
    text = open_tokenizer(config.student).decode(next(iter(read.values())))
    assert "know this" in text and text.endswith("<|im_start|>model\n")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (["story=sft"], "there is no teacher"),
        ([], "has no chat template"),
    ],
)
def test_no_teacher_to_render_with(shop: Shop, changes: list[str], problem: str) -> None:
    shop.models(tokens(), tokens(None))
    shop.rows("train.jsonl", ["Say 1"], response="one")
    if changes:
        shop.settings = {"teacher.model": None}
    shop.settings |= {"story": "sft"} if changes else {}
    shop.findings()
    config = load_config(shop.source, ["task.render=teacher"])
    with load_task(config.task) as task, pytest.raises(UserError, match=problem) as caught:
        encoded_prompts(config, task, make_plan(config))
    assert caught.value.hint.startswith("task.render=student")
    names = [f.name for f in check(shop.source, "task.render=teacher")]
    assert ("template_missing" in names) == (not changes)


def test_an_exam_uses_the_same_template(shop: Shop) -> None:
    from opdkit.train.examine import _prompts

    shop.models(tokens(), tokens(POLITE))
    shop.settings = {"task.eval_path": shop.rows("eval.jsonl", ["Say 1"])}
    shop.findings()
    config = load_config(shop.source, ["task.render=teacher"])
    with load_task(config.task) as task:
        (prompt,) = _prompts(config, task.evaluation)
    assert "Be brief." in open_tokenizer(config.student).decode(prompt.ids)
