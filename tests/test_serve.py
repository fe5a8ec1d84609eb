"""`opd serve`: the wire, what is refused, who may ask, what is read together, and that the numbers are the model's."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import opd
from models import tiny_loaded
from opdkit.engines.wire import CONTENT_TYPE, MAGIC, FrameError, pack, unpack
from opdkit.models.teacher import LocalTeacher
from opdkit.serve.batcher import Batcher, Full
from opdkit.serve.scoring import Job, Limits
from opdkit.types import Needs, Prompt, Rollout
from serving import own_process, own_server, save_tiny

LOADED = tiny_loaded("qwen3", seed=1, hidden=48)
TOKEN = "a-token-of-tests"


def header(**changes: object) -> dict[str, object]:
    needs = {"sampled": True, "top_k": 3, "at_ids": False, "entropy": True, "hidden": False}
    own = {"request": 7, "temperature": 1.0, "values": "float32", "rows": LOADED.head.rows}
    return {**own, "fingerprint": LOADED.fingerprint, "needs": needs, **changes}


def arrays(
    tokens: list[int] | None = None, prompts: tuple[int, ...] = (2, 3), responses: tuple[int, ...] = (3, 1)
) -> dict[str, np.ndarray]:
    tokens = tokens if tokens is not None else list(range(5, 5 + sum(prompts) + sum(responses)))
    lists = {"tokens": tokens, "prompt_lengths": prompts, "response_lengths": responses}
    return {name: np.array(values, dtype=np.int32) for name, values in lists.items()}


@pytest.fixture(scope="module")
def url():
    with own_server(LOADED) as url:
        yield url


# --- the wire -----------------------------------------------------------------------------------------------


@given(
    shape=st.lists(st.integers(0, 5), min_size=0, max_size=3),
    dtype=st.sampled_from([np.int32, np.float32, np.float16]),
    note=st.text(max_size=20),
)
def test_a_frame_comes_back_as_it_went(shape, dtype, note):
    array = np.arange(int(np.prod(shape)), dtype=dtype).reshape(shape)
    head, back = unpack(pack({"note": note}, {"a": array, "b": array[..., :0] if shape else array}))
    assert head == {"note": note} and back["a"].dtype == dtype and np.array_equal(back["a"], array)


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_frame_is_refused(data):
    frame = bytearray(pack({"request": 1}, {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}))
    whole = bytes(frame)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(frame) - 1))
        frame[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(frame)))
    damaged = bytes(frame[:cut])
    if damaged == whole:
        unpack(damaged)
        return
    with pytest.raises(FrameError):
        unpack(damaged)


@pytest.mark.parametrize(
    "text",
    ['{"arrays": [["a", "float64", [1]]]}', '{"arrays": [["a", "float32", [-1]]]}', '{"arrays": 3}', "[]", "{",
     '{"arrays": [["a", "float32", [9999999, 9999999]]]}', '{"arrays": [["a", "object", [1]]]}',
     '{"arrays": [["a", "float32", [1]], ["a", "float32", [1]]]}'],
)  # fmt: skip
def test_headers_that_lie_are_refused(text):
    with pytest.raises(FrameError):
        unpack(MAGIC + len(text).to_bytes(4, "little") + text.encode() + bytes(8))


# --- the numbers --------------------------------------------------------------------------------------------


def test_scores_are_the_models_in_float64_arithmetic(url):
    """Every field against log-softmax of the model's own logits, at temperature 0.8, over the first 300 ids."""
    asked = {"sampled": True, "top_k": 3, "at_ids": True, "entropy": True, "hidden": True}
    at = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], dtype=np.int32)
    frame = pack(header(temperature=0.8, rows=300, needs=asked), {**arrays(), "at_ids": at})
    reply = httpx.post(f"{url}/score", content=frame)
    assert reply.status_code == 200 and reply.headers["content-type"] == CONTENT_TYPE
    head, got = unpack(reply.content)
    assert head["request"] == 7 and head["rows"] == 300 and head["fingerprint"] == LOADED.fingerprint
    rows = [([5, 6], [7, 8, 9]), ([10, 11, 12], [13])]
    n = 0
    for prompt, response in rows:
        logits = LOADED.model(torch.tensor([prompt + response])).logits[0, :, :300].double() / 0.8
        for t, token in enumerate(response):
            logp = logits[len(prompt) - 1 + t].log_softmax(-1)
            top = logp.topk(3)
            assert got["sampled"][n] == pytest.approx(float(logp[token]), abs=1e-5)
            assert got["topk_ids"][n].tolist() == top.indices.tolist()
            assert got["topk_logp"][n] == pytest.approx(top.values.tolist(), abs=1e-5)
            assert got["at_logp"][n] == pytest.approx(logp[at[n].tolist()].tolist(), abs=1e-5)
            assert got["entropy"][n] == pytest.approx(float(-(logp.exp() * logp).sum()), abs=1e-4)
            n += 1
    assert got["hidden"].shape == (4, 48)


