import math

import pytest
import yaml

from fnostab.config import (
    AUTO_CLIP_VALUES,
    CONFIG_KEYS,
    FLAT_KEYS,
    PRESETS,
    ConfigError,
    ReadingConfig,
    read_config_file,
    resolve_config,
    stored_config,
)
from fnostab.study.plan import plan_stage_a


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
        ({"model.modes": "0"}, "`model.modes` (=0) must be >= 1"),
        ({"lr": "-1"}, "`optim.lr` (=-1) must be > 0"),
        ({"lr": "true"}, "`optim.lr` (=true) must be a valid number, unable to parse string as a number"),
        ({"model.modes": "40"}, "`model.modes` (=40) must be <= 33 at N=64"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_with_parameter_value_and_rule(overrides, message):
    with pytest.raises(ConfigError) as caught:
        resolve_config(overrides)
    assert str(caught.value) == message


def test_config_file_takes_nested_dotted_and_flat_keys(tmp_path):
    path = tmp_path / "arm.yaml"
    path.write_text("preset: smoke\nmodel: {width: 6}\noptim.lr: 0.01\nepochs: 3\n")
    config = resolve_config({}, base=read_config_file(path))
    assert (config.model.width, config.optim.lr, config.train.epochs) == (6, 0.01, 3)


def test_a_printed_config_leaves_to_other_keys_what_follows_from_them(tmp_path):
    path = tmp_path / "arm.yaml"
    path.write_text(resolve_config({"preset": "quick"}).to_yaml())
    printed = read_config_file(path)
    assert resolve_config({}, base=printed) == resolve_config({"preset": "quick"})
    changed = resolve_config({"arch": "stable_hybrid", "clip_algo": "agc"}, base=printed)
    assert (changed.arm, changed.clip.val) == ("stable_hybrid-agc", 0.01)


def test_agc_by_tensor_is_another_arm_than_agc_by_unit():
    assert resolve_config({"clip_algo": "agc", "clip.granularity": "tensor"}).arm == "hybrid-agc"


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


#: `ArmConfig.sha256` at commit 0f04361, whose `ModelConfig` had more keys. Runs in stores are found by them.
_HASHES = {
    ("seed_study", "control"): "85a48b1b1669f22332aea636b0edc516b7f2e4842cfbad0c0875c201ea4d6f3a",
    ("seed_study", "stable"): "57eca896c15aa0b33c8ed22674a555f88476a6f5338a38cfe6a73e40caa9b587",
    ("seed_study", "agc"): "b94b394dcb9c90a0ea4aa31922140f67353672cc1d7a394e21f59d1009781690",
    ("seed_study", "pre"): "b4bc912f1d757729687baf585e90450d08b91a1ea24d04dfdc15e0e4f9bd2a8b",
    ("seed_study", "original"): "82c2de3784c210824fa2dedf33ec6b121bd8c52e0667c540ed78d215da37be8a",
    ("seed_study", "stable_1"): "6cda0859f3f81c182d2d1a965f46ca9807b81e52ce39453ba15c99697fc8016a",
    ("stage_a", "control"): "fd960a90f4bc496101f9fc72c41681101dc447f7e77e49a83d71750b9acc2a8b",
    ("stage_a", "stable"): "31757adcb05a4f248f5bfa168c2e74348719eb6603b2b0f2c498ecd7885c21b3",
    ("stage_a", "agc"): "e70bd0dfb3c5eccd8d8d4c845c7092574c42ca30270c6f57d711097ecf3c73bd",
    ("stage_a", "pre"): "7670091c6e87e44843cfd150ef3f4769bc1a53ea29c5e2cc5909ecf08419082b",
    ("stage_a", "original"): "379fcee342ad58c3db02db41c94149d7e415e15e9197b0efd8428bf70ed93c93",
    ("stage_a", "stable_1"): "69af146e4e036ff60bbfa5ad9887e53d25ffeddac059d230efa206c93333b845",
    ("quick", "control"): "28a7ff24f02c71dfb5388600e85a94e2a11c56cd356fc3be6c75421b930290bd",
    ("quick", "stable"): "2b4ac0875c31ad80fab1b6a01dbb9a5810c6d196e22cdb55ffa6a7d5fee133f5",
    ("quick", "agc"): "e7ca767681fae3f17c22ecaede759790a3571bc40e57fc25b2e0bc1062f7fccc",
    ("quick", "pre"): "d3e3f870b9b3942b066a7038992390f8bb5c06e20c4f8b54ee41e21f9d8cc663",
    ("quick", "original"): "51b02cf36d14019385cea5e8d20f868f1a43ccbdfe6edfc145df7443e493df0c",
    ("quick", "stable_1"): "b2716e296ad0ea658a230fe6879fb626c530ca5da28edf60cbaaa9ddb102a78c",
    ("scan", "control"): "aa31c7e0e4e18fb6f4d9d7914de03db7639e828664f4ba70f5a8f06806c2e767",
    ("scan", "stable"): "391989ab3a6c986bf2290510637c6e584ca065c4bb02ef66790f7873b2566b67",
    ("scan", "agc"): "6131b422d157073b420dd119e7e1c5f357c044e6e6f05962fbc1a0a8e9942042",
    ("scan", "pre"): "cee8179aa5fb5e53be014cafe5aabbe7a010d0dcd759663820d7351444d2daee",
    ("scan", "original"): "136b97101cb844b91155ed072c40e4a6f7890446d335673cb8d7b8cf1af38529",
    ("scan", "stable_1"): "3b1c6d8fd0a0da934427902d55ab73da33221b5bddb5bcf4a2745bec1dd6808e",
    ("smoke", "control"): "71d953284bf05f25e74fc427e08d40d8589445cbdba5c056c74a8b62abb22b2e",
    ("smoke", "stable"): "9f71cc8e61e49f16456bd251d2b9f430792b2bae8dd5cd351c138b400c47b514",
    ("smoke", "agc"): "cb3c65c263e5da4a73669708e0da36f03205a7c23ce3ea8dea022f7a00ba5229",
    ("smoke", "pre"): "0178af6e49e5aa27ead99010aac16825705513f4b91c4d5c09381a2169b88cab",
    ("smoke", "original"): "9938739cfbb1a25607065683097911dd81d1aa5659e112d875ebda7e124623b7",
    ("smoke", "stable_1"): "6a006d809aeafd3fe4e15b23937e85d85411b748e6d22b7887e706cd24f93ffe",
}
_ARMS = {
    "control": {},
    "stable": {"arch": "stable_hybrid", "clip_algo": "none"},
    "agc": {"clip_algo": "agc"},
    "pre": {"arch": "prenorm_hybrid", "clip_algo": "none"},
    "original": {"arch": "hybrid_onesided"},  # it was called `hybrid_original` then
    "stable_1": {"arch": "stable_hybrid", "clip_algo": "none", "model.gamma_init": 1.0},
}


@pytest.mark.parametrize(("preset", "arm"), _HASHES)
def test_hashes_of_configs_stay_what_they_were(preset, arm):
    data = {"data": "scan.npz"} if preset == "scan" else {}
    as_then = {"arch": "hybrid", "data.val_choice": "random"} | _ARMS[arm]
    if preset == "seed_study":
        as_then |= {"data.probe": "auto", "data.object_mean": None, "data.val": "own"}
        as_then |= {"clip.granularity": "unit", "train.loss_scale": "dataset"}
    if preset == "quick":
        as_then |= {"train.precision": "32-true"}
    if preset == "smoke":
        as_then |= {"train.overlap_weight": 0, "optim.schedule": "constant", "optim.warmup_steps": 0}
        as_then |= {"data.max_train_patches": 192, "data.max_val_patches": 32}
    assert resolve_config({"preset": preset, **data, **as_then}).sha256() == _HASHES[preset, arm]


def test_the_originals_whole_network_is_no_run_of_what_had_its_name_before():
    for channels in (256, "auto"):
        keys = {"model.max_channels": channels}
        whole, before = (resolve_config({"arch": f"hybrid_{name}", **keys}) for name in ("original", "onesided"))
        assert whole.sha256() != before.sha256()


def test_the_config_of_an_earlier_run_of_that_name_means_the_network_that_it_had():
    config = resolve_config({"arch": "hybrid_original", "model.max_channels": 256})
    stored = config.model_dump(mode="json")
    assert stored_config(stored) == config
    del stored["train"]["loss_scale"]
    assert stored_config(stored).model.arch == "hybrid_onesided"


def test_the_preset_of_the_original_study_has_its_networks_its_data_and_its_rules():
    plan = plan_stage_a({"preset": "seed_study"}, {})
    assert {arm: config.model.arch for arm, config in plan.arms.items()} == {
        "control": "hybrid_original",
        "stable": "stable_original",
        "agc": "hybrid_original",
    }
    for config in plan.arms.values():
        assert (config.clip.granularity, config.train.loss_scale, config.optim.name) == ("tensor", "batch", "adam")
        assert (config.data.probe, config.data.val, config.data.object_mean) == ("defocused", "test", 0.17)
        assert (config.data.phase, config.train.overlap_weight, config.model.max_channels) == ("none", 0, 2**16)
    for name, config in plan.arms.items():
        keys = {"arch": config.model.arch, "clip_algo": config.clip.algo, "preset": "seed_study"}
        assert resolve_config(keys).arm == name
    assert resolve_config({"preset": "seed_study", "arch": "hybrid"}).arm == "hybrid-norm"
    assert resolve_config({"preset": "seed_study", "clip.granularity": "unit"}).arm == "hybrid_original-norm"


def test_the_largest_width_that_is_left_open_follows_a_change_of_the_architecture(tmp_path):
    assert resolve_config({"arch": "hybrid"}).model.max_channels == 256
    (tmp_path / "arm.yaml").write_text(resolve_config({"arch": "hybrid"}).to_yaml())
    printed = read_config_file(tmp_path / "arm.yaml")
    assert resolve_config({"model.arch": "hybrid_original"}, printed).model.max_channels == 2**16


def test_the_config_of_a_run_of_before_is_read_and_its_removed_options_are_dropped(tmp_path):
    config = resolve_config({"preset": "quick", "arch": "prenorm_hybrid"})
    stored = yaml.safe_load(config.to_yaml())
    stored["model"] |= {"pre_norm": "instance", "gate": "none", "gate_init": 0.1, "mix": False, "spectral_gain": 1.0}
    (tmp_path / "arm.yaml").write_text(yaml.safe_dump(stored))
    assert resolve_config(read_config_file(tmp_path / "arm.yaml")) == config
    assert stored_config(stored | {"study": config.study, "arm": config.arm}) == config


@pytest.mark.parametrize(("key", "value"), [("pre_norm", "group"), ("gate", "scalar"), ("mix", True), ("mix", "true")])
def test_removed_options_with_a_value_that_did_something_are_refused_in_one_line(key, value):
    message = rf"^`model.{key}` \(={value}\) must be \w+, as other values lost and were taken out after commit 0f04361$"
    with pytest.raises(ConfigError, match=message):
        stored_config({"model": {key: value}})
    with pytest.raises(ConfigError, match=message):
        resolve_config({f"model.{key}": value})


def test_a_newer_key_changes_the_hash_only_where_it_has_another_value_than_runs_from_before():
    as_then = {"data.val_choice": "random"}
    config = resolve_config(as_then)
    of_scans = {f"data.{key}" for key in ReadingConfig.model_fields}
    others = {"train.give_up_after": 0.5, "train.select_by": "r_stitched", "train.loss_scale": "batch"}
    others |= {"data.val_choice": "block", "data.val": "test", "data.object_mean": 0.2, "data.probe_aperture": "square"}
    others |= {"train.precision": "bf16-mixed"}
    others |= {"train.mode": "supervised", "train.init_from": 32 * "0"}
    others |= {"data.seeds": 2, "model.options": {"depth": 3}, "model.source_sha256": 64 * "a"}
    others |= {"clip.exclude": ["out.*"], "clip.options": {"alpha": 0.9}, "clip.source_sha256": 64 * "0"}
    others |= {"optim.betas": [0.9, 0.95], "optim.eps": 1e-12}
    assert config.left_out == others.keys() | of_scans
    for key, value in others.items():
        changed = resolve_config(as_then | {key: value})
        assert changed.left_out == config.left_out - {key}
        assert changed.sha256() != config.sha256()


def test_lists_may_be_text_with_commas_between():
    config = resolve_config({"clip.exclude": "out.*, *.bias", "optim.betas": "0.9,0.95"})
    assert config.clip.exclude == ["out.*", "*.bias"]
    assert config.optim.betas == [0.9, 0.95]
    assert resolve_config({"clip.exclude": "", "optim.betas": "[0.9, 0.95]"}).optim == config.optim
    assert resolve_config({"clip.exclude": ["out.*", "*.bias"], "optim.betas": [0.9, 0.95]}) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim.eps": 1e-12}, r"`optim.eps` \(=1e-12\) must be 1e-08"),
        ({"optim.betas": "0.9,0.95"}, r"`optim.betas` \(=\[0.9, 0.95\]\) must be \[0.9, 0.999\]"),
    ],
)
def test_sgd_takes_none_of_adams_settings(values, message):
    with pytest.raises(ConfigError, match=f"^{message} with optim.name=sgd, which does not use it$"):
        resolve_config({"optim.name": "sgd", **values})


def test_a_rule_of_ones_own_names_the_arm_and_has_a_limit_of_its_own():
    config = resolve_config({"clip_algo": "./rules.py:half"})
    assert config.arm == "hybrid-half"
    assert config.clip.val == 1.0


def test_a_stored_config_has_what_its_run_did_for_a_key_that_came_later_and_a_new_one_todays_default():
    stored = resolve_config({"data.val_choice": "random"}).model_dump(mode="json")
    del stored["data"]["val_choice"], stored["train"]["give_up_after"]
    assert stored_config(stored).data.val_choice == "random"
    assert resolve_config({}).data.val_choice == "block"
    stored["data"] = None
    with pytest.raises(ConfigError, match=r"^`data` \(=None\) must be"):
        stored_config(stored)
