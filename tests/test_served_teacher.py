"""Teachers that live elsewhere: one contract over local, served (both servers) and routed ones; the start-up probe; the plan."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import httpx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from commands import opd
from models import tiny_loaded, tiny_tokenizer
from opdkit.config import Config, ModelConfig, Patience, ServerTeacher
from opdkit.engines import probe as probing
from opdkit.engines.client import Endpoint, EngineError, Refused
from opdkit.engines.dialects import Facts
from opdkit.engines.facts import ask_facts, endpoint_of
from opdkit.engines.probe import fetch_head, probe, start
from opdkit.engines.replies import BadReply, check_scores
from opdkit.engines.router import Router
from opdkit.engines.served import Sentinel, ServedTeacher
from opdkit.models.head import read
from opdkit.models.load import open_model
from opdkit.models.teacher import LocalTeacher
from opdkit.train.plan import make_plan
from opdkit.train.teachers import open_teacher
from opdkit.types import Needs, Prompt, Rollout, Scores, UserError
from serving import fake_server, own_server, save_tiny

QUICK = Patience(timeout_seconds=5.0, deadline_seconds=10.0, retries=1)
NEEDS = Needs(sampled=True, top_k=4)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    save_tiny(folder / "student", seed=0)
    save_tiny(folder / "teacher", seed=1, hidden=48)
    rows = [
        {"prompt": f"Compute {i} + 2", "answer": str(i + 2), "group": ["sums", "other"][i % 2]}
        for i in range(8)
    ]
    (folder / "sums.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


@pytest.fixture(scope="module")
def local(shop):
    return open_model(ModelConfig(model=str(shop / "teacher")), device=torch.device("cpu"))


@pytest.fixture(scope="module")
def own(local):
    with own_server(local) as url:
        yield url


@pytest.fixture(scope="module")
def fake(shop):
    with fake_server(shop / "teacher", cap=20) as url:
        yield url


@pytest.fixture(scope="module")
def whole(shop):
    """A server that gives the whole vocabulary."""
    with fake_server(shop / "teacher", cap=1000) as url:
        yield url


def served(url: str, local, **changes) -> ServedTeacher:
    cfg = ServerTeacher(url=url, patience=QUICK, **changes)
    return start(cfg, ask_facts(cfg), endpoint=endpoint_of(cfg), rows=local.head.rows)[0]


def rollouts(*lengths: int, seed: int = 0) -> list[Rollout]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i, length in enumerate(lengths):
        ids = torch.randint(4, 300, (3 + i % 4 + length,), generator=generator).tolist()
        prompt = Prompt(id=str(i), ids=tuple(ids[: 3 + i % 4]), group=["sums", "other"][i % 2])
        made.append(Rollout(prompt, tuple(ids[3 + i % 4 :]), finish_reason="length"))
    return made


# --- one contract -------------------------------------------------------------------------------------------


@pytest.fixture(params=["own", "own, float16", "own, hidden", "fake", "whole", "router"])
def teacher(request, local, own, fake, whole):
    kind = request.param
    if kind == "router":
        return Router({"sums": served(own, local), "other": LocalTeacher(local, payload="ids")})
    changes = {"own, float16": {"values": "float16"}, "own, hidden": {"payload": "hidden"}}.get(kind, {})
    return served({"fake": fake, "whole": whole}.get(kind, own), local, **changes)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_every_teacher_says_what_the_local_one_says(teacher, local, lengths, seed):
    """All fields it offers, on ragged rollouts and empty ones, in order: within 1e-5 nats (float16: .02)."""
    asked = rollouts(*lengths, seed=seed)
    offers = teacher.offers
    ids = [torch.arange(5).repeat(r.length, 1) + r.length for r in asked]
    needs = Needs(sampled=True, top_k=4, at_ids=offers.at_ids, entropy=offers.entropy)
    got = teacher.score(asked, needs=needs, ids=ids if offers.at_ids else None)
    expected = LocalTeacher(local, payload="ids").score(asked, needs=dataclasses.replace(needs), ids=ids)
    tolerance = 0.02 if getattr(teacher, "slack", 0) > 1e-3 else 1e-5
    assert len(got) == len(asked)
    for one, other, rollout in zip(got, expected, asked, strict=True):
        for name in ("sampled", "topk_ids", "topk_logp", "at_logp", "entropy"):
            value, wanted = getattr(one, name), getattr(other, name)
            if (
                wanted is None
                or (name == "at_logp" and not offers.at_ids)
                or (name == "entropy" and not offers.entropy)
            ):
                assert value is None
                continue
            assert value is not None and value.shape[0] == rollout.length
            if name == "topk_ids":
                assert tolerance > 1e-3 or torch.equal(value, wanted)
            else:
                assert torch.allclose(value, wanted, atol=tolerance), name


def test_hidden_states_and_the_fetched_head_make_the_same_rows(own, local):
    teacher = served(own, local, payload="hidden", temperature=0.7)
    asked = rollouts(5, 3)
    for scores, rollout in zip(teacher.score(asked, needs=Needs(full=True)), asked, strict=True):
        assert teacher.head is not None and scores.hidden is not None
        ids = torch.arange(local.head.rows).repeat(rollout.length, 1)
        got = read(scores.hidden, teacher.head, needs=Needs(at_ids=True), ids=ids).at_logp
        own_scores = LocalTeacher(local, payload="ids", temperature=0.7)
        expected = own_scores.score([rollout], needs=Needs(at_ids=True), ids=[ids])[0].at_logp
        assert got is not None and expected is not None and torch.allclose(got, expected, atol=1e-5)


def test_a_request_holds_at_most_batch_tokens_and_answers_come_back_in_order(own, local, monkeypatch):
    teacher = served(own, local, batch_tokens=24)
    seen = []
    ask = teacher.endpoint.ask
    monkeypatch.setattr(teacher.endpoint, "ask", lambda requests: seen.append(len(requests)) or ask(requests))
    asked = rollouts(9, 1, 8, 2, 7, 3)
    got = teacher.score(asked, needs=NEEDS)
    expected = LocalTeacher(local, payload="ids").score(asked, needs=NEEDS)
    assert seen[0] > 2
    for one, other in zip(got, expected, strict=True):
        assert one.sampled is not None and torch.allclose(one.sampled, other.sampled, atol=1e-5)


def test_the_router_asks_each_for_its_own_names_them_and_refuses_a_stranger(local):
    asked_of: dict[str, list[str]] = {"sums": [], "other": []}

    class Named(LocalTeacher):
        def __init__(self, name):
            super().__init__(local, payload="ids")
            self.name = name

        def score(self, rollouts, **settings):
            asked_of[self.name] += [r.prompt.id for r in rollouts]
            return super().score(rollouts, **settings)

    router = Router({"sums": Named("sums"), "other": Named("other")})
    got = router.score(rollouts(2, 2, 2), needs=NEEDS)
    assert asked_of == {"sums": ["0", "2"], "other": ["1"]} and [s.teacher for s in got] == [
        "sums",
        "other",
        "sums",
    ]
    stranger = dataclasses.replace(rollouts(2)[0], prompt=Prompt(id="x", ids=(5,), group="physics"))
    with pytest.raises(UserError, match="physics"):
        router.score([stranger], needs=NEEDS)


# --- the client ---------------------------------------------------------------------------------------------


def test_a_token_does_not_cross_a_network_in_clear():
    with pytest.raises(UserError, match="not encrypted"):
        Endpoint("http://10.1.2.3:8017", patience=QUICK, token="secret")
    Endpoint("https://10.1.2.3:8017", patience=QUICK, token="secret")
    Endpoint("http://127.0.0.1:8017", patience=QUICK, token="secret")


def test_a_token_reaches_the_server_and_nothing_that_is_written(local, shop, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with own_server(local, token="the-secret-token") as url:
        said = opd(capfd, *_train(shop, url))
        assert said.code == 2 and "401" in said.error and "OPD_TEACHER_TOKEN" in said.hint
        monkeypatch.setenv("OPD_TEACHER_TOKEN", "the-secret-token")
        said = opd(capfd, *_train(shop, url))
        assert said.code == 0, said.err
    written = [p for p in Path("runs").rglob("*") if p.is_file()]
    assert written and not any(b"the-secret-token" in p.read_bytes() for p in written)
    assert "the-secret-token" not in said.err + said.out


def test_a_password_in_a_url_is_refused(capfd, shop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = opd(capfd, *_train(shop, "http://me:word@127.0.0.1:1"))
    assert said.code == 2 and "password" in said.error and "OPD_TEACHER_TOKEN" in said.hint


def test_an_answer_of_4xx_is_final_and_a_lost_server_is_waited_for_within_the_deadline(own):
    endpoint = Endpoint(own, patience=QUICK)
    with pytest.raises(Refused) as refused:
        endpoint.one("/nothing")
    assert refused.value.status == 404 and endpoint.reconnected == 0
    lost = Endpoint("http://127.0.0.1:9", patience=Patience(timeout_seconds=1, deadline_seconds=1, retries=9))
    with pytest.raises(EngineError, match="did not answer"):
        lost.one("/health")
    assert lost.reconnected >= 1


# --- the probe ----------------------------------------------------------------------------------------------


class Bent(ServedTeacher):
    """A served teacher whose rows come from elsewhere in the sequence, or change from call to call."""

    late = early = 0
    jitter = 0.0

    def __init__(self, local, *, late=0, early=0, jitter=0.0):
        facts = Facts("bent", "vllm", "bent", "", "", local.head.rows, 256, 20, NEEDS, tempered=False)
        super().__init__(Endpoint("http://127.0.0.1:9", patience=QUICK), facts, rows=local.head.rows)
        self.inner, self.late, self.early, self.jitter = (
            LocalTeacher(local, payload="ids"),
            late,
            early,
            jitter,
        )
        self.calls = 0

    def score(self, rollouts, *, needs, ids=None):
        shifted = []
        for r in rollouts:
            whole = [*r.prompt.ids, *r.response_ids]
            if self.late:  # the row after the token was read
                whole = [*whole[self.late :], *whole[: self.late]]
            if self.early:
                whole = [*whole[: self.early], *whole[: -self.early]]
            n = len(r.prompt.ids)
            shifted.append(
                dataclasses.replace(
                    r, prompt=Prompt(id="x", ids=tuple(whole[:n])), response_ids=tuple(whole[n:])
                )
            )
        self.calls += 1
        found = self.inner.score(shifted, needs=dataclasses.replace(needs, entropy=False))
        return [dataclasses.replace(s, topk_logp=s.topk_logp + self.jitter * self.calls) for s in found]


@pytest.mark.parametrize(
    "bend, words", [({"late": 1}, "late"), ({"early": 1}, "early"), ({"jitter": 0.01}, "repeat")]
)
def test_the_probe_refuses_a_server_that_is_shifted_or_does_not_repeat_itself(local, bend, words):
    with pytest.raises(UserError, match=words):
        probe(Bent(local, **bend))
    assert Bent(local).sentinel is None
    probe(Bent(local))  # and lets the same one pass when nothing is bent


def test_the_probe_says_what_it_saw_and_compares_with_a_local_model(own, fake, local, shop):
    for url, who in ((own, "opd serve"), (fake, "vLLM")):
        cfg = ServerTeacher(url=url, patience=QUICK, model=str(shop / "teacher"))
        own_copy = LocalTeacher(local, payload="ids")
        teacher, finding = start(
            cfg, ask_facts(cfg), endpoint=endpoint_of(cfg), rows=local.head.rows, local=own_copy
        )
        assert who in finding.message and finding.severity == "info"
        assert finding.numbers["against_local"] <= 1e-5 and finding.numbers["noise"] <= 1e-5
        assert teacher.sentinel is not None
    other = LocalTeacher(tiny_loaded("qwen3", seed=5, hidden=48), payload="ids")
    cfg = ServerTeacher(url=own, patience=QUICK)
    with pytest.raises(UserError, match="another model"):
        start(cfg, ask_facts(cfg), endpoint=endpoint_of(cfg), rows=local.head.rows, local=other)


def test_a_server_that_forgets_the_temperature_is_refused(own, local, monkeypatch):
    cfg = ServerTeacher(url=own, patience=QUICK)
    score = ServedTeacher.score

    def forgetful(self, rollouts, **settings):
        if self.temperature == 1.0:
            return score(self, rollouts, **settings)
        return score(ServedTeacher(self.endpoint, self.facts, rows=self.rows), rollouts, **settings)

    monkeypatch.setattr(probing.ServedTeacher, "score", forgetful)
    with pytest.raises(UserError, match="temperature"):
        start(cfg, ask_facts(cfg), endpoint=endpoint_of(cfg), rows=local.head.rows)


def test_the_sentinel_notices_another_model(own, local):
    teacher = served(own, local)
    assert teacher.sentinel is not None
    wrong = LocalTeacher(tiny_loaded("qwen3", seed=5, hidden=48), payload="ids")
    said = wrong.score([teacher.sentinel.rollout], needs=NEEDS)[0]
    with pytest.raises(BadReply, match="another model"):
        teacher.sentinel.compare(said, where="here")
    Sentinel(teacher.sentinel.rollout, said, tolerance=1e-4).compare(said, where="here")


def test_a_head_that_is_none_is_refused(own):
    endpoint = Endpoint(own, patience=QUICK)
    assert fetch_head(endpoint, rows=300).rows == 300
    with pytest.raises(EngineError):
        fetch_head(Endpoint(own + "/info?x=", patience=QUICK), rows=300)


# --- replies ------------------------------------------------------------------------------------------------


def good(rollout: Rollout, local) -> Scores:
    needs = Needs(sampled=True, top_k=4, entropy=True, at_ids=True)
    ids = [torch.arange(3).repeat(rollout.length, 1)]
    return LocalTeacher(local, payload="ids").score([rollout], needs=needs, ids=ids)[0]


def _with(scores: Scores, name: str, change) -> Scores:
    value = getattr(scores, name)
    return dataclasses.replace(scores, **{name: None if change is None else change(value.clone())})


def _set(value, at, number):
    value[at] = number
    return value


BENT = {
    "no sampled": ("sampled", None),
    "a position short": ("sampled", lambda v: v[:-1]),
    "a position more": ("topk_logp", lambda v: torch.cat([v, v[:1]])),
    "nan": ("sampled", lambda v: _set(v, 1, torch.nan)),
    "-inf": ("at_logp", lambda v: _set(v, (1, 0), -torch.inf)),
    "inf": ("entropy", lambda v: _set(v, 0, torch.inf)),
    "a probability above 1": ("at_logp", lambda v: _set(v, (0, 0), 0.2)),
    "narrower": ("topk_ids", lambda v: v[:, :3]),
    "an id beyond": ("topk_ids", lambda v: _set(v, (0, 0), 5000)),
    "an id below": ("topk_ids", lambda v: _set(v, (0, 0), -1)),
    "an id twice": ("topk_ids", lambda v: _set(v, (0, 0), int(v[0, 1]))),
    "not sorted": ("topk_logp", lambda v: v.flip(-1)),
    "more than 1 together": ("topk_logp", lambda v: torch.full_like(v, -0.1)),
    "the token taken above the top": ("sampled", lambda v: _set(v, 0, -1e-6)),
    "an entropy beyond log V": ("entropy", lambda v: _set(v, 0, 9.0)),
    "an entropy below 0": ("entropy", lambda v: _set(v, 0, -1.0)),
}


@pytest.mark.parametrize("name, change", BENT.values(), ids=BENT)
def test_an_answer_that_no_distribution_gives_is_refused(local, name, change):
    rollout = rollouts(5)[0]
    needs = Needs(sampled=True, top_k=4, entropy=True, at_ids=True)
    scores = good(rollout, local)
    settings = {"needs": needs, "rows": local.head.rows, "slack": 1e-4, "where": "here"}
    check_scores(scores, rollout, **settings)
    with pytest.raises(BadReply):
        check_scores(_with(scores, name, change), rollout, **settings)


# --- whole runs ---------------------------------------------------------------------------------------------


def _train(shop: Path, teacher: str | dict | None, *more: str, run: str = "runs/r") -> list[str]:
    given = (
        f'teacher={{type="server",url="{teacher}",model="{shop / "teacher"}"}}'
        if isinstance(teacher, str)
        else f"teacher={shop / 'teacher'}"
    )
    return ["train", f"student={shop / 'student'}", given, f"task={shop / 'sums.jsonl'}", "steps=3", "prompts_per_step=3",
            "sampling.responses=2", "sampling.max_tokens=8", "objective.k=4", "diagnostics.k=4", "diagnostics.ks=[1,4]",
            "optim.lr=1e-3", "save.rollouts_every=1", f"run={run}", *more]  # fmt: skip


def losses(run: str) -> list[float]:
    return [json.loads(line)["loss"] for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("objective", ["paper", "paper-eq5", "sampled", "full"])
def test_a_run_with_a_served_teacher_is_the_run_with_a_local_one(
    own, shop, tmp_path, capfd, monkeypatch, objective
):
    monkeypatch.chdir(tmp_path)
    more = [f"objective={objective}", *([] if objective in ("full", "sampled") else ["objective.k=4"])]
    hidden = ["teacher.payload=hidden"] if objective == "full" else []
    assert opd(capfd, *_train(shop, None, *more, run="runs/local")).code == 0
    said = opd(capfd, *_train(shop, own, *more, *hidden, run="runs/served"))
    assert said.code == 0, said.err
    assert losses("runs/served") == pytest.approx(losses("runs/local"), abs=1e-6)
    rows = [
        json.loads(line) for line in next(Path("runs/served/rollouts").iterdir()).read_text().splitlines()
    ]
    assert rows[0]["tokens"]["teacher_top"], "the teacher's candidates are kept with the rollouts"


def test_a_vllm_teacher_gives_its_own_top_k_and_refuses_what_needs_more(
    fake, shop, tmp_path, capfd, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    said = opd(capfd, *_train(shop, fake))
    assert (
        said.code == 2
        and "at given ids" in said.error
        and "teacher_top_k" in said.hint
        and "opd serve" in said.hint
    )
    top = "objective.support=teacher_top_k"
    said = opd(capfd, *_train(shop, fake, top, "objective.k=30"))
    assert said.code == 2 and "top-20" in said.error and "objective.k=20" in said.hint
    assert opd(capfd, *_train(shop, fake, top, "teacher.temperature=0.5")).code == 2
    assert opd(capfd, *_train(shop, fake, top, "teacher.payload=hidden")).code == 2
    assert opd(capfd, *_train(shop, None, top, run="runs/local")).code == 0
    said = opd(capfd, *_train(shop, fake, top, "diagnostics.ks=[1,64]", run="runs/served"))
    assert said.code == 0 and "--max-logprobs 64" in said.err, said.err
    assert losses("runs/served") == pytest.approx(losses("runs/local"), abs=1e-6)


def test_opd_serve_answers_a_client_that_takes_it_for_vllm(own, shop, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    top = "objective.support=teacher_top_k"
    assert opd(capfd, *_train(shop, None, top, run="runs/local")).code == 0
    said = opd(capfd, *_train(shop, own, "teacher.api=vllm", top, run="runs/served"))
    assert said.code == 0, said.err
    assert losses("runs/served") == pytest.approx(losses("runs/local"), abs=1e-6)


def test_a_server_of_another_tokenizer_is_refused_with_the_tokens_named(shop, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = tiny_tokenizer(seed=3)
    folder = save_tiny(tmp_path / "stranger", seed=1, hidden=48, tokenizer=other)
    loaded = open_model(ModelConfig(model=str(folder)), device=torch.device("cpu"))
    with own_server(loaded) as url:
        said = opd(capfd, *_train(shop, url))
        assert said.code == 2 and "read ids differently" in said.error
    with fake_server(folder) as url:
        said = opd(capfd, *_train(shop, url, "objective.support=teacher_top_k"))
        assert said.code == 2 and "the tokenizer of teacher.model" in said.error


def test_a_larger_vocabulary_is_cut_to_the_shared_one(shop, tmp_path, capfd, monkeypatch):
    """The teacher's embedding has 16 rows more than any tokenizer: scores are over the shared ids, as with a local one."""
    monkeypatch.chdir(tmp_path)
    folder = save_tiny(tmp_path / "padded", seed=1, hidden=48, vocab_size=400)
    loaded = open_model(ModelConfig(model=str(folder)), device=torch.device("cpu"))
    with own_server(loaded) as url:
        assert httpx.get(f"{url}/info").json()["rows"] == 384
        said = opd(capfd, *_train(shop, url, run="runs/served"))
    assert said.code == 0, said.err
    assert opd(capfd, *_train(shop, None, f"teacher={folder}", run="runs/local")).code == 0
    assert losses("runs/served") == pytest.approx(losses("runs/local"), abs=1e-6)


