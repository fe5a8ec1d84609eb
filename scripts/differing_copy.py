"""A copy of a model folder that differs by seeded noise: a stand-in teacher when only one set of weights is at hand.

    python scripts/differing_copy.py MODEL OUT [--noise 0.02] [--seed 1]

Every matrix gets Gaussian noise of `noise` times its own standard deviation. Such a teacher knows nothing the student does
not: it is for trying the machinery, not for learning anything.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--noise", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    generator = torch.Generator().manual_seed(args.seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter += args.noise * parameter.std() * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(args.out)
    AutoTokenizer.from_pretrained(args.model).save_pretrained(args.out)


if __name__ == "__main__":
    main()
