"""Under `mlflow run`, relative paths mean what they mean where the user stands."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fnostab.mlproject.caller import callers_folder

ROOT = Path(__file__).resolve().parents[1]

#: Stands in for the command line of a project's copy: says what it was given, and where.
_CLI = """
import os, subprocess, sys
def main(argv):
    print(os.getcwd(), *argv, sep="\\n", flush=True)
    return subprocess.run([sys.executable, "-c", "import fnostab.cli; print(fnostab.cli.__file__)"]).returncode
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose command only tells its arguments, and a user's folder beside it."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "fnostab", folder / "fnostab", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "fnostab" / "cli" / "__init__.py").write_text(_CLI)
    (tmp_path / "user").mkdir()
    return folder


def _run(project: Path, *arguments: str, through: tuple[str, ...] = ()) -> list[str]:
    """The lines that the entry point `main` prints if MLflow's part is played by a process in the user's folder."""
    command = [*through, sys.executable, "-m", "fnostab.mlproject.train", *arguments]
    play = (
        "import os, subprocess, sys\n"
        "sys.exit(subprocess.call(sys.argv[2:], cwd=sys.argv[1], env=os.environ | {'MLFLOW_RUN_ID': 'abc'}))"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_RUN_ID", "PYTHONPATH")}
    answer = subprocess.run(
        [sys.executable, "-c", play, str(project), *command],
        cwd=project.parent / "user",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return answer.stdout.splitlines()


@pytest.mark.parametrize("through", [(), ("bash", "-c", '"$@"; exit $?', "bash")], ids=["directly", "by a shell"])
def test_a_command_runs_where_the_user_stands_and_its_processes_import_the_projects_package(project, through):
    user = project.parent / "user"
    lines = _run(project, "--data", "scan.npz", "--out", "x", through=through)
    imported = project / "fnostab" / "cli" / "__init__.py"
    assert lines == [str(user), "train", "--data", "scan.npz", "--out", "x", str(imported)]


@pytest.mark.parametrize("ailing", ["parents", "cwd", "environ"])
def test_a_caller_that_cannot_be_looked_at_leaves_the_process_where_it_is(monkeypatch, ailing):
    def deny(*_: object) -> None:
        raise psutil.AccessDenied(1)

    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    monkeypatch.setattr(psutil.Process, ailing, deny)
    assert callers_folder() == Path.cwd()


def test_an_input_that_only_the_project_has_is_taken_from_there(project):
    (project / "arms.yaml").touch()
    (project / "out").touch()
    assert _run(project, "--arms", "arms.yaml", "--out", "out", "--data", "")[1:-1] == [
        *("train", "--arms", str(project / "arms.yaml"), "--out", "out", "--data", "")
    ]


def test_an_input_that_both_have_is_the_users_and_that_is_said(project):
    user = project.parent / "user"
    for folder in (project, user):
        (folder / "scan.npz").touch()
    said, _, *rest = _run(project, "--data", "scan.npz")
    assert said == f"`data` is {user / 'scan.npz'}, not the project's file of that name"
    assert rest[:-1] == ["train", "--data", "scan.npz"]


def test_a_file_of_code_that_only_the_project_has_is_taken_from_there_and_the_users_comes_first(project):
    (project / "net.py").touch()
    code = ("--clip_algo", "norm", "--model.options.depth", "3")
    assert _run(project, "--arch", "./net.py:Net", *code)[1:-1] == ["train", "--arch", f"{project}/net.py:Net", *code]
    (project.parent / "user" / "net.py").touch()
    said, _, *rest = _run(project, "--arch", "./net.py:Net")
    assert said == f"`arch` is {project.parent / 'user' / 'net.py'}, not the project's file of that name"
    assert rest[:-1] == ["train", "--arch", "./net.py:Net"]
