"""What is served at a URL, asked before anything is loaded: by whom, over which tokens, how wide."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from opdkit.config import ModelConfig, ServerTeacher
from opdkit.engines.client import Endpoint, EngineError, Refused, token
from opdkit.engines.dialects import Facts
from opdkit.models.load import (
    fingerprint,
    first_differences,
    open_config,
    open_tokenizer,
    shared_rows,
    vocabulary_rows,
)
from opdkit.types import Needs, UserError

TEXTS = ("The answer is 42.", " 12 + 30 =", "Ünïcode → 漢字 \n\tdef f(x):", "<|im_start|>user\n2x</s>")
"""Read by both tokenizers: words, digits, spaces, bytes beyond ASCII, what looks like special tokens."""
_CAP = re.compile(r"max allowed:? *(\d+)")


def endpoint_of(cfg: ServerTeacher) -> Endpoint:
    return Endpoint(cfg.url, patience=cfg.patience, token=token("teacher"))


def ask_facts(cfg: ServerTeacher) -> Facts:
    """UserError where nobody answers, something else does, or vLLM's tokenizer cannot be known."""
    endpoint = endpoint_of(cfg)
    try:
        return _vllm(cfg, endpoint) if _api(cfg, endpoint) == "vllm" else _opd(cfg, endpoint)
    except EngineError as error:
        raise UserError(str(error), hint=error.hint) from None


def _api(cfg: ServerTeacher, endpoint: Endpoint) -> str:
    if cfg.api != "auto":
        return cfg.api
    try:
        endpoint.one("/info")
    except Refused as error:
        if error.status == 404:
            return "vllm"
        raise
    return "opd"


def _opd(cfg: ServerTeacher, endpoint: Endpoint) -> Facts:
    about = _object(endpoint.one("/info"), cfg.url)
    try:
        assert about["server"] == "opd"
        hidden = cfg.payload == "hidden"
        return Facts(
            url=cfg.url,
            api="opd",
            name=str(about["model"]),
            fingerprint=str(about["fingerprint"]),
            weights=str(about["weights"]),
            rows=int(about["rows"]),
            max_length=int(about["max_length"]),
            max_top_k=int(about["max_top_k"]),
            offers=Needs(True, top_k=int(about["max_top_k"]), at_ids=True, entropy=True, full=hidden),
            tempered=True,
            dtype=str(about["dtype"]),
        )
    except (KeyError, ValueError, TypeError, AssertionError):
        raise UserError(
            f"{cfg.url}/info is not opd's", hint="teacher.api=vllm, or check teacher.url"
        ) from None


def _vllm(cfg: ServerTeacher, endpoint: Endpoint) -> Facts:
    """vLLM names its model; the tokenizer is the user's word, compared on a few texts."""
    try:
        card = _object(endpoint.one("/v1/models"), cfg.url)["data"][0]
        name, length, root = str(card["id"]), int(card["max_model_len"]), card.get("root")
    except (KeyError, IndexError, ValueError, TypeError):
        raise UserError(f"{cfg.url}/v1/models names no model", hint="check teacher.url") from None
    model = ModelConfig(model=_model(cfg, root), revision=cfg.revision)
    tokenizer, config = open_tokenizer(model), open_config(model)
    _same_tokenizer(tokenizer, endpoint, name)
    if cfg.temperature != 1.0:
        raise UserError(
            f"teacher.temperature = {cfg.temperature}, but vLLM sends log-probs of prompts at temperature 1 whatever is asked",
            hint="teacher.temperature=1, or serve it with: opd serve MODEL",
        )
    if cfg.payload == "hidden":
        raise UserError("vLLM sends no hidden states", hint="teacher.payload=ids, or: opd serve MODEL")
    rows = int(config.get_text_config().vocab_size)
    cap = top_k_cap(endpoint, name, rows=rows)
    whole = cap >= rows
    return Facts(
        url=cfg.url,
        api="vllm",
        name=name,
        fingerprint="",
        weights="",
        rows=rows,
        max_length=length - 1,  # one token is written after what is scored
        max_top_k=cap,
        offers=Needs(sampled=True, top_k=cap, at_ids=whole, entropy=whole),
        tempered=False,
    )


def _model(cfg: ServerTeacher, root: Any) -> str:
    if cfg.model is not None:
        return cfg.model
    if isinstance(root, str) and (Path(root) / "config.json").is_file():  # a server on this machine
        return root
    raise UserError(
        f"vLLM at {cfg.url} does not say which tokenizer it has",
        hint="teacher.model=FOLDER or Hub id of the model it serves",
    )


def _same_tokenizer(tokenizer: Any, endpoint: Endpoint, name: str) -> None:
    for text in TEXTS:
        body = json.dumps({"model": name, "prompt": text, "add_special_tokens": False}).encode()
        theirs = _object(endpoint.one("/tokenize", body), endpoint.url).get("tokens")
        ours = tokenizer(text, add_special_tokens=False)["input_ids"]
        if theirs != ours:
            raise UserError(
                f"{endpoint.url} reads {text!r} as {str(theirs)[:60]}, the tokenizer of teacher.model as {str(ours)[:60]}",
                hint="teacher.model=FOLDER or Hub id of the model that is served there",
            )


def top_k_cap(endpoint: Endpoint, name: str, *, rows: int, field: str = "prompt_logprobs") -> int:
    """Widest top-k the server gives (`--max-logprobs`): asked for everything, it names its limit in the refusal."""
    body = {"model": name, "prompt": [[0, 1]], "max_tokens": 1, field: rows}
    try:
        endpoint.one("/v1/completions", json.dumps(body).encode())
    except Refused as error:
        found = _CAP.search(error.said)
        if error.status != 400 or found is None:
            raise
        return int(found.group(1))
    return rows


def rows_shared(cfg: ServerTeacher, facts: Facts, *, tokenizer: Any, config: Any) -> int:
    """Leading ids that mean the same to the student (`tokenizer`, `config`) and the served model. UserError where they differ."""
    if facts.api == "vllm":
        endpoint = endpoint_of(cfg)
        root = _object(endpoint.one("/v1/models"), cfg.url)["data"][0].get("root")
        model = ModelConfig(model=_model(cfg, root), revision=cfg.revision)
        return shared_rows(
            tokenizer, open_tokenizer(model), student_config=config, teacher_config=open_config(model)
        )
    own = vocabulary_rows(tokenizer, config)
    if fingerprint(tokenizer) == facts.fingerprint:
        return min(own, facts.rows)
    theirs = _object(endpoint_of(cfg).one("/vocabulary"), cfg.url)
    differing = first_differences(tokenizer.get_vocab(), theirs)
    if differing:
        raise UserError(
            f"student and teacher read ids differently: {'; '.join(differing)}",
            hint="serve a teacher of the student's family, with the same tokenizer",
        )
    shared = min(own, facts.rows)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id >= shared:
        raise UserError(
            f"the student's end token {tokenizer.eos_token!r} (id {tokenizer.eos_token_id}) is unknown to the teacher",
            hint="serve a teacher whose tokenizer has the student's end token",
        )
    return shared


def _object(data: bytes, url: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{url} answers with something that is not JSON", hint="check teacher.url")
    return found
