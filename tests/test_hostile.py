"""Hostile and broken input is refused in one line, and nothing is written.

The inputs are in `hostile.py`, the lines that they are refused with in docs/reliability.md.
"""

import ast
import bz2
import hashlib
import re
import shlex
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import hostile
import numpy as np
import pytest
import yaml
from hostile import INPUTS, Input

from fnostab.cli import main
from fnostab.config import CONFIG_KEYS, ConfigError, read_config_file, resolve_config
from fnostab.dataset import import_scan
from fnostab.formats import npz
from fnostab.io.untrusted import MAX_YAML_NODES

ROOT = Path(__file__).resolve().parents[1]
#: A row of the docs' table: the input's name, the message in code, the exit code.
_ROW = re.compile(r"^\| (.+?) \| `` (.+) `` \| 2 \| nothing \|$", flags=re.MULTILINE)


def _documented() -> dict[str, str]:
    """The message of each input, by the input's name, as docs/reliability.md has them."""
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = _ROW.findall(page.partition("<!-- hostile input: begin -->")[2])
    return {re.sub(r"\\(.)", r"\1", name): message.replace("\\|", "|") for name, message in rows}


MESSAGES = _documented()


def _enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything lie in `folder` under relative names: messages are the same on every machine."""
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FNOSTAB_CACHE", "cache")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    monkeypatch.chdir(folder)


def _everything(folder: Path) -> dict[str, str]:
    """Every file and folder below `folder`, empty ones and lock files too, with a hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store that holds studies and models; its database and lock file are there beforehand."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as monkeypatch:
        _enter(folder, monkeypatch)
        hostile.prepare_store(folder)
    return folder


@pytest.mark.parametrize("name", INPUTS)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    given = INPUTS[name]
    folder = request.getfixturevalue("prepared") if given.in_store else tmp_path
    _enter(folder, monkeypatch)
    for variable, value in given.environment.items():
        monkeypatch.setenv(variable, value)
    if given.max_bytes:
        monkeypatch.setattr(npz, "MAX_BYTES", given.max_bytes)
    if given.make:
        given.make(folder)
    before = _everything(folder)
    capsys.readouterr()
    code = main(list(given.argv))
    said = capsys.readouterr()
    message = MESSAGES[name].replace("FOLDER", str(folder.resolve()))
    assert said.err == f"fnostab: error: {message}\n"
    assert message.isprintable()
    assert said.out == ""
    assert code == 2
    assert _everything(folder) == before


def test_the_docs_name_the_inputs_that_are_tested_and_no_others() -> None:
    assert set(MESSAGES) == set(INPUTS)
    assert len(INPUTS) >= 200


# Configurations, key by key: a new field without a bad value makes a test fail.


def test_every_key_of_the_config_has_a_bad_value_in_the_table() -> None:
    assert set(hostile.BAD_VALUES) == set(CONFIG_KEYS)


_DEFAULTS = resolve_config({}).flat()
_OPTIONAL_NUMBERS = {
    *("data.probe_radius_px", "data.max_train_patches", "data.max_val_patches"),
    *("data.object_pixel_m", "data.energy_keV", "data.distance_m", "data.detector_pixel_m", "data.mask_value"),
    *("data.scan_index", "data.modes", "data.photons_per_pattern"),
    *("model.layerscale_init", "train.threads", "train.give_up_after"),
    "train.watch_every_steps",
}
_NUMBERS = [
    key
    for key, value in _DEFAULTS.items()
    if key in _OPTIONAL_NUMBERS or (isinstance(value, int | float) and not isinstance(value, bool))
]
_TEXTS = [key for key, value in _DEFAULTS.items() if isinstance(value, str)]
_NO_NUMBERS = (
    *("nan", "inf", "-inf", "1e400", "-1" + 400 * "0", "1" + 400 * "0", 5000 * "9", "0x10", "1;2", "$(id)"),
    *("", " ", "x"),
    *(float("nan"), float("inf"), -(10**400), 10**400, 16**5000, True, [], [1], {"a": 1}, b"1", "1\x00", "\u0661\n1"),
)


def _refusal(key: str, value: object) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve_config({key: value})
    return str(caught.value)


def test_every_key_without_a_number_or_text_as_default_is_known_here() -> None:
    others = set(CONFIG_KEYS) - set(_NUMBERS) - set(_TEXTS)
    assert others == {
        *("train.learn_probe", "train.cuda_graph"),
        *("model.norm_centred", "model.norm_bias", "model.options", "data.object_mean"),
        *("clip.exclude", "clip.options", "optim.betas"),
    }


@pytest.mark.parametrize("key", _NUMBERS)
def test_what_is_no_number_in_range_is_refused_in_a_short_line(key: str) -> None:
    lines = [_refusal(key, value) for value in _NO_NUMBERS if not (key == "seed" and value == "")]
    assert all(line.isprintable() and len(line) < 500 for line in lines)
    assert all(line.startswith(f"`{key}") for line in lines)


@pytest.mark.parametrize("key", _TEXTS)
def test_what_is_no_text_is_refused_in_a_short_line(key: str) -> None:
    lines = [_refusal(key, value) for value in (1, 1.5, True, None, ["x"], {"a": "x"}, b"x", "\ud800")]
    assert all(line.isprintable() and len(line) < 500 for line in lines)


# Limits of time and memory.


def _peak(function) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="must"):
            function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_bz2_bomb_takes_no_more_memory_than_the_limit(tmp_path: Path) -> None:
    (tmp_path / "scan.npz").write_bytes(bz2.compress(bytes(2**24)))
    assert _peak(lambda: npz.NpzFile(tmp_path / "scan.npz", max_bytes=2**20)) < 2**23


