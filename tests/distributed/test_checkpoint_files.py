"""Damage to the files of a checkpoint: it is named, and the checkpoint before is taken."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ncf.distributed.checkpoint import Checkpoints
from ncf.distributed.checkpoint_files import folder_of, folders_in, temporary_folders_in, temporary_path

from .test_checkpoint_local import flip, save, value


def test_folders_are_told_from_what_is_not_whole_and_come_in_the_order_of_their_steps(tmp_path: Path) -> None:
    numbers = [(2, 0), (2, 1), (2, 10), (10, 0), (10**10, 0)]
    for step, again in reversed(numbers):
        folder = folder_of(tmp_path, step, again)
        folder.mkdir()
        temporary_path(folder).mkdir()
        for name in (f"{folder.name}.link", f".{folder.name}.part", folder.name.replace("-", "-x")):
            (tmp_path / name).mkdir()
    (tmp_path / "step-0000000003").write_text("a file")
    (tmp_path / ".step-0000000003.0123abcd.part").write_text("a file")
    (tmp_path / "step-0000000004").symlink_to(tmp_path / "step-0000000002")
    assert folders_in(tmp_path) == [folder_of(tmp_path, *number) for number in numbers]
    assert len(temporary_folders_in(tmp_path)) == len(numbers)
    assert folders_in(tmp_path / "none") == []


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def lengthen(file: Path) -> None:
    with file.open("ab") as out:
        out.write(b"\0")


def empty(file: Path) -> None:
    file.write_bytes(b"")


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: list[tuple[str, Callable[[Path], None], str]] = [
    (name, damage, said)
    for name in ("__0_0.distcp", ".metadata")
    for damage, said in [
        (flip, "SHA-256 is another"),
        (truncate, r"has \d+ bytes instead of \d+"),
        (lengthen, r"has \d+ bytes instead of \d+"),
        (empty, r"has 0 bytes instead of \d+"),
        (Path.unlink, "is missing"),
        (folder_instead, "bytes instead|cannot be read"),
    ]
]


def rewrite(**changes: object) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


DAMAGES += [
    ("checkpoint.json", damage, said)
    for damage, said in [
        (Path.unlink, "is missing"),
        (empty, "is not JSON"),
        (lambda file: os.truncate(file, 100), "is not JSON"),
        (lambda file: file.write_bytes(b"\xff\xfe"), "is not JSON"),
        (lambda file: file.write_text("[" * 100_000), "is not JSON"),
        (lambda file: file.write_text("[1]"), "does not describe a checkpoint"),
        (folder_instead, "cannot be read"),
        (rewrite(format=1), "has format 1, this version of ncf reads 2"),
        (rewrite(step=4), "SHA-256 is another"),
        (rewrite(metadata={}), "SHA-256 is another"),
        (rewrite(files={}), "SHA-256 is another"),
        (rewrite(sha256=None), "SHA-256 is another"),
    ]
]


def test_damage_of_every_kind_is_named_and_the_checkpoint_before_it_is_taken(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    for step in (1, 2, 3):
        save(Checkpoints(whole), step, best=True)
    for number, (name, damage, said) in enumerate(DAMAGES):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        file = folder / "step-0000000003" / name
        damage(file)
        checkpoints = Checkpoints(folder)
        with pytest.warns(UserWarning, match=said) as warned:
            assert value(checkpoints.latest()) == 2
        assert len(warned) == 1
        assert str(file) in str(warned[0].message)
        assert value(checkpoints.best()) == 2  # and says nothing again


def test_a_renamed_folder_does_not_pass_for_another_step(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path), 1)
    shutil.copytree(tmp_path / "step-0000000001", tmp_path / "step-0000000009")
    with pytest.warns(UserWarning, match="is of step 1, which its folder is not named for"):
        assert value(Checkpoints(tmp_path).latest()) == 1
