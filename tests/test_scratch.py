"""Arrays on the disk: their values stay, their memory and their files do not."""

import gc

import numpy as np
import psutil
import pytest

from fnostab.io.scratch import GrowingArray, Memory, Scratch


def _resident():
    return psutil.Process().memory_info().rss


def test_values_stay_and_memory_does_not(tmp_path):
    storage = Scratch(tmp_path)
    before = _resident()
    array = storage.empty((32, 2**20), np.uint8)
    for number, row in enumerate(array):
        row[:] = number
    assert _resident() - before > 2**24
    storage.release()
    assert _resident() - before < 2**22
    assert [set(row[:: 2**12].tolist()) for row in array] == [{number} for number in range(32)]


def _mapped(folder):
    """Files in `folder` that this process has in its memory."""
    return [each.path for each in psutil.Process().memory_maps() if each.path.startswith(str(folder))]


def test_nothing_is_left_in_the_folder_and_a_file_ends_with_its_array(tmp_path):
    storage = Scratch(tmp_path)
    array = storage.empty((4, 4), np.complex64)
    assert list(tmp_path.iterdir()) == []
    assert len(_mapped(tmp_path)) == 1
    del array
    gc.collect()
    storage.release()
    assert _mapped(tmp_path) == []


def test_a_disk_without_room_is_an_error_and_no_dead_process(tmp_path):
    with pytest.raises(OSError, match=r"No space left|File too large"):
        Scratch(tmp_path).empty((2**50,), np.uint8)


@pytest.mark.parametrize("make", [Memory, None])
def test_rows_are_put_to_the_end_beyond_the_room_that_was_expected(make, tmp_path):
    storage = make() if make else Scratch(tmp_path)
    growing = GrowingArray(storage, (3,), np.float32, room=2)
    rows = np.arange(60, dtype=np.float32).reshape(20, 3)
    for start, stop in ((0, 1), (1, 4), (4, 5), (5, 20)):
        growing.append(rows[start:stop])
        np.testing.assert_array_equal(growing.array, rows[:stop])
