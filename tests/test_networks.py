"""Networks by name: how they are named, what they are given, and that their names and files are part of an identity."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st

from fnostab.config import ConfigError, ModelConfig, namesake, networks, resolve_config, stored_config, with_sources
from fnostab.config.options import checked_options
from fnostab.models import build_generator

#: A network like those that users write: 20 lines, blocks of its own, an activation that cannot be pickled.
NETWORK = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.activation = lambda x: torch.tanh(x)

    def forward(self, x):
        return x + self.activation(self.conv(x))

class Net(nn.Module):
    def __init__(self, hidden_channels=8, C=1, depth=2):
        super().__init__()
        self.C = C
        self.lift = nn.Conv2d(C, hidden_channels, 3, padding=1)
        self.blocks = nn.ModuleList(Block(hidden_channels) for _ in range(depth))
        self.out = nn.Conv2d(hidden_channels, 2 * C, 1)

    def forward(self, x):
        x = self.lift(x)
        for block in self.blocks:
            x = block(x)
        x = self.out(x)
        return x.reshape(len(x), 2, self.C, *x.shape[2:]).permute(0, 3, 4, 2, 1)

class Given(nn.Module):
    def __init__(self, hidden_channels, n_blocks, modes, N, C, in_channels, out_channels, *, width, gamma_init, **more):
        super().__init__()
        self.given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
"""


@pytest.fixture
def network_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file `net.py` in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.py"
    path.write_text(NETWORK)
    return path


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    """Let packages offer networks: pairs of a name and where it lies."""

    def install(*pairs: tuple[str, str]) -> None:
        entries = [EntryPoint(name, value, networks.ENTRY_POINTS) for name, value in pairs]
        monkeypatch.setattr(networks, "entry_points", lambda group: [each for each in entries if each.group == group])

    return install


def test_an_arm_is_called_like_the_class_and_not_like_the_file() -> None:
    assert resolve_config({"arch": "./a/net.py:Net"}).arm == "Net-norm"
    assert resolve_config({"arch": "package.module:Net.Inner", "clip_algo": "agc"}).arm == "Net.Inner-agc"
    assert resolve_config({"arch": "a.py:cnn", "train.mode": "supervised"}).arm == "cnn-supervised"


def test_a_network_gets_the_settings_that_its_constructor_names_and_the_options(network_file: Path) -> None:
    config = resolve_config({"arch": "./net.py:Given", "width": 5, "model.options": {"depth": 3}, "model.modes": 4})
    network = build_generator(config.model, 32, 4)
    assert network.given == {
        **{"hidden_channels": 5, "width": 5, "n_blocks": 4, "modes": 4, "gamma_init": 0.0},
        **{"N": 32, "C": 4, "in_channels": 1, "out_channels": 2, "more": {"depth": 3}},
    }


def test_a_function_may_make_the_network(network_file: Path) -> None:
    network_file.write_text(NETWORK + "\ndef deep(hidden_channels):\n    return Net(hidden_channels, depth=5)\n")
    network = build_generator(resolve_config({"arch": "net.py:deep", "width": 3}).model, 32)
    assert len(network.blocks) == 5
    assert network(torch.ones(2, 1, 32, 32)).shape == (2, 32, 32, 1, 2)


def test_built_in_networks_are_passed_neither_options_nor_channels() -> None:
    config = ModelConfig(arch="hybrid", width=4, fno_blocks=2, options={"depth": 3})
    with pytest.raises(ValueError, match=r"^`model\.options\.depth` \(=3\) is for your own networks"):
        build_generator(config, 32)


def test_an_installed_network_goes_by_its_name(network_file: Path, installed) -> None:
    installed(("theirs", f"{network_file}:Net"))
    config = resolve_config({"arch": "theirs", "width": 3})
    assert config.arm == "theirs-norm"
    assert with_sources(config).model.arch == "theirs"
    assert len(with_sources(config).model.source_sha256) == 64
    assert build_generator(config.model, 32).lift.out_channels == 3
    with pytest.raises(ConfigError, match=r"^`model\.arch` \(=thiers\) must be .* did you mean theirs\?$"):
        resolve_config({"arch": "thiers"})


def test_a_built_in_network_keeps_its_name_whatever_is_installed_and_a_line_says_so(installed) -> None:
    assert namesake("fno") is None
    installed(("fno", "theirs.networks:FNO"), ("cnn2", "theirs.networks:CNN"))
    assert with_sources(resolve_config({"arch": "fno"})).model.source_sha256 == ""
    assert namesake("fno") == (
        "`model.arch` (=fno) is the built-in network; an installed one of that name is theirs.networks:FNO"
    )
    assert namesake("cnn2") is None


