"""A training that is killed and given again ends as an unbroken one; `make test-faults` does this many times."""

import signal

import pytest
from killing import Moment, Trainings, empty_store, fresh_folder, left_behind

#: One of each signal, at places that lie one after the other.
_MOMENTS = (
    Moment("checkpoint, as it takes its place", 9, 0.0, signal.SIGKILL),
    Moment("step", 2, 0.002, signal.SIGTERM),
    Moment("model export", 0, 0.0, signal.SIGINT),
)


@pytest.mark.slow
def test_a_training_killed_by_each_signal_ends_bit_for_bit_as_an_unbroken_one(tmp_path):
    template = empty_store(tmp_path / "template")
    unbroken, killed = (fresh_folder(template, tmp_path / name) for name in ("unbroken", "killed"))
    with Trainings() as trainings:
        assert trainings.train(unbroken)["code"] == 0
        codes = [trainings.train(killed, moment)["code"] for moment in _MOMENTS]
        assert codes == [-signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGINT]
        assert trainings.train(killed)["code"] == 0
    assert left_behind(killed) == left_behind(unbroken)
