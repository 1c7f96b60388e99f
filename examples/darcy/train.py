"""Does adaptive clipping make an FNO on Darcy flow train more steadily? Two arms, three seeds, one ranking.

    python examples/darcy/train.py             # a plain loop; --lightning: the same with Lightning, darcy-lightning
    fnostab compare --study darcy

Needs `pip install fnostab[neuralop]`; some minutes on two CPU cores.
"""

import argparse

import lightning
import torch
from flow import constant_error, darcy, relative_error, small_fno
from torch.utils.data import DataLoader, TensorDataset

from fnostab import monitor

ARMS = {"fno-plain": ("none", 0.0), "fno-agc": ("agc", 0.01)}  # a rule and its limit


def train_plainly(train: DataLoader, val: TensorDataset, epochs: int, **named) -> None:
    """Train one run in a loop of one's own."""
    model = small_fno(named["seed"])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    with monitor.run(model, optimizer, **named) as run:
        for _ in range(epochs):
            for permeability, pressure in train:
                optimizer.zero_grad()
                loss = relative_error(model(permeability), pressure)
                loss.backward()
                run.step(loss)  # records the norms, clips, and calls optimizer.step()
            with torch.no_grad():
                run.epoch(val_loss=relative_error(model(val.tensors[0]), val.tensors[1]))
    print(f"{named['arm']}, seed {named['seed']}: {run.verdict.label}, {run.verdict.reason}")


class Darcy(lightning.LightningModule):
    """The same training for Lightning."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.model = small_fno(seed)

    def training_step(self, batch, index):
        return relative_error(self.model(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val_loss", relative_error(self.model(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def main() -> None:
    """Train both arms on every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lightning", action="store_true")
    for name, default in {"seeds": 3, "epochs": 20, "samples": 256, "cells": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    data, val = darcy(given.samples, given.cells, seed=0), darcy(64, given.cells, seed=1)
    dataset = f"darcy-{given.samples}x{given.cells}"
    study = "darcy-lightning" if given.lightning else "darcy"
    common = {"study": study, "baseline": constant_error(data, val), "dataset": dataset}
    for seed in range(given.seeds):
        for arm, clip in ARMS.items():
            order = torch.Generator().manual_seed(seed)
            train = DataLoader(data, batch_size=16, shuffle=True, generator=order)
            if given.lightning:
                watch = monitor.StabilityMonitor(arm=arm, seed=seed, clip=clip, val="val_loss", **common)
                quiet = {"logger": False, "enable_checkpointing": False}
                trainer = lightning.Trainer(max_epochs=given.epochs, callbacks=[watch], **quiet)
                trainer.fit(Darcy(seed), train, DataLoader(val, batch_size=64))
            else:
                train_plainly(train, val, given.epochs, arm=arm, seed=seed, clip=clip, **common)


if __name__ == "__main__":
    main()
