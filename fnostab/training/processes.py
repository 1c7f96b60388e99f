"""The processes that share a run: who starts them, which one this is, and how they find each other."""

import math
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

import lightning
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed

from fnostab.config import ArmConfig, ConfigError

#: Exit code of a follower whose memory does not suffice.
OUT_OF_MEMORY_EXIT: Final = 3
#: Time that followers have to end by themselves, after a failure and after a whole training.
_TO_END_AFTER_FAILURE_S: Final = 5.0
_TO_END_S: Final = 60.0
#: Time after which the user hears that processes are waited for.
_SILENCE_S: Final = 20.0


class OneMachine(LightningEnvironment):
    """What Lightning needs to know of a run that this process starts by itself, on this machine.

    It looks at no environment variable: what SLURM or torchrun said to this process means nothing to such a run.
    """

    creates_processes_externally = True  # Lightning shall not start any
    main_address = "127.0.0.1"
    main_port = 0

    def __init__(self) -> None:
        super().__init__()
        self.set_global_rank(0)  # Lightning takes SLURM's
        self.main_port = find_free_network_port()

    def local_rank(self) -> int:
        """This is the first process."""
        return 0

    def node_rank(self) -> int:
        """There is one machine."""
        return 0

    def teardown(self) -> None:
        """Nothing was put into the environment variables."""


def find_environment(config: ArmConfig) -> ClusterEnvironment:
    """Who starts the processes of this run, and which of them this is.

    Raises `ConfigError` if torchrun or SLURM started another number than the config asks for. SLURM starts processes by
    `srun`, as the steps of a job; the job's own script is one process, however many tasks the job has room for.
    """
    train = config.train
    size = train.devices * train.nodes
    if size == 1:
        return OneMachine()
    try:
        if TorchElasticEnvironment.detect():
            return _checked(TorchElasticEnvironment(), size, "torchrun")
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            return _checked(SLURMEnvironment(auto_requeue=False), size, "SLURM")
    except RuntimeError as error:  # Lightning's, about the variables of SLURM
        raise ConfigError(str(error)) from None
    if train.nodes > 1:
        raise ConfigError(f"`train.nodes` (={train.nodes}) must be 1 unless torchrun or srun starts the processes")
    return OneMachine()


def _checked(environment: ClusterEnvironment, size: int, who: str) -> ClusterEnvironment:
    there = environment.world_size()
    if there != size:
        raise ConfigError(f"`train.devices` times `train.nodes` (={size}) must be the {there} processes of {who}")
    return environment


class Meeting(NamedTuple):
    """What the first process tells the others when the processes of a run meet."""

    dataset_sha256: str
    #: The checkpoint to go on from, None to start.
    resume_from: str | None


@contextmanager
def leading(
    trainer: lightning.Trainer,
    config: ArmConfig,
    meeting: Meeting,
    follow: Sequence[str],
    report: Callable[[str], None] = lambda line: None,
) -> Iterator[None]:
    """Train as the first process of a run, or the only one, within this block.

    `follow` is the command that starts another process on this machine, where nobody else does; `report` takes a line
    if the others do not come. If training fails because such a process failed, the error says so:
    `torch.OutOfMemoryError` or `RuntimeError`.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy):
        yield
        return
    environment = strategy.cluster_environment
    port = environment.main_port if isinstance(environment, OneMachine) else None
    with _process_group(strategy), followers(follow, config, port) as processes:
        _meet(strategy, processes, report)
        strategy.broadcast(meeting)
        yield
        strategy.barrier()


@contextmanager
def following(trainer: lightning.Trainer) -> Iterator[Meeting]:
    """Train as another process of a run within this block; yields what the first one said."""
    strategy = trainer.strategy
    assert isinstance(strategy, DDPStrategy)
    with _process_group(strategy):
        _meet(strategy)
        yield strategy.broadcast(Meeting("", None))
        strategy.barrier()


@contextmanager
def followers(command: Sequence[str], config: ArmConfig, port: int | None) -> Iterator[list[subprocess.Popen[str]]]:
    """Start the further processes of a run on this machine, which meet at `port`; none if that is None.

    They find in the environment variables what torchrun would tell them, and the config on their stdin. They end when
    that closes: however this process ends, none stays behind.
    """
    processes: list[subprocess.Popen[str]] = []
    seconds = _TO_END_AFTER_FAILURE_S
    try:
        for rank in range(1, config.train.devices if port else 1):
            processes.append(_start(command, config, rank, port))
        yield processes
        seconds = _TO_END_S
    except RuntimeError as error:  # a process that lost its partner gets one
        _wait(processes, seconds)
        seconds = 0.0
        for rank, process in enumerate(processes, start=1):
            if process.returncode == OUT_OF_MEMORY_EXIT:
                raise torch.OutOfMemoryError(f"process {rank} of the run: out of memory") from error
            if process.returncode:
                raise RuntimeError(f"process {rank} of the run ended with exit code {process.returncode}") from error
        raise
    finally:
        try:
            _wait(processes, seconds)
        finally:  # a second signal ends the waiting
            for process in processes:
                process.kill()
                process.communicate()


def _start(command: Sequence[str], config: ArmConfig, rank: int, port: int | None) -> subprocess.Popen[str]:
    ranks = dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) | {"WORLD_SIZE": str(config.train.devices)}
    address = {"MASTER_ADDR": OneMachine.main_address, "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "fnostab"}
    process = subprocess.Popen(
        command,
        env=os.environ | ranks | address,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C does not reach it: the first process decides when all stop
    )
    assert process.stdin is not None
    process.stdin.write(config.model_dump_json() + "\n")
    process.stdin.flush()
    return process


def _wait(processes: list[subprocess.Popen[str]], seconds: float) -> None:
    """Wait until all have ended, or one has failed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        codes = [process.poll() for process in processes]
        if any(codes) or None not in codes:
            return
        time.sleep(0.01)


def _meet(
    strategy: DDPStrategy,
    processes: Sequence[subprocess.Popen[str]] = (),
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Wait until all processes of the run have found each other; raises `RuntimeError` if one of `processes` ends.

    torch's own waiting lets no signal through, so it happens in a thread.
    """
    errors: list[Exception] = []

    def wait() -> None:
        try:
            strategy.setup_environment()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    silent_until = time.monotonic() + _SILENCE_S
    while thread.is_alive():
        thread.join(0.05)
        if any(process.poll() is not None for process in processes):
            raise RuntimeError("a process of the run did not start")
        if time.monotonic() > silent_until:
            report(f"waiting for all {strategy.world_size} processes of the run to start")
            silent_until = math.inf
    if errors:
        raise errors[0]
    strategy.setup_environment()  # again, because a thread chooses its CUDA device for itself alone


@contextmanager
def _process_group(strategy: DDPStrategy) -> Iterator[None]:
    """Set the environment variables that a process group needs; at the end, restore them and destroy the group."""
    variables = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # else Lightning sets the threads anew
    loopback = {"lo", "lo0"}.intersection(name for _, name in socket.if_nameindex())
    if isinstance(strategy.cluster_environment, OneMachine) and loopback:
        variables["GLOO_SOCKET_IFNAME"] = loopback.pop()
    before = {name: os.environ.get(name) for name in (*variables, "MASTER_ADDR", "MASTER_PORT")}
    os.environ.update({name: value for name, value in variables.items() if before[name] is None})
    try:
        yield
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
