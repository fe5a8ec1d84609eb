"""Would this teacher teach this student? Overlap, mass, entropy gap and Eq. 7 at positions you choose, for two teachers.

    python examples/compare_two_models.py

One is a later state of the student, one a stranger. All you need is logits of both at the same positions. Mind Eq. 7: it
speaks of shared tokens only, and the stranger's, having next to none, looks better. Read it with overlap and mass.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from opdkit.diagnostics import derived, measure, overlap_chance, tally
from opdkit.support import RowDist

K, VOCABULARY, PROMPT_TOKENS = 8, 128, 4
WORDS = {
    "overlap_ratio": "shared of the two top-8 lists",
    "overlap_mass_student": "student's probability on shared tokens",
    "overlap_mass_teacher": "teacher's probability on shared tokens",
    "overlap_advantage": "Eq. 7 on shared tokens, nats (0 = agree)",
    "overlap_empty_fraction": "positions without any (left out of Eq. 7)",
    "entropy_gap": "entropy gap, nats",
    "reverse_kl": "KL(student‖teacher), nats",
}


def logits_at_response(model, ids):
    """[N, V]: each response token is predicted one position before it."""
    with torch.no_grad():
        return model(ids).logits[:, PROMPT_TOKENS - 1 : -1].flatten(0, 1)


def compare(student_logits, teacher_logits):
    """name → mean over positions; everything the diagnostics know is in there."""
    return derived(tally(measure(RowDist(student_logits), RowDist(teacher_logits), k=K, ks=[1, K])))


def main():
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = LlamaConfig.from_dict(shape | {"num_hidden_layers": 2, "initializer_range": 0.4})
    student, later, stranger = (LlamaForCausalLM(config).eval() for _ in range(3))
    for theirs, ours in zip(later.parameters(), student.parameters(), strict=True):
        theirs.data = 0.9 * ours.data + 0.1 * theirs.data
    prompts = torch.arange(PROMPT_TOKENS).repeat(8, 1)
    drawn = {"do_sample": True, "max_new_tokens": 24, "min_new_tokens": 24, "pad_token_id": 0}
    ids = student.generate(prompts, attention_mask=torch.ones_like(prompts), **drawn)
    ours = logits_at_response(student, ids)
    found = [compare(ours, logits_at_response(teacher, ids)) for teacher in (later, stranger)]
    print(f"{f'at {len(ours)} positions of the student':42} later self  stranger")
    for name, words in WORDS.items():
        print(f"{words:42} {found[0][name]:10.3f} {found[1][name]:9.3f}")
    print(f"{'two unrelated lists would share':42} {overlap_chance(k=K, size=VOCABULARY):10.3f}")
    return found


if __name__ == "__main__":
    main()
