"""The Lightning trainer of an arm, and what it sets for its process: threads, and what is said."""

import logging
import os
import warnings
from collections.abc import Mapping

import lightning
import threadpoolctl
import torch
from lightning.pytorch.strategies import DDPStrategy

from fnostab.config import ArmConfig
from fnostab.dataset import Dataset
from fnostab.training.batches import make_loaders
from fnostab.training.checkpoint_files import CheckpointFiles
from fnostab.training.module import PtychoModule
from fnostab.training.processes import find_environment
from fnostab.training.together import Member


def fit(
    trainer: lightning.Trainer,
    config: ArmConfig,
    dataset: Dataset,
    resume_from: str | None,
    weights: Mapping[str, torch.Tensor] | None = None,
    member: Member | None = None,
) -> None:
    """Train the arm, from the checkpoint `resume_from` on if there is one, else from `weights` if they are given.

    Of several processes the first one needs the weights: the others take its own as they begin. With `member`, its
    steps are taken together with those of other runs.
    """
    torch.manual_seed(config.seed)
    module = PtychoModule(config, dataset)
    module.member = member
    if weights is not None and resume_from is None:
        module.generator.load_state_dict(weights)
    trainer.fit(module, *make_loaders(trainer, dataset, config), ckpt_path=resume_from, weights_only=True)


def make_trainer(config: ArmConfig, callbacks: list[lightning.Callback], files: CheckpointFiles) -> lightning.Trainer:
    """The Lightning trainer of an arm: everything it logs, keeps or shows is left to `callbacks`.

    Checkpoints are written by `files`. Raises `ConfigError` if the processes are not those that `config` asks for.
    """
    train = config.train
    several = train.devices * train.nodes > 1 or train.strategy == "ddp"
    return lightning.Trainer(
        devices=train.devices,
        num_nodes=train.nodes,
        strategy=DDPStrategy() if several else "auto",
        plugins=[files, find_environment(config)],
        max_epochs=config.train.epochs,
        accelerator=config.train.accelerator,
        callbacks=callbacks,
        default_root_dir=files.folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def set_threads(config: ArmConfig) -> ArmConfig:
    """Set the CPU threads of torch and of NumPy's BLAS, and put their number into the config: it changes the last bits.

    (The environment may set those of BLAS otherwise, as Ray's does, and evaluation would tell the difference.)
    """
    threads = config.train.threads or _default_threads(config.train.devices)
    torch.set_num_threads(threads)
    threadpoolctl.threadpool_limits(threads, user_api="blas")
    return config.model_copy(update={"train": config.train.model_copy(update={"threads": threads})})


def _default_threads(devices: int) -> int:
    """Threads of one process: what OMP_NUM_THREADS says, else a process's share of the cores that may be used.

    torchrun sets that variable to 1 whatever the machine has; the same run would then have another identity there.
    """
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdecimal() and int(limit) and "TORCHELASTIC_RUN_ID" not in os.environ:
        return int(limit)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // devices)


def quieten_libraries() -> None:
    """Keep messages that nobody acts on off the terminal: of warnings, only those listed here."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "mlflow.system_metrics"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning looks for SLURM at every start, whoever starts the processes.
    warnings.filterwarnings("ignore", message="The `srun` command is available on your system but is not used")
    # Lightning causes it in torch.
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    # Several devices and a batch of one: the strides differ in an axis of length one, the network's only input channel.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
