"""Commands start themselves again with huge pages, where the system has them and the user has not chosen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fnostab.io import huge_pages
from fnostab.io.huge_pages import TUNABLES

ROOT = Path(__file__).resolve().parents[1]
HUGE = "glibc.malloc.hugetlb=1"
ASKED = "always [madvise] never\n"
#: Says with which tunables an interpreter starts.
SAYS = "import os, sys; print('started with', os.environ.get('GLIBC_TUNABLES'), file=sys.stderr)\n"


@pytest.fixture
def system(monkeypatch, tmp_path):
    """A system with the mode of huge pages and the C library that the test says."""

    def make(mode=ASKED, library="glibc 2.36"):
        file = tmp_path / "enabled"
        if mode is not None:
            file.write_text(mode)
        monkeypatch.setattr(huge_pages, "_MODE", file)
        monkeypatch.setattr(os, "confstr", lambda name: library)

    return make


def test_what_the_user_says_of_other_tunables_stays(system):
    system()
    assert huge_pages.huge_pages({}) == {TUNABLES: HUGE}
    assert huge_pages.huge_pages({TUNABLES: "glibc.malloc.perturb=3"}) == {TUNABLES: f"glibc.malloc.perturb=3:{HUGE}"}


@pytest.mark.parametrize("said", ["glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=2:glibc.malloc.perturb=1", HUGE])
def test_nothing_is_asked_where_the_user_has_chosen(system, said):
    system()
    assert huge_pages.huge_pages({TUNABLES: said}) == {}


@pytest.mark.parametrize(
    ("mode", "library"),
    [
        ("[always] madvise never\n", "glibc 2.36"),
        ("always madvise [never]\n", "glibc 2.36"),
        (None, "glibc 2.36"),
        (ASKED, "glibc 2.34"),
        (ASKED, "musl 1.2"),
        (ASKED, None),
        (ASKED, "glibc two"),
    ],
)
def test_nothing_is_asked_where_that_changes_nothing(system, mode, library):
    system(mode, library)
    assert huge_pages.huge_pages({}) == {}


def test_a_system_that_does_not_name_its_c_library_is_left_alone(system, monkeypatch):
    system()
    monkeypatch.delattr(os, "confstr")
    assert huge_pages.huge_pages({}) == {}


def test_a_program_that_cannot_be_started_again_goes_on(system, monkeypatch):
    system()
    monkeypatch.delenv(TUNABLES, raising=False)

    def refused(*_):
        raise PermissionError("no")

    monkeypatch.setattr(os, "execve", refused)
    huge_pages.start_again_with_huge_pages()
    assert TUNABLES not in os.environ


def starts(command, tmp_path, **environment):
    """What each interpreter that `command` starts says, and what the command prints."""
    (tmp_path / "sitecustomize.py").write_text(SAYS)
    environment = {name: value for name, value in os.environ.items() if name != TUNABLES} | environment
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(tmp_path), environment.get("PYTHONPATH", "")]))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    said = [line.removeprefix("started with ") for line in done.stderr.splitlines() if line.startswith("started with")]
    return said, done.stdout


@pytest.mark.skipif(not huge_pages.huge_pages({}), reason="this system gives no huge pages to who asks for them")
@pytest.mark.parametrize(
    "command",
    [
        ["-m", "fnostab", "check-arch", "--help"],
        ["-W", "ignore", "-m", "fnostab.mlproject.compare", "--help"],
        ["-c", "import sys; from fnostab.__main__ import run; sys.exit(run())", "compare", "--help"],
    ],
    ids=["module", "mlproject", "program"],
)
def test_a_command_starts_again_once_with_its_arguments(command, tmp_path):
    said, printed = starts([sys.executable, *command], tmp_path)
    assert said == ["None", HUGE]
    assert printed.startswith("usage: fnostab c")
    said, again = starts([sys.executable, *command], tmp_path, GLIBC_TUNABLES="glibc.malloc.hugetlb=0")
    assert said == ["glibc.malloc.hugetlb=0"]
    assert again == printed


def test_what_is_computed_is_the_same_to_the_last_bit():
    code = (
        "import torch; from benchmarks.step import training_step; from fnostab.config import ModelConfig\n"
        "from fnostab.models import build_generator; torch.manual_seed(0); torch.set_num_threads(1)\n"
        "step = training_step('ours', build_generator(ModelConfig(width=8), 64), 64, 8, torch.device('cpu'))\n"
        "print([step().item() for _ in range(4)])"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,  # where `benchmarks` is imported from; a test's own folder is a temporary one
            env=os.environ | {TUNABLES: f"glibc.malloc.hugetlb={value}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for value in (0, 1)
    ]
    assert printed[0] == printed[1]
    assert printed[0].count(",") == 3
