"""How a served teacher is asked, and how its answer is read: `opd serve` in frames, vLLM in JSON.

A dialect turns some rollouts into one request and its answer into their `Scores`, response positions only.
Letters: N packed response positions of a request, T of one rollout, K top-k width, S slots.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from opdkit.engines.client import Request
from opdkit.engines.replies import BadReply
from opdkit.engines.wire import CONTENT_TYPE, FrameError, pack, unpack
from opdkit.support import RowDist
from opdkit.types import Needs, Rollout, Scores


@dataclass(frozen=True)
class Facts:
    """What a served teacher is, read before anything is loaded."""

    url: str
    api: str  # "opd" or "vllm"
    name: str
    fingerprint: str  # of its tokenizer; "" where it does not say
    weights: str  # of its weights; "" where it does not say
    rows: int  # ids its distributions are over
    max_length: int
    max_top_k: int
    offers: Needs
    tempered: bool  # whether it divides logits by a temperature
    tokenizer: str = ""  # folder or Hub id that the user named for it, where it does not say
    dtype: str = "float32"


class Dialect(Protocol):
    def request(
        self, rollouts: Sequence[Rollout], *, needs: Needs, ids: Sequence[Tensor] | None, number: int
    ) -> Request:
        """One request for some rollouts; `number` tells answers apart."""
        ...

    def read(
        self,
        data: bytes,
        rollouts: Sequence[Rollout],
        *,
        needs: Needs,
        ids: Sequence[Tensor] | None,
        number: int,
    ) -> list[Scores]:
        """Their scores. Raises BadReply for what is no answer to that request."""
        ...


def prompt_of(rollout: Rollout) -> tuple[int, ...]:
    """What the teacher reads before the response."""
    return rollout.teacher_prompt_ids or rollout.prompt.ids


@dataclass(frozen=True)
class Frames:
    """`opd serve`: arrays out, arrays back; log-probs at given ids, hidden states."""

    facts: Facts
    temperature: float = 1.0
    values: str = "float32"

    def request(
        self, rollouts: Sequence[Rollout], *, needs: Needs, ids: Sequence[Tensor] | None, number: int
    ) -> Request:
        prompts = [prompt_of(r) for r in rollouts]
        arrays = {
            "tokens": _int32(
                [i for p, r in zip(prompts, rollouts, strict=True) for i in (*p, *r.response_ids)]
            ),
            "prompt_lengths": _int32([len(p) for p in prompts]),
            "response_lengths": _int32([r.length for r in rollouts]),
        }
        if needs.at_ids:
            assert ids is not None, "ids are needed to ask for log-probs at ids"
            arrays["at_ids"] = torch.cat(list(ids)).to(torch.int32).numpy()
        header = {
            "request": number,
            "temperature": self.temperature,
            "values": self.values,
            "fingerprint": self.facts.fingerprint,
            "rows": self.facts.rows,
            "needs": {"sampled": needs.sampled, "top_k": needs.top_k, "at_ids": needs.at_ids,
                      "entropy": needs.entropy, "hidden": needs.full},
        }  # fmt: skip
        return Request("/score", pack(header, arrays), CONTENT_TYPE)

    def read(
        self,
        data: bytes,
        rollouts: Sequence[Rollout],
        *,
        needs: Needs,
        ids: Sequence[Tensor] | None,
        number: int,
    ) -> list[Scores]:
        try:
            header, arrays = unpack(data)
        except FrameError as error:
            raise BadReply(self.facts.url, f"what is no frame: {error}") from None
        self._same(header, number)
        lengths = [r.length for r in rollouts]
        columns: dict[str, list[Any]] = {}
        for name, array in arrays.items():
            if name not in _SENT or array.ndim == 0 or array.shape[0] != sum(lengths):
                raise BadReply(
                    self.facts.url, f"{name} of shape {array.shape} for {sum(lengths)} response tokens"
                )
            if array.dtype.name != ("int32" if name == "topk_ids" else self.values):
                raise BadReply(self.facts.url, f"{name} as {array.dtype.name}, which was not asked for")
            columns[name] = [part.clone() for part in _tensor(array).split(lengths)]
        return [
            Scores(
                fingerprint=self.facts.fingerprint,
                temperature=self.temperature,
                at_ids=ids[i] if needs.at_ids and ids is not None else None,
                **{name: parts[i] for name, parts in columns.items()},
            )
            for i in range(len(rollouts))
        ]

    def _same(self, header: dict[str, Any], number: int) -> None:
        """The answer is to this request, from the model that was there at the start, at the temperature asked for."""
        expected = {
            "request": number,
            "fingerprint": self.facts.fingerprint,
            "weights": self.facts.weights,
            "temperature": self.temperature,
            "rows": self.facts.rows,
        }
        for name, value in expected.items():
            if header.get(name) != value:
                shown = str(header.get(name))[:40]
                raise BadReply(self.facts.url, f"{name} {shown} where {str(value)[:40]} was expected")


_SENT = ("sampled", "topk_ids", "topk_logp", "at_logp", "entropy", "hidden")


@dataclass(frozen=True)
class Completions:
    """vLLM's /v1/completions with `prompt_logprobs`: JSON, every position of the prompt comes back, ours are cut out.

    Where the whole vocabulary comes back (`--max-logprobs -1`), any id's log-prob and the entropy are read from it.
    """

    facts: Facts
    shared: int  # ids that both tokenizers know; a whole row is renormalised over them

    def width(self, needs: Needs) -> int:
        """k asked of the server: -1 is the whole vocabulary."""
        return -1 if needs.at_ids or needs.entropy else needs.top_k

    def request(
        self, rollouts: Sequence[Rollout], *, needs: Needs, ids: Sequence[Tensor] | None, number: int
    ) -> Request:
        body = {
            "model": self.facts.name,
            "prompt": [[*prompt_of(r), *r.response_ids] for r in rollouts],
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": self.width(needs),
            "return_token_ids": True,  # what it read, where it is new enough to say so
        }
        return Request("/v1/completions", json.dumps(body).encode())

    def read(
        self,
        data: bytes,
        rollouts: Sequence[Rollout],
        *,
        needs: Needs,
        ids: Sequence[Tensor] | None,
        number: int,
    ) -> list[Scores]:
        where = self.facts.url
        try:
            choices = json.loads(data)["choices"]
            by_index = {int(c["index"]): (c["prompt_logprobs"], c.get("prompt_token_ids")) for c in choices}
        except _NOT_JSON as error:
            raise BadReply(where, f"what is no completion: {type(error).__name__}") from None
        if sorted(by_index) != list(range(len(rollouts))) or len(choices) != len(rollouts):
            raise BadReply(where, f"{len(choices)} completions to {len(rollouts)} prompts")
        return [
            self._scores(*by_index[i], r, needs, ids[i] if ids is not None and needs.at_ids else None)
            for i, r in enumerate(rollouts)
        ]

    def _scores(
        self, positions: Any, read: Any, rollout: Rollout, needs: Needs, ids: Tensor | None
    ) -> Scores:
        prompt = len(prompt_of(rollout))
        self._same_tokens(positions, read, [*prompt_of(rollout), *rollout.response_ids])
        whole = self.width(needs) == -1
        width = self.facts.rows if whole else needs.top_k
        rows = [self._row(p, i, width) for p, i in zip(positions[prompt:], rollout.response_ids, strict=True)]
        top_ids = torch.tensor([ids_ for _, ids_, _ in rows], dtype=torch.long).view(len(rows), width)
        top_logp = torch.tensor([logp for _, _, logp in rows], dtype=torch.float64).view(len(rows), width)
        sampled = torch.tensor([logp for logp, _, _ in rows], dtype=torch.float64)
        if whole:
            return self._whole(top_ids, top_logp, rollout, needs, ids)
        k = needs.top_k
        return Scores(
            fingerprint=self.facts.fingerprint,
            sampled=sampled.float() if needs.sampled else None,
            topk_ids=top_ids[:, :k] if k else None,
            topk_logp=top_logp[:, :k].float() if k else None,
        )

    def _same_tokens(self, positions: Any, read: Any, tokens: list[int]) -> None:
        """The answer is about these tokens, the prompt's too: two rollouts may share every token of a short response."""
        if not isinstance(positions, list) or len(positions) != len(tokens):
            count = len(positions) if isinstance(positions, list) else 0
            raise BadReply(self.facts.url, f"{count} positions for {len(tokens)} tokens")
        if read is not None and read != tokens:
            raise BadReply(self.facts.url, "log-probs of other tokens than were sent")
        for position, token in zip(positions[1:], tokens[1:], strict=True):
            if not isinstance(position, dict):
                raise BadReply(self.facts.url, "a position that holds no log-probs")
            if str(token) not in position:
                raise BadReply(
                    self.facts.url, f"a position without its token {token}: shifted, or another tokenizer"
                )

    def _whole(self, ids: Tensor, logp: Tensor, rollout: Rollout, needs: Needs, at: Tensor | None) -> Scores:
        """Everything from rows that came back whole; a row with an id twice or missing is refused."""
        full = torch.full_like(logp, torch.nan)
        if not (int(ids.min()) >= 0 and int(ids.max()) < full.shape[-1]):
            raise BadReply(self.facts.url, f"token {int(ids.max())} of a vocabulary of {full.shape[-1]}")
        full.scatter_(-1, ids, logp)
        if not bool(full.isfinite().all()):
            raise BadReply(self.facts.url, "rows that are not whole")
        row = RowDist(full[:, : self.shared], sampled_ids=torch.tensor(rollout.response_ids))
        top_ids, top_logp = row.topk(needs.top_k) if needs.top_k else (None, None)
        return Scores(
            fingerprint=self.facts.fingerprint,
            sampled=row.sampled.float() if needs.sampled else None,
            topk_ids=top_ids,
            topk_logp=None if top_logp is None else top_logp.float(),
            at_ids=at if needs.at_ids else None,
            at_logp=row.at(at.long()).float() if needs.at_ids and at is not None else None,
            entropy=row.entropy.float() if needs.entropy else None,
        )

    def _row(self, position: Any, taken: int, width: int) -> tuple[float, list[int], list[float]]:
        """(log-prob of the token taken, the `width` most probable ids, their log-probs), in the server's ranks."""
        try:
            entries = sorted((int(e["rank"]), int(i), float(e["logprob"])) for i, e in position.items())
            own = float(position[str(taken)]["logprob"])
        except _NOT_JSON:
            raise BadReply(self.facts.url, "a position that holds no log-probs") from None
        if [rank for rank, _, _ in entries[:width]] != list(range(1, width + 1)):
            raise BadReply(  # the token taken comes on top of them, and must not fill a gap
                self.facts.url, f"a position that does not hold the {width} most probable tokens"
            )
        if not all(0 <= i < self.facts.rows for _, i, _ in entries):
            raise BadReply(self.facts.url, f"a token outside a vocabulary of {self.facts.rows}")
        return own, [i for _, i, _ in entries[:width]], [p for _, _, p in entries[:width]]


_NOT_JSON = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading JSON of another shape than expected can raise; ArithmeticError is an infinite index or rank."""


def _int32(values: Sequence[int]) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def _tensor(array: np.ndarray) -> Tensor:
    """Ids as int64, numbers as float32: the wire's layouts end here."""
    return torch.from_numpy(array.astype(np.int64 if array.dtype == np.int32 else np.float32))