@pytest.mark.parametrize("packed_by", [8, 12, 14])
def test_members_that_go_on_beyond_their_declared_end_are_not_unpacked(tmp_path: Path, packed_by: int) -> None:
    """8 MB of zeros take a few kB; zipfile itself would unpack those of bzip2 and LZMA at once."""
    whole = hostile.member(hostile.COUNTS)
    parts = {f"{key}.npy": hostile.member(array) for key, array in hostile.SCAN.items()}
    content = hostile.archive(*{**parts, "data.npy": whole + bytes(2**23)}.items(), packed_by=packed_by)
    (tmp_path / "scan.npz").write_bytes(hostile.declaring(content, len(whole)))
    assert _peak(lambda: import_scan(tmp_path / "scan.npz")) < 2**22


@pytest.mark.parametrize("given", [given for name, given in INPUTS.items() if "aliases" in name])
def test_aliases_take_no_memory(tmp_path: Path, given: Input) -> None:
    given.make(tmp_path)
    assert _peak(lambda: read_config_file(tmp_path / "arm.yaml")) < 2**23


def test_the_limit_of_a_scan_is_that_of_the_free_memory_where_that_is_less(tmp_path: Path, monkeypatch) -> None:
    class Memory:
        available = 2000

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    np.savez(tmp_path / "scan.npz", a=np.zeros(200))
    with pytest.raises(ValueError, match="must hold at most 1000 bytes, `a` goes beyond$"):
        npz.NpzFile(tmp_path / "scan.npz").read("a")


def test_aliases_and_merges_within_the_limit_are_taken(tmp_path: Path) -> None:
    text = "model: &a {width: 8}\ntrain: {epochs: 3}\noptim: {lr: &lr 0.1, weight_decay: *lr}\n"
    (tmp_path / "arm.yaml").write_text(text)
    assert read_config_file(tmp_path / "arm.yaml")["optim.weight_decay"] == 0.1
    (tmp_path / "arms.yaml").write_text("x: &x {width: 8}\narms: [{<<: *x, name: a}]\n")
    assert read_config_file(tmp_path / "arms.yaml")["arms"] == [{"width": 8, "name": "a"}]
    assert MAX_YAML_NODES >= 10_000 * 4  # the largest table of arms


# `mlflow run`: values become arguments of a shell command.

_INJECTIONS = (
    *("a; touch owned", "$(touch owned)", "`touch owned`", "a' ; touch owned ; '", 'a" ; touch owned ; "'),
    *("a b", "a\nb"),
    *("&& touch owned", "| tee owned", "> owned", "*", "~", "$HOME", "\\", "--register", "{arch}", "%s", "", "é\u202e"),
)
_ENTRY_POINTS = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]


@pytest.mark.parametrize("name", _ENTRY_POINTS)
def test_placeholders_of_a_command_stand_bare_and_each_parameter_is_there_once(name: str) -> None:
    """MLflow quotes the values; quotes of ours would end its own."""
    words = _ENTRY_POINTS[name]["command"].split()
    placeholders = [word for word in words if "{" in word or "}" in word]
    assert placeholders == [f"{{{key}}}" for key in _ENTRY_POINTS[name]["parameters"]]


@pytest.mark.parametrize("name", _ENTRY_POINTS)
def test_any_value_arrives_as_one_argument_of_the_command(name: str) -> None:
    from mlflow.projects._project_spec import load_project

    entry_point = load_project(str(ROOT)).get_entry_point(name)
    template = _ENTRY_POINTS[name]["command"].split()
    for value in _INJECTIONS:
        given = dict.fromkeys(_ENTRY_POINTS[name]["parameters"], value) | {"model.modes": value}
        words = [value if "{" in word else word for word in template]
        assert shlex.split(entry_point.compute_command(given, None)) == [*words, "--model.modes", value]


# The source: nothing that runs or unpickles what others wrote.

_FORBIDDEN_IMPORTS = {"pickle", "cloudpickle", "joblib", "dill", "marshal", "shelve"}
_FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all"),
}
#: A call whose keyword must be there, with this value.
_DEMANDED = {
    **dict.fromkeys(("torch.load", "torch.jit.load"), ("weights_only", True)),
    **dict.fromkeys(("np.load", "numpy.load", "np.lib.format.read_array"), ("allow_pickle", False)),
}


#: Where code is run that the user has named on the command line.
_USERS_CODE = {"io/foreign.py": ["exec", "compile"]}


def _faults(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if _FORBIDDEN_IMPORTS & {name.partition(".")[0] for name in module}:
                yield ast.unparse(node)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            key, value = _DEMANDED.get(name, ("", None))
            lacks = key and keywords.get(key) != str(value)
            if lacks or name in _FORBIDDEN_CALLS or keywords.get("shell", "False") != "False":
                yield ast.unparse(node)


def test_the_source_neither_unpickles_nor_runs_what_others_wrote() -> None:
    paths = sorted((ROOT / "fnostab").rglob("*.py"))
    assert len(paths) > 50
    found = {str(path.relative_to(ROOT / "fnostab")): [*_faults(path.read_text(encoding="utf-8"))] for path in paths}
    calls = {path: [fault.partition("(")[0] for fault in faults] for path, faults in found.items() if faults}
    assert calls == _USERS_CODE


@pytest.mark.parametrize(
    "line",
    [
        *("import pickle", "from joblib import load", "import cloudpickle.x", "yaml.load(text)", "eval(text)"),
        *("subprocess.run(c, shell=True)", "torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path)"),
        *("np.load(path, allow_pickle=True)", "os.system(c)", "np.lib.format.read_array(stream)"),
    ],
)
def test_the_audit_sees_what_it_forbids(line: str) -> None:
    assert len(list(_faults(line))) == 1
