"""These tests need TRL, which lives in an environment of its own: `make test-trl`."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("trl") else ["test_trl_callback.py"]