def test_a_name_that_two_packages_have_is_refused(installed) -> None:
    installed(("theirs", "a.b:Net"), ("theirs", "c.d:Net"), ("theirs", "a.b:Net"))
    with pytest.raises(ConfigError, match=r"must be the name of one network: installed packages have a\.b:Net, c\.d"):
        resolve_config({"arch": "theirs"})


def test_the_config_of_a_stored_run_is_read_where_its_network_is_not_installed(installed) -> None:
    installed(("theirs", "a.b:Net"))
    stored = resolve_config({"arch": "theirs", "model.options": {"depth": 3}})
    installed()
    assert stored_config(stored.model_dump(mode="json")) == stored
    with pytest.raises(ConfigError, match=r"^`model\.arch` \(=theirs\) must be one of"):
        with_sources(stored)


def test_the_identity_holds_the_source_and_the_options_and_not_the_folder(network_file: Path) -> None:
    def identity(**keys: object) -> str:
        return with_sources(resolve_config({"arch": "./net.py:Net"} | keys)).sha256()

    first = identity()
    assert identity(arch=f"{network_file}:Net") == first
    assert identity(**{"model.options": {"depth": 3}}) != first
    (network_file.parent / "other").mkdir()
    (network_file.parent / "other" / "net.py").write_text(NETWORK)
    assert identity(arch="other/net.py:Net") == first
    network_file.write_text(NETWORK + "\n")
    assert identity() != first


def test_a_config_with_the_hash_of_another_source_is_refused(network_file: Path) -> None:
    config = with_sources(resolve_config({"arch": "./net.py:Net"}))
    assert with_sources(config) == config
    network_file.write_text(NETWORK + "\n")
    with pytest.raises(ConfigError, match=r"^`model\.source_sha256` \(=\w{64}\) must be .*: the file has changed$"):
        with_sources(config)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("3", 3), ("1e-3", 1e-3), ("true", True), ("False", False), ("null", None), ("[1, 2.5]", [1, 2.5])),
        *(("wide", "wide"), ("[gelu, 1e-3]", ["gelu", 1e-3]), ("'3'", "'3'"), ("", ""), ("2026-01-01", "2026-01-01")),
    ],
)
def test_an_option_given_as_text_is_what_it_reads_as(text: str, value: object) -> None:
    found = checked_options("model.options", {"depth": text})["depth"]
    assert (found, type(found)) == (value, type(value))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_options_are_refused_or_stay_what_they_are_when_they_are_read_again(value: object) -> None:
    try:
        options = checked_options("model.options", {"depth": value})
    except ValueError as error:
        said = str(error)
    else:
        assert checked_options("model.options", options) == options
        return
    assert said.startswith("`model.options.depth` (=")
    assert said.isprintable()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"class": 1}, r"`model\.options\.class` \(=1\) must be called like an argument in Python"),
        ({"a": {"b": 1}}, r"`model\.options\.a` \(=\{'b': 1\}\) must be a number, a text"),
        ({"a": [1, float("nan")]}, r"`model\.options\.a` \(=.*\) must be a finite number"),
        ({"a": 2**70}, r"must be a whole number of 64 bits"),
        ({"a": 600 * "x"}, r"must be shorter than 500 characters"),
        ({f"a{i}": i for i in range(65)}, r"must be at most 64"),
    ],
)
def test_options_that_are_none_are_refused(options: dict[str, object], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        resolve_config({"arch": "net.py:Net", **{f"model.options.{name}": value for name, value in options.items()}})


def test_options_of_the_command_line_lie_over_those_of_a_file(tmp_path: Path, capsys) -> None:
    from fnostab.cli import main

    (tmp_path / "arm.yaml").write_text("arch: net.py:Net\nmodel: {options: {depth: 2, kind: wide}}\n")
    given = ("--model.options.depth=5", "--model.options.bias", "false", "--print-config")
    assert main(["train", "--config", str(tmp_path / "arm.yaml"), *given]) == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
    assert main(["train", "--config", str(tmp_path / "again.yaml"), "--print-config"]) == 0
    assert "options:\n    depth: 5\n    kind: wide\n    bias: false\n" in capsys.readouterr().out
