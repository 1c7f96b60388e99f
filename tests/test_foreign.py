"""Code that users name: what is imported, what is refused, and what an import leaves behind."""

import hashlib
import pickle
import re
import sys
from pathlib import Path

import pytest

from fnostab.io.foreign import is_foreign, load_foreign


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write files of code into an empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_file_gives_its_name_its_path_and_the_hash_of_its_bytes(write) -> None:
    path = write("mine.py", "class Net:\n    class Inner:\n        depth = 3\n")
    found = load_foreign("./mine.py:Net.Inner", "model.arch")
    assert (found.value.depth, found.name, found.source) == (3, "./mine.py:Net.Inner", path.resolve())
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert pickle.loads(pickle.dumps(found.value)) is found.value


def test_a_module_gives_the_file_in_which_the_name_is_written() -> None:
    found = load_foreign("fnostab.models:build_generator", "model.arch")
    assert found.source is not None
    assert found.source.name == "registry.py"
    assert found.sha256 == hashlib.sha256(found.source.read_bytes()).hexdigest()


def test_compiled_code_has_no_source() -> None:
    found = load_foreign("math:sqrt", "clip.algo")
    assert (found.value(4), found.source, found.sha256) == (2, None, "")


def test_a_file_is_run_once_and_again_when_it_changes(write) -> None:
    write("mine.py", "value = []\n")
    first = load_foreign("mine.py:value", "model.arch").value
    assert load_foreign("./mine.py:value", "model.arch").value is first
    write("mine.py", "value = [1]\n")
    assert load_foreign("mine.py:value", "model.arch").value == [1]


def test_files_of_one_name_in_two_folders_are_two_modules(write) -> None:
    for folder in ("a", "b"):
        write(f"{folder}/mine.py", f"value = '{folder}'\n")
    assert [load_foreign(f"{folder}/mine.py:value", "model.arch").value for folder in "ab"] == ["a", "b"]


def test_a_file_without_neighbours_leaves_the_path_alone(write, tmp_path: Path) -> None:
    write("mine.py", "import math\nvalue = 1\n")
    load_foreign("mine.py:value", "model.arch")
    assert str(tmp_path) not in sys.path
    assert not (tmp_path / "__pycache__").exists()


def test_a_file_may_import_its_neighbours_also_later(write, tmp_path: Path) -> None:
    write("beside_one.py", "value = 1\n")
    write("beside_two.py", "value = 2\n")
    write("mine.py", "import beside_one\ndef later():\n    import beside_two\n    return beside_two.value\n")
    assert load_foreign("mine.py:later", "model.arch").value() == 2
    assert sys.path[-1] == str(tmp_path)


def test_a_neighbour_that_another_folder_has_given_already_is_refused(write) -> None:
    for folder in ("a", "b"):
        write(f"{folder}/beside.py", f"value = '{folder}'\n")
        write(f"{folder}/mine.py", "from beside import value\n")
    assert load_foreign("a/mine.py:value", "model.arch").value == "a"
    with pytest.raises(ValueError, match="must not import beside, of which another one is imported already"):
        load_foreign("b/mine.py:value", "model.arch")


def test_what_an_import_prints_does_not_go_to_stdout(write, capsys: pytest.CaptureFixture[str]) -> None:
    write("mine.py", "print('hello')\nvalue = 1\n")
    load_foreign("mine.py:value", "model.arch")
    assert capsys.readouterr() == ("", "hello\n")


BROKEN = {
    "value = (\n": "must be Python: '(' was never closed, line 1 of ",
    "value = 1\nraise RuntimeError('no luck\\ntoday')\n": "must be importable, and raised RuntimeError: no luck",
    "import sys\nsys.exit(3)\n": "must be importable, and raised SystemExit: 3",
    "import no_such_module\n": "must be importable, and raised ModuleNotFoundError: No module named 'no_such_module'",
    "value\0 = 1\n": "must be ",  # the words differ between versions of Python
    "other = 1\n": "must be in mine.py, which has no value",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_file_is_refused_in_one_line_and_not_kept(write, text: str) -> None:
    write("mine.py", text)
    before = set(sys.modules)
    with pytest.raises(ValueError, match=r"^`model\.arch` \(=mine\.py:value\) " + re.escape(BROKEN[text])) as refused:
        load_foreign("mine.py:value", "model.arch")
    assert "\n" not in str(refused.value)
    assert not BROKEN[text].startswith("must be importable") or set(sys.modules) == before


NAMES = {
    "./missing.py:Net": "must be in a readable file: No such file or directory",
    "./:Net": "must be in a readable file: Is a directory",
    "/dev/zero:Net": "must be in a readable file: it is a device or a pipe",
    "a\0b.py:Net": "must be package.module:name or ./file.py:name",
    "no_such_package.module:Net": "must be in a module that Python finds, and there is no no_such_package.module",
    "json.no_such_module:Net": "must be in a module that Python finds, and there is no json.no_such_module",
    "json:no_such_name": "must be in json, which has no no_such_name",
    "__main__:Net": "must not be in __main__",
    ":Net": "must be package.module:name or ./file.py:name",
    "json:": "must be package.module:name or ./file.py:name",
    "json:a b": "must be package.module:name or ./file.py:name",
    ".json:Net": "must be importable, and raised TypeError",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_stands_for_nothing_is_refused_in_one_line(write, name: str) -> None:
    with pytest.raises(ValueError, match=r"^`clip\.algo` \(=.*\) " + re.escape(NAMES[name])) as refused:
        load_foreign(name, "clip.algo")
    assert "\n" not in str(refused.value)


def test_names_with_a_colon_are_foreign() -> None:
    assert [is_foreign(name) for name in ("hybrid", "a.b:C", "./a.py:C")] == [False, True, True]
