"""One run shared by two processes: the numbers of one process, one run in the store, and nobody left behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning
import mlflow
import numpy as np
import psutil
import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from small_runs import Sink, write_small_scan

from fnostab.config import ConfigError, resolve_config
from fnostab.dataset import load_or_build
from fnostab.health.history import STEP_SERIES, History
from fnostab.io.endings import Interrupted
from fnostab.training.callbacks import Checkpoints, Interruption, Pruning, SeriesRecorder, StageRecorder
from fnostab.training.checkpoint_files import CheckpointFiles
from fnostab.training.checks import check_devices
from fnostab.training.processes import OUT_OF_MEMORY_EXIT, Meeting, OneMachine, find_environment, followers, leading
from fnostab.training.trainer import fit, make_trainer
from fnostab.workflows.follow import COMMAND

#: Two processes sum float32 numbers in another order than one: about 1e-6 in the first steps, more as they go on.
_RTOL = 1e-4
_SHARED = {"preset": "smoke", "train.threads": 1, "accelerator": "cpu"}
_TINY = _SHARED | {
    "epochs": 2,
    "batch_size": 8,
    "train.overlap_weight": 0.0,
    "optim.schedule": "constant",
    "data.object_size": 64,
    "data.max_train_patches": 24,
    "data.max_val_patches": 9,
}
_PROBE = {"train.learn_probe": True, "train.probe_lr": 0.3, "optim.name": "sgd", "lr": 0.01}


def _train(overrides, folder, devices, extra=(), constant=np.nan, stop=lambda: False):
    """Train in this process, and others if need be, without MLflow; returns history and weights."""
    config = resolve_config(overrides | {"devices": devices})
    torch.set_num_threads(1)
    dataset = load_or_build(config.data)
    recorder = SeriesRecorder(History(val_loss_constant=constant), Sink(), config.train.give_up_epoch)
    files = CheckpointFiles(folder)
    pruning = Pruning(recorder.history, stop)
    stages = StageRecorder(recorder.history, recorder._series.sink)
    callbacks = [recorder, pruning, stages, Checkpoints(files, 1e-3), Interruption(), *extra]
    trainer = make_trainer(config, callbacks, files)
    with leading(trainer, config, Meeting(dataset.sha256, None), COMMAND):
        fit(trainer, config, dataset, None)
    assert trainer.world_size == devices
    return recorder.history, trainer.lightning_module.state_dict()


def _followers(pid):
    return [child for child in psutil.Process(pid).children() if COMMAND[-1] in child.cmdline()]


def _assert_same_series(history, expected):
    for name in (
        *STEP_SERIES,
        "train_loss",
        "val_loss",
        "object_std_ratio",
        "val_amp_ssim",
        "r_stitched",
        "parameters_moved",
        "supervised_loss",
    ):
        # An SSIM may be near 0.
        np.testing.assert_allclose(getattr(history, name), getattr(expected, name), rtol=_RTOL, atol=1e-6, err_msg=name)
    assert history.events == expected.events


@pytest.mark.parametrize(
    "overrides",
    [
        {
            "arch": "stable_hybrid",
            "model.gamma_init": 0.5,
            "clip_algo": "agc",
            "loss": "poisson",
            "data.max_train_patches": 17,  # the last step has one patch for the two
        },
        # SGD, unlike Adam, sees by what factor a gradient is wrong, and does not blow up rounding errors of small ones.
        _PROBE | {"train.overlap_weight": 1.0, "data.max_train_patches": 33},
        _PROBE | {"train.overlap_weight": 0.5, "batch_size": 1, "data.max_train_patches": 3, "data.max_val_patches": 1},
        _PROBE | {"train.loss_scale": "batch", "data.max_train_patches": 17, "train.overlap_weight": 0.5},
        # Nine groups of four, two a batch: the last step has one group for the two, and validation three.
        _PROBE | {"data.gridsize": 2, "train.overlap_weight": 0.5, "data.max_train_patches": 33},
        {"clip_algo": "zclip", "clip_val": 0.5, "clip.options.warmup": 2, "optim.name": "sgd", "lr": 0.01},
        {"lr": 1e30, "clip_algo": "none", "epochs": 4},
        {
            **{"train.mode": "supervised", "arch": "cnn", "data.nimgs_train": 2, "optim.name": "sgd", "lr": 0.1},
            "data.max_train_patches": 17,
        },
    ],
    ids=[
        "last batch of one",
        "stitched",
        "stitched, one patch a step",
        "a batch's own scale",
        "groups of four",
        "a rule with a history",
        "not finite",
        "supervised",
    ],
)
def test_two_processes_train_like_one_with_the_same_batches(tmp_path, overrides):
    alone, weights = _train(_TINY | overrides, tmp_path / "one", 1)
    together, shared_weights = _train(_TINY | overrides, tmp_path / "two", 2)
    _assert_same_series(together, alone)
    assert ("non_finite" in alone.events) is (overrides.get("lr") == 1e30)
    if "optim.name" in overrides:
        for name, weight in weights.items():
            assert (shared_weights[name] - weight).abs().max() <= _RTOL * weight.abs().max(), name
    last = torch.load(tmp_path / "two" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(last[name], weight) for name, weight in shared_weights.items() if name in last)
    assert not torch.distributed.is_initialized()


def test_the_first_of_two_processes_watches_what_one_alone_does(tmp_path):
    keys = _TINY | {"train.watch_every_steps": 2, "optim.name": "sgd", "lr": 0.01}
    alone, weights = _train(keys, tmp_path / "one", 1)
    together, shared_weights = _train(keys, tmp_path / "two", 2)
    assert together.watched["step"] == [0, 2, 4, 6]
    assert together.watched.keys() == alone.watched.keys()
    for name, values in alone.watched.items():
        np.testing.assert_allclose(together.watched[name], values, rtol=10 * _RTOL, atol=1e-7, err_msg=name)
    _, unwatched = _train(keys | {"train.watch_every_steps": None}, tmp_path / "unwatched", 2)
    assert all(torch.equal(weight, unwatched[name]) for name, weight in shared_weights.items())


@pytest.mark.parametrize(("gridsize", "modes"), [(1, 1), (2, 1), (1, 2)])
def test_two_processes_stitch_a_scan_like_one(tmp_path, gridsize, modes):
    source = write_small_scan(tmp_path / "scan.npz")
    if modes > 1:
        probe = np.stack([source.probe, 0.5 * np.roll(source.probe, 3, axis=0)]) * source.scale
        mask = np.random.default_rng(0).random((32, 32)) > 0.2
        write_small_scan(tmp_path / "scan.npz", probe=probe, mask=mask)
    keys = _SHARED | {"preset": "scan", "data": str(tmp_path / "scan.npz"), "N": 32, "model.width": 4, "epochs": 2}
    keys |= {"data.gridsize": gridsize}
    alone, _ = _train(keys | {"optim.lr": 1e-4, "train.probe_lr": 1e-4}, tmp_path / "one", 1)
    together, _ = _train(keys | {"optim.lr": 1e-4, "train.probe_lr": 1e-4}, tmp_path / "two", 2)
    assert np.isnan(alone.r_stitched[0])
    np.testing.assert_allclose(together.r_stitched, alone.r_stitched, rtol=_RTOL)


def test_a_run_that_is_given_up_ends_in_both_processes(tmp_path):
    overrides = _TINY | {"epochs": 4, "train.give_up_after": 0.5}
    history, _ = _train(overrides, tmp_path, 2, constant=1e-6)
    assert history.events == {"given_up": {"epoch": 2, "epochs": 4}}
    assert len(history.val_loss) == 2


def test_a_run_that_is_pruned_ends_in_both_processes(tmp_path):
    history, _ = _train(_TINY | {"epochs": 4}, tmp_path, 2, stop=lambda: True)
    assert history.events == {"pruned": {"epoch": 1, "epochs": 4}}
    assert len(history.val_loss) == 1


def test_the_run_fails_with_the_process_that_fails(tmp_path):
    class KillTheOther(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 2:
                (follower,) = _followers(os.getpid())
                follower.kill()

    with pytest.raises(RuntimeError, match=r"^process 1 of the run ended with exit code -9$"):
        _train(_TINY, tmp_path, 2, [KillTheOther()])
    assert _followers(os.getpid()) == []


def test_a_follower_whose_memory_does_not_suffice_makes_that_the_reason(tmp_path):
    script = tmp_path / "follower"
    script.write_text(f"read config\nexit {OUT_OF_MEMORY_EXIT}\n")
    config = resolve_config(_TINY | {"devices": 2})

    def train():
        with followers(["sh", str(script)], config, 1):
            raise RuntimeError("connection closed by peer")

    with pytest.raises(torch.OutOfMemoryError, match=r"^process 1 of the run: out of memory$"):
        train()


def test_followers_end_at_a_second_signal_while_they_are_waited_for(monkeypatch):
    def interrupted(processes, seconds):
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr("fnostab.training.processes._wait", interrupted)

    def train():
        with followers(["sh", "-c", "read config; sleep 60"], resolve_config(_TINY | {"devices": 2}), 1) as processes:
            started.extend(processes)
            raise Interrupted(signal.SIGINT)

    started: list[subprocess.Popen[str]] = []
    with pytest.raises(Interrupted):
        train()
    assert [process.returncode for process in started] == [-signal.SIGKILL]


def test_followers_end_when_the_first_process_is_killed():
    code = f"""
