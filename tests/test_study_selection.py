"""Which runs are compared, and which may not be."""

import math
from dataclasses import replace

import pytest

from fnostab.config import ConfigError, resolve_config
from fnostab.ranking import rank_arms
from fnostab.study.selection import OWN_KEYS, select_runs
from fnostab.study.stored_run import StoredRun, to_rows


def stored(arm="control", seed=1, dataset="d1", status="FINISHED", ended=0, parent=None, varied="", **overrides):
    """A run as the store would tell it."""
    verdict = overrides.pop("verdict", "converged")
    config = resolve_config({"preset": "smoke", "seed": seed, "arm": arm, **overrides})
    tags = {"study": "s", "arm": arm, "seed": str(seed), "arch": config.model.arch, "dataset_sha256": dataset * 32}
    tags |= {"verdict": verdict} if verdict else {}
    tags |= {"mlflow.parentRunId": parent} if parent else {}
    tags |= {"varied": varied} if varied else {}
    params = {key: str(value) for key, value in config.flat().items()}
    name = f"{arm}-{seed}-{ended}"
    return StoredRun(name, "0", status, ended, tags, params, {"best_val_loss": 0.1, "test/amp_ssim": 0.9})


def ids(selection):
    return [run.run_id for run in selection.runs]


def test_the_newest_finished_run_of_each_arm_and_seed_is_taken():
    runs = [stored(ended=5), stored(ended=9, status="KILLED"), stored(ended=2), stored(seed=2, ended=1)]
    assert ids(select_runs("s", runs)) == ["control-1-5", "control-2-1"]


def test_a_row_of_the_ranking_holds_the_metrics_under_its_own_names():
    (run,) = select_runs("s", [stored()]).runs
    row = run.to_row()
    assert (row["arm"], row["seed"], row["best_val_loss"], row["amp_ssim"], row["verdict"]) == (
        *("control", 1, 0.1),
        *(0.9, "converged"),
    )
    assert row["phase_ssim"] is None


def with_metrics(seed, verdict="converged", **metrics):
    run = stored(seed=seed, verdict=verdict)
    return replace(run, metrics={**run.metrics, **{name.replace("__", "/"): value for name, value in metrics.items()}})


def test_the_stitched_r_factor_of_a_row_is_the_last_of_training_where_every_converged_run_has_it():
    runs = [
        with_metrics(1, val__r_stitched=0.11, test__r_factor=0.2),
        with_metrics(2, verdict="collapsed", val__r_stitched=math.nan, test__r_factor=0.3),
    ]
    rows, notes = to_rows(runs)
    assert rows[0]["r_stitched"] == 0.11
    assert notes == []


@pytest.mark.parametrize("value", [None, math.nan])
def test_where_one_converged_run_has_none_all_runs_have_that_of_the_test_object_instead(value):
    lacking = {} if value is None else {"val__r_stitched": value}
    runs = [with_metrics(1, val__r_stitched=0.11, test__r_factor=0.2), with_metrics(2, test__r_factor=0.3, **lacking)]
    rows, notes = to_rows(runs)
    assert [row["r_stitched"] for row in rows] == [0.2, 0.3]
    assert notes == [
        "1 of 2 converged runs have no val/r_stitched, so test/r_factor, that of the stitched test object, is the "
        "r_stitched of all runs here."
    ]


def test_runs_whose_stitched_objects_cannot_be_compared_are_ranked_by_val_loss_and_a_note_says_so():
    rows, notes = to_rows([with_metrics(1, val__r_stitched=0.11), with_metrics(2)])
    assert rank_arms(rows, 0).other_pairs == []
    assert notes == [
        "1 of 2 converged runs have no val/r_stitched, and 2 no test/r_factor, so the arms are compared by val_loss "
        "alone."
    ]
    assert to_rows([with_metrics(1), with_metrics(2)])[1] == []


def test_two_datasets_are_refused_with_both_hashes():
    runs = [stored(), stored(arm="agc", clip_algo="agc", dataset="d2")]
    with pytest.raises(ConfigError, match=r"must have one dataset, and has 2: (d1){32} of control.*; (d2){32} of agc"):
        select_runs("s", runs)


def test_a_dataset_is_chosen_by_the_beginning_of_its_hash():
    runs = [stored(), stored(arm="agc", clip_algo="agc", dataset="d2")]
    assert ids(select_runs("s", runs, dataset="d2")) == ["agc-1-0"]
    with pytest.raises(ConfigError, match=r"^`dataset` \(=d\) must be the beginning of one of (d1){32}, (d2){32}"):
        select_runs("s", runs, dataset="d")


