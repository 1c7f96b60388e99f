"""What all tests share: no test touches the user's cache, tracking store or display."""

import os
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest

# Arguments and results of these are checked against their annotations, shapes included. Before they are imported.
_CHECKED = ["optics", "scan", "metrics", "models", "clipping", "gradients"]
jaxtyping.install_import_hook([f"fnostab.{name}" for name in _CHECKED], "typecheck.checked")

os.environ["MPLBACKEND"] = "Agg"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
# Before torch is imported, and for every process that a test starts: two trainings with two OpenMP threads each on two
# cores take ten times as long as with one.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests, so that no worker is left with one when the others have ended."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device: torch.cuda.is_available() is False here")


def _use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let cache, tracking store and the artifacts' default place (the working directory) lie in `folder`."""
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FNOSTAB_CACHE", str(folder / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    monkeypatch.chdir(folder)


@pytest.fixture(scope="session", autouse=True)
def _outside_the_checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Store and cache for the whole session: datasets are found by content, so sharing them is safe and fast."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        _use(tmp_path_factory.mktemp("session"), monkeypatch)
        yield


@pytest.fixture
def fresh_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of the test's own that is cache, tracking store (`mlflow.db`) and working directory."""
    _use(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of an empty sqlite store: MLflow takes seconds to make one, so tests copy it."""
    import mlflow

    database = tmp_path_factory.mktemp("template") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{database}").search_experiments()
    return database
