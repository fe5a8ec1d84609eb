"""These tests need TRL and liger-kernel, which live in an environment of their own: `make test-trl`."""

from importlib.util import find_spec

NEEDS = {"test_trl_callback.py": ["trl"], "test_jsd.py": ["trl", "liger_kernel"]}

collect_ignore = [name for name, packages in NEEDS.items() if not all(map(find_spec, packages))]