def test_completions_answer_as_vllm_does(url):
    body = {"model": "x", "prompt": [[5, 6, 7], [8, 9]], "max_tokens": 1, "prompt_logprobs": 2}
    choices = httpx.post(f"{url}/v1/completions", json=body).json()["choices"]
    assert [len(c["prompt_logprobs"]) for c in choices] == [3, 2] and choices[0]["prompt_logprobs"][0] is None
    logp = LOADED.model(torch.tensor([[5, 6, 7]])).logits[0, 0, : LOADED.head.rows].log_softmax(-1)
    entry = choices[0]["prompt_logprobs"][1]
    best = int(logp.argmax())
    assert entry[str(best)]["rank"] == 1 and entry[str(best)]["logprob"] == pytest.approx(
        float(logp[best]), abs=1e-5
    )
    assert entry["6"]["logprob"] == pytest.approx(float(logp[6]), abs=1e-5) and len(entry) in (2, 3)
    whole = httpx.post(f"{url}/v1/completions", json={**body, "prompt_logprobs": -1}).json()["choices"]
    assert len(whole[1]["prompt_logprobs"][1]) == LOADED.head.rows


# --- what is refused ----------------------------------------------------------------------------------------


BAD_HEADERS = {
    "another fingerprint": {"fingerprint": "x"},
    "no temperature": {"temperature": None},
    "temperature 0": {"temperature": 0},
    "temperature true": {"temperature": True},
    "rows beyond": {"rows": 10_000},
    "rows 0": {"rows": 0},
    "values": {"values": "float64"},
    "request": {"request": "7"},
    "needs a list": {"needs": []},
    "needs nothing": {"needs": {"sampled": False, "top_k": 0, "at_ids": False, "entropy": False, "hidden": False}},
    "top_k negative": {"needs": {"sampled": True, "top_k": -1, "at_ids": False, "entropy": False, "hidden": False}},
    "top_k beyond": {"needs": {"sampled": True, "top_k": 9999, "at_ids": False, "entropy": False, "hidden": False}},
    "a need more": {"needs": {"sampled": True, "top_k": 1, "at_ids": False, "entropy": False, "hidden": False, "all": 1}},
    "at_ids without ids": {"needs": {"sampled": True, "top_k": 1, "at_ids": True, "entropy": False, "hidden": False}},
}  # fmt: skip
BAD_ARRAYS = {
    "an id beyond": arrays(tokens=[9999] * 9),
    "an id negative": arrays(tokens=[-1] * 9),
    "too few tokens": arrays(tokens=[5] * 8),
    "an empty prompt": arrays(tokens=[5] * 6, prompts=(0, 2)),
    "an empty response": arrays(tokens=[5] * 6, responses=(1, 0)),
    "too long": arrays(tokens=[5] * 304, prompts=(150, 150), responses=(2, 2)) | {"prompt_lengths": np.array([298, 2], np.int32)},
    "no tokens": {k: v for k, v in arrays().items() if k != "tokens"},
    "floats": arrays() | {"tokens": np.zeros(9, np.float32)},
}  # fmt: skip


