"""The configuration: what loads, where each value came from, and how everything else is refused."""

import tomllib
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from opdkit.config import (
    PRESETS,
    Config,
    FileTask,
    GymTask,
    LocalTeacher,
    SelfTeacher,
    SignalConfig,
    WorldTask,
    dump_toml,
    load_config,
)
from opdkit.config.load import build, explain, parse_overrides
from opdkit.types import UserError

properties = settings(max_examples=60, deadline=None, database=None)

SMALL = 'student = "s"\nteacher = "t"\ntask = "p.jsonl"\n'


def load(tmp_path: Path, text: str, *overrides: str) -> Config:
    return load_config(written(tmp_path, text), overrides)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(tmp_path: Path, text: str, *overrides: str) -> UserError:
    with pytest.raises(UserError) as refused:
        load(tmp_path, text, *overrides)
    return refused.value


def records(root: type[BaseModel] = Config) -> list[type[BaseModel]]:
    """Every record reachable from the root, through optionals, unions and annotations."""

    def inside(annotation: Any) -> list[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [annotation]
        return [record for arg in typing.get_args(annotation) for record in inside(arg)]

    found = [root]
    for record in found:
        for field in record.model_fields.values():
            found += [r for r in inside(field.annotation) if r not in found]
    return found


# --- loading ------------------------------------------------------------------------------------------------


def test_bare_strings_stand_for_records(tmp_path):
    config = load(tmp_path, SMALL + 'objective = "sampled"\n')
    assert config.student.model == "s"
    assert config.teacher == LocalTeacher(model="t")
    assert config.task == FileTask(path=Path("p.jsonl"))
    assert config.objective.preset == "sampled" and config.objective.support == "sampled"
    graded = load(tmp_path, 'student = "s"\nteacher = "t"\n[task]\npath = "p"\ngrader = "exact"\n')
    assert graded.task.grader.type == "exact"


def test_tables_say_the_same_as_strings(tmp_path):
    tables = '[student]\nmodel = "s"\n[teacher]\nmodel = "t"\n[task]\npath = "p.jsonl"\n'
    assert load(tmp_path, tables) == load(tmp_path, SMALL)


def test_unions_go_by_type_and_a_table_without_one_is_the_usual_kind(tmp_path):
    config = load(
        tmp_path,
        'student = "s"\n[teacher]\ntype = "self"\nevery = 5\n[task]\ntype = "gym"\nname = "chain_sum"\n',
    )
    assert config.teacher == SelfTeacher(every=5)
    assert config.task == GymTask(name="chain_sum")
    error = refusal(tmp_path, 'student = "s"\ntask = "p"\n[teacher]\ntype = "remote"\n')
    assert "teacher.type = 'remote'" in str(error) and "'local', 'self'" in error.hint


@pytest.mark.parametrize("story", ["distill", "sft", "grpo", "improve", "push_down"])
def test_a_story_is_one_word_and_its_settings_stay_its_own(tmp_path, story):
    """Whether it wants a teacher is the plan's business, not the configuration's: `opd eval` has none either."""
    config = load(tmp_path, f'story = "{story}"\nstudent = "s"\ntask = "p"\n', "grpo.scale=none")
    assert (config.story, config.teacher) == (story, None) and config.grpo.scale == "none"
    assert load(tmp_path, SMALL).story == "distill"


def test_a_world_needs_no_more_than_its_type(tmp_path):
    config = load(tmp_path, 'student = "s"\n[task]\ntype = "testbed"\n', "task.args={depth=[1, 2]}")
    assert config.task == WorldTask(args={"depth": [1, 2]}) and not config.task.chat_template
    error = refusal(tmp_path, 'student = "s"\n[task]\ntype = "testbed"\npath = "p"\n')
    assert "task.path" in str(error)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fills_and_a_key_beside_it_replaces_that_one(tmp_path, preset):
    filled = PRESETS[preset] | {"signal": SignalConfig(**PRESETS[preset].get("signal", {}))}
    config = load(tmp_path, SMALL + f'objective = "{preset}"\n').objective
    assert {key: getattr(config, key) for key in filled} == filled
    changed = load(tmp_path, SMALL + f'[objective]\npreset = "{preset}"\nk = 7\n').objective
    assert {key: getattr(changed, key) for key in filled} == filled | {"k": 7}


def test_a_key_of_the_signal_beside_a_preset_replaces_that_one(tmp_path):
    text = '[objective]\npreset = "iw-opd"\nsignal = { window = 9 }\n'
    signal = load(tmp_path, SMALL + text).objective.signal
    assert (signal.window, signal.positions, signal.positions_value) == (9, "prefix", 1.5)


def test_without_a_preset_the_objective_is_the_papers(tmp_path):
    assert load(tmp_path, SMALL).objective == load(tmp_path, SMALL + 'objective = "paper"\n').objective


def test_overrides_are_toml_and_what_is_not_toml_is_a_string():
    assert parse_overrides(
        ["a=1", "b.c=1e-5", "d=true", "e=runs/x", "f=[1, 2]", 'g="h"', "i={j=1}", "k=a=b", "l="]
    ) == [
        ("a", 1),
        ("b.c", 1e-5),
        ("d", True),
        ("e", "runs/x"),
        ("f", [1, 2]),
        ("g", "h"),
        ("i", {"j": 1}),
        ("k", "a=b"),
        ("l", ""),
    ]
    for wrong in ("novalue", "=3"):
        with pytest.raises(UserError, match="is not key=value"):
            parse_overrides([wrong])


def test_an_override_goes_into_shorthand_without_losing_it(tmp_path):
    text = 'student = "s"\nteacher = "t"\nobjective = "sampled"\n[task]\npath = "p"\ngrader = "regex"\n'
    config = load(
        tmp_path,
        text,
        "student.dtype=bfloat16",
        "teacher.temperature=2",
        "task.grader.pattern=(x)",
        "objective.k=3",
    )
    assert (config.student.model, config.student.dtype) == ("s", "bfloat16")
    assert (config.teacher.model, config.teacher.temperature) == ("t", 2.0)
    assert (config.task.grader.type, config.task.grader.pattern) == ("regex", "(x)")
    assert (config.objective.preset, config.objective.k) == ("sampled", 3)
    assert load(tmp_path, SMALL, "task.eval_path=e").task.path == Path("p.jsonl")


def test_a_configuration_can_come_from_the_command_line_alone():
    config = load_config(None, ["student=s", "teacher=t", "task=p.jsonl", "optim.lr=1e-4"])
    assert (config.student.model, config.optim.lr) == ("s", 1e-4)


def test_the_last_override_counts(tmp_path):
    assert load(tmp_path, SMALL + "steps = 1\n", "steps=2", "steps=3").steps == 3


def test_a_path_that_exists_only_beside_the_file_is_taken_from_there(tmp_path, monkeypatch):
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "p.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    assert load(folder, SMALL).task.path == folder / "p.jsonl"
    assert load(folder, SMALL).student.model == "s"  # nowhere: a Hub id, left as it is
    (tmp_path / "p.jsonl").touch()
    assert load(folder, SMALL).task.path == Path("p.jsonl")


def test_nothing_changes_after_loading(tmp_path):
    config = load(tmp_path, SMALL)
    for record, name in (
        (config, "steps"),
        (config.optim, "lr"),
        (config.task, "path"),
        (config.objective, "k"),
    ):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(record, name, getattr(record, name))
    assert all(
        record.model_config["frozen"] and record.model_config["extra"] == "forbid" for record in records()
    )


def test_every_key_is_documented_where_it_is_declared():
    found = records()
    assert len(found) > 12  # the walk goes through unions
    bare = [
        f"{r.__name__}.{name}"
        for r in found
        for name, field in r.model_fields.items()
        if not field.description
    ]
    assert bare == []


# --- round trip ---------------------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12)
positive = st.floats(1e-12, 1e12, allow_nan=False)
counts = st.integers(1, 10**9)
plain = st.recursive(
    st.booleans() | st.integers(-(10**6), 10**6) | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def configurations(draw) -> dict[str, Any]:
    def some(**fields) -> dict[str, Any]:
        return draw(st.fixed_dictionaries({}, optional=fields))

    teacher = draw(st.sampled_from(["none", "string", "local", "self"]))
    task = draw(st.sampled_from(["string", "file", "gym", "testbed"]))
    common = {"dtype": st.sampled_from(["float32", "bfloat16"]), "temperature": positive, "context": words}
    templated = {
        "chat_template": st.booleans(),
        "render": st.sampled_from(["student", "teacher"]),
        "thinking": st.booleans(),
        "system": words,
        "prefix": words,
    }
    grader = st.sampled_from(["none", "exact", "math"]) | st.fixed_dictionaries({"pattern": words})
    sampling = some(
        responses=counts, temperature=positive, top_p=st.floats(0.01, 1.0), stop_ids=st.lists(counts)
    )
    return {
        "student": draw(words | st.fixed_dictionaries({"model": words, "revision": words})),
        **{
            "none": lambda: {},
            "string": lambda: {"teacher": draw(words)},
            "local": lambda: {"teacher": {"model": draw(words), **some(revision=words, **common)}},
            "self": lambda: {"teacher": {"type": "self", **some(every=counts, **common)}},
        }[teacher](),
        "task": {
            "string": lambda: draw(words),
            "file": lambda: {"path": draw(words), **some(eval_path=words, grader=grader, **templated)},
            "gym": lambda: {
                "type": "gym",
                "name": draw(words),
                **some(args=st.dictionaries(words, plain), seed=counts),
            },
            "testbed": lambda: {
                "type": "testbed",
                **some(
                    family=st.sampled_from(typing.get_args(WorldTask.model_fields["family"].annotation)),
                    args=st.dictionaries(words, plain),
                    style=words,
                    template=counts,
                    demonstrations=words,
                    clean=st.booleans(),
                    chat_template=st.booleans(),
                ),
            },
        }[task](),
        "objective": draw(
            st.sampled_from(list(PRESETS))
            | st.fixed_dictionaries({"k": counts, "beta": st.floats(0.01, 0.99)})
        ),
        "sampling": sampling,
        "optim": some(
            lr=positive, betas=st.just([0.5, 0.75]), schedule=st.sampled_from(["constant", "cosine"])
        ),
        "diagnostics": some(ks=st.lists(counts, max_size=4)),
        "grpo": some(scale=st.sampled_from(["std", "none"])),
        "improve": some(prompts=counts, every=st.integers(0, 10**9)),
        "push_down": some(share=st.floats(0.01, 1.0)),
        "eval": some(max_tokens=counts, at_ends=st.booleans(), temperature=st.just(0.0) | positive),
        **some(story=st.sampled_from(["distill", "sft", "grpo", "improve", "push_down"])),
        **some(run=words, steps=counts, seed=st.integers(0, 2**60), device=words),
    }


@properties
@given(configurations())
def test_what_is_written_is_read_back_as_the_same_configuration(data):
    config = build(data, origin="a test")
    text = dump_toml(config)
    assert build(tomllib.loads(text), origin="its dump") == config
    assert dump_toml(build(tomllib.loads(text), origin="its dump")) == text


@properties
@given(configurations())
def test_every_written_line_is_also_an_override(data):
    """`key = value` of the dump, given on the command line, makes the same run."""
    config = build(data, origin="a test")
    lines = [line.replace(" = ", "=", 1) for line in dump_toml(config).splitlines()]
    assert load_config(None, lines) == config


# --- where a value came from --------------------------------------------------------------------------------


def sources(path: Path | None, *overrides: str) -> dict[str, str]:
    return {key: source for key, _, source in explain(load_config(path, overrides), path, overrides)}


def test_shorthand_names_one_key_and_the_others_are_defaults(tmp_path):
    path = written(tmp_path, SMALL + 'objective = "sampled"\n')
    found, file = sources(path), str(path)
    given_keys = {"student.model", "teacher.model", "task.path", "objective.preset"}
    assert {key for key, source in found.items() if source == file} == given_keys
    assert found["task.grader.type"] == found["student.dtype"] == found["teacher.type"] == "default"
    assert {key for key, source in found.items() if source == "preset sampled"} == {
        f"objective.{key}" for key in PRESETS["sampled"]
    }
    assert found["objective.beta"] == "default"  # no preset sets it


def test_tables_and_inline_tables_cover_the_keys_they_hold(tmp_path):
    text = (
        'student = "s"\nteacher = { model = "t", dtype = "bfloat16" }\n[task]\npath = "p"\ngrader = "exact"\n'
    )
    path = written(tmp_path, text + "[optim]\nlr = 1e-5\nbetas = [0.9, 0.95]\n[save]\n")
    found, file = sources(path), str(path)
    assert {key for key, source in found.items() if source == file} == {
        "student.model",
        "teacher.model",
        "teacher.dtype",
        "task.path",
        "task.grader.type",
        "optim.lr",
        "optim.betas",
    }
    table = written(tmp_path, text.replace('"exact"', '{ pattern = "(x)" }'))
    assert sources(table)["task.grader.pattern"] == file and sources(table)["task.grader.type"] == "default"


def test_a_value_that_is_itself_a_table_is_one_value(tmp_path):
    text = 'student = "s"\nteacher = "t"\n[task]\ntype = "gym"\nname = "n"\n'
    assert sources(written(tmp_path, text))["task.args"] == "default"
    assert sources(written(tmp_path, text + "args = {}\n"))["task.args"] == str(tmp_path / "run.toml")
    path = written(tmp_path, text + "[task.args]\nmin_terms = 2\n")
    assert sources(path)["task.args"] == str(path)
    assert sources(path, "task.args.min_terms=3")["task.args"] == "command line"


def test_the_command_line_covers_the_file_and_the_file_covers_the_preset(tmp_path):
    path = written(
        tmp_path, SMALL + '[objective]\npreset = "sampled"\nk = 3\n[optim]\nlr = 1e-5\neps = 1e-9\n'
    )
    found = sources(path, "optim.lr=1", "teacher.dtype=bfloat16", "task=other.jsonl")
    assert found["objective.k"] == found["optim.eps"] == found["teacher.model"] == str(path)
    assert found["objective.support"] == "preset sampled"
    assert found["optim.lr"] == found["teacher.dtype"] == found["task.path"] == "command line"
    alone = sources(path, "objective=paper")
    assert alone["objective.preset"] == "command line" and alone["objective.k"] == "preset paper"


def test_a_whole_table_on_the_command_line_replaces_the_files(tmp_path):
    path = written(tmp_path, 'student = "s"\nteacher = "t"\n[task]\npath = "p"\nprefix = "x"\n')
    assert load_config(path, ['task={path="q"}']).task.prefix == ""
    found = sources(path, 'task={path="q"}')
    assert (found["task.path"], found["task.prefix"]) == ("command line", "default")


@properties
@given(configurations())
def test_every_value_has_a_source_and_a_default_is_the_default(data):
    """Whatever is said to be a default equals it: dropping it from the dump changes nothing."""
    config = build(data, origin="a test")
    overrides = [line.replace(" = ", "=", 1) for line in dump_toml(config).splitlines()]
    rows = explain(config, None, overrides)
    assert {key for key, _, source in rows if source == "command line"} == {
        o.partition("=")[0] for o in overrides
    }
    assert all(value is None for _, value, source in rows if source == "default")


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        (SMALL + "stpes = 3\n", "stpes", "steps"),
        ('studnt = "s"\nteacher = "t"\ntask = "p"\n', "studnt", "student"),
        ('teacher = "t"\ntask = "p"\n[student]\nmodle = "s"\n', "student.modle", "model"),
        (
            'student = "s"\ntask = "p"\n[teacher]\nmodel = "t"\ntemprature = 2.0\n',
            "teacher.temprature",
            "temperature",
        ),
        ('student = "s"\ntask = "p"\n[teacher]\ntype = "self"\nevry = 2\n', "teacher.evry", "every"),
        ('student = "s"\nteacher = "t"\n[task]\npth = "p"\n', "task.pth", "path"),
        (
            'student = "s"\nteacher = "t"\n[task]\npath = "p"\n[task.grader]\npatern = "x"\n',
            "task.grader.patern",
            "pattern",
        ),
        (
            'student = "s"\nteacher = "t"\n[task]\ntype = "gym"\nname = "n"\ntrain_sise = 3\n',
            "task.train_sise",
            "train_size",
        ),
        (SMALL + "[objective]\nsuport = 'full'\n", "objective.suport", "support"),
        (SMALL + "[optim]\nlearning = 1\nlrr = 2\n", "optim.learning", None),
        (SMALL + "[diagnostics]\npositons = 1\n", "diagnostics.positons", "positions"),
        (SMALL + "[eval]\nresponse = 1\n", "eval.response", "responses"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_one(tmp_path, text, key, near):
    error = refusal(tmp_path, text)
    assert str(error) == f"unknown key '{key}' in {tmp_path / 'run.toml'}"
    assert (
        error.hint == f"did you mean '{near}'?"
        if near
        else error.hint.startswith("known here: betas, clip, ")
    )


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("steps=0", "steps"),
        ("steps=1.5", "steps"),
        ("steps=true", "steps"),
        ("steps=many", "steps"),
        ("optim.lr=-1", "optim.lr"),
        ("optim.lr=inf", "optim.lr"),
        ("optim.lr=nan", "optim.lr"),
        ("optim.betas=[0.9]", "optim.betas"),
        ("optim.betas=[0.9, 1.0]", "optim.betas"),
        ("optim.schedule=linear", "optim.schedule"),
        ("sampling.top_p=1.5", "sampling.top_p"),
        ("sampling.temperature=0", "sampling.temperature"),
        ("teacher.dtype=float16", "teacher.dtype"),
        ("teacher=3", "teacher"),
        ("student=3", "student"),
        ("task=[1]", "task"),
        ("task.grader=3", "task.grader"),
        ("task.grader.type=judge", "task.grader.type"),
        ("objective.preset=[1]", "objective.preset"),
        ("objective=unheard", "objective.preset"),
        ("objective.beta=1.0", "objective.beta"),
        ("diagnostics.ks=[0]", "diagnostics.ks"),
        ("run=3", "run"),
    ],
)
def test_a_wrong_value_is_named_with_a_way_out(tmp_path, change, name):
    error = refusal(tmp_path, SMALL, change)
    assert str(error).startswith(f"{name}: ") and error.hint.endswith(f"{name}=…")
    assert "pydantic" not in str(error) and "\n" not in str(error)


def test_a_missing_key_is_named_with_what_to_type(tmp_path):
    error = refusal(tmp_path, 'teacher = "t"\ntask = "p"\n')
    assert (
        str(error).startswith("student is missing") and error.hint == "give it on the command line: student=…"
    )
    nested = refusal(tmp_path, 'student = "s"\ntask = "p"\n[teacher]\ndtype = "float32"\n')
    assert str(nested).startswith("teacher.model is missing")


def test_our_own_refusals_end_in_the_remedy(tmp_path):
    error = refusal(tmp_path, SMALL + '[objective]\npreset = "paper-eq5"\nk = 1\n')
    assert str(error).startswith('objective: normalisation = "both" over one token is identically 0')
    assert error.hint == 'use normalisation = "weights", or k >= 2'
    lengths = refusal(tmp_path, SMALL, "sampling.min_tokens=9", "sampling.max_tokens=3")
    assert str(lengths) == "sampling: min_tokens is larger than max_tokens"
    assert lengths.hint == "use min_tokens <= max_tokens"


def test_a_file_that_is_missing_or_not_toml_is_refused(tmp_path):
    with pytest.raises(UserError, match="no config file") as missing:
        load_config(written(tmp_path, SMALL).with_name("ran.toml"))
    assert missing.value.hint == f"did you mean {tmp_path / 'run.toml'}?"
    assert "quotes" in refusal(tmp_path, "student = folder\n").hint
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not valid TOML"):
        load_config(tmp_path / "run.toml")


@pytest.mark.parametrize("name", ["x" * 5000, "nul\x00byte"])
def test_a_name_no_file_can_have_is_no_traceback(tmp_path, name):
    assert load_config(None, [f"student={name}", "teacher=t", "task=p"]).student.model == name
    assert (
        load(tmp_path, f'student = "{"x" * 5000}"\nteacher = "t"\ntask = "p"\n').student.model == "x" * 5000
    )
    with pytest.raises(UserError, match="no config file"):
        load_config(tmp_path / name)


KEYS = sorted(
    {name for record in records() for name in record.model_fields} | set(PRESETS["paper"]) | {"typo", ""}
)
VALUES = st.one_of(
    st.none().map(lambda _: {}),
    st.booleans(),
    st.integers(-2, 3),
    st.floats(),
    st.sampled_from(
        ["", "local", "self", "file", "gym", "testbed", "sft", "paper", "full", "sampled", "exact", "x"]
    ),
)
TABLES = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=8,
)


