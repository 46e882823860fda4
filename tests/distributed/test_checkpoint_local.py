"""Checkpoints of one process: what stays on disk, what is damaged, and what is killed."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ncf.distributed.checkpoint import Checkpoint, Checkpoints

METADATA = {"epoch": 3, "history": {"loss": [0.1, 1 / 3, float("inf")]}, "name": "Amélie", "best": None}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((1000,), float(step)), "step": torch.tensor(step)}


def steps(folder: Path) -> list[str]:
    assert all(path.is_dir() for path in folder.iterdir())
    return sorted(path.name for path in folder.iterdir())


def value(checkpoint: Checkpoint | None) -> int:
    """The step that the tensors of a checkpoint agree on."""
    assert checkpoint is not None
    read = {name: torch.zeros_like(tensor) for name, tensor in tensors(0).items()}
    checkpoint.read(read)
    step = int(read["step"])
    assert torch.equal(read["weight"], tensors(step)["weight"])
    assert checkpoint.step == step == checkpoint.metadata["step"]
    return step


def save(checkpoints: Checkpoints, step: int, *, best: bool = False) -> None:
    checkpoints.save(tensors(step), {"step": step}, step=step, best=best)


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=5),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 999),
)
def test_any_tensors_come_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[list[int]],
    dtype: torch.dtype,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    folder = tmp_path_factory.mktemp("checkpoints")
    saved = {}
    for number, shape in enumerate(shapes):
        tensor = torch.randn(shape, generator=generator).mul(100).to(dtype)
        saved[f"{number}.a/b"] = tensor.transpose(0, -1) if tensor.dim() > 1 else tensor  # not contiguous
    Checkpoints(folder).save(saved, METADATA, step=7)
    found = Checkpoints(folder).latest()
    assert found is not None
    assert (found.step, found.metadata) == (7, METADATA)
    read = {name: torch.ones_like(tensor) for name, tensor in saved.items()}
    found.read(read)
    for name, tensor in saved.items():
        assert torch.equal(read[name], tensor)
    shutil.rmtree(folder)


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    assert checkpoints.best() is None
    for step, best in [(1, True), (2, True), (3, False), (5, False), (100, False)]:
        save(checkpoints, step, best=best)
    assert steps(tmp_path) == ["step-0000000002", "step-0000000005", "step-0000000100"]
    assert value(checkpoints.latest()) == 100
    assert value(checkpoints.best()) == 2
    save(checkpoints, 101, best=True)
    assert steps(tmp_path) == ["step-0000000100", "step-0000000101"]


def test_a_step_saved_again_replaces_the_one_that_is_there(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    for again in (1.0, 2.0, 3.0):
        checkpoints.save({"weight": torch.tensor(again)}, {"again": again}, step=2)
        newest = checkpoints.latest()
        assert newest is not None
        assert (newest.step, newest.metadata) == (2, {"again": again})
        assert len(steps(tmp_path)) == 2


def test_a_folder_with_a_later_step_is_not_written_to(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path), 10)
    with pytest.raises(
        ValueError, match="holds a checkpoint of step 10, later than step 9: resume from latest"
    ):
        save(Checkpoints(tmp_path), 9)
    assert steps(tmp_path) == ["step-0000000010"]


def test_a_run_that_passed_over_a_damaged_checkpoint_replaces_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 10, 20):
        save(checkpoints, step)
    for step in (10, 20):
        (tmp_path / f"step-{step:010d}" / ".metadata").write_bytes(b"")
    with pytest.warns(UserWarning, match="passed over"):
        assert value(checkpoints.latest()) == 1
    save(checkpoints, 2)
    assert steps(tmp_path) == ["step-0000000001", "step-0000000002"]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_nothing_whole_is_an_error_and_no_new_start(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, best=True)
    save(checkpoints, 2)
    for file in tmp_path.glob("*/.metadata"):
        flip(file)
    for find in (checkpoints.latest, checkpoints.best):
        with pytest.raises(ValueError, match=r"no checkpoint .*is whole: .*step-0000000001/.metadata is not"):
            find()


def test_what_else_lies_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "step-1").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    half = tmp_path / ".step-0000000001.0123abcd.part"  # of a killed save
    half.mkdir()
    (half / "__0_0.distcp").write_text("half")
    (tmp_path / ".step-backup.part").mkdir()
    (tmp_path / ".step-0000000002.part").write_text("mine")
    for step in (2, 3):
        (tmp_path / f"step-{step:010d}").write_text("mine")
        save(Checkpoints(tmp_path), step)
        assert value(Checkpoints(tmp_path).latest()) == step
    assert not half.exists()
    foreign = {".step-0000000002.part", ".step-backup.part", "notes.txt", "step-1"}
    foreign |= {"step-0000000002", "step-0000000003"}
    assert {path.name for path in tmp_path.iterdir()} - foreign == {"step-0000000002.1", "step-0000000003.1"}
    assert (tmp_path / "step-0000000002").read_text() == "mine"


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    here = Checkpoints(tmp_path / "new")
    with here.locked():
        with pytest.raises(
            BlockingIOError, match="is in use by another run: give each run a folder of its own"
        ):
            save(Checkpoints(tmp_path / "new"), 1)
        save(here, 1)
    save(Checkpoints(tmp_path / "new"), 2)
    assert steps(tmp_path / "new") == ["step-0000000001", "step-0000000002"]


def test_a_checkpoint_of_another_model_is_an_error_that_names_the_tensors(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(
        {"a": torch.zeros(2), "b": torch.zeros(3).float(), "c": torch.zeros(4).float()}, {}, step=1
    )
    checkpoint = Checkpoints(tmp_path).latest()
    assert checkpoint is not None
    wrong = {"a": torch.ones(2), "b": torch.ones(5).float(), "c": torch.ones(4).long(), "d": torch.ones(1)}
    with pytest.raises(ValueError, match="is of another model") as raised:
        checkpoint.read(wrong)
    for said in (
        "it has no d",
        "b is float32 [3] in it and float32 [5] here",
        "c is float32 [4] in it and int64",
    ):
        assert said in str(raised.value)
    assert all(bool((tensor == 1).all()) for tensor in wrong.values())  # nothing was filled
    with pytest.raises(ValueError, match="it also has b, c"):
        checkpoint.read({"a": wrong["a"]})
    checkpoint.read({"a": wrong["a"]}, strict=False)
    assert torch.equal(wrong["a"], torch.zeros(2))


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep = 0"):
        Checkpoints(tmp_path, keep=0)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(NotADirectoryError, match="is a file: give a folder"):
        Checkpoints(file)
    for step in (-1, 1.5, True):
        with pytest.raises(ValueError, match=f"step = {step}"):
            Checkpoints(tmp_path / "new").save({}, {}, step=step)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not JSON serializable"):
        Checkpoints(tmp_path / "new").save({}, {"tensor": torch.zeros(1)}, step=1)


@pytest.fixture
def full_disk() -> object:
    """No file may grow past 4 KB, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_error_and_leaves_those_before(tmp_path: Path, full_disk: object) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"a": torch.zeros(3)}, {}, step=1)
    for _ in range(2):
        with pytest.raises(OSError, match=r"File too large: .*step-0000000002\.\w+\.part"):
            checkpoints.save({"a": torch.zeros(2000)}, {}, step=2)
        assert steps(tmp_path) == ["step-0000000001"]
    checkpoints.save({"a": torch.ones(3)}, {}, step=3)
    newest = checkpoints.latest()
    assert newest is not None
    assert newest.step == 3