from fnostab.config import resolve_config
from fnostab.training.processes import followers
with followers({COMMAND!r}, resolve_config({_TINY | {"devices": 2}!r}), 1):
    print("ready", flush=True)
    input()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"ready\n"
        (follower,) = _followers(first.pid)
        first.kill()
    follower.wait(timeout=60)


def _only_run(folder: Path):
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs(["0"])
    return client, run


def _left_over(folder: Path):
    """Processes that work for `folder` still."""

    def works_there(process):
        try:
            return process.environ().get("FNOSTAB_CACHE") == str(folder / "cache")
        except (psutil.Error, OSError):
            return False

    return [process for process in psutil.process_iter() if works_there(process)]


@pytest.mark.slow
def test_a_stopped_run_of_two_processes_is_finished_by_two_others_that_torchrun_starts(fresh_store):
    overrides = {"epochs": 4, "data.max_train_patches": 64, "devices": 2}
    options = [word for key, value in (_SHARED | overrides).items() for word in (f"--{key}", str(value))]
    command = ["fnostab", "train", *options, "--train.checkpoint_every_s", "0.001"]
    loopback = os.environ | {"GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0"}
    ours = [sys.executable, "-m", *command, "--strategy", "ddp"]
    with subprocess.Popen(ours, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 1/"):
                process.send_signal(signal.SIGTERM)
                break
        process.stdout.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert _left_over(fresh_store) == []
    client, run = _only_run(fresh_store)
    assert (run.info.status, run.data.tags["verdict"]) == ("KILLED", "interrupted")
    assert 4 <= len(client.get_metric_history(run.info.run_id, "train/loss")) < 16

    torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    torchrun += ["--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    theirs = [sys.executable, "-m", *torchrun, "-m", *command]
    done = subprocess.run(theirs, env=loopback, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("continuing control, seed 20260128, on 2 processes (cpu)")
    assert done.stdout.count("verdict: ") == 1
    assert _left_over(fresh_store) == []
    client, finished = _only_run(fresh_store)
    assert (finished.info.run_id, finished.info.status) == (run.info.run_id, "FINISHED")
    for key, points in {"train/loss": 16, "grad/norm_preclip": 16, "val/loss": 4}.items():
        assert len(client.get_metric_history(run.info.run_id, key)) == points, key
    history = json.loads(mlflow.artifacts.load_text(f"{finished.info.artifact_uri}/history.json"))
    expected, _ = _train(_SHARED | overrides, fresh_store / "alone", 1)
    for name in (*STEP_SERIES, "val_loss"):
        np.testing.assert_allclose(history[name], getattr(expected, name), rtol=_RTOL, err_msg=name)
    model = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    assert model.predict(np.ones((3, 32, 32), np.float32)).shape == (3, 32, 32, 2)


@pytest.mark.parametrize(
    ("overrides", "there", "line"),
    [
        ({"devices": 0}, {}, r"^`train.devices` \(=0\) must be >= 1$"),
        ({"strategy": "fsdp"}, {}, r"^`train.strategy` \(=fsdp\) must be 'auto' or 'ddp'$"),
        (
            {"train.nodes": 2},
            {},
            r"^`train.nodes` \(=2\) must be 1 unless torchrun or srun starts the processes$",
        ),
        (
            {"devices": 3},
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"},
            r"^`train.devices` times `train.nodes` \(=3\) must be the 2 processes of torchrun$",
        ),
        (
            {"devices": 3},
            dict.fromkeys(("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_STEP_NUM_TASKS"), "2"),
            r"^`train.devices` times `train.nodes` \(=3\) must be the 2 processes of SLURM$",
        ),
    ],
)
def test_processes_that_cannot_be_are_refused_in_one_line(monkeypatch, overrides, there, line):
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=line):
        find_environment(resolve_config(_TINY | overrides))


def test_more_devices_than_there_are_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check_devices(resolve_config(_TINY | {"devices": 2, "accelerator": "gpu"}))
    with pytest.raises(ConfigError, match=r"^`train.devices` \(=3\) must be <= 2, the devices \(gpu\) of this mach"):
        check_devices(resolve_config(_TINY | {"devices": 3, "accelerator": "gpu"}))


@pytest.fixture
def slurm_job(tmp_path, monkeypatch):
    """The variables of the script of a job of four tasks, and `srun` on the PATH."""
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "3"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)


@pytest.mark.usefixtures("slurm_job")
def test_the_variables_of_a_slurm_job_mean_nothing_to_a_run_of_one_process(tmp_path):
    history, _ = _train(_TINY | {"epochs": 1}, tmp_path, 1)  # warnings are errors
    assert len(history.val_loss) == 1


@pytest.mark.usefixtures("slurm_job")
def test_several_devices_in_a_slurm_job_without_srun_are_started_by_the_run_itself(monkeypatch):
    config = resolve_config(_TINY | {"devices": 4})
    assert isinstance(find_environment(config), OneMachine)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")  # srun sets it, for each process that it starts
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    assert find_environment(config).global_rank() == 3


def test_a_run_whose_other_processes_do_not_come_says_so_and_can_be_stopped():
    """As where only one of the processes that torchrun or srun should start does start."""
    code = f"""
from pathlib import Path
from fnostab.config import resolve_config
from fnostab.training import processes
from fnostab.training.callbacks import Interruption
from fnostab.training.checkpoint_files import CheckpointFiles
from fnostab.training.trainer import make_trainer
processes._SILENCE_S = 0
config = resolve_config({_TINY | {"devices": 2}!r})
trainer = make_trainer(config, [], CheckpointFiles(Path()))
say = lambda line: print(line, flush=True)
with Interruption(), processes.leading(trainer, config, processes.Meeting("", None), [], say):
    pass
"""
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | torchrun | address, stdout=-1, stderr=-1, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting for all 2 processes of the run to start\n"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert errors.endswith("Interrupted: stopped by SIGTERM\n")
