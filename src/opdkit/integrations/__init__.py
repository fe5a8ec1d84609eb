"""Other trainers: their logs read as runs. What attaches to a trainer is in a module of its name, which needs it."""

from opdkit.integrations.logs import Log, as_runs, import_log, read_log
from opdkit.integrations.names import TOOLS, Mapped

__all__ = ["TOOLS", "Log", "Mapped", "as_runs", "import_log", "read_log"]
