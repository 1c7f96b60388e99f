"""A network in a file of the user's, the whole way: trained, resumed, compared, registered, served."""

import os
import shutil
import signal
from pathlib import Path

import mlflow
import numpy as np
import pytest

from fnostab.cli import main
from fnostab.config import resolve_config
from fnostab.io.endings import Interrupted
from fnostab.workflows.train import train_arm

_NETWORK = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width, N):
        super().__init__()
        self.spectrum = nn.Parameter(torch.randn(width, N, N // 2 + 1, 2) / 10)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.activation = lambda x: nn.functional.gelu(x)  # which nothing could pickle

    def forward(self, x):
        spectrum = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(self.spectrum)
        return x + self.activation(torch.fft.irfft2(spectrum, s=x.shape[-2:], norm="ortho") + self.conv(x))

class Net(nn.Module):
    block_cls = Block

    def __init__(self, hidden_channels, N, depth=2):
        super().__init__()
        print("a network of one's own")
        self.lift = nn.Conv2d(1, hidden_channels, 3, padding=1)
        self.blocks = nn.ModuleList(Block(hidden_channels, N) for _ in range(depth))
        self.out = nn.Sequential(nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1), nn.GELU(),
                                 nn.Conv2d(hidden_channels, 2, 1))

    def forward(self, x):
        x = self.lift(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x).movedim(1, -1).unsqueeze(3)
"""
_TABLE = """
study: own
preset: smoke
train: {epochs: 2, picture_every_epochs: 100}
arms:
  - {name: one, arch: "./net.py:Net", model.options.depth: 1, train.artifacts: numbers}
  - {name: two, arch: "./net.py:Net"}
"""
_TINY = {
    **{
        "preset": "smoke",
        "arch": "./net.py:Net",
        "width": 4,
        "train.artifacts": "numbers",
        "train.threads": 1,
        "epochs": 2,
    },
    **{"data.max_train_patches": 96, "data.max_val_patches": 32},
}


def _use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    (folder / "net.py").write_text(_NETWORK)
    (folder / "arms.yaml").write_text(_TABLE)


def _runs(study: str) -> list:
    found = mlflow.MlflowClient().search_runs(["0"], f"tags.study = '{study}'")
    return sorted((run for run in found if "arm" in run.data.tags), key=lambda run: run.data.tags["arm"])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """The folder of a study of two arms of one's own, trained in processes."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copy(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as monkeypatch:
        _use(folder, monkeypatch)
        assert main(["study", "--arms", "arms.yaml", "--workers", "1"]) == 0
    return folder


def test_its_runs_say_which_network_it_was_and_keep_its_source(study: Path, monkeypatch) -> None:
    _use(study, monkeypatch)
    one, two = _runs("own")
    assert one.data.tags["arch"] == two.data.tags["arch"] == "net.py:Net"
    assert one.data.params["model.options.depth"] == "1"
    assert not [key for key in two.data.params if key.startswith("model.options")]
    assert len(one.data.params["model.source_sha256"]) == 64
    for run in (one, two):
        uri = f"runs:/{run.info.run_id}/code/net.py"
        assert Path(mlflow.artifacts.download_artifacts(uri)).read_text() == _NETWORK
    activations = {name for name in two.data.metrics if name.startswith("health/act_std/")}
    assert activations == {"health/act_std/blocks.0", "health/act_std/blocks.1"}


def test_its_model_is_served_where_its_file_is_gone(study: Path, monkeypatch) -> None:
    _use(study, monkeypatch)
    (study / "net.py").unlink()
    model = mlflow.pyfunc.load_model(f"runs:/{_runs('own')[1].info.run_id}/model")
    counts = np.random.default_rng(0).poisson(100, (3, 32, 32)).astype(np.float32)
    patches = model.predict(counts)
    assert patches.shape == (3, 32, 32, 2)
    np.testing.assert_allclose(model.predict(counts[:1]), patches[:1], rtol=1e-4, atol=1e-5)


def test_its_runs_are_ranked_and_the_best_is_registered_where_its_file_is_gone(study: Path, monkeypatch) -> None:
    _use(study, monkeypatch)
    (study / "net.py").unlink()
    assert main(["compare", "--study", "own"]) == 0
    client = mlflow.MlflowClient()
    assert [model.name for model in client.search_registered_models()] == ["fnostab-own"]
    assert main(["inspect", _runs("own")[0].info.run_id]) == 0


def test_an_interrupted_run_goes_on_bit_for_bit_from_any_folder(study: Path, tmp_path: Path, monkeypatch) -> None:
    _use(study, monkeypatch)
    config = resolve_config({**_TINY, "study": "resumed"})
    whole = train_arm(config.model_copy(update={"study": "whole"}), lambda line: None)
    with pytest.raises(Interrupted, match="SIGTERM"):
        train_arm(config, lambda line: None, watch=lambda done: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.chdir(tmp_path)
    there = resolve_config({**_TINY, "study": "resumed", "arch": f"{os.path.relpath(study)}/net.py:Net"})
    said: list[str] = []
    resumed = train_arm(there, said.append)
    assert said[0].startswith("continuing Net-norm")
    assert resumed.history.to_json() == whole.history.to_json()


@pytest.mark.slow
def test_ray_tasks_on_this_machine_find_it(study: Path, monkeypatch) -> None:
    pytest.importorskip("ray")
    _use(study, monkeypatch)
    (study / "rayed.yaml").write_text("arms: [{name: own, arch: net.py:Net, model.options.depth: 1}]\n")
    tiny = ("--preset", "smoke", "--epochs", "1", "--width", "4", "--data.max_train_patches", "96")
    given = ("--launcher", "ray", "--train.artifacts", "numbers", *tiny)
    assert main(["study", "--arms", "rayed.yaml", *given]) == 0
    (run,) = _runs("rayed")
    assert (run.info.status, run.data.params["model.arch"]) == ("FINISHED", f"{study / 'net.py'}:Net")