def test_nothing_is_said_that_a_user_cannot_act_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(Checkpoints(tmp_path), 1)
        assert value(Checkpoints(tmp_path).latest()) == 1
    assert capfd.readouterr() == ("", "")


def test_a_process_killed_at_any_moment_leaves_whole_checkpoints(tmp_path: Path) -> None:
    chance = random.Random(0)
    newest = interrupted = 0
    for _ in range(20):
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                checkpoints = Checkpoints(tmp_path)
                for step in range(newest + 1, newest + 1000):
                    save(checkpoints, step, best=step % 3 == 0)
                    os.write(into, b".")
            finally:
                os._exit(1)
        saved = chance.randint(1, 2)
        for _ in range(saved):
            os.read(out, 1)
        time.sleep(chance.uniform(0, 0.03))  # somewhere in the save after that
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        os.close(out)
        os.close(into)
        found = Checkpoints(tmp_path).latest()  # a warning would be an error here
        if found is not None:
            assert value(found) >= newest + saved
            newest = found.step
        whole = [name for name in steps(tmp_path) if not name.startswith(".")]
        interrupted += len(whole) < len(steps(tmp_path))
        assert len(whole) <= 4  # two, the best, and one that was about to go
    assert newest >= 20
    assert interrupted  # else no save was ever under way
    save(Checkpoints(tmp_path), newest + 1)
    assert not any(name.startswith(".") for name in steps(tmp_path))