def test_a_routed_teacher_has_the_dtype_that_was_asked_for(shop):
    teachers = {"sums": {"type": "local", "model": str(shop / "teacher"), "dtype": "bfloat16"}}
    config = Config.model_validate(
        {"student": {"model": str(shop / "student")}, "task": {"type": "file", "path": "nothing"},
         "teacher": {"type": "router", "teachers": teachers}}
    )  # fmt: skip
    plan, student = make_plan(config), open_model(config.student, device=torch.device("cpu"))
    router, _ = open_teacher(
        config, plan.teacher, rows=plan.rows, device=torch.device("cpu"), student=student
    )
    assert isinstance(router, Router) and router.teachers["sums"].loaded.model.dtype == torch.bfloat16


def test_a_router_in_a_run_tells_of_each_teacher(own, shop, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    routed = f'teacher={{type="router",teachers={{sums="{shop / "teacher"}",other={{type="server",url="{own}"}}}}}}'
    said = opd(capfd, *_train(shop, None, routed, run="runs/routed"))
    assert said.code == 0, said.err
    assert opd(capfd, *_train(shop, None, run="runs/one")).code == 0
    assert losses("runs/routed") == pytest.approx(losses("runs/one"), abs=1e-6)
    rows = [json.loads(line) for line in Path("runs/routed/metrics.jsonl").read_text().splitlines()]
    for row in rows:
        shares = [row.get(f"by_teacher/{name}/share", 0.0) for name in ("sums", "other")]
        assert sum(shares) == pytest.approx(1.0)
        parts = [
            (s, row.get(f"by_teacher/{n}/overlap_ratio", 0.0))
            for s, n in zip(shares, ("sums", "other"), strict=True)
        ]
        assert any(value > 0 for _, value in parts)
    assert opd(capfd, "train", "--resume", "runs/routed", "steps=4").code == 0
    said = opd(capfd, *_train(shop, None, routed.replace("sums=", "maths="), run="runs/bad"))
    assert said.code == 2 and "the group 'sums'" in said.error and "teacher.teachers.sums" in said.hint
    said = opd(capfd, *_train(shop, None, routed, "objective=full", run="runs/bad"))
    assert said.code == 2 and "full rows" in said.error


@pytest.mark.parametrize(
    "change, words",
    [("eval.teacher=true", "not in this process"), ("teacher.url=nowhere", "no address"), ("teacher.uri=x", "uri"),
     ("teacher.patience.retries=-1", "retries")],
)  # fmt: skip
def test_what_cannot_work_with_a_server_is_said_before_anything_is_loaded(
    own, shop, tmp_path, capfd, monkeypatch, change, words
):
    monkeypatch.chdir(tmp_path)
    said = opd(capfd, *_train(shop, own, change))
    assert said.code == 2 and words in said.error + said.hint and not Path("runs/r").exists()


def test_check_names_why_a_served_teacher_cannot_be_checked(own, shop, capfd):
    said = opd(
        capfd,
        "check",
        f"student={shop / 'student'}",
        f'teacher={{type="server",url="{own}"}}',
        f"task={shop / 'sums.jsonl'}",
    )
    assert said.code == 2 and "weights" in said.error and "--teacher" in said.hint
