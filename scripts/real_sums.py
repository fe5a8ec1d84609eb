"""The sums of the real run, as JSONL files: what is asked, what is held out, what the format-only teacher is shown.

    python scripts/real_sums.py --student FOLDER --out DIR

A sum has one operand of one digit and one of up to two. Train and held-out sums share no pair of operands, in
either order: who has seen 7 + 25 has seen 25 + 7.

    train.jsonl       prompt, answer, group                 asked while training
    form_only.jsonl   prompt, response "a + b = c."         c is another sum's answer: the form, and nothing to learn
    plain.jsonl       held out, as asked
    prefilled.jsonl   held out, through the chat template, the answer begun: "… assistant a + b ="
"""

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SMALL, LARGE = range(1, 10), range(1, 100)
HELD_OUT = 300
SEED = 0

Pair = tuple[int, int]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", required=True, help="folder whose chat template is used")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train, held_out = split(random.Random(SEED))
    write(args.out / "train.jsonl", (asked(pair) for pair in train))
    write(args.out / "form_only.jsonl", form_only(train, random.Random(SEED + 1)))
    write(args.out / "plain.jsonl", (asked(pair) for pair in held_out))
    write(args.out / "prefilled.jsonl", prefilled(held_out, args.student))


def split(rng: random.Random) -> tuple[list[Pair], list[Pair]]:
    """(train, held out): all unordered pairs, shuffled; training asks both orders, an examination one of them."""
    pairs = sorted({(min(a, b), max(a, b)) for a in SMALL for b in LARGE})
    rng.shuffle(pairs)
    held_out = [pair if rng.random() < 0.5 else pair[::-1] for pair in pairs[:HELD_OUT]]
    train = sorted({ordered for pair in pairs[HELD_OUT:] for ordered in (pair, pair[::-1])})
    return train, held_out


def asked(pair: Pair) -> dict[str, str]:
    a, b = pair
    carry = "carry" if a % 10 + b % 10 >= 10 else "no carry"
    return {"prompt": f"What is {a} + {b}?", "answer": str(a + b), "group": carry}


def form_only(pairs: list[Pair], rng: random.Random) -> Iterable[dict[str, str]]:
    """The right form around a number drawn from all answers but the right one, whatever is asked."""
    answers = [a + b for a, b in pairs]
    for a, b in pairs:
        wrong = rng.choice([c for c in answers if c != a + b])
        yield {**asked((a, b)), "response": f"{a} + {b} = {wrong}."}


def prefilled(pairs: list[Pair], student: str) -> Iterable[dict[str, str]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student)
    for a, b in pairs:
        row = asked((a, b))
        messages = [{"role": "user", "content": row["prompt"]}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        yield {**row, "prompt": f"{text}{a} + {b} ="}


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
