"""On-policy distillation in one file, without the package: the pedagogical twin of `opd train`.

    python examples/minimal.py STUDENT TEACHER "prompt one" "prompt two"
    python examples/minimal.py                                  (two tiny random models: offline, seconds)

The student answers; both models read the student's own answers; the student is pushed towards the teacher on the
tokens it thinks likeliest itself (arXiv 2604.13016, the released code's objective); again. tests/test_examples.py
checks gradient and numbers against the package. p is the student, q the teacher, log-probs in nats.

Letters: B rollouts, N response tokens of all rollouts one after another, K top-k, V vocabulary.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

K, STEPS, RESPONSES, MAX_TOKENS, LR, ROWS_AT_ONCE = 16, 8, 4, 32, 1e-6, 8
TOLD = "loss", "reverse_kl", "overlap_ratio", "overlap_mass_student", "overlap_mass_teacher", "entropy_gap"


@torch.no_grad()
def sample(student, prompt, *, vocabulary, end_ids, generator):
    """RESPONSES answers to one prompt at temperature 1; an end token belongs to the answer, what follows does not."""
    ids, cache = torch.tensor([prompt] * RESPONSES, device=student.device), None
    drawn: list[torch.Tensor] = []
    ended = torch.zeros(RESPONSES, 1, dtype=torch.bool)
    while len(drawn) < MAX_TOKENS and not ended.all():
        out = student(ids, past_key_values=cache, use_cache=True)
        p = out.logits[:, -1, :vocabulary].float().softmax(-1).cpu()
        drawn.append(torch.multinomial(p, 1, generator=generator))
        ended |= torch.isin(drawn[-1], torch.tensor(end_ids))
        ids, cache = drawn[-1].to(student.device), out.past_key_values
    return [until_end(row, end_ids) for row in torch.cat(drawn, -1).tolist()]


def until_end(response, end_ids):
    """[7, 8, END, 9] → [7, 8, END]."""
    length = next((t + 1 for t, token in enumerate(response) if token in end_ids), len(response))
    return response[:length]


def read(model, rollouts, *, vocabulary):
    """log-probs [N, V], each from one place before its token; rows are padded right, where causal attention is blind."""
    width = max(len(prompt) + len(response) for prompt, response in rollouts)
    ids = torch.tensor([[*x, *y] + [0] * (width - len(x) - len(y)) for x, y in rollouts])
    logits = model(ids.to(model.device)).logits  # B L V
    states = [logits[b, len(x) - 1 : len(x) + len(y) - 1, :vocabulary] for b, (x, y) in enumerate(rollouts)]
    return torch.cat(states).log_softmax(-1)


def paper_loss(p, q):
    """[N], differentiable, and [N], the value that is told.

    S = the student's top-k; gradient −Σ_S w(v) A(v) ∇log p(v) with w = p / Σ_S p and A = log q − log p held fixed:
    K terms per position. (One number per position times ∇log p of the sampled token would have mean zero.)
    """
    support = p.detach().topk(K).indices  # N K
    p_S, q_S = p.gather(-1, support), q.gather(-1, support)
    weight = p_S.detach().softmax(-1)  # renormalised over S
    advantage = (q_S - p_S).detach()  # over the vocabulary, not renormalised
    return -(weight * advantage * p_S).sum(-1), -(weight * advantage).sum(-1)


@torch.no_grad()
def measure(p, q):
    """Eqs. 4, 6, 8, 9, 10 per position: how far apart, do both like the same tokens, how sure is each, do those matter?"""
    p_top, p_ids = p.topk(K)
    shared = (p_ids[:, :, None] == q.topk(K).indices[:, None, :]).any(-1)  # N K: slots of O = S^p ∩ S^q
    entropy_p, entropy_q = -(p.exp() * p).sum(-1), -(q.exp() * q).sum(-1)
    return {
        "reverse_kl": (p.exp() * (p - q)).sum(-1),
        "overlap_ratio": shared.to(p.dtype).mean(-1),
        "entropy_gap": (entropy_q - entropy_p).abs(),
        "overlap_mass_student": (p_top.exp() * shared).sum(-1),
        "overlap_mass_teacher": (q.gather(-1, p_ids).exp() * shared).sum(-1),
    }


def backward(student, teacher, rollouts, *, vocabulary):
    """Gradients of the mean loss per token into the student; returns what was seen, as means per token.

    The mean is over all tokens of all rollouts, counted before the first backward: how rollouts are cut into forwards
    changes nothing, and a token of a long answer weighs as much as one of a short answer.
    """
    count, sums = sum(len(response) for _, response in rollouts), dict.fromkeys(TOLD, 0.0)
    for start in range(0, len(rollouts), ROWS_AT_ONCE):
        rows = rollouts[start : start + ROWS_AT_ONCE]
        with torch.no_grad():
            q = read(teacher, rows, vocabulary=vocabulary)
        p = read(student, rows, vocabulary=vocabulary)
        loss, value = paper_loss(p, q)
        (loss.sum() / count).backward()
        seen = {"loss": value} | measure(p, q)
        sums = {name: total + seen[name].sum().item() for name, total in sums.items()}
    return {name: total / count for name, total in sums.items()}


def distil(student, teacher, prompts, *, vocabulary, end_ids, lr=LR, seed=0):
    """STEPS times: sample, read, push. `prompts` are lists of token ids; yields the numbers of each step."""
    student.eval(), teacher.eval()  # dropout off: what is pushed is what answered
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr)
    settings = {"vocabulary": vocabulary, "end_ids": end_ids, "generator": generator}
    for _ in range(STEPS):
        rollouts = [(prompt, answer) for prompt in prompts for answer in sample(student, prompt, **settings)]
        numbers = backward(student, teacher, rollouts, vocabulary=vocabulary)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield numbers | {"tokens": sum(len(response) for _, response in rollouts)}


def tell(steps):
    for step, x in enumerate(steps):
        print(
            f"step {step}  loss {x['loss']:.4f}  KL {x['reverse_kl']:.4f}  overlap@{K} {x['overlap_ratio']:.3f}"
            f"  mass there: student {x['overlap_mass_student']:.3f}, teacher {x['overlap_mass_teacher']:.3f}"
            f"  entropy gap {x['entropy_gap']:.3f}  tokens {x['tokens']}"
        )


def main(student_name, teacher_name, text, *texts):
    tokenizer = AutoTokenizer.from_pretrained(student_name)
    theirs = AutoTokenizer.from_pretrained(teacher_name).get_vocab()
    assert tokenizer.get_vocab() == theirs, "the two models must mean the same by a token id"
    student = AutoModelForCausalLM.from_pretrained(student_name, dtype=torch.float32)
    teacher = AutoModelForCausalLM.from_pretrained(teacher_name, dtype=torch.float32)
    named = student.generation_config.eos_token_id
    end_ids = list({*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None})
    prompts = tokenizer([text, *texts]).input_ids
    # vocabulary: embedding rows beyond the tokenizer's are padding
    tell(distil(student, teacher, prompts, vocabulary=len(tokenizer), end_ids=end_ids))


def toy():
    """The same with two random models of one lineage over 64 tokens, of which token 0 ends an answer."""
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    rest = {"num_hidden_layers": 2, "initializer_range": 0.2, "eos_token_id": 0}
    config = LlamaConfig.from_dict(shape | rest)
    torch.manual_seed(0)  # only for the weights: answers are drawn by a generator of their own
    student, teacher = LlamaForCausalLM(config), LlamaForCausalLM(config)
    for ours, theirs in zip(student.parameters(), teacher.parameters(), strict=True):
        theirs.data.lerp_(ours.data, 0.6)
    tell(distil(student, teacher, [[5, 6, 7], [9, 8], [3, 11, 2, 4]], vocabulary=64, end_ids=[0], lr=1e-2))


if __name__ == "__main__":
    main(*sys.argv[1:]) if sys.argv[1:] else toy()
