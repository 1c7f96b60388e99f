"""Trainings killed again and again by each signal, at random moments of everything that a training does."""

import contextlib
import random
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from killing import Moment, Trainings, empty_store, fresh_folder, left_behind, random_moment

pytestmark = pytest.mark.faults

_TRAININGS = 20
#: Trainings at once.
_SERVERS = 2
_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def test_trainings_killed_at_random_moments_end_bit_for_bit_as_unbroken_ones(tmp_path, fault_report):
    template = empty_store(tmp_path / "template")
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(_SERVERS) as pool:
        servers = [stack.enter_context(Trainings()) for _ in range(_SERVERS)]
        unbroken = fresh_folder(template, tmp_path / "unbroken")
        calls = servers[0].train(unbroken)["calls"]
        expected = left_behind(unbroken)

        def killed(server: int) -> list[Moment]:
            return [
                moment
                for number in range(server, _TRAININGS, _SERVERS)
                for moment in _killed(servers[server], fresh_folder(template, tmp_path / f"{number}"), calls, expected)
            ]

        kills = [moment for of_server in pool.map(killed, range(_SERVERS)) for moment in of_server]
    for signum in _SIGNALS:
        moments = [moment for moment in kills if moment.signum == signum]
        places = {moment.point for moment in moments}
        assert len(moments) > 0.8 * _TRAININGS
        fault_report.record(
            f"{signal.Signals(signum).name} at a random moment of a training",
            len(moments),
            len(moments),
            f"at {len(places)} kinds of places; resumed to the same weights, series and artifacts",
        )


def _killed(trainings: Trainings, folder: Path, calls: dict[str, int], expected: dict[str, Any]) -> list[Moment]:
    """Train in `folder`, killed once by each signal and begun again, to what an unbroken training leaves; the kills."""
    rng = random.Random(f"20260128 {folder.name}")
    kills, said = [], []
    code = 1
    for part, signum in enumerate(rng.sample(_SIGNALS, len(_SIGNALS))):
        moment = random_moment(part, calls, signum, rng)
        code = trainings.train(folder, moment)["code"]
        said.append(f"{moment}: exit code {code}")
        if code == 0:  # it had less left to do than until this moment
            break
        assert code == (-moment.signum if moment.signum == signal.SIGKILL else 128 + moment.signum), said
        kills.append(moment)
    if code:
        assert trainings.train(folder)["code"] == 0, said
    assert left_behind(folder) == expected, said
    return kills
