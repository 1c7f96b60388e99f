import math
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from small_runs import Sink

from fnostab.health import STEP_SERIES, History
from fnostab.io.endings import STOP_SIGNALS, Interrupted
from fnostab.training.callbacks import Checkpoints, ConsoleProgress, Interruption, SeriesRecorder
from fnostab.training.callbacks.progress import duration_text
from fnostab.training.checkpoint_files import CheckpointFiles


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3000, "50 min"), (32000, "9 h")]
)
def test_durations_are_said_in_the_unit_that_people_would_use(seconds, words):
    assert duration_text(seconds) == words


def _trainer(step, total=1000):
    return SimpleNamespace(
        global_step=step,
        estimated_stepping_batches=total,
        callback_metrics={"val_loss": torch.tensor(0.25)},
        current_epoch=2,
        max_epochs=50,
        should_stop=False,
    )


def _module(device="cpu", preset="stage_a"):
    config = SimpleNamespace(preset=preset)
    return SimpleNamespace(device=torch.device(device), step_record=torch.zeros(4), config=config)


def _estimate(monkeypatch, *seconds_a_step, **module):
    """The lines of a run of 1000 steps, of which the first 10, 10, 20, 40, ... take `seconds_a_step`."""
    lines: list[str] = []
    now = [0.0]
    monkeypatch.setattr("fnostab.training.callbacks.progress.time.monotonic", lambda: now[0])
    progress = ConsoleProgress(lines.append, terminal=False)
    progress.on_train_start(_trainer(0), _module(**module))
    for step in range(1, 1 + 10 * 2 ** (len(seconds_a_step) - 1)):
        now[0] += seconds_a_step[((step - 1) // 10).bit_length()]
        progress.on_train_batch_end(_trainer(step), _module(**module), None, None, step - 1)
    return lines


def test_a_long_run_on_a_cpu_is_told_of_the_quick_preset_after_the_first_steps(monkeypatch):
    assert _estimate(monkeypatch, 30.0, 30.0) == ["about 8 h left on this CPU; `-P preset=quick` takes minutes"]


def test_short_runs_the_quick_preset_and_other_devices_hear_the_time_only(monkeypatch):
    assert _estimate(monkeypatch, 0.1, 0.1) == ["about 2 min left"]
    assert _estimate(monkeypatch, 30.0, 30.0, device="cuda") == ["about 8 h left"]
    assert _estimate(monkeypatch, 30.0, 30.0, preset="quick") == ["about 8 h left"]


def test_the_time_that_is_left_is_estimated_once_the_pace_is_steady(monkeypatch):
    assert _estimate(monkeypatch, 10.0, 4.0, 2.0) == []
    assert _estimate(monkeypatch, 10.0, 4.0, 1.2, 1.0, 1.0) == ["about 15 min left"]


def test_without_a_terminal_an_epoch_is_a_line():
    lines: list[str] = []
    progress = ConsoleProgress(lines.append, terminal=False)
    progress.on_train_start(_trainer(0), _module())
    progress.on_train_epoch_end(_trainer(1000), _module())
    assert lines == ["epoch 3/50: val_loss 0.2500"]


def test_a_run_that_stops_has_no_time_left():
    lines: list[str] = []
    progress = ConsoleProgress(lines.append, terminal=False)
    progress.on_train_start(_trainer(0), _module())
    trainer = _trainer(500)
    trainer.should_stop = True
    progress.on_train_epoch_end(trainer, _module())
    assert lines == ["epoch 3/50: val_loss 0.2500"]


def test_on_a_terminal_a_bar_shows_loss_and_gradient_norm(capsys):
    progress = ConsoleProgress(lambda line: None, terminal=True)
    progress.on_train_start(_trainer(0), _module())
    progress.on_train_batch_end(_trainer(1), _module(), None, None, 0)
    progress.on_train_end(_trainer(1), _module())
    shown = capsys.readouterr().err
    assert "1/1000" in shown
    assert "grad=0, loss=0.0000" in shown


def _driven(losses, constant, floor, give_up_epoch=3, epochs=8):
    """History and sink of a run that has one of `losses` an epoch, and is driven by hand."""
    history = History(val_loss_constant=constant, val_loss_floor=floor)
    sink = Sink()
    recorder = SeriesRecorder(history, sink, give_up_epoch)
    optimizer = SimpleNamespace(param_groups=[{"lr": 1e-3}])
    trainer = SimpleNamespace(max_epochs=epochs, should_stop=False, optimizers=[optimizer])
    module = SimpleNamespace(device=torch.device("cpu"), truth_std=None, observe=dict, fingerprints=dict)
    for loss in losses:
        assert not trainer.should_stop
        history.add_steps([[1.0, 1.0, 1.0, 0.0]])
        agreement = dict.fromkeys(("patch_consistency", "shared_light"), math.nan)
        trainer.callback_metrics = {"val_loss": loss, "object_std": 1.0, "r_stitched": math.nan, **agreement}
        recorder.on_train_epoch_end(trainer, module)
    assert recorder.had_to_stop is trainer.should_stop
    return history, sink


def _given_up(*arguments, **named):
    return _driven(*arguments, **named)[0].events


def test_the_measures_of_stability_are_told_after_each_epoch_since_the_run_had_learnt():
    _, sink = _driven([0.19, 0.1, 0.2, 0.1], 0.2, 0.0, give_up_epoch=None)
    found = {}
    for key, value, step, _ in sink.rows:
        if key.startswith("stability/"):
            found.setdefault(key.removeprefix("stability/"), []).append((step, value))
    assert found == {
        "max_drawdown": [(1, 1.0), (2, 2.0), (3, 2.0)],
        "mean_excess": [(1, 0.0), (2, 0.5), (3, pytest.approx(1 / 3))],
        "relapses": [(1, 0.0), (2, 1.0), (3, 1.0)],
        "relapses_per_1e5_steps": [(2, 1e5), (3, 5e4)],
    }


@pytest.mark.parametrize("floor", [0.1, math.nan])
def test_a_run_that_was_never_better_than_the_best_constant_object_is_given_up(floor):
    losses = [1.2, 1.0, 1.1]
    assert _given_up(losses, 1.0, floor) == {"given_up": {"epoch": 3, "epochs": 8}}
    assert _given_up(losses[:2], 1.0, floor) == {}
    assert _given_up(losses, 1.0, floor, give_up_epoch=None) == {}


def test_a_run_that_was_better_once_is_not_given_up():
    assert _given_up([1.1, 0.999, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2], 1.0, 0.1) == {}


@pytest.mark.parametrize(("constant", "floor"), [(math.nan, 0.1), (0.1, 0.1), (0.1, 0.2), (math.inf, 0.1)])
def test_a_run_of_which_that_is_not_known_is_not_given_up(constant, floor):
    assert _given_up([1.2] * 5, constant, floor) == {}


def test_after_the_last_epoch_there_is_nothing_to_give_up():
    assert _given_up([1.2] * 3, 1.0, 0.1, epochs=3) == {}


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_while_training_waits_for_the_end_of_the_step(signum):
    with Interruption() as interruption:
        interruption.on_train_start(_trainer(0), _module())
        os.kill(os.getpid(), signum)
        with pytest.raises(Interrupted, match=signal.Signals(signum).name):
            interruption.on_train_batch_end(_trainer(1), _module(), None, None, 0)


def test_a_signal_outside_of_training_and_a_second_one_raise_at_once():
    with Interruption(), pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)
    with Interruption() as interruption:
        interruption.on_train_start(_trainer(0), _module())
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_after_a_training_that_broke_off_raises_at_once_and_one_before_is_not_lost():
    with Interruption() as interruption:
        interruption.on_train_start(_trainer(0), _module())
        interruption.on_exception(_trainer(0), _module(), MemoryError())
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            interruption.check()


def test_the_handlers_from_before_are_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Interruption():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


class _Processes:
    """Stands for torch's collectives: what the leader broadcasts is kept, and told to those that follow it."""

    def __init__(self, monkeypatch):
        self.said: list[list[int]] = []
        self.follows = False
        self._heard = iter(self.said)
        self.now = 0.0
        monkeypatch.setattr("fnostab.training.collectives.is_distributed", lambda: True)
        monkeypatch.setattr("fnostab.training.collectives.broadcast", self._broadcast)
        monkeypatch.setattr("fnostab.training.collectives.time.monotonic", lambda: self.now)

    def _broadcast(self, values, device):
        if self.follows:
            return next(self._heard)
        self.said.append(values)
        return values

    def train(self, callback, steps, seconds_a_step):
        """Drive the callback; returns after how many steps it stopped the training, if it did."""
        for step in range(1, steps + 1):
            self.now += seconds_a_step
            try:
                callback.on_train_batch_end(_trainer(step), _module(), None, None, step)
            except Interrupted:
                return step
        return None


def test_several_processes_seldom_wait_for_each_other_and_for_the_device(monkeypatch, tmp_path):
    processes = _Processes(monkeypatch)
    for callback in (Interruption(), Checkpoints(CheckpointFiles(tmp_path), 1e9)):
        processes.said.clear()
        assert processes.train(callback, 1000, 0.01) is None
        assert 10 <= len(processes.said) <= 30  # 10 s of training
    processes.said.clear()
    processes.train(Interruption(), 1000, 1e-5)
    assert len(processes.said) <= 15
    processes.said.clear()
    processes.train(Interruption(), 10, 60.0)  # nobody notices that long steps are waited for
    assert len(processes.said) == 10


def test_a_signal_stops_all_processes_after_the_same_step_within_a_second(monkeypatch):
    processes = _Processes(monkeypatch)
    with Interruption() as interruption:
        interruption.on_train_start(_trainer(0), _module())
        processes.train(interruption, 500, 0.01)
        os.kill(os.getpid(), signal.SIGUSR1)
        stopped_after = processes.train(interruption, 500, 0.01)
    assert stopped_after is not None
    assert stopped_after <= 100
    processes.follows = True
    assert processes.train(Interruption(follows=True), 1000, 0.0123) == 500 + stopped_after


def test_norms_that_a_checkpoint_of_an_earlier_version_kept_apart_are_offered_too():
    recorder = SeriesRecorder(History(), Sink())
    state = recorder.state_dict() | {"step_times_ms": [1, 2], "layers": [(0, {"w": 1.0})]}
    state["history"] |= {name: [0.0, 0.0] for name in STEP_SERIES}
    recorder.load_state_dict(state | {"pending_layers": [(1, {"w": 2.0})]})
    recorder.offer_all()
    assert recorder.state_dict()["layers"] == [(0, {"w": 1.0}), (1, {"w": 2.0})]
