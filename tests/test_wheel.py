"""The wheel: what it brings, and that its entry points run where there is no clone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import mlflow
import pytest
import yaml

from fnostab import __version__
from fnostab.workflows.project_folder import project_text

ROOT = Path(__file__).resolve().parents[1]
#: What of the repository a wheel is built from.
_SOURCES = ("fnostab", "pyproject.toml", "setup.py", "MANIFEST.in", "MLproject", "conda.yaml", "README.md", "LICENSE")
#: Files of the package that are no code, as a user's commands read them.
_DATA = ("report/*.j2", "config/arms/*.yaml", "formats/presets/*.yaml", "py.typed")


def _run(argv, folder, **variables):
    done = subprocess.run(argv, cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (argv, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy, so that the checkout stays as it is, by the build tools that are installed."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in _SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    _run([sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", "dist"], folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with what the wheel installs, which goes before this checkout on `PYTHONPATH`."""
    folder = tmp_path_factory.mktemp("installed")
    _run([sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], folder)
    return folder / "site"


def test_a_wheel_brings_the_package_with_its_data_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fnostab").rglob("*.py")}
    data = {path.relative_to(ROOT).as_posix() for one in _DATA for path in (ROOT / "fnostab").glob(one)}
    about = {name for name in names if name.startswith(f"fnostab-{__version__}.dist-info/")}
    assert len(data) > 10
    assert names - about == package | data | {"fnostab/mlproject/MLproject"}


def test_the_projects_file_names_no_environment_and_all_entry_points(wheel):
    text = zipfile.ZipFile(wheel).read("fnostab/mlproject/MLproject").decode()
    assert text == (ROOT / "MLproject").read_text(encoding="utf-8")
    written, whole = yaml.safe_load(project_text()), yaml.safe_load(text)
    assert whole.pop("conda_env") == "conda.yaml"
    assert written == whole


@pytest.mark.slow
def test_an_entry_point_of_the_wheel_trains_where_there_is_no_clone(installed, fresh_store):
    scripts = fresh_store / "bin"
    scripts.mkdir()
    (scripts / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (scripts / "python").chmod(0o755)
    path = {"PYTHONPATH": str(installed), "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    folder = fresh_store / "work"
    folder.mkdir()
    said = _run(["python", "-c", "import fnostab; print(fnostab.__file__)"], folder, **path)
    assert said.startswith(str(installed))
    said = _run([str(installed / "bin" / "fnostab"), "mlproject", "--out", "project"], folder, **path)
    assert f"MLproject: {folder / 'project' / 'MLproject'}\n" in said
    assert f"mlflow run {folder / 'project'} --env-manager local" in said
    short = {"preset": "smoke", "epochs": 1, "width": 4, "data.max_train_patches": 32, "train.artifacts": "numbers"}
    parameters = [word for key, value in short.items() for word in ("-P", f"{key}={value}")]
    _run(["python", "-m", "mlflow", "run", "project", "--env-manager", "local", *parameters], folder, **path)
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert [(run.info.status, run.data.tags["arm"], run.data.params["epochs"]) for run in runs] == [
        ("FINISHED", "control", "1")
    ]
    assert {entry.name for entry in (folder / "project").iterdir()} == {"MLproject"}
