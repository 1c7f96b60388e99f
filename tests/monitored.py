"""Small foreign trainings for the tests of the monitor."""

import mlflow
import torch
from torch import nn

from fnostab import monitor

#: A run's place in a study.
PLACE = {"study": "toy", "arm": "wide", "seed": 3}


class Toy(nn.Module):
    """Two layers and a name for each."""

    def __init__(self, width=8):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, width), nn.Linear(width, width)])
        self.out = nn.Linear(width, 1)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.out(x)


def toy(seed=0, lr=1e-2, kind=torch.optim.Adam, **options):
    """A network and its optimizer."""
    torch.manual_seed(seed)
    model = Toy()
    return model, kind(model.parameters(), lr=lr, **options)


def data(seed=0, n=16):
    """Inputs, and what a network can learn of them."""
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :1] - x[:, 1:2]


def gradients(model, seed=0):
    """One backward pass; returns its loss."""
    x, y = data(seed)
    loss = (model(x) - y).square().mean()
    loss.backward()
    return loss


def train(model, optimizer, epochs=3, steps=4, **settings):
    """A plain loop under the monitor; returns the run, whose context is over."""
    with monitor.run(model, optimizer, **PLACE | settings) as run:
        for epoch in range(epochs):
            for step in range(steps):
                optimizer.zero_grad()
                run.step(gradients(model, epoch * steps + step))
            x, y = data(99)
            run.epoch(val_loss=(model(x) - y).square().mean())
    return run


def stored(run):
    """The run as the store has it."""
    return mlflow.MlflowClient().get_run(run.run_id)


def artifact(run, name):
    """A JSON artifact of a run."""
    return mlflow.artifacts.load_dict(f"{stored(run).info.artifact_uri}/{name}")


def points(run, name):
    """A metric's (step, value) pairs."""
    return [(point.step, point.value) for point in mlflow.MlflowClient().get_metric_history(run.run_id, name)]
