import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fnostab.config import (
    ARCHITECTURES,
    AUTO_CLIP_VALUES,
    CONFIG_KEYS,
    FLAT_KEYS,
    PRESETS,
    ConfigError,
    read_config_file,
    resolve_config,
)


@pytest.mark.parametrize(
    ("overrides", "study", "arm"),
    [
        ({}, "stage_a", "control"),
        ({"arch": "stable_hybrid", "clip_algo": "none"}, "stage_a", "stable"),
        ({"clip_algo": "agc", "preset": "quick"}, "stage_a_quick", "agc"),
        ({"arch": "stable_hybrid", "clip_algo": "agc", "preset": "quick"}, "stage_a_quick", "stable_hybrid-agc"),
        ({"clip_algo": "agc", "clip_val": "0.1"}, "stage_a", "hybrid-agc"),
        ({"study": "mine", "arm": "first"}, "mine", "first"),
    ],
)
def test_study_and_arm_are_named_after_preset_architecture_and_clipping(overrides, study, arm):
    config = resolve_config(overrides)
    assert (config.study, config.arm) == (study, arm)


@pytest.mark.parametrize("algo", list(AUTO_CLIP_VALUES))
def test_auto_clip_value_is_that_of_the_rule(algo):
    assert resolve_config({"clip_algo": algo, "clip_val": "auto"}).clip.val == AUTO_CLIP_VALUES[algo]


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "scan"])
def test_auto_leaves_the_decision_to_the_preset_and_a_value_overrides_it(preset):
    everything_auto = dict.fromkeys(FLAT_KEYS, "auto") | {"preset": preset, "data": ""}
    assert resolve_config(everything_auto) == resolve_config({"preset": preset})
    assert resolve_config(everything_auto | {"epochs": "3"}).train.epochs == 3


def test_values_override_the_base_and_the_base_the_preset():
    config = resolve_config({"lr": "0.01"}, base={"preset": "smoke", "optim.lr": 0.1, "width": 6})
    assert (config.optim.lr, config.model.width, config.train.epochs) == (0.01, 6, 8)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"arch": "hybird"}, f"`model.arch` (=hybird) must be one of {', '.join(ARCHITECTURES)}; did you mean hybrid?"),
        ({"clip_algo": "nrom"}, "`clip.algo` (=nrom) must be 'none', 'norm', 'value' or 'agc'"),
        ({"preset": "qick"}, f"`preset` (=qick) must be one of {', '.join(PRESETS)}; did you mean quick?"),
        ({"modle.width": "3"}, "`modle.width` (=3) is no parameter; did you mean model.width?"),
        ({"model.modes": "0"}, "`model.modes` (=0) must be >= 1"),
        ({"model.modes": "40"}, "`model.modes` (=40) must be <= 33 at N=64"),
        ({"fno_blocks": "0"}, "`model.fno_blocks` (=0) must be >= 1"),
        ({"width": "8.5"}, "`model.width` (=8.5) must be a valid integer, unable to parse string as an integer"),
        ({"lr": "-1"}, "`optim.lr` (=-1) must be > 0"),
        ({"lr": "nan"}, "`optim.lr` (=nan) must be a finite number"),
        ({"train.give_up_after": "0"}, "`train.give_up_after` (=0) must be > 0"),
        (
            {"train.give_up_after": "true"},
            "`train.give_up_after` (=true) must be a valid number, unable to parse string as a number",
        ),
        ({"N": "63"}, "`data.N` (=63) must be even"),
        ({"data.object_size": "40"}, "`data.object_size` (=40) must be >= `data.N` (=64)"),
        ({"data.gridsize": "2"}, "`data.gridsize` (=2) must be 1: networks over several patches at once are not built"),
        ({"preset": "scan"}, "`data` (=) must name a measured scan (.npz or .npz.bz2) with preset scan"),
        ({"lr": "0.1", "optim.lr": "0.2"}, "`optim.lr` (=0.2) is given twice, also as 0.1"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_with_parameter_value_and_rule(overrides, message):
    with pytest.raises(ConfigError) as caught:
        resolve_config(overrides)
    assert str(caught.value) == message


@given(st.sampled_from(sorted(CONFIG_KEYS)), st.text(max_size=20))
def test_any_text_for_any_key_gives_a_config_or_one_line(key, text):
    try:
        line = str(resolve_config({key: text}).sha256())
    except ConfigError as error:
        line = str(error)
    assert "\n" not in line.replace(text, "")


def test_config_file_takes_nested_dotted_and_flat_keys(tmp_path):
    path = tmp_path / "arm.yaml"
    path.write_text("preset: smoke\nmodel: {width: 6}\noptim.lr: 0.01\nepochs: 3\n")
    config = resolve_config({}, base=read_config_file(path))
    assert (config.model.width, config.optim.lr, config.train.epochs) == (6, 0.01, 3)


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "a: [", "!!python/object/apply:os.system ['true']"])
def test_a_config_file_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "arm.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"`config` \(=.*arm.yaml\) must"):
        read_config_file(path)


