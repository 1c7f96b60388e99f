"""Checkpoints on a disk that fills up, is damaged, or both."""

import errno

import pytest
import torch

from fnostab.training import checkpoint_files
from fnostab.training.checkpoint_files import CheckpointFiles


@pytest.fixture
def said():
    return []


@pytest.fixture
def files(tmp_path, said):
    return CheckpointFiles(tmp_path, said.append)


def _checkpoint(epoch):
    return {"epoch": epoch, "state_dict": {"weight": torch.full((100,), float(epoch))}}


def _epoch(path):
    return torch.load(path, weights_only=True)["epoch"]


def _no_room(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def _flip_a_weight(path):
    content = bytearray(path.read_bytes())
    place = content.rindex(torch.full((100,), float(_epoch(path))).numpy().tobytes()[:8])
    content[place] ^= 1
    path.write_bytes(content)


def test_the_checkpoint_before_the_last_one_stays(files):
    for epoch in range(3):
        files.save_checkpoint(_checkpoint(epoch), files.last)
    assert (_epoch(files.last), _epoch(files.before)) == (2, 1)


def test_torch_does_not_notice_a_flipped_weight_and_we_go_on_from_the_checkpoint_before(files, said):
    for epoch in range(3):
        files.save_checkpoint(_checkpoint(epoch), files.last)
    _flip_a_weight(files.last)
    assert not torch.equal(torch.load(files.last, weights_only=True)["state_dict"]["weight"], torch.full((100,), 2.0))
    assert files.newest_complete() == files.before
    (line,) = said
    assert line.startswith("the checkpoint last.ckpt is damaged (")
    assert line.endswith("data/0 is not what was written): the one before is used, if there is one")


def test_any_flipped_byte_of_a_checkpoint_is_found_or_changes_nothing(files):
    files.save_checkpoint(_checkpoint(1), files.last)
    content = files.last.read_bytes()
    for place in range(0, len(content), 5):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        files.last.write_bytes(flipped)
        if files.newest_complete() is not None:
            assert torch.equal(torch.load(files.last, weights_only=True)["state_dict"]["weight"], torch.ones(100))


def test_training_starts_again_if_both_or_the_best_one_are_damaged(files, said):
    for damaged in ([files.last, files.before], [files.best]):
        for epoch in range(2):
            files.save_checkpoint(_checkpoint(epoch), files.best)
            files.save_checkpoint(_checkpoint(epoch), files.last)
        for path in damaged:
            path.write_bytes(path.read_bytes()[:-30])
        assert files.newest_complete() is None
        assert list(files.folder.iterdir()) == []
    assert len(said) == 3


def test_without_room_the_old_ones_stay_and_the_best_weights_wait_in_memory(files, said, monkeypatch):
    files.save_checkpoint(_checkpoint(1), files.best)
    files.save_checkpoint(_checkpoint(1), files.last)
    with monkeypatch.context() as full:
        full.setattr(checkpoint_files, "atomic_write", _no_room)
        files.save_checkpoint(_checkpoint(2), files.best)
        files.save_checkpoint(_checkpoint(2), files.last)
        assert (_epoch(files.best), _epoch(files.last)) == (1, 1)
        assert files.kept_best().weights["weight"][0] == 2
        assert files.at_the_end == []  # what is there is not the end of the run
    assert said[0] == "no room for the checkpoint best.ckpt: training goes on, what was saved before stays"
    files.save_checkpoint(_checkpoint(3), files.last)
    assert (_epoch(files.best), _epoch(files.last)) == (2, 3)
    assert files.at_the_end == [files.best, files.last]


def test_the_last_one_is_not_written_before_the_best_one_that_it_speaks_of(files, monkeypatch):
    files.save_checkpoint(_checkpoint(1), files.best)
    files.save_checkpoint(_checkpoint(1), files.last)
    write = checkpoint_files._write
    monkeypatch.setattr(
        checkpoint_files, "_write", lambda path, *rest: _no_room() if path == files.best else write(path, *rest)
    )
    files.save_checkpoint(_checkpoint(2), files.best)
    files.save_checkpoint(_checkpoint(2), files.last)
    assert (_epoch(files.best), _epoch(files.last)) == (1, 1)


def test_a_best_checkpoint_that_was_damaged_meanwhile_is_not_shipped_and_the_run_starts_again(files):
    files.save_checkpoint(_checkpoint(1), files.best)
    files.save_checkpoint(_checkpoint(1), files.last)
    _flip_a_weight(files.best)
    with pytest.raises(OSError, match=r"best.ckpt is damaged \(.*\): the same command trains the run again"):
        files.kept_best()
    assert files.newest_complete() is None


def test_other_errors_are_not_swallowed(files, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoint_files, "atomic_write", refuse)
    with pytest.raises(OSError, match="Permission"):
        files.save_checkpoint(_checkpoint(1), files.last)


def test_what_is_kept_from_before_an_accident_is_the_last_one_as_it_was_then(files):
    files.keep_before_accident()  # there is none yet
    assert files.kept_before_accident() is None
    for epoch in range(2):
        files.save_checkpoint(_checkpoint(epoch) | {"global_step": 10 * epoch}, files.last)
    for _ in range(2):  # a run that is resumed there does it again
        files.keep_before_accident()
    files.save_checkpoint(_checkpoint(2), files.last)
    kept = files.kept_before_accident()
    assert kept.weights["weight"][0] == 1
    assert kept.steps == 10
    assert files.newest_complete() == files.last


def test_where_the_disk_has_no_links_it_is_copied(files, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(checkpoint_files.os, "link", refuse)
    files.save_checkpoint(_checkpoint(1), files.last)
    files.keep_before_accident()
    files.save_checkpoint(_checkpoint(2), files.last)
    assert files.kept_before_accident().weights["weight"][0] == 1
    assert files.accident.stat().st_nlink == 1


def test_a_damaged_one_from_before_an_accident_is_none(files):
    files.save_checkpoint(_checkpoint(1), files.last)
    files.keep_before_accident()
    _flip_a_weight(files.accident)
    assert files.kept_before_accident() is None
