"""What was stored before still works: a store that commit 0f04361 made is read, ranked, and its champion predicts.

`tests/data/store-0f04361.tar.xz` is a study of three arms and two seeds (`fnostab study`, preset smoke, then `fnostab
compare`), less its pictures. Paths in it begin with `@STORE@`, which stands for the folder that it is unpacked to.
`expected.npz` holds counts, and the patches that the registered model predicted from them.
"""

import json
import sqlite3
import tarfile
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from fnostab.cli import main
from fnostab.config import ArmConfig
from fnostab.dataset import load_or_build
from fnostab.models import build_generator
from fnostab.tracking.artifacts import read_config
from fnostab.tracking.studies import find_runs

_ARCHIVE = Path(__file__).with_name("data") / "store-0f04361.tar.xz"
#: Columns of the store that hold paths.
_PATHS = {
    "runs": "artifact_uri",
    "experiments": "artifact_location",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}


@pytest.fixture(scope="module")
def old_store(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(_ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    with sqlite3.connect(folder / "mlflow.db") as database:
        for table, column in _PATHS.items():
            database.execute(f"UPDATE {table} SET {column} = replace({column}, '@STORE@', ?)", [str(folder)])
    for path in folder.rglob("MLmodel"):
        path.write_text(path.read_text().replace("@STORE@", str(folder)))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("FNOSTAB_CACHE", str(folder / "cache"))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        yield folder


@pytest.fixture(scope="module")
def expected(old_store):
    return np.load(old_store / "expected.npz")


@pytest.fixture(scope="module")
def champion(old_store):
    return mlflow.MlflowClient().get_model_version_by_alias("fnostab-old", "champion")


def test_a_registered_model_of_before_gives_what_it_gave(old_store, expected):
    model = mlflow.pyfunc.load_model("models:/fnostab-old@champion")
    np.testing.assert_allclose(model.predict(expected["counts"]), expected["patches"], atol=1e-5)


def test_a_checkpoint_of_before_loads_into_todays_network_and_gives_the_same(old_store, expected, champion):
    config = ArmConfig.model_validate(read_config(champion.run_id))
    path = mlflow.artifacts.download_artifacts(run_id=champion.run_id, artifact_path="checkpoints/best.ckpt")
    state = torch.load(path, weights_only=True)["state_dict"]
    network = build_generator(config.model, config.data.N).eval()
    network.load_state_dict({key.removeprefix("generator."): v for key, v in state.items() if "generator." in key})
    amplitudes = torch.from_numpy(np.sqrt(expected["counts"])) * load_or_build(config.data).input_scale
    with torch.no_grad():
        patches = network(amplitudes[:, None])[..., 0, :]
    np.testing.assert_allclose(patches, expected["patches"], atol=1e-4)


def test_runs_of_before_have_the_identity_that_todays_config_gives_them(old_store):
    runs = find_runs("old")
    assert len(runs) == 6
    for run in runs:
        assert ArmConfig.model_validate(read_config(run.run_id)).sha256() == run.tags["config_sha256"]


def test_a_run_of_before_is_inspected(old_store, champion, capsys):
    assert main(["inspect", champion.run_id, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["arm"], found["verdict"]) == ("stable", "converged")
    assert found["evidence"]["grad_norm_max"] > 0


def test_a_study_of_before_is_ranked_to_the_same_numbers_and_nothing_is_registered_twice(old_store, capsys):
    before = json.loads(next(old_store.glob("mlruns/0/*/artifacts/old_metrics.json")).read_text())
    assert main(["compare", "--study", "old", "--out", "again"]) == 0
    assert "version 1" in capsys.readouterr().out
    again = json.loads((old_store / "again" / "old_metrics.json").read_text())
    for row, earlier in zip(again, before, strict=True):  # SciPy's Wilson interval differs in the last bit
        for name, value in earlier.items():
            assert row[name] == (pytest.approx(value) if isinstance(value, float) else value), name
    assert len(mlflow.MlflowClient().search_model_versions("name='fnostab-old'")) == 1


def test_a_study_of_before_is_exported_with_its_histories(old_store):
    assert main(["export", "--study", "old", "--out", "old.jsonl.gz"]) == 0
    assert (old_store / "old.jsonl.gz").stat().st_size > 10_000