def test_a_parent_is_chosen_by_its_run():
    runs = [stored(parent="p"), stored(ended=3, parent="q", dataset="d2")]
    assert ids(select_runs("s", runs, parent="p")) == ["control-1-0"]
    with pytest.raises(ConfigError, match=r"^`parent` \(=r\) must be the parent of runs of study s"):
        select_runs("s", runs, parent="r")


def test_arms_may_differ_in_architecture_block_and_clipping():
    runs = [stored(), stored(arm="b", arch="stable_hybrid", clip_algo="agc", **{"model.gamma_init": 0.1})]
    assert len(select_runs("s", runs).runs) == 2


@pytest.mark.parametrize(("key", "value"), [("lr", 0.1), ("epochs", 3), ("width", 4), ("data.stride_test_px", 20)])
def test_arms_that_differ_in_anything_else_are_refused_with_the_difference(key, value):
    runs = [stored(), stored(arm="agc", clip_algo="agc", **{key: value})]
    with pytest.raises(ConfigError, match=rf"of study s must be one in all arms, and is .*{value}.* of agc \(seed 1\)"):
        select_runs("s", runs)


def test_what_the_study_varies_may_differ_between_arms():
    runs = [stored(varied="optim.lr"), stored(arm="fast", lr=0.1, varied="optim.lr")]
    assert len(select_runs("s", runs).runs) == 2


def test_runs_of_one_arm_may_not_differ():
    runs = [stored(), stored(seed=2, **{"model.gamma_init": 0.5})]
    with pytest.raises(ConfigError, match=r"^`model.gamma_init` of study s must be one in all runs of arm control"):
        select_runs("s", runs)


def test_runs_of_a_source_file_that_changed_are_not_compared():
    runs = [
        stored(arch="net.py:Net", seed=seed, **{"model.source_sha256": 64 * name})
        for seed, name in ((1, "a"), (2, "b"))
    ]
    message = (
        r"^`model\.source_sha256` of study s must be one in all runs of arm control, as a source file that changes"
        rf" makes another arm, and is {64 * 'a'} of control \(seed 1\); {64 * 'b'} of control \(seed 2\); choose"
    )
    with pytest.raises(ConfigError, match=message):
        select_runs("s", runs)


def test_runs_of_one_network_may_lie_in_several_folders_and_arms_may_differ_in_their_options():
    first = stored(arch="/a/net.py:Net", seed=1)
    second = stored(arch="b/net.py:Net", seed=2)
    deep = stored(arm="deep", arch="net.py:Net", **{"model.options.depth": 3})
    assert len(select_runs("s", [first, second, deep]).runs) == 3
    with pytest.raises(
        ConfigError, match=r"^`model\.options\.depth` .* is 3.0 of control \(seed 1\); left out of control"
    ):
        select_runs("s", [second, replace(deep, tags=deep.tags | {"arm": "control"})])


def test_numbers_are_equal_however_they_are_spelt():
    run = stored()
    spelt = StoredRun("x", "0", "FINISHED", 0, {**run.tags, "seed": "2"}, {**run.params, "optim.lr": "3.0E-3"}, {})
    assert len(select_runs("s", [run, spelt]).runs) == 2


def test_runs_of_uncommitted_code_are_named():
    clean, changed = stored(), stored(seed=2)
    changed.tags["git_commit"] = "0123abc-dirty"
    assert select_runs("s", [clean, changed]).notes == ["Trained with code that was not committed: control (seed 2)."]


def test_threads_and_device_may_differ():
    runs = [stored(), stored(seed=2, accelerator="cpu", **{"train.threads": 4})]
    assert len(select_runs("s", runs).runs) == 2


def test_what_has_no_result_is_named_with_its_state():
    runs = [
        stored(),
        stored(seed=2, status="KILLED", verdict="interrupted"),
        stored(seed=3, status="FAILED", verdict=None),
        stored(seed=4, status="RUNNING", verdict=None),
    ]
    selection = select_runs("s", runs, planned=[("control", 1), ("control", 4), ("control", 5)])
    assert selection.notes == [
        "control, seed 2: run control-2-0 is interrupted.",
        "control, seed 3: run control-3-0 is FAILED.",
        "control, seed 4: run control-4-0 is RUNNING.",
        "control, seed 5: planned, and not begun.",
    ]


