"""The head in chunks against one plain autograd graph, the largest tensor built, and the architectures known.

N positions, D hidden, V rows of the head in use (ids tokenizers share), V_all rows it has, S slots.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from opdkit.config import ObjectiveConfig
from opdkit.models.head import CHUNK_ROWS, PIECE_BYTES, Ahead, Head, chunks, columns_loss, fused_loss, read
from opdkit.models.load import describe
from opdkit.objectives import Objective
from opdkit.support import ColumnDist, RowDist, choose
from opdkit.types import Needs, Support, UserError

N, D, V, V_ALL, S = 13, 6, 17, 20, 4

HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 1.5},
    "temperature": {"temperature": 0.7},
    "all at once": {"bias": True, "scale": 1.7, "softcap": 2.5, "temperature": 1.3},
}


def make_head(dtype=torch.float64, *, bias=False, rows=V, **how) -> Head:
    torch.manual_seed(0)
    return Head(output=nn.Linear(D, V_ALL, bias=bias).to(dtype), rows=rows, **how)


def states(seed: int = 1, *, count: int = N, dtype=torch.float64) -> Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def plain_logits(hidden: Tensor, head: Head) -> Tensor:
    """z = c·tanh(s·(h Wᵀ + b) / c) / T, the first V ids, in one piece."""
    z = hidden @ head.weight[: head.rows].T
    if head.bias is not None:
        z = z + head.bias[: head.rows]
    z = z * head.scale
    if head.softcap:
        z = head.softcap * (z / head.softcap).tanh()
    return z / head.temperature


WEIGHT = torch.linspace(0.0, 2.0, N, dtype=torch.float64)  # some positions count more, one not at all


def reverse_kl(logits: Tensor, part: slice) -> Tensor:
    """A loss that differs by position: a weighted KL to a fixed teacher row plus a sampled token."""
    teacher = torch.linspace(-1, 1, logits.shape[-1], dtype=logits.dtype).roll(3).log_softmax(-1)
    logp = logits.log_softmax(-1)
    kl = (logp.exp() * (logp - teacher)).sum(-1)
    sampled = torch.arange(N)[part] % logits.shape[-1]
    loss = kl - 0.1 * logp.gather(-1, sampled[:, None])[:, 0]
    return (WEIGHT.to(logits.dtype)[part] * loss).sum()


def gradients(loss: Tensor, tensors: list[Tensor | None]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [t for t in tensors if t is not None]))


def relative_error(ours: Tensor, wanted: Tensor) -> float:
    return float((ours.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-300))


# --- fused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_rows", [1, 5, N, 1000, 0])
@pytest.mark.parametrize("how", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_fused_is_plain_autograd(dtype, tolerance, how, chunk_rows):
    """Value, d hidden, d weight, d bias, under an upstream factor; the oracle is always float64."""
    head, hidden = make_head(dtype, **how), states(dtype=dtype).requires_grad_()
    loss = fused_loss(hidden, head, reverse_kl, chunk_rows=chunk_rows)
    found = gradients(-2.5 * loss, [hidden, head.weight, head.bias])

    exact_head, exact_hidden = make_head(dtype, **how), hidden.detach().double().requires_grad_()
    exact_head.output.double()
    exact_loss = reverse_kl(plain_logits(exact_hidden, exact_head), slice(None))
    wanted = gradients(-2.5 * exact_loss, [exact_hidden, exact_head.weight, exact_head.bias])

    assert loss.item() == pytest.approx(exact_loss.item(), rel=tolerance)
    for ours, theirs in zip(found, wanted, strict=True):
        assert relative_error(ours, theirs) <= tolerance
    assert (found[1][V:] == 0).all() and found[1][
        :V
    ].abs().max() > 1e-3  # rows beyond the shared ids: exactly none


@pytest.mark.parametrize("objective", ["paper", "paper-eq5", "sampled", "full"])
def test_the_objectives_inside_the_chunks_are_the_objectives_outside(objective):
    spec = Objective(ObjectiveConfig(**{"preset": objective} | ({"k": S} if "paper" in objective else {})))
    head, hidden = make_head(), states().requires_grad_()
    teacher, sampled = states(2, count=N) @ torch.randn(D, V, dtype=torch.float64), torch.arange(N)

    def loss(logits: Tensor, part: slice) -> Tensor:
        p, q = RowDist(logits, sampled_ids=sampled[part]), RowDist(teacher[part], sampled_ids=sampled[part])
        return spec.local(p, q, spec.support(p, q, sampled_ids=sampled[part])).sum()

    found = gradients(fused_loss(hidden, head, loss, chunk_rows=4), [hidden, head.weight])
    wanted = gradients(loss(plain_logits(hidden, head), slice(None)), [hidden, head.weight])
    assert max(map(relative_error, found, wanted)) <= 1e-12


def tied_model(hidden_of, *, seed: int = 3) -> tuple[nn.Embedding, Head, Tensor]:
    """An embedding that is also the head, used at both ends of one graph."""
    torch.manual_seed(seed)
    embedding = nn.Embedding(V_ALL, D).double()
    hidden = hidden_of(embedding((torch.arange(N) + 8) % V_ALL))
    return embedding, Head(output=embedding, rows=V), hidden


def test_a_tied_head_gathers_the_gradient_of_both_ends():
    found, wanted = [], []
    for result, fused in ((found, True), (wanted, False)):
        embedding, head, hidden = tied_model(torch.tanh)
        loss = fused_loss(hidden, head, reverse_kl, chunk_rows=3) if fused else None
        loss = reverse_kl(plain_logits(hidden, head), slice(None)) if loss is None else loss
        (3.0 * loss).backward()
        result.append(embedding.weight.grad)
    assert relative_error(found[0], wanted[0]) <= 1e-12
    assert found[0][V:].abs().max() > 1e-3  # rows beyond the head's: from the embedding end alone


def test_a_tied_head_by_columns_gathers_both_ends_too():
    slots = torch.randint(0, V, (N, S), generator=torch.Generator().manual_seed(4))
    found, wanted = [], []
    for result, by_columns in ((found, True), (wanted, False)):
        embedding, head, hidden = tied_model(torch.tanh)
        if by_columns:
            loss = columns_loss(hidden, head, slots, reverse_kl, chunk_rows=3)
        else:
            loss = reverse_kl(plain_logits(hidden, head).gather(-1, slots), slice(None))
        (3.0 * loss).backward()
        result.append(embedding.weight.grad)
    assert relative_error(found[0], wanted[0]) <= 1e-12


@pytest.mark.parametrize("by_columns", [False, True])
def test_what_is_frozen_gets_no_gradient_and_none_is_built(by_columns):
    slots = torch.arange(S).expand(N, S)

    def loss_of(hidden, head):
        if by_columns:
            return columns_loss(hidden, head, slots, reverse_kl, chunk_rows=4)
        return fused_loss(hidden, head, reverse_kl, chunk_rows=4)

    wanted_head, wanted_hidden = make_head(bias=True), states().requires_grad_()
    d_hidden, d_weight, d_bias = gradients(
        loss_of(wanted_hidden, wanted_head), [wanted_hidden, wanted_head.weight, wanted_head.bias]
    )

    head, hidden = make_head(bias=True), states().requires_grad_()
    head.output.requires_grad_(False)
    with largest_tensor() as seen:
        loss = loss_of(hidden, head)
        loss.backward()
    assert head.weight.grad is None and head.bias.grad is None
    assert torch.equal(hidden.grad, d_hidden)
    assert head.weight.shape not in seen.shapes

    head, hidden = make_head(bias=True), states()
    loss_of(hidden, head).backward()
    assert hidden.grad is None
    assert torch.equal(head.weight.grad, d_weight) and torch.equal(head.bias.grad, d_bias)

    head.output.requires_grad_(False)
    assert not loss_of(hidden, head).requires_grad
    assert loss_of(hidden, head).item() == pytest.approx(loss.item())


@pytest.mark.parametrize("by_columns", [False, True])
def test_no_positions_is_a_loss_of_zero_with_gradients_of_zero(by_columns):
    head, hidden = make_head(bias=True), states(count=0).requires_grad_()
    slots = torch.zeros(0, S, dtype=torch.long)
    loss = (
        columns_loss(hidden, head, slots, reverse_kl) if by_columns else fused_loss(hidden, head, reverse_kl)
    )
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad.shape == (0, D)
    assert not head.weight.grad.any() and not head.bias.grad.any()


@pytest.mark.parametrize("by_columns", [False, True])
def test_bfloat16_states_against_float32_masters(by_columns):
    """Logits and loss in float32 from bf16 products: the error is that of rounding inputs, 2⁻⁸."""
    head, hidden = (
        make_head(torch.float32, bias=True, softcap=2.0),
        states(dtype=torch.bfloat16).requires_grad_(),
    )
    slots = torch.arange(S).expand(N, S)

    def compare(loss, exact_loss):
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact_loss.item(), rel=1e-2)
        found = gradients(loss, [hidden, head.weight, head.bias])
        assert [g.dtype for g in found] == [torch.bfloat16, torch.float32, torch.float32]
        wanted = gradients(exact_loss, [exact_hidden, exact_head.weight, exact_head.bias])
        assert max(map(relative_error, found, wanted)) <= 1e-2

    exact_head, exact_hidden = (
        make_head(torch.float32, bias=True, softcap=2.0),
        hidden.detach().double().requires_grad_(),
    )
    exact_head.output.double()
    logits = plain_logits(exact_hidden, exact_head)
    if by_columns:
        ours = columns_loss(hidden, head, slots, reverse_kl, chunk_rows=5)
        compare(ours, reverse_kl(logits.gather(-1, slots), slice(None)))
    else:
        compare(fused_loss(hidden, head, reverse_kl, chunk_rows=5), reverse_kl(logits, slice(None)))


@pytest.mark.parametrize("by_columns", [False, True])
def test_the_gradients_are_handed_on_once(by_columns):
    """They are stored, not a graph: a second backward or derivative is refused, not wrong."""
    slots = torch.arange(S).expand(N, S)

    def loss_of(hidden):
        head = make_head()
        return (
            columns_loss(hidden, head, slots, reverse_kl)
            if by_columns
            else fused_loss(hidden, head, reverse_kl)
        )

    hidden = states().requires_grad_()
    loss = loss_of(hidden)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        loss.backward()
    (first,) = torch.autograd.grad(loss_of(hidden) ** 2, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


# --- columns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_rows", [1, 5, 0])
@pytest.mark.parametrize("how", HEADS.values(), ids=HEADS)
def test_columns_are_gathered_logits(how, chunk_rows):
    """Ids may repeat among slots and among positions; each repetition adds its share to the row."""
    slots = torch.randint(0, 5, (N, S), generator=torch.Generator().manual_seed(5))  # 52 slots over 5 ids
    head, hidden = make_head(**how), states().requires_grad_()
    torch.testing.assert_close(
        head.columns(hidden, slots), plain_logits(hidden, head).gather(-1, slots), rtol=0, atol=1e-14
    )
    loss = columns_loss(hidden, head, slots, reverse_kl, chunk_rows=chunk_rows)
    exact = reverse_kl(plain_logits(hidden, head).gather(-1, slots), slice(None))
    found = gradients(-2.5 * loss, [hidden, head.weight, head.bias])
    wanted = gradients(-2.5 * exact, [hidden, head.weight, head.bias])
    assert loss.item() == pytest.approx(exact.item(), rel=1e-13)
    assert max(map(relative_error, found, wanted)) <= 1e-12
    assert (found[1][5:] == 0).all()


@pytest.mark.parametrize("kind", ["student_top_k", "teacher_top_k"])
def test_eq5_by_columns_is_eq5_by_full_logits(kind):
    """The normaliser over the vocabulary cancels: one objective, read from S columns and from V."""
    objective = Objective(ObjectiveConfig(preset="paper-eq5", k=S, support=kind))
    head, hidden, teacher = make_head(bias=True, scale=1.7), states().requires_grad_(), states(6)
    q_head = make_head(bias=True, temperature=0.6)
    with torch.no_grad():
        p_rows, q_rows = RowDist(plain_logits(hidden, head)), RowDist(plain_logits(teacher, q_head))
        support = choose(
            kind, k=S, student=p_rows, teacher=q_rows, sampled_ids=torch.zeros(N, dtype=torch.long)
        )
        q_columns = q_head.columns(teacher, support.ids)

    def chunk(part: slice) -> Support:
        return Support(ids=support.ids[part], keep=support.keep[part])

    def from_columns(logits: Tensor, part: slice) -> Tensor:
        ids = support.ids[part]
        p, q = ColumnDist(logits, ids=ids), ColumnDist(q_columns[part], ids=ids)
        return objective.local(p, q, chunk(part)).sum()

    def from_rows(logits: Tensor, part: slice) -> Tensor:
        return objective.local(RowDist(logits), RowDist(q_rows.logits[part]), chunk(part)).sum()

    tensors = [hidden, head.weight, head.bias]
    columns = columns_loss(hidden, head, support.ids, from_columns, chunk_rows=4)
    fused = fused_loss(hidden, head, from_rows, chunk_rows=4)
    plain = from_rows(plain_logits(hidden, head), slice(None))
    assert columns.item() == pytest.approx(plain.item(), rel=1e-12) == fused.item()
    wanted = gradients(plain, tensors)
    assert max(map(relative_error, gradients(columns, tensors), wanted)) <= 1e-12
    assert max(map(relative_error, gradients(fused, tensors), wanted)) <= 1e-12


# --- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_rows", [1, 5, 0])
@pytest.mark.parametrize("how", HEADS.values(), ids=HEADS)
def test_read_is_log_softmax(how, chunk_rows):
    head, hidden = make_head(**how), states()
    logp = torch.stack([row - row.exp().sum().log() for row in plain_logits(hidden, head).detach()])
    sampled, slots = torch.arange(N), torch.arange(N * S).view(N, S) % V
    scores = read(
        hidden,
        head,
        needs=Needs(sampled=True, top_k=3, at_ids=True, entropy=True),
        sampled_ids=sampled,
        ids=slots,
        fingerprint="f",
        chunk_rows=chunk_rows,
    )
    close = {"rtol": 0, "atol": 1e-13}
    torch.testing.assert_close(scores.sampled, logp[torch.arange(N), sampled], **close)
    torch.testing.assert_close(scores.at_logp, logp.gather(-1, slots), **close)
    assert torch.equal(scores.at_ids, slots)
    torch.testing.assert_close(scores.topk_logp, logp.sort(-1, descending=True).values[:, :3], **close)
    torch.testing.assert_close(logp.gather(-1, scores.topk_ids), scores.topk_logp, **close)
    entropy = [-sum(math.exp(x) * x for x in row) for row in logp.tolist()]
    torch.testing.assert_close(scores.entropy, torch.tensor(entropy, dtype=torch.float64), **close)
    assert (scores.temperature, scores.fingerprint) == (head.temperature, "f")
    assert not scores.sampled.requires_grad


def test_read_gives_what_was_asked_for_and_nothing_else():
    head = make_head()
    scores = read(states(), head, needs=Needs(entropy=True))
    assert scores.entropy.shape == (N,)
    assert all(
        getattr(scores, name) is None for name in ("sampled", "topk_ids", "topk_logp", "at_ids", "at_logp")
    )


def test_read_of_no_positions_has_empty_fields():
    none = torch.zeros(0, dtype=torch.long)
    scores = read(states(count=0), make_head(), needs=Needs(sampled=True, top_k=3), sampled_ids=none)
    assert scores.sampled.shape == (0,) and scores.topk_ids.shape == (0, 3)


def test_another_temperature_is_another_distribution_of_the_same_head():
    head, hidden = make_head(), states()
    torch.testing.assert_close(
        head.at_temperature(2.0).logits(hidden), head.logits(hidden) / 2, rtol=0, atol=1e-15
    )


# --- memory -------------------------------------------------------------------------------------------------


class _Recorder(TorchDispatchMode):
    """Notes the shape of every tensor an operation returns, in forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[torch.Size] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.shapes |= {leaf.shape for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        return result

    @property
    def largest(self) -> int:
        return max((math.prod(shape) for shape in self.shapes), default=0)


@contextmanager
def largest_tensor() -> Iterator[_Recorder]:
    with _Recorder() as recorder:
        yield recorder


def test_no_tensor_of_positions_times_vocabulary_exists():
    """The plain graph builds one of N × V; fused with chunks of 4 none above 4 × V,
    the weight and d hidden aside; columns none with V in it but the weight's gradient."""
    positions, width, vocabulary, slots_each, chunk = 96, 8, 64, 3, 4
    head = Head(output=nn.Linear(width, vocabulary, bias=False).double(), rows=vocabulary)
    hidden = torch.randn(positions, width, dtype=torch.float64, requires_grad=True)
    slots = torch.randint(0, vocabulary, (positions, slots_each))

    def loss(logits: Tensor, part: slice) -> Tensor:
        return (logits.log_softmax(-1).exp() * logits).sum()

    with largest_tensor() as plain:
        loss(plain_logits(hidden, head), slice(None)).backward()
    assert plain.largest == positions * vocabulary  # the recorder sees such a tensor where there is one
    weight_grad = head.weight.grad.clone()
    head.weight.grad = hidden.grad = None

    with largest_tensor() as fused:
        fused_loss(hidden, head, loss, chunk_rows=chunk).backward()
    assert relative_error(head.weight.grad, weight_grad) < 1e-12
    assert fused.largest == max(positions * width, vocabulary * width)
    assert (
        max(math.prod(s) for s in fused.shapes if s[-1:] == (vocabulary,)) == max(chunk, width) * vocabulary
    )

    with largest_tensor() as columns:
        columns_loss(hidden, head, slots, loss, chunk_rows=chunk).backward()
    assert columns.largest == max(positions * width, vocabulary * width)
    assert all(shape[-1] != vocabulary for shape in columns.shapes if shape)

    with largest_tensor() as reading:
        read(hidden, head, needs=Needs(top_k=3, entropy=True), chunk_rows=chunk)
    assert reading.largest <= max(chunk * vocabulary, vocabulary * width)


def test_a_chunk_is_sized_by_its_bytes_and_its_products_unless_its_rows_are_given():
    small, large = (Head(output=nn.Linear(1, rows, bias=False), rows=rows) for rows in (1 << 14, 1 << 20))
    assert small.chunk_rows(of=1024) * 4 * small.rows == 32 << 20
    assert small.chunk_rows(7, of=1024) == 7
    rows = CHUNK_ROWS["cpu"]
    assert large.chunk_rows(of=10 * rows) == rows and large.chunk_rows(of=160, least=16) == 16


@pytest.mark.parametrize(
    ("positions", "chunk"), [(0, 1), (1, 1), (223, 223), (256, 256), (335, 335), (337, 169), (600, 200)]
)
def test_chunks_are_of_one_size_and_none_is_short(positions, chunk):
    head = Head(output=nn.Linear(1, 1 << 20, bias=False), rows=1 << 20)
    assert head.chunk_rows(of=positions) == chunk
    sizes = [part.stop - part.start for part in chunks(positions, chunk)]
    assert sum(sizes) == positions and max(sizes, default=0) - min(sizes, default=0) <= 1


@pytest.mark.parametrize("positions", [0, 1, 11, 24])
def test_pieces_of_a_chunk_change_nothing(monkeypatch, positions):
    """Value, gradients and what is read, with pieces of 3 positions in chunks of 8 (the last piece has 2)."""
    head, hidden = Head(output=nn.Linear(5, 7).double(), rows=6), torch.randn(positions, 5).double()
    hidden.requires_grad_()
    theirs = Ahead(
        torch.randn(positions, 4).double(), Head(output=nn.Linear(4, 6).double(), rows=6), chunk_rows=8
    )
    seen = []

    def loss(logits, part):
        seen.append(len(logits))
        return (logits.softmax(-1) * theirs.logits(part)).sum()

    def both():
        value = fused_loss(hidden, head, loss, chunk_rows=8)
        gradients = torch.autograd.grad(value, [hidden, head.weight, head.bias])
        return [value, *gradients, read(hidden, head, needs=Needs(entropy=True), chunk_rows=8).entropy]

    with torch.inference_mode():
        logits = theirs.head.logits(theirs.hidden)
    whole = both()
    monkeypatch.setitem(PIECE_BYTES, "cpu", 4 * 6 * 3)
    seen.clear()
    for ours, wanted in zip(both(), whole, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)
    assert seen == {0: [], 1: [1], 11: [3, 3, 2, 3], 24: [3, 3, 2] * 3}[positions]
    for part in (slice(0, min(3, positions)), slice(positions // 2, positions)):
        torch.testing.assert_close(theirs.logits(part), logits[part], rtol=1e-12, atol=1e-12)


# --- architectures ------------------------------------------------------------------------------------------

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "initializer_range": 0.4,  # large enough that a forgotten scale or cap shows
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Gemma": {"head_dim": 8},
    "Gemma2": {"head_dim": 8, "final_logit_softcapping": 1.5, "query_pre_attn_scalar": 8},
    "Cohere": {"logit_scale": 0.0625},
    "Granite": {"logits_scaling": 6.0},
    "Phi": {"num_key_value_heads": 2},
}


class TinyTokenizer:
    """As much of a tokenizer as reading a head asks for: fewer ids than the embedding has rows."""

    eos_token_id, eos_token, special_tokens_map = 2, "</s>", {"eos_token": "</s>"}

    def get_vocab(self) -> dict[str, int]:
        return {f"t{i}": i for i in range(37)}


def tiny_model(architecture: str, **changes):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(
        **{**SIZES, **ARCHITECTURES.get(architecture, {}), **changes}
    )
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    if getattr(model.lm_head, "bias", None) is not None:
        nn.init.normal_(model.lm_head.bias)
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_head_of_an_architecture_gives_the_models_own_logits(architecture):
    model = tiny_model(architecture)
    loaded = describe(model, TinyTokenizer(), name="tiny")
    assert loaded.head.rows == 37
    ids = torch.randint(0, 37, (1, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model(input_ids=ids).logits[0, :, :37]
        ours = loaded.head.logits(loaded.body(input_ids=ids).last_hidden_state[0])
    assert wanted.std() > 0.05
    assert relative_error(ours, wanted) < 1e-6


def test_the_peculiar_heads_are_peculiar():
    """Each of the four would be wrong as a plain linear layer, so the test above proves something."""
    heads = {name: describe(tiny_model(name), TinyTokenizer(), name=name).head for name in ARCHITECTURES}
    assert heads["Cohere"].scale == 0.0625 and heads["Granite"].scale == pytest.approx(1 / 6)
    assert heads["Gemma2"].softcap == 1.5 and heads["Phi"].bias is not None
    assert [
        name for name, head in heads.items() if (head.scale, head.softcap, head.bias) == (1.0, None, None)
    ] == [
        "Llama",
        "Qwen2",
        "Qwen3",
        "Gemma",
    ]


def test_an_architecture_whose_logits_are_something_else_is_refused_by_name():
    model = tiny_model("Llama")
    forward = model.forward

    def tripled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * 3
        return output

    model.forward = tripled
    with pytest.raises(UserError, match="LlamaForCausalLM") as refused:
        describe(model, TinyTokenizer(), name="strange")
    assert "strange" in str(refused.value) and "Llama" in refused.value.hint


def test_a_model_without_an_output_embedding_is_refused():
    model = tiny_model("Llama")
    model.get_output_embeddings = lambda: None
    with pytest.raises(UserError, match="no output embedding"):
        describe(model, TinyTokenizer(), name="headless")
