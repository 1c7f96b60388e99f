"""Steps of several runs by one launch: the numbers of the ordinary way, and each run as if it were alone.

Without a GPU, the function that would be captured is called instead; the tests marked `gpu` capture it.
"""

from functools import partial
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import small_runs
import torch
from small_runs import KillAfter, new_module
from test_replay import (
    BadPattern,
    OnlyMeta,
    let_meta_devices_train,
    on_meta,
    remembered,
    states_close,
    states_equal,
    tiny_config,
)

from fnostab.config import ARCHITECTURES
from fnostab.models.fused import fused_forward
from fnostab.training import joint
from fnostab.training.joint import PartlyTaken
from fnostab.training.launches import Launch
from fnostab.training.module import PtychoModule
from fnostab.training.replay import CaptureMemory, GraphedSteps, Replays
from fnostab.training.step import TrainingStep
from fnostab.training.together import Member, Together

_SEEDS = (1, 2, 3)
_RULES = {
    "norm": {"clip_algo": "norm", "clip_val": 0.05},
    "agc": {"clip_algo": "agc", "clip_val": 0.01},
    "zclip": {"clip_algo": "zclip", "clip_val": 0.5},
    "skip": {"clip_algo": "skip", "clip_val": 1.1},
}
#: Epochs of six steps, of which 6 to 8, 9 to 11, and so on are taken together. Each batch is filled up.
_RUN = {"train__overlap_weight": 0.5, "optim__schedule": "cosine", "clip_algo": "zclip", "clip_val": 0.5}
_ORDINARY = {"train__cuda_graph": False}


@pytest.fixture
def launched(monkeypatch):
    """Launches of three steps, on CPUs too; lists the runs and steps of each that was made."""
    found = []
    run = Launch.run
    monkeypatch.setattr("fnostab.training.replay.STEPS_A_LAUNCH", 3)
    monkeypatch.setattr("fnostab.training.module.replays_on", lambda device: True)
    monkeypatch.setattr(Launch, "run", lambda launch: (found.append(tuple(launch.records.shape[:2])), run(launch))[1])
    return found


@pytest.fixture
def without_trainer(monkeypatch):
    monkeypatch.setattr(PtychoModule, "trainer", SimpleNamespace(estimated_stepping_batches=80, world_size=1))


class _Trained:
    """Runs that were trained together: how each ended, its module, its history and what its store was told."""

    def __init__(self, folder, keys, *, seeds=_SEEDS, extra=None, resume=(), lines=None):
        together = Together((lines if lines is not None else []).append)
        self.modules = [new_module(tiny_config(**keys, seed=seed)) for seed in seeds]
        self.histories, self.sinks = [None] * len(seeds), [None] * len(seeds)

        def train(place):
            module = self.modules[place]
            module.member = Member(together, place)
            callbacks = [callback for at, callback in (extra or {}).items() if at == place]
            _, self.histories[place], self.sinks[place] = small_runs.fit(
                module.config,
                folder / str(seeds[place]),
                module,
                resume=seeds[place] in resume,
                checkpoint_every_s=0.0,
                extra=callbacks,
            )

        self.ends = together.run([partial(train, place) for place in range(len(seeds))])

    def losses(self, place):
        return np.array(self.histories[place].loss_step)


def _assert_like(one, other, places, rtol=2e-4):
    for place in places:
        np.testing.assert_allclose(one.losses(place), other.losses(place), rtol=rtol)
        assert states_close(one.modules[place], other.modules[place], 10 * rtol)


@pytest.mark.parametrize("rule", _RULES)
def test_steps_of_three_runs_at_a_launch_are_bit_for_bit_those_of_the_ordinary_way(launched, tmp_path, rule):
    # Batches of one size, and a learning rate that single precision has.
    keys = _RULES[rule] | {"train__epochs": 9, "data__max_train_patches": 30, "optim__lr": 2**-10}
    trained = _Trained(tmp_path / "replayed", keys)
    assert trained.ends == [None] * 3
    assert launched == [(3, 1)] * 5 + [(3, 3)] * 16
    launched.clear()
    ordinary = _Trained(tmp_path / "ordinary", keys | _ORDINARY)
    assert launched == []
    for place in range(3):
        assert trained.histories[place].loss_step == ordinary.histories[place].loss_step
        assert states_equal(trained.modules[place], ordinary.modules[place])
        assert np.ptp(trained.losses(place)) > 0.05 * trained.losses(place)[0]