def test_a_study_without_runs_or_without_a_finished_one_is_refused():
    with pytest.raises(ConfigError, match=r"^`study` \(=s\) must be the tag of runs in the tracking store"):
        select_runs("s", [])
    with pytest.raises(ConfigError, match=r"^`study` \(=s\) must have a finished run: its 1 are RUNNING"):
        select_runs("s", [stored(status="RUNNING", verdict=None)])


def test_what_makes_an_arm_is_architecture_block_clipping_and_whether_it_is_supervised():
    block = {"gamma_init", "layerscale_init", "norm_centred", "norm_bias", "pre_norm", "gate", "gate_init", "mix"}
    model = {f"model.{name}" for name in ("arch", "spectral_gain", *block)}
    model |= {"model.options", "model.source_sha256", "clip.options", "clip.source_sha256", "clip.exclude"}
    assert model | {"clip.algo", "clip.val", "clip.granularity", "train.mode"} == OWN_KEYS


def test_a_supervised_arm_is_compared_with_arms_whose_loss_has_an_overlap_term():
    runs = [stored(), stored("baseline", **{"train.mode": "supervised", "arch": "cnn"})]
    assert [run.params["train.overlap_weight"] for run in runs] == ["0.5", "0.0"]
    assert [run.is_supervised for run in select_runs("s", runs).runs] == [True, False]
    with pytest.raises(ConfigError, match=r"^`train.overlap_weight` of study s must be one in all arms"):
        select_runs("s", [*runs, stored("other", **{"train.overlap_weight": 0.25})])
    with pytest.raises(ConfigError, match=r"^`train.mode` of study s must be one in all runs of arm baseline"):
        select_runs("s", [*runs, stored("baseline", seed=2, arch="cnn")])


def test_stored_runs_with_options_that_were_removed_are_compared_as_they_were():
    inst, group, other = stored("inst"), stored("group"), stored("inst", seed=2)
    group.params["model.pre_norm"] = "group"
    inst.params["model.pre_norm"] = "instance"
    assert len(select_runs("s", [inst, group, other]).runs) == 3  # arms may differ in it, and today's runs lack it
    other.params["model.pre_norm"] = "none"
    with pytest.raises(ConfigError, match=r"^`model\.pre_norm` of study s must be one in all runs of arm inst"):
        select_runs("s", [inst, group, other])


# A study over several datasets


def of_several(arm, seed, dataset, **overrides):
    """A run of a study over two datasets, on the one called `dataset`."""
    run = stored(arm, seed, dataset, **{"data.seeds": 2, **overrides})
    return replace(run, tags={**run.tags, "datasets_sha256": "both"})


def test_runs_on_the_datasets_of_one_study_are_compared_and_a_note_says_what_intervals_include():
    runs = [of_several(arm, seed, f"d{seed % 2}") for arm in ("control", "stable") for seed in (1, 2, 3)]
    selection = select_runs("s", runs)
    assert len(selection.runs) == 6
    assert selection.dataset_sha256 == "both"
    assert selection.notes == [
        "The seeds share 2 datasets, with objects of their own: intervals and tests include their chance."
    ]
    assert select_runs("s", runs, dataset="bo").dataset_sha256 == "both"


def test_arms_that_saw_other_data_with_the_same_seed_are_not_compared():
    runs = [of_several("control", 1, "d1"), of_several("stable", 1, "d2")]
    with pytest.raises(
        ConfigError, match=r"^`study` \(=s\) must have one dataset for each seed, and has two for seed 1"
    ):
        select_runs("s", runs)


def test_runs_on_one_dataset_and_runs_on_several_are_not_compared():
    with pytest.raises(ConfigError, match=r"^`study` \(=s\) must have one dataset, and has 2: both of control"):
        select_runs("s", [of_several("control", 1, "d1"), stored("stable", 1, "d1")])


def test_networks_with_their_own_usual_limit_of_the_width_are_compared_and_with_another_limit_not():
    runs = [stored("control"), stored("stable", arch="stable_original")]
    assert {run.params["model.max_channels"] for run in runs} == {"256", "65536"}
    assert len(select_runs("s", runs).runs) == 2
    with pytest.raises(ConfigError, match=r"^`model.max_channels` of study s must be one in all arms"):
        select_runs("s", [*runs, stored("narrow", **{"model.max_channels": 64})])
