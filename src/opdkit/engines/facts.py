"""What is served at a URL, asked before anything is loaded: by whom, over which tokens, how wide."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from opdkit.config import ModelConfig, ServerTeacher
from opdkit.engines.client import Endpoint, Refused, before_the_run, token
from opdkit.engines.dialects import Facts
from opdkit.models.load import (
    fingerprint,
    open_config,
    open_tokenizer,
    shared_ids,
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
    with before_the_run():
        return _vllm(cfg, endpoint) if _api(cfg, endpoint) == "vllm" else _opd(cfg, endpoint)


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
    name, length, root = named_model(endpoint)
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
        tokenizer=model.model,
        fingerprint="",
        weights="",
        rows=rows,
        max_length=length - 1,  # one token is written after what is scored
        max_top_k=cap,
        offers=Needs(sampled=True, top_k=cap, at_ids=whole, entropy=whole),
        tempered=False,
    )


def named_model(endpoint: Endpoint) -> tuple[str, int, Any]:
    """(name, tokens it takes, where it was loaded from) of what a vLLM server has. UserError where it names none."""
    try:
        card = _object(endpoint.one("/v1/models"), endpoint.url)["data"][0]
        return str(card["id"]), int(card["max_model_len"]), card.get("root")
    except (KeyError, IndexError, ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{endpoint.url}/v1/models names no model", hint=f"check {endpoint.key}.url"
        ) from None


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
        model = ModelConfig(model=facts.tokenizer, revision=cfg.revision)
        return shared_rows(
            tokenizer, open_tokenizer(model), student_config=config, teacher_config=open_config(model)
        )
    own = vocabulary_rows(tokenizer, config)
    if fingerprint(tokenizer) == facts.fingerprint:
        return min(own, facts.rows)
    with before_the_run():
        theirs = _object(endpoint_of(cfg).one("/vocabulary"), cfg.url)
    return shared_ids(tokenizer, theirs, ours=own, theirs=facts.rows)


def _object(data: bytes, url: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{url} answers with something that is not JSON", hint="check teacher.url")
    return found
