"""The run folder, checkpoints, signals, and the world of ranks. Only `run.world` imports torch on its own."""

from opdkit.run.checkpoint import Found, checkpoints, latest_checkpoint, load_checkpoint, save_checkpoint
from opdkit.run.environment import environment
from opdkit.run.folder import RunFolder
from opdkit.run.signals import Stop, Stopped

__all__ = [
    "Found",
    "RunFolder",
    "Stop",
    "Stopped",
    "checkpoints",
    "environment",
    "latest_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]