def test_the_overlap_and_a_schedule_are_those_of_the_ordinary_way_and_so_is_all_that_is_recorded(launched, tmp_path):
    keys = _RUN | {"train__layer_norms_every_steps": 7}
    trained, ordinary = _Trained(tmp_path / "replayed", keys), _Trained(tmp_path / "ordinary", keys | _ORDINARY)
    _assert_like(trained, ordinary, range(3))
    for sink, expected in zip(trained.sinks, ordinary.sinks, strict=True):
        assert [(key, step) for key, _, step, _ in sink.rows] == [(key, step) for key, _, step, _ in expected.rows]
        assert {step for key, _, step, _ in sink.rows if key.startswith("weight_grad_norm/")} == {0, 7, 14}
        values, others = ([value for _, value, *_ in of.rows] for of in (sink, expected))
        np.testing.assert_allclose(values, others, rtol=0.05, atol=1e-4)


@pytest.mark.parametrize("way", [{}, _ORDINARY], ids=["replayed", "ordinary"])
def test_each_of_several_runs_is_watched_as_if_it_were_alone_and_trains_as_if_it_were_not_watched(
    launched, tmp_path, way
):
    keys = way | {"data__max_train_patches": 30, "optim__lr": 2**-10}
    trained = _Trained(tmp_path / "watched", keys | {"train__watch_every_steps": 4})
    unwatched = _Trained(tmp_path / "unwatched", keys)
    assert trained.ends == [None] * 3
    for place, seed in enumerate(_SEEDS):
        config = tiny_config(**keys, train__watch_every_steps=4, seed=seed)
        _, alone, _ = small_runs.fit(config, tmp_path / "alone" / str(seed))
        watched = trained.histories[place].watched
        assert watched["step"] == [0, 4, 8, 12, 16, 18]
        assert watched.keys() == alone.watched.keys()
        for name, values in alone.watched.items():
            np.testing.assert_allclose(watched[name], values, rtol=1e-2, atol=1e-6, err_msg=name)
        assert states_equal(trained.modules[place], unwatched.modules[place])


def test_a_run_that_is_not_finite_amid_a_launch_ends_there_and_leaves_the_bits_of_the_others(launched, tmp_path):
    keys = {"clip_algo": "agc", "clip_val": 0.01}
    sound = _Trained(tmp_path / "sound", keys)
    launched.clear()
    spoilt = _Trained(tmp_path / "spoilt", keys, extra={1: BadPattern(1, 1)})
    assert spoilt.ends == [None] * 3
    assert spoilt.histories[1].events["non_finite"]["step"] == 7
    assert spoilt.histories[1].steps == 8
    assert all(value.isfinite().all() for value in spoilt.modules[1].state_dict().values())
    # It is found out at the end of the epoch, after step 11.
    assert launched.index((2, 3)) > launched.index((3, 3))
    assert (3, 3) not in launched[launched.index((2, 1)) :]
    for place in (0, 2):
        assert np.array_equal(spoilt.losses(place)[:12], sound.losses(place)[:12])
    _assert_like(spoilt, sound, (0, 2))


@pytest.mark.parametrize("killed_at", [7, 8, 9])
def test_a_run_that_leaves_amid_a_launch_leaves_the_others_and_goes_on_alone(launched, tmp_path, killed_at):
    together = _Trained(tmp_path / "whole", _RUN)
    left = _Trained(tmp_path / "left", _RUN, extra={1: KillAfter(killed_at)})
    assert [type(end) for end in left.ends] == [type(None), SystemError, type(None)]
    for place in (0, 2):
        assert np.array_equal(left.losses(place)[:9], together.losses(place)[:9])
    _assert_like(left, together, (0, 2))
    checkpoint = torch.load(tmp_path / "left" / "2" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] in {6, 9}  # between two launches
    _, history, _ = small_runs.fit(tiny_config(**_RUN, seed=2), tmp_path / "left" / "2", resume=True)
    np.testing.assert_allclose(history.loss_step, together.losses(1), rtol=2e-4)


def test_runs_that_stand_at_different_places_are_taken_together_as_far_as_that_goes(launched, tmp_path):
    keys = _RUN | {"train__epochs": 4}
    whole = _Trained(tmp_path / "whole", keys)
    _Trained(tmp_path, keys, seeds=(1,), extra={0: KillAfter(4)})
    _Trained(tmp_path, keys, seeds=(2,), extra={0: KillAfter(12)})
    launched.clear()
    resumed = _Trained(tmp_path, keys, resume=(1, 2))
    assert resumed.ends == [None] * 3
    assert {runs for runs, _ in launched[:12]} == {3}
    assert {runs for runs, _ in launched} == {1, 2, 3}  # they end one after the other
    _assert_like(resumed, whole, range(3))


