"""The command line. Heavy imports are inside commands, so that `opd --help` answers at once."""

from opdkit.cli.app import main

__all__ = ["main"]
