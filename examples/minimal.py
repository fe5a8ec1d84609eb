"""On-policy distillation in one file, without the package's loop: the pedagogical twin of `opd train`.

    python examples/minimal.py STUDENT TEACHER "prompt one" "prompt two"

Sample from the student, read both models at the student's own states, push the student's top-k towards the teacher
(arXiv 2604.13016, the released code's objective), repeat.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

K, STEPS, MAX_TOKENS = 16, 5, 32


def logits_at_response(model, ids, prompt_length):
    """[T, V]: the row that predicts response token t is the one before it."""
    return model(ids).logits[0, prompt_length - 1 : -1]


def main(student_name, teacher_name, *prompts):
    tokenizer = AutoTokenizer.from_pretrained(student_name)
    student = AutoModelForCausalLM.from_pretrained(student_name, dtype=torch.float32)
    teacher = AutoModelForCausalLM.from_pretrained(teacher_name, dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    for step in range(STEPS):
        total, count = 0.0, 0
        for prompt in prompts:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            with torch.no_grad():
                rollout = student.generate(
                    ids, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=MAX_TOKENS
                )
                q = logits_at_response(teacher, rollout, ids.shape[1]).log_softmax(-1)  # T V
            p = logits_at_response(student, rollout, ids.shape[1]).log_softmax(-1)  # T V
            support = p.topk(K).indices  # T K: what the student would say
            p_S, q_S = p.gather(-1, support), q.gather(-1, support)
            weight = p_S.detach().softmax(-1)  # renormalised over the support
            advantage = (q_S - p_S).detach()  # full-vocabulary log-ratio
            loss = -(weight * advantage * p_S).sum(-1)  # K terms per position
            (loss.sum() / MAX_TOKENS).backward()
            total, count = total - (weight * advantage).sum().item(), count + len(p)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}  divergence per token {total / count:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
