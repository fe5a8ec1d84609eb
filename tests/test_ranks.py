"""Two gloo ranks, with FSDP2 and with whole copies, are one process: losses, gradients, weights on the same rollouts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from opdkit.run.world import World
from ranks import learn, torchrun

SCRIPT = Path(__file__).parent / "ranks.py"


@pytest.mark.parametrize(
    ("shard", "tie", "whats"),
    [
        ("always", "tied", ["paper", "sampled", "sft", "grpo", "lora-paper"]),
        ("always", "untied", ["full"]),
        ("never", "tied", ["paper", "grpo", "lora-paper"]),
    ],
)
def test_two_ranks_are_one_process(tmp_path: Path, shard: str, tie: str, whats: list[str]) -> None:
    """Uneven token counts, uneven micro-batch counts; float64, ≤ 1e-10; with a teacher and without."""
    torchrun(str(SCRIPT), str(tmp_path), tie, shard, *whats)
    for what in whats:
        told = json.loads((tmp_path / what / "losses.json").read_text())
        assert told["size"] == 2
        losses, norms, weights, gradients = learn(World(torch.device("cpu")), tie=tie == "tied", what=what)
        assert told["losses"] == pytest.approx(losses, abs=1e-10), what
        assert told["norms"] == pytest.approx(norms, rel=1e-10), what
        assert losses[-1] < losses[0] or what == "sampled"
        for ours, theirs in ((gradients, "gradients"), (weights, "weights")):
            other = load_file(tmp_path / what / f"{theirs}.safetensors")
            assert ours.keys() == other.keys()
            for name, tensor in ours.items():
                torch.testing.assert_close(other[name], tensor, atol=1e-10, rtol=1e-10)