@pytest.mark.parametrize("changes", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_a_bad_header_is_refused_by_name(url, changes):
    reply = httpx.post(f"{url}/score", content=pack(header(**changes), arrays()))
    assert reply.status_code == 400 and reply.json()["error"], reply.text


@pytest.mark.parametrize("given", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_arrays_are_refused_by_name(url, given):
    reply = httpx.post(f"{url}/score", content=pack(header(), given))
    assert reply.status_code == 400 and reply.json()["error"], reply.text


@pytest.mark.parametrize(
    "body",
    [{}, {"prompt": "text", "prompt_logprobs": 1}, {"prompt": [[]], "prompt_logprobs": 1},
     {"prompt": [[5, "6"]], "prompt_logprobs": 1},
     {"prompt": [[5, 6]], "prompt_logprobs": -2}, {"prompt": [[5, 6]], "prompt_logprobs": 99999}, {"prompt": [[5, 6]]},
     {"prompt": [[5, 6]], "prompt_logprobs": 1, "max_tokens": 5}, {"prompt": [[5, 6]], "prompt_logprobs": 1, "stream": True},
     {"prompt": [[5, 6, 10**30]], "prompt_logprobs": 1}],
)  # fmt: skip
def test_a_bad_completion_is_refused(url, body):
    assert httpx.post(f"{url}/v1/completions", json=body).status_code == 400


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_get_an_answer_that_is_no_500(url, data):
    for path in ("/score", "/v1/completions"):
        assert httpx.post(f"{url}{path}", content=data).status_code == 400


def test_the_server_lives_after_all_that(url):
    assert httpx.post(f"{url}/score", content=pack(header(), arrays())).status_code == 200


def test_bodies_beyond_the_limit_are_not_read():
    with own_server(LOADED, limits=Limits(body_bytes=2000, tokens=50, top_k=4)) as url:
        assert httpx.post(f"{url}/score", content=bytes(3000)).status_code == 413
        assert (
            httpx.post(f"{url}/score", content=(bytes(500) for _ in range(9))).status_code == 413
        )  # chunked
        many = pack(header(), arrays(tokens=[5] * 60, prompts=(50, 2), responses=(4, 4)))
        assert "at most 50" in httpx.post(f"{url}/score", content=many).json()["error"]
        wide = pack(header(needs={**header()["needs"], "top_k": 5}), arrays())  # type: ignore[dict-item]
        assert httpx.post(f"{url}/score", content=wide).status_code == 400
        assert httpx.get(f"{url}/info").json()["max_top_k"] == 4


# --- who may ask --------------------------------------------------------------------------------------------


def test_a_token_guards_every_route_known_or_not():
    with own_server(LOADED, token=TOKEN) as url:
        routes = [
            ("GET", p)
            for p in (
                "/health",
                "/info",
                "/vocabulary",
                "/head",
                "/v1/models",
                "/",
                "/docs",
                "/openapi.json",
                "/nothing",
            )
        ]
        routes += [("POST", p) for p in ("/score", "/v1/completions", "/nothing")]
        for method, path in routes:
            for authorization in (
                None,
                "Bearer wrong",
                f"Basic {TOKEN}",
                f"Bearer {TOKEN}x",
                "Bearer",
                TOKEN,
            ):
                headers = {} if authorization is None else {"Authorization": authorization}
                assert httpx.request(method, url + path, headers=headers).status_code == 401, (
                    path,
                    authorization,
                )
        given = {"Authorization": f"Bearer {TOKEN}"}
        assert httpx.get(f"{url}/health", headers=given).status_code == 200
        assert httpx.get(f"{url}/docs", headers=given).status_code == 404


def test_no_route_writes():
    with own_server(LOADED) as url:
        for path in ("/collective_rpc", "/update_weights", "/load", "/v1/chat/completions", "/pause"):
            assert httpx.post(url + path, json={}).status_code == 404


def test_beyond_this_machine_only_with_a_token(capfd, tmp_path, monkeypatch):
    monkeypatch.delenv("OPD_SERVE_TOKEN", raising=False)
    folder = save_tiny(tmp_path / "m")
    for host in ("0.0.0.0", "::", "192.168.0.7"):
        said = opd(capfd, "serve", str(folder), "--host", host)
        assert said.code == 2 and "token" in said.error and "OPD_SERVE_TOKEN" in said.hint


def test_what_cannot_be_served_is_said_before_it_listens(capfd, tmp_path):
    said = opd(capfd, "serve", str(tmp_path / "nothing"))
    assert said.code == 2 and "nothing" in said.error
    assert opd(capfd, "serve", str(tmp_path), "--dtype", "int4").code == 2
    with own_server(LOADED) as url:
        said = opd(capfd, "serve", str(save_tiny(tmp_path / "m")), "--port", url.rsplit(":", 1)[1])
        assert said.code == 2 and "listen" in said.error and "--port 0" in said.hint


def test_it_says_where_answers_and_ends_with_a_signal(tmp_path):
    with own_process(save_tiny(tmp_path / "m")) as server:
        assert httpx.get(f"{server.url}/health").json()["status"] == "ok"
        server.process.terminate()
        assert server.process.wait(10) in (0, -15)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health")


# --- read together ------------------------------------------------------------------------------------------


def rollout(*response: int) -> Rollout:
    return Rollout(Prompt(id="p", ids=(5, 6)), response, finish_reason="length")


def job(*response: int, temperature: float = 1.0) -> Job:
    return Job((rollout(*response),), Needs(sampled=True), None, temperature, LOADED.head.rows)


def test_requests_that_wait_are_read_together_and_get_their_own_numbers():
    batcher = Batcher(LOADED)
    gate, read = threading.Event(), batcher._read

    def slow(jobs):
        gate.wait(10)
        return read(jobs)

    batcher._read = slow  # type: ignore[method-assign]
    try:
        futures = [batcher.submit(job(*range(7, 8 + n))) for n in range(6)]
        other = batcher.submit(job(7, 8, temperature=2.0))
        gate.set()
        own = LocalTeacher(LOADED, payload="ids")
        for n, future in enumerate(futures):
            expected = own.score([rollout(*range(7, 8 + n))], needs=Needs(sampled=True))[0].sampled
            assert torch.allclose(future.result(10)[0].sampled, expected, atol=1e-5)  # type: ignore[arg-type]
        assert other.result(10)[0].temperature == 2.0
        assert (
            batcher.requests == 7 and 2 <= batcher.batches <= 4
        )  # first alone, five together, the other kind
    finally:
        batcher.close()


def test_a_full_queue_is_said_and_a_failure_goes_to_who_asked():
    batcher = Batcher(LOADED, waiting=2)
    gate = threading.Event()

    def broken(jobs):
        gate.wait(10)
        raise MemoryError("no room")

    batcher._read = broken  # type: ignore[method-assign]
    first = batcher.submit(job(7))
    while not first.running():
        pass
    waiting = [batcher.submit(job(7)), batcher.submit(job(7))]
    with pytest.raises(Full):
        batcher.submit(job(7))
    gate.set()
    for future in (first, *waiting):
        with pytest.raises(MemoryError):
            future.result(10)
    batcher.close()


def test_many_clients_at_once_get_what_one_gets_alone(url):
    frames = [pack(header(request=n), arrays(tokens=[5 + n, *range(6, 14)])) for n in range(12)]
    alone = [httpx.post(f"{url}/score", content=f).content for f in frames]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda f: httpx.post(f"{url}/score", content=f, timeout=30).content, frames))
    for one, other in zip(alone, together, strict=True):
        (h1, a1), (h2, a2) = unpack(one), unpack(other)
        assert h1 == h2 and all(np.allclose(a1[n], a2[n], atol=1e-5) for n in a1)


def test_info_names_what_a_client_plans_with(url):
    about = httpx.get(f"{url}/info").json()
    assert about["fingerprint"] == LOADED.fingerprint and about["rows"] == LOADED.head.rows
    assert httpx.get(f"{url}/vocabulary").json() == LOADED.tokenizer.get_vocab()
    assert json.loads(httpx.get(f"{url}/v1/models").text)["data"][0]["max_model_len"] == LOADED.max_length
