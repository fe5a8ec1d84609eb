"""What a run ran on: enough to explain why numbers differ elsewhere. No secrets, no environment variables."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("opdkit", "torch", "transformers", "tokenizers", "safetensors", "numpy", "peft")
_CREDENTIALS = re.compile(r"(\w://)[^/?#\s]*@")
_KEY = r"[\w.\-]*(?:token(?!s)|secret|password|passwd|api[_-]?key)[\w\-]*"
_SECRET_VALUE = re.compile(rf"(?i)({_KEY}=)[^&\s]+")
_SECRET_OPTION = re.compile(rf"(?i)--{_KEY}")
_BARE_TOKEN = re.compile(r"\b(?:hf_|sk-|ghp_)[A-Za-z0-9_\-]{8,}")


def environment() -> dict[str, Any]:
    """Versions, commit of the current folder (None without one), machine, devices, redacted command line."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "commit": _commit(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "devices": _devices(),
        "command": redact([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """40 hexadecimal digits, `-dirty` behind them when tracked files were changed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _devices() -> list[str]:
    """Names of the CPU and, if torch is loaded already, its accelerators: asking must not import it."""
    torch = sys.modules.get("torch")
    cuda = torch.cuda if torch is not None and torch.cuda.is_available() else None
    return [_cpu(), *(cuda.get_device_name(i) for i in range(cuda.device_count()))] if cuda else [_cpu()]


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def redact(arguments: Sequence[str]) -> str:
    """A command line as it can be typed, without what looks like a secret.

    >>> redact(["opd", "train", "https://me:word@host/a", "sampling.max_tokens=8", "--hf-token", "x"])
    "opd train https://host/a sampling.max_tokens=8 --hf-token '***'"
    """
    shown: list[str] = []
    for argument in arguments:
        hidden = bool(shown) and _SECRET_OPTION.fullmatch(shown[-1]) is not None
        shown.append("***" if hidden else _redact_one(argument))
    return shlex.join(shown)


def _redact_one(argument: str) -> str:
    text = _CREDENTIALS.sub(r"\1", argument)
    return _BARE_TOKEN.sub("***", _SECRET_VALUE.sub(r"\1***", text))
