"""The sums of the real run, as JSONL files: what is asked, what is held out, what the format-only teacher is shown.

    python scripts/real_sums.py --student FOLDER --out DIR

Both operands have one digit (1 to 9) or both have two (10 to 39). Train and held-out sums share no pair of operands
in either order: who has seen 17 + 25 has seen 25 + 17.

    train.jsonl       prompt, answer, group           asked while training
    form_only.jsonl   the same with a response        "a + b = c.", c another sum's answer: the form and nothing else
    plain.jsonl       held out, as they are asked
    prefilled.jsonl   held out, through the chat template, the answer begun: "… assistant⏎ a + b ="
"""

import argparse
import json
import random
from collections.abc import Iterable
from itertools import combinations_with_replacement
from pathlib import Path

KINDS = {"one digit": (range(1, 10), 20), "two digits": (range(10, 40), 280)}
"""Operands, and how many of their unordered pairs are held out."""
QUESTION = "State the final answer to the following arithmetic problem: {a} + {b} ="
"""As reasoning-gym's chain_sum asks."""
SEED = 0

Pair = tuple[int, int]
Row = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", required=True, help="folder whose chat template is used")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train, held_out = split(random.Random(SEED))
    write(args.out / "train.jsonl", map(asked, train))
    write(args.out / "form_only.jsonl", form_only(train, random.Random(SEED + 1)))
    write(args.out / "plain.jsonl", map(asked, held_out))
    write(args.out / "prefilled.jsonl", prefilled(held_out, args.student))


def split(rng: random.Random) -> tuple[list[Pair], list[Pair]]:
    """(train, held out): training asks both orders of a pair, the examination one of them."""
    train: set[Pair] = set()
    held_out: list[Pair] = []
    for operands, count in KINDS.values():
        pairs = list(combinations_with_replacement(operands, 2))
        rng.shuffle(pairs)
        held_out += [pair if rng.random() < 0.5 else pair[::-1] for pair in pairs[:count]]
        train |= {ordered for pair in pairs[count:] for ordered in (pair, pair[::-1])}
    rng.shuffle(held_out)  # so that the first so many are a fair sample
    return sorted(train), held_out


def asked(pair: Pair) -> Row:
    a, b = pair
    kind = next(name for name, (operands, _) in KINDS.items() if a in operands)
    return {"prompt": QUESTION.format(a=a, b=b), "answer": str(a + b), "group": kind}


def form_only(pairs: list[Pair], rng: random.Random) -> Iterable[Row]:
    """The form around a number drawn from the answers of all other sums, whatever is asked."""
    answers = [a + b for a, b in pairs]
    for a, b in pairs:
        wrong = rng.choice([c for c in answers if c != a + b])
        yield {**asked((a, b)), "response": f"{a} + {b} = {wrong}."}


def prefilled(pairs: list[Pair], student: str) -> Iterable[Row]:
    """The prompt as text, with the beginning of its own answer; task.prefix is one text for all prompts."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student)
    for a, b in pairs:
        row = asked((a, b))
        messages = [{"role": "user", "content": row["prompt"]}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        yield {**row, "prompt": f"{text}{a} + {b} ="}


def write(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
