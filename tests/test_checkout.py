"""The code that a run was trained with: a commit, or a commit and what it lacks."""

import subprocess

import pytest

from fnostab.tracking import checkout


def _git(folder, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A committed package in a checkout of its own."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "__init__.py").write_text("x = 1\n")
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr(checkout, "_PACKAGE", folder)
    return folder


def test_committed_code_has_its_commit_and_no_difference(package):
    (package.parent / "notes.txt").write_text("no code")
    assert checkout.git_commit() == _git(package, "rev-parse", "HEAD")
    assert checkout.uncommitted_code() == ""


def test_changed_and_new_code_is_said_and_can_be_put_back(package):
    (package / "__init__.py").write_text("x = 2\n")
    (package / "new.py").write_text("y = 3\n")
    assert checkout.git_commit() == _git(package, "rev-parse", "HEAD") + "-dirty"
    difference = checkout.uncommitted_code()
    (package / "new.py").unlink()
    _git(package, "checkout", ".")
    (package.parent / "code.diff").write_text(difference)
    _git(package.parent, "apply", "code.diff")
    assert [(package / name).read_text() for name in ("__init__.py", "new.py")] == ["x = 2\n", "y = 3\n"]


def test_an_installed_package_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(checkout, "_PACKAGE", tmp_path)
    assert checkout.git_commit() == "unknown"
    assert checkout.uncommitted_code() == ""


def test_a_checkout_whose_changes_git_does_not_tell_is_not_taken_for_a_clean_one(package, monkeypatch):
    ask = checkout._git
    monkeypatch.setattr(checkout, "_git", lambda *words, **how: None if "diff" in words else ask(*words, **how))
    assert checkout.git_commit() == _git(package, "rev-parse", "HEAD") + "-dirty"
    assert checkout.uncommitted_code() == "Not all changes of the code are known: git did not answer.\n"


def test_a_difference_can_be_applied_whatever_the_user_has_configured(package):
    for key, value in (("color.ui", "always"), ("diff.noprefix", "true"), ("diff.external", "echo")):
        _git(package, "config", key, value)
    (package / "__init__.py").write_text("x = 2\n")
    difference = checkout.uncommitted_code()
    _git(package, "checkout", ".")
    (package.parent / "code.diff").write_text(difference)
    _git(package.parent, "apply", "code.diff")
    assert (package / "__init__.py").read_text() == "x = 2\n"