def test_runs_whose_launch_does_not_fit_into_the_memory_go_in_smaller_groups(launched, tmp_path, monkeypatch):
    def fused(networks, inputs):
        if len(networks) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return fused_forward(networks, inputs)

    seeds, lines = (1, 2, 3, 4), []
    whole = _Trained(tmp_path / "whole", _RUN, seeds=seeds)
    launched.clear()
    monkeypatch.setattr(joint, "fused_forward", fused)
    parts = _Trained(tmp_path / "parts", _RUN, seeds=seeds, lines=lines)
    assert parts.ends == [None] * 4
    assert lines == ["out of memory with 4 runs at once: 2 at once from here"]
    assert set(launched) == {(2, 1), (2, 3)}
    _assert_like(parts, whole, range(4))


def test_a_step_that_some_runs_have_taken_already_is_not_repeated_in_smaller_groups(launched, tmp_path, monkeypatch):
    def fail(step, *arguments, **named):
        taken.append(step)
        if len(taken) == 6:  # the last run's second step
            raise torch.OutOfMemoryError("out of memory")
        return update(step, *arguments, **named)

    update, taken, lines = TrainingStep.update, [], []
    monkeypatch.setattr(TrainingStep, "update", fail)
    trained = _Trained(tmp_path, _RUN, lines=lines)
    assert [type(end) for end in trained.ends] == [PartlyTaken] * 3
    assert (len(taken), lines) == (6, [])


@pytest.mark.parametrize(
    "keys",
    [
        *({"arch": arch} for arch in ARCHITECTURES),
        *_RULES.values(),
        {"train.overlap_weight": 0.5, "train.loss_scale": "batch", "optim.schedule": "cosine"},
        {"train.mode": "supervised", "optim.name": "stable_adamw"},
        {"data.gridsize": 2, "train.batch_size": 4},
    ],
    ids=str,
)
def test_no_joint_step_waits_for_the_device_nor_leaves_it_nor_moves_what_it_remembers(
    launched, without_trainer, monkeypatch, keys
):
    let_meta_devices_train(monkeypatch)
    runs = []
    for seed in _SEEDS:
        config = tiny_config(**keys, seed=seed)
        module, loader, optimizer, schedule = on_meta(config)
        coming = []
        steps = GraphedSteps(
            module,
            loader,
            optimizer,
            schedule,
            [10**6],
            lambda one, to=coming: (to.append(one), torch.zeros(1, 4, device="meta"))[1],
        )
        runs.append((module, optimizer, loader.draws, steps, coming))
    replays = Replays(CaptureMemory(torch.device("meta")))

    def take(number):
        for _, _, draws, steps, _ in runs:
            steps.take(draws[number - 1], number)
        return replays.take([coming.pop() for *_, coming in runs])

    def kept():
        return [remembered(module, optimizer) for module, optimizer, *_ in runs]

    with OnlyMeta() as watched:
        for number in (1, 2, 3):
            assert take(number).shape == (3, 1, 4)
        before = kept()
        watched.found.clear()
        records = take(4)
    assert records.shape == (3, 3, 4)
    assert watched.found == []
    assert kept() == before


class _ReplayedOnly(lightning.Callback):
    def on_train_batch_end(self, trainer, module, *_):
        assert module._graphed is not None


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_captured_steps_of_three_runs_are_those_of_the_ordinary_way(tmp_path, monkeypatch, arch, precision):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    keys = {"arch": arch, "accelerator": "gpu", "train__overlap_weight": 0.5, "train__batch_size": 2}
    keys["train__precision"] = precision
    trained = _Trained(tmp_path / "captured", keys, extra={0: _ReplayedOnly()})
    assert trained.ends == [None] * 3
    ordinary = _Trained(tmp_path / "ordinary", keys | _ORDINARY)
    _assert_like(trained, ordinary, range(3), rtol=1e-3 if precision == "32-true" else 3e-2)


@pytest.mark.gpu
def test_captured_runs_of_which_one_is_not_finite_and_one_leaves_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    keys = {**_RUN, "accelerator": "gpu", "train__batch_size": 2}
    sound = _Trained(tmp_path / "sound", keys, seeds=(1, 2, 3, 4))
    left = _Trained(tmp_path / "left", keys, seeds=(1, 2, 3, 4), extra={1: BadPattern(1, 5), 2: KillAfter(22)})
    assert [type(end) for end in left.ends] == [type(None), type(None), SystemError, type(None)]
    assert "non_finite" in left.histories[1].events
    _assert_like(left, sound, (0, 3), rtol=1e-3)
