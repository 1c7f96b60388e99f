"""Search for a clipping rule and a learning rate with Optuna; runs that fall behind are stopped early.

    python examples/optuna_clip.py                    # median pruner; --pruner asha: asynchronous successive halving
    fnostab compare --study darcy-search

Each trial is a run of the monitor with an arm and a seed of its own. A pruned one ends with the verdict `pruned`: it is
missing in a ranking, and no failure. Needs `pip install fnostab[neuralop] optuna`.
"""

import argparse
import sys
from pathlib import Path

import optuna
import torch
from torch.utils.data import DataLoader

from fnostab import monitor

sys.path.insert(0, str(Path(__file__).parent / "darcy"))
from flow import constant_error, darcy, relative_error, small_fno  # noqa: E402

#: For each rule the range of its limit.
LIMITS = {"norm": (0.01, 10.0), "agc": (1e-3, 0.1), "zclip": (1.5, 4.0)}
PRUNERS = {
    "median": optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=3),
    "asha": optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=2),
}


def objective(trial: optuna.Trial, train, val, epochs: int) -> float:
    """Train one network and return its validation error; `trial` says how, and whether it goes on."""
    rule = trial.suggest_categorical("rule", list(LIMITS))
    limit = trial.suggest_float(f"{rule}_limit", *LIMITS[rule], log=True)
    rate = trial.suggest_float("lr", 3e-4, 3e-2, log=True)
    model = small_fno(seed=trial.number)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    named = {"study": "darcy-search", "arm": rule, "seed": trial.number, "baseline": constant_error(train, val)}
    with monitor.run(model, optimizer, clip=(rule, limit), params=trial.params, **named) as run:
        for epoch in range(epochs):
            for permeability, pressure in DataLoader(train, batch_size=16, shuffle=True):
                optimizer.zero_grad()
                loss = relative_error(model(permeability), pressure)
                loss.backward()
                run.step(loss)
            with torch.no_grad():
                error = relative_error(model(val.tensors[0]), val.tensors[1]).item()
            run.epoch(val_loss=error)
            trial.report(error, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
    return error


def main() -> None:
    """Search, and print the best trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pruner", choices=PRUNERS, default="median")
    for name, default in {"trials": 20, "epochs": 15, "samples": 256, "cells": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    train, val = darcy(given.samples, given.cells, seed=0), darcy(64, given.cells, seed=1)
    study = optuna.create_study(pruner=PRUNERS[given.pruner], sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(lambda trial: objective(trial, train, val, given.epochs), n_trials=given.trials)
    print(f"best of {len(study.trials)}: {study.best_params}, error {study.best_value:.3g}")


if __name__ == "__main__":
    main()
