"""Two processes that train together: one writes, the gradients are those after the all-reduce, the loss is the mean."""

import json
import os
import subprocess
import sys
import textwrap

import mlflow
import pytest
import torch
from monitored import Toy, data

from fnostab.gradients import total_norm

_SCRIPT = """
    import json, os, sys, warnings
    warnings.filterwarnings("ignore")
    import lightning, torch
    from torch.utils.data import DataLoader, TensorDataset
    from monitored import Toy, data
    from fnostab.monitor import StabilityMonitor

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = Toy()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def training_step(self, batch, index):
            return (self.net(batch[0]) - batch[1]).square().mean()

        def validation_step(self, batch, index):
            self.log("val_loss", (self.net(batch[0]) - batch[1]).square().mean(), sync_dist=True)

    watch = StabilityMonitor(study="two", arm="a", seed=0, baseline=2.0, clip=("norm", 0.3))
    rank = int(os.environ.get("LOCAL_RANK", 0))  # Lightning would shuffle
    loader = DataLoader(TensorDataset(*(of[rank::2] for of in data())), 4)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", use_distributed_sampler=False, max_epochs=2, callbacks=[watch],
        logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )
    trainer.fit(Module(), loader, loader)
    found = {"rank": trainer.global_rank, "run": watch.run_id, "loss": watch.history.loss_step}
    print(json.dumps(found | {"norm": watch.history.grad_norm_preclip}), flush=True)
"""


@pytest.mark.slow
def test_two_processes_of_lightning_write_one_run(fresh_store):
    script = fresh_store / "train.py"
    script.write_text(textwrap.dedent(_SCRIPT))
    paths = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=os.environ | paths, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = sorted((json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"), key=lambda f: f["rank"])
    assert [process["rank"] for process in found] == [0, 1]
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert [process["run"] for process in found] == [run.info.run_id, None]
    assert found[0]["loss"] == found[1]["loss"]
    losses, norms = _by_hand()
    assert found[0]["loss"] == pytest.approx(losses)
    assert found[0]["norm"] == pytest.approx(norms)


def _by_hand():
    """The same steps in one process: of two batches of four, every second pattern each, the mean."""
    torch.manual_seed(0)
    net = Toy()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = data()
    losses, norms = [], []
    order = torch.arange(16).reshape(8, 2)  # in each row the patterns of both processes
    for step in [0, 1, 0, 1]:
        rows = order[4 * step : 4 * step + 4]
        optimizer.zero_grad()
        loss = (net(x[rows.flatten()]) - y[rows.flatten()]).square().mean()
        loss.backward()
        losses.append(float(loss.detach()))
        norms.append(float(total_norm(net)))
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.3)
        optimizer.step()
    return losses, norms