def assert_config_or_user_error(load_it) -> None:
    try:
        config = load_it()
    except UserError as error:
        assert str(error) and error.hint and "\n" not in error.hint
    else:
        assert isinstance(config, Config)


@settings(properties, max_examples=150)
@given(st.dictionaries(st.sampled_from(KEYS), TABLES, max_size=6), st.booleans())
def test_any_table_is_a_configuration_or_a_users_error(data, complete):
    """Random values under real key names: at the top, and below keys that are otherwise right."""
    base = {"student": "s", "teacher": "t", "task": "p"} if complete else {}
    assert_config_or_user_error(lambda: build({**base, **data}, origin="a test"))


@settings(properties, max_examples=150)
@given(st.lists(st.tuples(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3), TABLES), max_size=3))
def test_any_override_is_a_configuration_or_a_users_error(changes):
    from opdkit.config.load import _toml  # the writer of values, tested by the round trip

    overrides = [f"{'.'.join(keys)}={_toml(value)}" for keys, value in changes]
    assert_config_or_user_error(lambda: load_config(None, ["student=s", "teacher=t", "task=p", *overrides]))


@properties
@given(st.text(max_size=40), st.text(max_size=20))
def test_any_text_is_a_configuration_or_a_users_error(text, override):
    assert_config_or_user_error(
        lambda: load_config(None, ["student=s", "teacher=t", f"task={text}", override])
    )
