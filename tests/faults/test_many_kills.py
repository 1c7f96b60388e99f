"""Trainings killed again and again by each signal, at random moments of everything that a training does."""

import random
import signal

import pytest
from killing import Moment, Trainings, empty_store, fresh_folder, left_behind, random_moment

pytestmark = pytest.mark.faults

_TRAININGS = 20
_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def test_trainings_killed_at_random_moments_end_bit_for_bit_as_unbroken_ones(tmp_path, fault_report):
    template = empty_store(tmp_path / "template")
    with Trainings() as trainings:
        unbroken = fresh_folder(template, tmp_path / "unbroken")
        calls = trainings.train(unbroken)["calls"]
        expected = left_behind(unbroken)
        rng = random.Random(20260128)
        kills: dict[int, list[Moment]] = {signum: [] for signum in _SIGNALS}
        for number in range(_TRAININGS):
            folder = fresh_folder(template, tmp_path / f"killed-{number}")
            signals = rng.sample(_SIGNALS, len(_SIGNALS))
            moments = [random_moment(part, calls, signum, rng) for part, signum in enumerate(signals)]
            said = []
            for moment in moments:
                code = trainings.train(folder, moment)["code"]
                said.append(f"{moment}: exit code {code}")
                if code == 0:  # it had less left to do than until this moment
                    break
                assert code == (-moment.signum if moment.signum == signal.SIGKILL else 128 + moment.signum), said
                kills[moment.signum].append(moment)
            if code:
                assert trainings.train(folder)["code"] == 0, said
            assert left_behind(folder) == expected, said
    for signum, moments in kills.items():
        places = {moment.point for moment in moments}
        assert len(moments) > 0.8 * _TRAININGS
        fault_report.record(
            f"{signal.Signals(signum).name} at a random moment of a training",
            len(moments),
            len(moments),
            f"at {len(places)} kinds of places; resumed to the same weights, series and artifacts",
        )