def test_a_printed_config_resolves_to_itself():
    config = resolve_config({"preset": "quick", "arch": "stable_hybrid", "clip_algo": "agc"})
    assert resolve_config({}, base=config.flat()) == config


def test_a_printed_config_leaves_to_other_keys_what_follows_from_them(tmp_path):
    path = tmp_path / "arm.yaml"
    path.write_text(resolve_config({"preset": "quick"}).to_yaml())
    printed = read_config_file(path)
    assert resolve_config({}, base=printed) == resolve_config({"preset": "quick"})
    changed = resolve_config({"arch": "stable_hybrid", "clip_algo": "agc"}, base=printed)
    assert (changed.arm, changed.clip.val) == ("stable_hybrid-agc", 0.01)


def test_agc_by_tensor_is_another_arm_than_agc_by_unit():
    assert resolve_config({"clip_algo": "agc", "clip.granularity": "tensor"}).arm == "hybrid-agc"


@pytest.mark.parametrize("text", ["model: {1: 2}", "preset: [quick]", "1: 2"])
def test_odd_keys_and_values_in_a_file_are_refused_in_one_line(tmp_path, text):
    path = tmp_path / "arm.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        resolve_config({}, base=read_config_file(path))


def test_identity_hash_sees_what_decides_the_numbers_and_nothing_else():
    config = resolve_config({"preset": "quick"})
    assert resolve_config({"preset": "quick", "arm": "x", "study": "y"}).sha256() == config.sha256()
    assert resolve_config({"preset": "quick", "train.picture_every_epochs": 1}).sha256() == config.sha256()
    assert resolve_config({"preset": "quick", "lr": 2e-3}).sha256() != config.sha256()


def test_runs_from_before_a_run_could_be_given_up_keep_their_identity():
    before = "fd960a90f4bc496101f9fc72c41681101dc447f7e77e49a83d71750b9acc2a8b"
    assert resolve_config({"train.give_up_after": "null"}).sha256() == before
    assert resolve_config({"train.give_up_after": "0.5"}).sha256() != before


@pytest.mark.parametrize(
    ("share", "epochs", "epoch"),
    [
        *((0.5, 8, 4), (0.5, 7, 4), (0.5, 1, 1), (0.99, 8, 8), (5e-324, 10**6, 1)),
        *((0.07, 100, 7), (0.55, 20, 11)),  # in floats, a hair more
        ("null", 8, None),
    ],
)
def test_a_run_is_given_up_after_a_whole_epoch(share, epochs, epoch):
    assert resolve_config({"train.give_up_after": share, "epochs": epochs}).train.give_up_epoch == epoch


def test_every_preset_key_is_a_parameter():
    for preset in PRESETS.values():
        assert set(preset) <= set(CONFIG_KEYS)
    assert set(FLAT_KEYS.values()) <= set(CONFIG_KEYS)


def test_original_study_is_a_preset():
    config = resolve_config({"preset": "seed_study"})
    assert (config.data.phase, config.data.nphotons, config.train.epochs, config.seed) == ("none", 1e9, 50, 20260128)
    assert math.isclose(config.optim.lr, 1e-3)


def test_help_loads_neither_torch_nor_mlflow():
    code = """
import sys
from fnostab.cli import main
try:
    main(["train", "--help"])
except SystemExit:
    pass
print(sorted({"torch", "mlflow", "lightning"} & set(sys.modules)), file=sys.stderr)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--model.modes" in answer.stdout
    assert answer.stderr.strip() == "[]"
