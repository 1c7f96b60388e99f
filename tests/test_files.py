"""Files that appear whole or not at all, and damage that is found before it is used."""

import errno
import io
import os
import random

import numpy as np
import pytest
import torch

from fnostab.io.files import atomic_write, atomic_write_text, damage, is_disk_full, remove_partial


def test_a_file_keeps_its_content_when_writing_anew_fails(tmp_path):
    path = tmp_path / "run.json"
    atomic_write_text(path, "first")

    def fail():
        with atomic_write(path) as partial:
            partial.write_text("sec")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_half_written_is_removed_and_nothing_else(tmp_path):
    atomic_write_text(tmp_path / "whole.txt", "atomic_write")
    with atomic_write(tmp_path / "last.ckpt") as partial:
        os.link(partial.parent / "whole.txt", partial)
        os.link(partial, tmp_path / f"{partial.name}2.partial")  # as if this had been killed here
    remove_partial(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "whole.txt"]


def test_any_flipped_byte_of_an_archive_is_found_or_changes_nothing(tmp_path):
    state = {"weight": torch.arange(300, dtype=torch.float32), "epoch": 3, "name": "last"}
    packed = io.BytesIO()
    torch.save(state, packed)
    content = packed.getvalue()
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    assert damage(path) is None
    rng = random.Random(0)
    found = 0
    for place in range(0, len(content), 3):
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        if damage(path):
            found += 1
            continue
        try:
            loaded = torch.load(path, weights_only=True)
        except (RuntimeError, OSError):  # torch minds some headers that Python does not
            continue
        assert torch.equal(loaded["weight"], state["weight"]), place
        assert (loaded["epoch"], loaded["name"]) == (3, "last")
    assert found > len(content) / 3 / 4  # the rest is padding, and what zip archives say twice


def test_a_truncated_archive_is_damaged_at_every_length(tmp_path):
    path = tmp_path / "probe.npz"
    np.savez(path, probe=np.ones((8, 8)))
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        assert damage(path)


def test_a_missing_archive_says_so(tmp_path):
    assert "No such file" in damage(tmp_path / "nothing.ckpt")


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError("1024 requested and 512 written"), True),  # NumPy
        (RuntimeError("(sqlite3.OperationalError) database or disk is full"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (ValueError("1024 requested and 512 written"), False),
    ],
)
def test_a_full_disk_is_told_from_other_errors(error, is_one):
    assert is_disk_full(error) is is_one
