"""Checkpoints: whatever is interrupted, corrupted or planted: a whole one is found, nothing else loaded."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import pickle
import re
import resource
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from opdkit.run.checkpoint import (
    checkpoints,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from opdkit.run.disk import disk_error, files_under
from opdkit.run.folder import RunFolder
from opdkit.run.manifest import MANIFEST, damage, write_manifest
from opdkit.types import RunError, UserError

# --- one tiny run ----------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with RunFolder.create(tmp_path / "run", config_toml="", env={}) as folder:
        return folder.checkpoints


def save(place: Path, step: int, *, keep: int = 2, size: int = 3, mark: str = "") -> Path:
    def write(folder: Path) -> None:
        (folder / "model" / "inner").mkdir(parents=True)
        save_file({"weight": torch.full((size,), float(step))}, folder / "model" / "model.safetensors")
        (folder / "model" / "inner" / "config.json").write_text(json.dumps({"step": step}))

    tensors = {"optimizer": {"exp_avg": torch.full((2, size), float(step)), "step": torch.tensor(step)}}
    state = {"step": step, "mark": mark}
    return save_checkpoint(place, step, write=write, tensors=tensors, state=state, keep=keep)


def steps(place: Path) -> list[int]:
    return [int(path.name.removeprefix("step_").removesuffix(".next")) for path in checkpoints(place)]


def assert_usable(place: Path) -> int:
    """The newest whole checkpoint loads, and all of it belongs to one step."""
    found = latest_checkpoint(place)
    assert found is not None
    tensors, state = load_checkpoint(found.path)
    model = load_file(found.path / "model" / "model.safetensors")
    assert state["step"] == found.step == tensors["optimizer"]["step"].item() == model["weight"][0].item()
    return found.step


# --- what is saved ---------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded_bit_for_bit(place: Path) -> None:
    held = {
        "optimizer": {"a": torch.randn(3, 4).t(), "b": torch.tensor(7), "nan": torch.tensor([float("nan")])},
        "random": {"bytes": torch.arange(9, dtype=torch.uint8), "none": torch.zeros(0, dtype=torch.float64)},
        "empty": {},
    }
    state = {"counts": [1, 2], "lr": 0.1 + 0.2, "name": "é\ud800", "deep": {"none": None}}
    path = save_checkpoint(
        place, 5, write=lambda folder: (folder / "model").mkdir(), tensors=held, state=state, keep=1
    )
    tensors, back = load_checkpoint(path)
    assert back == state and tensors.keys() == held.keys()
    for name, group in held.items():
        assert tensors[name].keys() == group.keys()
        for key, tensor in group.items():
            assert tensors[name][key].dtype == tensor.dtype
            assert torch.equal(torch.nan_to_num(tensors[name][key]), torch.nan_to_num(tensor))


def test_loaded_tensors_outlive_their_file(place: Path) -> None:
    path = save(place, 1)
    tensors, _ = load_checkpoint(path)
    os.truncate(path / "optimizer.safetensors", 0)  # a mapped file would end this process with SIGBUS
    assert tensors["optimizer"]["exp_avg"].sum() == 6


def test_layout_and_modes(place: Path) -> None:
    path = save(place, 3)
    assert path == place / "step_3" and os.listdir(place) == ["step_3"]
    names = {p.relative_to(path).as_posix() for p in files_under(path)}
    inner = {"model/model.safetensors", "model/inner/config.json"}
    assert names == {MANIFEST, "state.json", "optimizer.safetensors"} | inner
    umask = os.umask(0)
    os.umask(umask)
    assert {stat.S_IMODE(p.stat().st_mode) for p in files_under(path)} == {0o666 & ~umask}


def test_everything_is_synced_before_its_name_appears(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(place, 1)
    synced: list[int] = []
    at_rename: list[tuple[str, set[int], set[int]]] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        fsync(fd)

    def note_rename(source: Any, target: Any) -> None:
        source = Path(source)
        inside = {source, *source.rglob("*")}
        at_rename.append((Path(target).name, {p.stat().st_ino for p in inside}, set(synced)))
        if source.name.startswith(".step_"):
            assert synced[-2:] == [(source / MANIFEST).stat().st_ino, source.stat().st_ino]
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    save(place, 2, keep=1)
    (name, inside, done), (trash, _, _) = at_rename
    assert name == "step_2" and inside <= done
    assert trash.startswith(".trash-step_1-")
    assert synced.count(place.stat().st_ino) == 2  # the new name, and the old one's end


# --- rotation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_rotation_keeps_the_newest(place: Path, keep: int) -> None:
    for step in (9, 10, 11, 100):
        save(place, step, keep=keep)
    assert steps(place) == [9, 10, 11, 100][-keep:]
    assert len(os.listdir(place)) == min(keep, 4)


def test_saving_a_step_again_replaces_it(place: Path) -> None:
    save(place, 1)
    save(place, 2, mark="old")
    save(place, 2, mark="new")
    assert steps(place) == [1, 2] and sorted(os.listdir(place)) == ["step_1", "step_2"]
    assert load_checkpoint(place / "step_2")[1]["mark"] == "new"


def test_a_damaged_later_checkpoint_does_not_push_out_a_good_one(place: Path) -> None:
    save(place, 10, keep=2)
    flip(save(place, 20, keep=2) / "optimizer.safetensors")  # the sizes still agree
    found = latest_checkpoint(place)
    assert found is not None and found.step == 10
    save(place, 15, keep=1)
    assert steps(place) == [15] and assert_usable(place) == 15


def test_strangers_in_the_folder_stay(place: Path) -> None:
    save(place, 1, keep=1)
    for name in ("notes", "step_01", "step_x", "my.trash-step_1"):
        (place / name).mkdir()
    save(place, 2, keep=1)
    assert sorted(os.listdir(place)) == ["my.trash-step_1", "notes", "step_01", "step_2", "step_x"]


def test_outside_a_run_folder_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not inside a run folder"):
        save(tmp_path / "checkpoints", 1)
    assert not (tmp_path / "checkpoints").exists()


# --- interruptions: every operation ----------------------------------------------------------------------

OPERATIONS = ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "chmod", "scandir")


class Counter:
    """Counts calls into the operating system and does `act(k)` before the k-th."""

    def __init__(self, act: Callable[[int], None]):
        self.calls, self.act, self.acting = 0, act, False

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if not self.acting:
                self.calls += 1
                self.acting = True
                try:
                    self.act(self.calls)
                finally:
                    self.acting = False
            return call(*args, **kwargs)

        return counted


def counting(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> Counter:
    """fsync is counted, not done: a kill loses nothing written; the order of syncs has its own test."""
    counter = Counter(act)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    for name in OPERATIONS:
        monkeypatch.setattr(os, name, counter.wrap(getattr(os, name)))
    opened = counter.wrap(io.open)
    monkeypatch.setattr(io, "open", opened)
    monkeypatch.setattr(builtins, "open", opened)
    return counter


def killed_at_each_operation(prepared: Path, action: Callable[[Path], object]) -> Iterator[Path]:
    """Copies of the run `prepared`, each after a child died before the k-th operation, for all k."""
    for k in range(1, 1000):
        copy = prepared.with_name(f"killed-{k}")
        shutil.copytree(prepared, copy)
        pid = os.fork()
        if pid == 0:
            with pytest.MonkeyPatch.context() as patch:
                counting(patch, lambda calls, k=k: os._exit(77) if calls == k else None)  # type: ignore[misc]
                action(copy / "checkpoints")
                os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, 77)
        if status == 0:
            return
        yield copy
    pytest.fail("never came to an end")


def stopped_at_each_operation(prepared: Path, action: Callable[[Path], object]) -> Iterator[Path]:
    """The same without children: what is on the disk before each operation is what a kill there leaves."""
    run = prepared.with_name("stopped")
    shutil.copytree(prepared, run)
    with pytest.MonkeyPatch.context() as patch:
        counter = counting(patch, lambda k: shutil.copytree(run, run.with_name(f"stopped-{k}")) and None)
        action(run / "checkpoints")
    yield from (run.with_name(f"stopped-{k}") for k in range(1, counter.calls + 1))


def content(run: Path) -> dict[str, bytes]:
    """What lies where; process ids and random digits in hidden names aside."""
    files = {path.relative_to(run).as_posix(): path.read_bytes() for path in files_under(run)}
    return {re.sub(r"(tmp-|trash-\w+-)\w+", r"\1", name): data for name, data in files.items()}


def one(place: Path) -> None:
    save(place, 10)


def two(place: Path) -> None:
    save(place, 10)
    save(place, 20)


def cut_short(place: Path) -> None:
    """A run whose replacement of step 10 was killed between its two renames."""
    save(place, 10)
    os.rename(place / "step_10", place / "step_10.next")


def gone_back(place: Path) -> None:
    save(place, 10)
    flip(save(place, 30) / "state.json")


SCENARIOS = {
    "the second": (one, lambda place: save(place, 20, keep=2)),
    "rotation": (two, lambda place: save(place, 30, keep=1)),
    "the same step again": (one, lambda place: save(place, 10, keep=1)),
    "after a replacement was cut short": (cut_short, lambda place: save(place, 20, keep=1)),
    "after going back": (gone_back, lambda place: save(place, 20, keep=1)),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_stopped_at_any_operation_a_checkpoint_is_there(
    place: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    prepare, action = SCENARIOS[name]
    prepare(place)
    before = assert_usable(place)
    for count, run in enumerate(stopped_at_each_operation(place.parent, action), start=1):  # noqa: B007
        assert assert_usable(run / "checkpoints") >= before
        save(run / "checkpoints", 40, keep=1)  # and the next save cleans up
        assert os.listdir(run / "checkpoints") == ["step_40"] and assert_usable(run / "checkpoints") == 40
    assert count > 50


def test_stopped_at_any_operation_of_the_first_save(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    for run in stopped_at_each_operation(place.parent, one):
        found = latest_checkpoint(run / "checkpoints")
        assert found is None or assert_usable(run / "checkpoints") == 10
        save(run / "checkpoints", 20, keep=1)
        assert os.listdir(run / "checkpoints") == ["step_20"]


def test_stopped_again_while_cleaning_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each kind of folder that a first stop leaves."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    one(place)
    action = SCENARIOS["the same step again"][1]
    left = {
        tuple(sorted(re.sub(r"-\w+$", "", name) for name in os.listdir(run / "checkpoints"))): run
        for run in stopped_at_each_operation(place.parent, action)
    }
    assert (
        len(left) == 5
    )  # the old or the new; and half a one; both; the new one and trash; the new one under .next
    for number, run in enumerate(left.values()):
        (base := run.with_name(f"twice-{number}")).mkdir()
        shutil.move(run, base / "run")
        for again in stopped_at_each_operation(base / "run", action):
            assert assert_usable(again / "checkpoints") == 10


def test_killed_at_any_operation_is_the_same_as_stopped_there(place: Path) -> None:
    """Real children, really dead (os._exit), in the most delicate scenario: replacing the only checkpoint."""
    one(place)
    action = SCENARIOS["the same step again"][1]
    stopped = stopped_at_each_operation(place.parent, action)
    killed = killed_at_each_operation(place.parent, action)
    for one_run, other in zip(stopped, killed, strict=True):
        assert assert_usable(other / "checkpoints") == 10
        assert content(one_run) == content(other)


@pytest.mark.parametrize("name", ["rotation", "the same step again"])
def test_any_failing_operation_is_one_message(place: Path, name: str) -> None:
    prepare, action = SCENARIOS[name]
    prepare(place)
    before = assert_usable(place)
    for k in range(1, 1000):
        copy = place.parent.with_name(f"failed-{k}")
        shutil.copytree(place.parent, copy)
        calls = failing_at(k, action, copy)
        assert assert_usable(copy / "checkpoints") >= before
        if calls < k:
            return
    pytest.fail("never came to an end")


def failing_at(k: int, action: Callable[[Path], object], run: Path) -> int:
    """How many operations were begun. A failure comes out as RunError with the way on, or the save is whole.

    The latter where rotation cannot read an old checkpoint: it leaves that one alone.
    """

    def fail(calls: int) -> None:
        if calls == k:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as patch:
        counter = counting(patch, fail)
        try:
            saved = action(run / "checkpoints")
        except RunError as error:
            assert "Input/output error" in str(error) and f"--resume {run}" in error.hint
            return counter.calls
    found = latest_checkpoint(run / "checkpoints")
    assert found is not None and found.path == saved
    return counter.calls


def test_a_failing_writer_leaves_nothing_and_its_own_error(place: Path) -> None:
    save(place, 1)

    def write(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        save_checkpoint(place, 2, write=write, tensors={}, state={}, keep=1)
    assert os.listdir(place) == ["step_1"]


def test_state_that_is_no_json_is_refused_before_anything_is_written(place: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(place, 1, write=lambda folder: None, tensors={}, state={"loss": float("nan")}, keep=1)
    assert not place.exists()


# --- corruption ------------------------------------------------------------------------------------------


def flip(path: Path, position: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 0x01
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_symlink(path: Path) -> None:
    outside = path.parents[4] / f"outside-{path.name}"
    shutil.move(path, outside)
    path.symlink_to(outside)


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


MUTATIONS = {
    "flip": flip,
    "first byte": lambda path: flip(path, 0),
    "last byte": lambda path: flip(path, -1),
    "truncate": truncate,
    "empty": lambda path: os.truncate(path, 0),
    "grow": grow,
    "delete": lambda path: path.unlink(),
    "folder": as_folder,
    "symlink": as_symlink,
    "pipe": as_pipe,
}
FILES = [
    "manifest.json",
    "state.json",
    "optimizer.safetensors",
    "model/model.safetensors",
    "model/inner/config.json",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_every_mutant_is_skipped_and_the_older_one_used(place: Path, name: str, mutation: str) -> None:
    save(place, 1)
    mutant = save(place, 2)
    if name.startswith("model/") and mutation == "symlink":
        target = mutant / "model" / "inner" / "config.json" if "inner" in name else mutant / name
    else:
        target = mutant / name
    MUTATIONS[mutation](target)
    found = latest_checkpoint(place)
    assert found is not None and found.step == 1
    assert len(found.skipped) == 1 and found.skipped[0].startswith("step_2: ")
    with pytest.raises(UserError, match="cannot be used") as caught:
        load_checkpoint(mutant)
    assert "opd train --resume" in caught.value.hint
    save(place, 2, keep=1)  # training comes to the same step again
    assert steps(place) == [2] and assert_usable(place) == 2


def test_every_byte_of_a_manifest_matters(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(place, 1)
    whole = (path / MANIFEST).read_bytes()
    for position in range(len(whole)):
        mutant = bytearray(whole)
        mutant[position] ^= 0x01
        monkeypatch.setattr("opdkit.run.manifest.read_regular", lambda _, data=bytes(mutant): data)
        assert damage(path, step=1, verify=True), whole[max(0, position - 9) : position + 9]


def test_swapped_files_and_swapped_checkpoints_are_found_out(place: Path) -> None:
    save(place, 1)
    second, third = save(place, 2, keep=3), save(place, 3, keep=3)
    for name in FILES:  # same sizes, other contents
        swap(second / name, third / name)
        found = latest_checkpoint(place)
        assert found is not None and found.step == 1, name
        swap(second / name, third / name)
    swap(second, third)
    found = latest_checkpoint(place)
    assert found is not None and found.step == 1 and len(found.skipped) == 2


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    os.rename(one, aside)
    os.rename(other, one)
    os.rename(aside, other)


def test_nothing_whole_is_an_error_and_nothing_at_all_is_none(place: Path) -> None:
    assert latest_checkpoint(place) is None and checkpoints(place) == []
    flip(save(place, 1) / "state.json")
    with pytest.raises(UserError, match=r"step_1: state\.json does not match its sha256") as caught:
        latest_checkpoint(place)
    assert "opd train" in caught.value.hint
    sizes_only = latest_checkpoint(place, verify=False)
    assert sizes_only is not None and sizes_only.step == 1


# --- security --------------------------------------------------------------------------------------------


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("signed", [False, True], ids=["planted", "planted with a fitting manifest"])
def test_a_planted_pickle_is_never_loaded(place: Path, tmp_path: Path, name: str, signed: bool) -> None:
    save(place, 1)
    path = save(place, 2)
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    pickle.loads(pickle.dumps(Bomb(tmp_path / "works")))
    assert (tmp_path / "works").is_dir()  # the bomb is live
    (path / name).write_bytes(bomb)
    for extra in ("optimizer.pt", "model/pytorch_model.bin", "extra.safetensors"):
        (path / extra).write_bytes(bomb)
    if signed and name != MANIFEST:
        (path / MANIFEST).unlink()
        write_manifest(path, step=2)
    with pytest.raises(UserError):
        load_checkpoint(path)
    latest_checkpoint(place)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "name", ["../secret.txt", "/etc/hostname", "model/../../secret.txt", "", ".", "a\0b"]
)
def test_a_manifest_that_leads_outside_is_refused(place: Path, name: str) -> None:
    path = save(place, 1)
    (path.parent / "secret.txt").write_text("x")
    sign(
        path,
        {name: {"bytes": 1, "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}},
    )
    with pytest.raises(UserError, match=r"leads outside|not a regular file"):
        load_checkpoint(path)


def sign(path: Path, more: dict[str, Any]) -> None:
    from opdkit.run.manifest import _digest

    body = json.loads((path / MANIFEST).read_text())
    del body["sha256"]
    body["files"] |= more
    (path / MANIFEST).write_text(json.dumps({**body, "sha256": _digest(body)}))


def test_symlinks_are_refused(place: Path, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(place, step, keep=3)
    (outside := tmp_path / "outside").mkdir()
    shutil.move(place / "step_2", outside / "step_2")  # whole, but elsewhere
    (place / "step_2").symlink_to(outside / "step_2")
    shutil.move(place / "step_3" / "model", outside / "model")
    (place / "step_3" / "model").symlink_to(outside / "model")
    found = latest_checkpoint(place)
    assert found is not None and found.step == 1 and len(found.skipped) == 2
    save(place, 2, keep=1)
    assert (outside / "step_2" / MANIFEST).is_file()  # what the link pointed to is not ours to delete


def test_a_checkpoints_folder_that_is_a_symlink_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="stays inside"):
        save(place, 1)
    with pytest.raises(UserError, match="stays inside"):
        latest_checkpoint(place)
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.parametrize(
    "state", [b"[" * 200_000, b"NaN", b'{"a": NaN}', b"\xff\xfe", b"[]", b"", b'{"a": 1' + b"0" * 9999 + b"}"]
)
def test_bad_state_with_a_fitting_manifest_is_one_message(place: Path, state: bytes) -> None:
    path = save(place, 1)
    (path / "state.json").write_bytes(state)
    (path / MANIFEST).unlink()
    write_manifest(path, step=1)
    with pytest.raises(UserError, match="cannot be used"):
        load_checkpoint(path)


def test_loading_what_is_no_checkpoint(place: Path, tmp_path: Path) -> None:
    for path in (place / "step_9", tmp_path, tmp_path / "step_1"):
        with pytest.raises(UserError, match="cannot be used"):
            load_checkpoint(path)


# --- a full disk -----------------------------------------------------------------------------------------


def in_child(action: Callable[[], None]) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("limit", [0, 10, 200, 3000, 20_000])
def test_a_limit_on_file_sizes(place: Path, limit: int) -> None:
    """Stands for a full disk: real failing writes, in Python and in Rust; 20,000 cuts off the optimizer."""
    save(place, 1)

    def try_it() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(RunError) as caught:
            save(place, 2, size=4000, keep=1)
        assert "File too large" in str(caught.value) and "bytes are free" in str(caught.value)
        assert f"opd train --resume {place.parent}" in caught.value.hint
        needed = int(str(caught.value).split("about ")[1].split(" ")[0].replace(",", ""))
        assert 32_000 <= needed <= 60_000  # 2 × 4000 floats, and the model

    in_child(try_it)
    assert os.listdir(place) == ["step_1"] and assert_usable(place) == 1
    save(place, 2, keep=1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG])
@pytest.mark.parametrize("form", ["python", "rust"])
def test_each_refusal_of_the_disk_names_the_way_on(place: Path, number: int, form: str) -> None:
    save(place, 1)
    text = f"I/O error: {os.strerror(number)} (os error {number})"
    error = OSError(number, os.strerror(number)) if form == "python" else Exception(text)

    def write(folder: Path) -> None:
        raise error

    with pytest.raises(RunError) as caught:
        save_checkpoint(place, 2, write=write, tensors={"t": {"x": torch.zeros(250)}}, state={}, keep=1)
    assert os.strerror(number) in str(caught.value) and "about 1," in str(caught.value)
    assert caught.value.hint.endswith(f"then: opd train --resume {place.parent}")
    assert os.listdir(place) == ["step_1"]


def test_other_errors_are_not_blamed_on_the_disk(tmp_path: Path) -> None:
    for error in (ValueError("x"), RunError("a (os error 28)", hint=""), OSError("no number")):
        assert disk_error(error, what="x", run=tmp_path, needed=0) is None
