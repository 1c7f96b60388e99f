"""The processes that share a run: who starts them, which one this is, and how they meet."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import lightning
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import distributed

from fnostab.config import ArmConfig, ConfigError
from fnostab.training.processes import Followers


class OneMachine(LightningEnvironment):
    """What Lightning needs to know of a run whose processes all run here, started by `processes.Followers`."""

    def __init__(self, rank: int = 0, port: int | None = None) -> None:
        super().__init__()
        self.set_global_rank(rank)
        self._rank = rank
        self._port = port

    @property
    def creates_processes_externally(self) -> bool:
        """Lightning shall not start any."""
        return True

    @property
    def main_address(self) -> str:
        """They talk through the loopback device."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """A port that was free when it was first asked for."""
        if self._port is None:
            self._port = find_free_network_port()
        return self._port

    def local_rank(self) -> int:
        """There is one machine."""
        return self._rank

    def node_rank(self) -> int:
        """There is one machine."""
        return 0

    def teardown(self) -> None:
        """Nothing was put into the environment variables."""


def find_environment(config: ArmConfig) -> ClusterEnvironment | None:
    """Who starts the processes of this run, and which of them this is; None for a run of one process, without DDP.

    Raises `ConfigError` if there are not as many processes as the config asks for.
    """
    train = config.train
    size = train.devices * train.nodes
    if size == 1:
        return OneMachine() if train.strategy == "ddp" else None
    try:
        if TorchElasticEnvironment.detect():
            return _checked(TorchElasticEnvironment(), size, "torchrun")
        if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and SLURMEnvironment.detect():
            return _checked(SLURMEnvironment(auto_requeue=False), size, "SLURM")
    except RuntimeError as error:  # Lightning's, about the variables of SLURM
        raise ConfigError(str(error)) from None
    if train.nodes > 1:
        raise ConfigError(f"`train.nodes` (={train.nodes}) must be 1 unless torchrun or SLURM starts the processes")
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
    trainer: lightning.Trainer, config: ArmConfig, environment: ClusterEnvironment | None, meeting: Meeting
) -> Iterator[None]:
    """Train as the first process of a run within this block, and as the only one if `environment` is None."""
    if environment is None:
        yield
        return
    with _process_group(config, environment):
        own = isinstance(environment, OneMachine)
        with Followers(config, environment.main_port) if own else nullcontext() as followers:
            if followers:
                followers.wait_until_ready()
            trainer.strategy.setup_environment()
            trainer.strategy.broadcast(meeting)
            yield
            trainer.strategy.barrier()


@contextmanager
def following(trainer: lightning.Trainer, config: ArmConfig, environment: ClusterEnvironment) -> Iterator[Meeting]:
    """Train as another process of a run within this block; gives what the first one said."""
    with _process_group(config, environment):
        trainer.strategy.setup_environment()
        yield trainer.strategy.broadcast(Meeting("", None))
        trainer.strategy.barrier()


@contextmanager
def _process_group(config: ArmConfig, environment: ClusterEnvironment) -> Iterator[None]:
    """Let the processes of a run meet within this block, and leave nothing of that behind for the next run."""
    variables = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # else Lightning sets the threads anew
    if isinstance(environment, OneMachine) and (loopback := _loopback()):
        variables["GLOO_SOCKET_IFNAME"] = loopback
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


def _loopback() -> str | None:
    """The network device through which the processes of one machine talk, where it can be told."""
    names = [name for _, name in socket.if_nameindex()] if hasattr(socket, "if_nameindex") else []
    return next((name for name in ("lo", "lo0") if name in names), None)
