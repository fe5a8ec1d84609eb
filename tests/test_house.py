"""The repository itself: floors, no cycles, public names, configs, no secrets of a machine, documentation that is kept."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "opdkit"
FLOORS = {
    "types": 1,
    "config": 2,
    "tasks": 3, "support": 3,
    "objectives": 4, "diagnostics": 4, "run": 4,
    "models": 5, "report": 5,
    "engines": 6,
    "train": 7, "serve": 7,
    "recipes": 8, "integrations": 8, "proofs": 8,
    "studies": 9,
    "cli": 10,
}  # fmt: skip


def modules() -> dict[str, Path]:
    """Dotted name → file, for every module of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["opdkit", *path.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """opdkit modules a file imports anywhere, functions and type-checking blocks included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    known = modules()
    return {name for name in found if name in known and name != "opdkit"}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "opdkit"


def test_every_room_has_a_floor() -> None:
    assert {room(m) for m in modules()} - {"opdkit", "__main__"} <= set(FLOORS)


def test_arrows_between_rooms_point_down() -> None:
    upward = [
        f"{module} (floor {FLOORS[room(module)]}) imports {other} (floor {FLOORS[room(other)]})"
        for module, path in modules().items()
        if room(module) in FLOORS
        for other in imports(path)
        if room(other) != room(module) and FLOORS[room(other)] >= FLOORS[room(module)]
    ]
    assert upward == []


def test_no_cycles_within_rooms() -> None:
    graph = {m: {o for o in imports(p) if o != m and not m.startswith(o + ".")} for m, p in modules().items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join([*trail[trail.index(module) :], module])
        if module in done:
            return
        for other in sorted(graph[module]):
            visit(other, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_the_floors_test_can_fail(tmp_path: Path) -> None:
    """An upward import in a file is seen, wherever it stands."""
    sneaky = tmp_path / "sneaky.py"
    sneaky.write_text("def f():\n    from opdkit.train.learner import Learner\n    return Learner\n")
    assert "opdkit.train.learner" in imports(sneaky)


@pytest.mark.parametrize("module", ["opdkit.types", "opdkit.config", "opdkit.tasks", "opdkit.cli"])
def test_light_rooms_do_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    python = ROOT / ".venv" / "bin" / "python"
    import sys

    result = subprocess.run([str(python) if python.exists() else sys.executable, "-c", code], check=False)
    assert result.returncode == 0, f"{module} imports torch"


@pytest.mark.parametrize("name", [m for m in modules() if modules()[m].name == "__init__.py"])
def test_public_names_are_the_exported_ones(name: str) -> None:
    import importlib

    module = importlib.import_module(name)
    exported = getattr(module, "__all__", [])
    assert sorted(exported) == sorted(set(exported))
    assert all(hasattr(module, public) for public in exported)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.toml")), ids=lambda p: p.name)
def test_every_config_loads(path: Path) -> None:
    from opdkit.config import dump_toml, load_config

    config = load_config(path)
    assert "student.model" in dump_toml(config)


def test_no_config_field_is_unused() -> None:
    """Every field is read somewhere outside the config room: a dial that turns nothing is a lie."""
    import opdkit.config as config
    from opdkit.config.base import Record

    text = "\n".join(p.read_text() for m, p in modules().items() if room(m) != "config")
    text += (PACKAGE / "config" / "objective.py").read_text()
    records = [r for r in vars(config).values() if isinstance(r, type) and issubclass(r, Record)]
    unused = [
        f"{record.__name__}.{field}"
        for record in records
        for field in record.model_fields
        if not re.search(rf"\.{field}\b|\"{field}\"", text)
    ]
    assert unused == []


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.splitlines()]


def test_no_machine_in_the_repository() -> None:
    """No path of a machine, no registry's host, nothing large."""
    marks = re.compile(
        "|".join(
            [
                "/wo" + "rk/",
                "/ro" + "ot/",
                "/ho" + "me/",
                "py" + r"pi\.org",
                "python" + "hosted",
                "npm" + "js",
            ]
        )
    )
    for path in tracked():
        if not path.is_file():
            continue
        assert path.stat().st_size < 1_000_000, f"{path} is large"
        found = marks.search(path.read_text(errors="ignore"))
        assert found is None, f"{path} holds {found and found.group()}"


def test_nothing_unsafe_is_called() -> None:
    """No pickle, no eval, no remote code, by syntax tree."""
    bad = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in (
                    "eval",
                    "exec",
                    "torch.load",
                    "torch.save",
                    "pickle.load",
                    "pickle.loads",
                    "yaml.load",
                ):
                    bad.append(f"{path.name}:{node.lineno} {name}")
                bad += [
                    f"{path.name}:{node.lineno} trust_remote_code"
                    for keyword in node.keywords
                    if keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) != "False"
                ]
            if isinstance(node, ast.Import | ast.ImportFrom) and "pickle" in ast.unparse(node):
                bad.append(f"{path.name}:{node.lineno} pickle")
    assert bad == []


def test_readme_shows_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme and "make test" in readme
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_reference_page_is_fresh() -> None:
    import sys

    result = subprocess.run(
        [sys.executable, "scripts/reference.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
