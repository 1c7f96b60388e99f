"""The plan of a study: arms, seeds, grids, Stage B, and what is refused."""

from pathlib import Path

import pytest

from fnostab.config import ConfigError, resolve_config
from fnostab.study.plan import plan_file, plan_stage_a, plan_stage_b, read_seeds, stage_b_name


def _table(tmp_path, text):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return path


def test_stage_a_has_the_three_arms_under_their_own_names_for_each_seed():
    plan = plan_stage_a({"preset": "quick"}, {}, "2")
    assert plan.study == "stage_a_quick"
    rules = {arm: (config.model.arch, config.clip.algo, config.clip.val) for arm, config in plan.arms.items()}
    assert rules == {
        "control": ("hybrid", "norm", 1.0),
        "stable": ("stable_hybrid", "none", 0.0),
        "agc": ("hybrid", "agc", 0.01),
    }
    assert [(run.arm, run.seed) for run in plan.runs] == [
        (arm, seed) for seed in (20260128, 20260129) for arm in ("control", "stable", "agc")
    ]
    assert all(run.config.seed == run.seed and run.config.arm == run.arm for run in plan.runs)


def test_a_run_of_stage_a_has_the_config_of_the_arm_trained_by_hand():
    by_hand = resolve_config({"preset": "smoke", "arch": "hybrid", "clip_algo": "agc", "train.threads": 1})
    planned = next(run for run in plan_stage_a({"preset": "smoke"}, {}).runs if run.arm == "agc")
    assert planned.config == by_hand


@pytest.mark.parametrize(
    ("text", "seeds"), [("2", (7, 8)), ("auto", (7, 8, 9)), ("", (7, 8, 9)), ("4,", (4,)), ("3, 1,20", (3, 1, 20))]
)
def test_seeds_are_a_number_or_a_list(text, seeds):
    assert read_seeds(text, first=7, default=3) == seeds


@pytest.mark.parametrize("text", ["0", "-1", "1,1", "x", "1.5", ",", "4294967296,", "10001"])
def test_other_seeds_are_refused(text):
    with pytest.raises(ConfigError, match=rf"^`seeds` \(={text}\) must be how many there are \(1 to 10000\), or diff"):
        read_seeds(text, first=0, default=1)


def test_a_table_of_arms_with_a_grid_makes_every_combination(tmp_path):
    path = _table(
        tmp_path,
        "preset: smoke\nseeds: [3, 5]\ntrain: {epochs: 2}\n"
        "arms:\n  - {name: a, arch: cnn, clip_algo: none}\n  - {name: b, clip_algo: agc, clip_val: 0.1}\n"
        "grid: {lr: [0.001, 0.01], model.fno_blocks: [1, 2]}\n",
    )
    plan = plan_file(path, {"width": "4"})
    assert plan.study == "sweep"
    assert plan.seeds == (3, 5)
    assert list(plan.arms)[:4] == [f"a-lr{lr}-fno_blocks{blocks}" for lr in (0.001, 0.01) for blocks in (1, 2)]
    assert len(plan.runs) == 16
    last = plan.arms["b-lr0.01-fno_blocks2"]
    assert (last.optim.lr, last.model.fno_blocks, last.clip.val, last.model.width, last.train.epochs) == (
        *(0.01, 2, 0.1),
        *(4, 2),
    )
    assert plan.varied == ["model.fno_blocks", "optim.lr"]


def test_the_five_arms_of_the_original_study_are_a_table_that_is_shipped(fresh_store):
    plan = plan_file(Path("original_five.yaml"), {"preset": "quick"})
    assert plan.study == "original_five"
    assert {arm: (of.model.arch, of.clip.algo, of.train.mode) for arm, of in plan.arms.items()} == {
        "cnn": ("cnn", "norm", "physics"),
        "baseline": ("cnn", "norm", "supervised"),
        "control": ("hybrid_original", "norm", "physics"),
        "stable": ("stable_original", "none", "physics"),
        "agc": ("hybrid_original", "agc", "physics"),
    }
    assert plan.varied == []
    assert {arm: of.train.overlap_weight for arm, of in plan.arms.items() if of.train.overlap_weight != 0.5} == {
        "baseline": 0
    }
    (fresh_store / "original_five.yaml").write_text("arms: [{name: mine}]\n")
    assert list(plan_file(Path("original_five.yaml"), {}).arms) == ["mine"]
    with pytest.raises(ConfigError, match=r"^`arms` \(=six.yaml\) must be .* shipped: .*original_five.yaml$"):
        plan_file(Path("six.yaml"), {})
    with pytest.raises(ConfigError, match=r"^`arms` \(=.*no/original_five.yaml\) must be a readable file"):
        plan_file(fresh_store / "no" / "original_five.yaml", {})


def test_rules_against_large_gradients_are_a_table_that_is_shipped():
    plan = plan_file(Path("clipping_rules.yaml"), {"preset": "quick"})
    assert {arm: (of.clip.algo, of.clip.val, of.optim.name, of.optim.eps) for arm, of in plan.arms.items()} == {
        "control": ("norm", 1.0, "adam", 1e-8),
        "none": ("none", 0.0, "adam", 1e-8),
        "agc": ("agc", 0.01, "adam", 1e-8),
        "zclip": ("zclip", 2.5, "adam", 1e-8),
        "adagc": ("adagc", 1.05, "adam", 1e-8),
        "skip": ("skip", 10.0, "adam", 1e-8),
        "eps": ("norm", 1.0, "adam", 1e-12),
        "betas": ("norm", 1.0, "adam", 1e-8),
        "stable_adamw": ("none", 0.0, "stable_adamw", 1e-8),
    }
    assert {of.model.arch for of in plan.arms.values()} == {"hybrid"}
    assert plan.arms["betas"].optim.betas == [0.9, 0.95]
    assert plan.varied == ["optim.betas", "optim.eps", "optim.name"]


def test_what_is_given_of_the_loss_on_patterns_is_for_the_arms_that_have_it(tmp_path):
    arms = "arms: [{name: supervised, train.mode: supervised}, {name: a}]\n"
    plan = plan_file(_table(tmp_path, f"train: {{loss: poisson}}\n{arms}"), {"train.overlap_weight": "0.25"})
    found = {arm: (of.train.loss, of.train.overlap_weight) for arm, of in plan.arms.items()}
    assert found == {"supervised": ("mae", 0), "a": ("poisson", 0.25)}
    refused = arms.replace("train.mode: supervised", "train.mode: supervised, loss: poisson")
    with pytest.raises(ConfigError, match=r"^`train.loss` \(=poisson\) must be mae with train.mode=supervised"):
        plan_file(_table(tmp_path, refused), {})


def test_a_supervised_arm_joins_the_study_that_there_is(tmp_path):
    before = plan_file(_table(tmp_path, "preset: smoke\narms: [{name: a}]\n"), {})
    more = "preset: smoke\narms: [{name: baseline, arch: cnn, train.mode: supervised}, {name: a}]\n"
    assert plan_file(_table(tmp_path, more), {}).identity("d" * 64) == before.identity("d" * 64)


def test_the_command_line_overrides_the_seeds_of_a_table(tmp_path):
    path = _table(tmp_path, "preset: smoke\nseeds: 3\narms: [{name: a}]\n")
    assert plan_file(path, {}, "9,").seeds == (9,)
    assert len(plan_file(path, {}).seeds) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset: smoke\n", "must hold a list `arms`"),
        ("arms: []\n", "must hold a list `arms`"),
        ("arms: [3]\n", "must hold a list `arms`"),
        ("arms: [{arch: cnn}]\n", r"^`name` \(=None\) of an arm must be a name"),
        ("arms: [{name: a}, {name: a}]\n", r"^`arms` \(=a\) must have each name once"),
        ("arms: [{name: a, N: 32}]\n", r"^`data.N` \(=32\) of arm a must be the same for all arms"),
        ("arms: [{name: a, seed: 3}]\n", r"^`seed` \(=3\) of arm a must be the same for all arms"),
        ("arms: [{name: a, wdth: 3}]\n", r"^`wdth` \(=3\) is no parameter; did you mean width\?"),
        ("arms: [{name: a, width: 0}]\n", r"^`model.width` \(=0\) must be >= 1"),
        ("arms: [{name: a}]\nclip_algo: agc\n", r"^`clip_algo` \(=agc\) belongs to the arms of a study"),
        ("arms: [{name: a}]\ngrid: {lr: 3}\n", r"^`grid.lr` \(=3\) must be a list of values"),
        ("arms: [{name: a}]\nseeds: many\n", r"^`seeds` \(=many\) must be how many"),
        ("arms: [unclosed\n", r"^`arms` \(=.*sweep.yaml\) must be YAML"),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as refusal:
        plan_file(_table(tmp_path, text), {})
    assert "\n" not in str(refusal.value)


def test_what_the_arms_vary_cannot_be_overridden_for_all_of_them(tmp_path):
    path = _table(tmp_path, "arms: [{name: a, lr: 0.1}]\n")
    with pytest.raises(ConfigError, match=r"^`optim.lr` \(=1\) is what the arms of this study vary"):
        plan_file(path, {"lr": "1"})


def test_an_arm_cannot_be_overridden_for_all_of_stage_a():
    with pytest.raises(ConfigError, match=r"^`arch` \(=cnn\) belongs to the arms of a study"):
        plan_stage_a({"arch": "cnn"}, {})


def test_stage_b_changes_depth_and_study_alone():
    stage_a = plan_stage_a({"preset": "quick"}, {}, "2")
    plan = plan_stage_b("stage_a_quick", stage_a.arms["agc"], "2")
    (config,) = plan.arms.values()
    before = stage_a.arms["agc"].flat()
    changed = {key: value for key, value in config.flat().items() if value != before[key]}
    assert changed == {"study": "stage_b_quick", "model.fno_blocks": 8}
    assert (list(plan.arms), plan.stage_a, plan.seeds) == (["agc"], "stage_a_quick", tuple(stage_a.seeds))


def test_stage_b_must_be_deeper():
    winner = plan_stage_a({"preset": "quick"}, {}).arms["control"]
    with pytest.raises(ConfigError, match=r"^`fno_blocks` \(=4\) must be > 4, the depth of study stage_a_quick"):
        plan_stage_b("stage_a_quick", winner, fno_blocks=4)


@pytest.mark.parametrize(
    ("stage_a", "stage_b"),
    [("stage_a", "stage_b"), ("stage_a_quick", "stage_b_quick"), ("scan", "scan_stage_b"), ("mine", "mine_stage_b")],
)
def test_the_name_of_stage_b_follows_from_that_of_stage_a(stage_a, stage_b):
    assert stage_b_name(stage_a) == stage_b


def test_more_seeds_and_other_clip_values_are_the_same_study_and_more_epochs_are_not():
    plan = plan_stage_a({"preset": "smoke"}, {}, "1")
    same = plan_stage_a({"preset": "smoke"}, {}, "4")
    other = plan_stage_a({"preset": "smoke", "epochs": "9"}, {}, "1")
    assert plan.identity("d") == same.identity("d")
    assert len({plan.identity("d"), other.identity("d"), plan.identity("e")}) == 3


def test_a_study_whose_runs_are_given_up_is_another_one_and_those_from_before_that_was_possible_are_the_same():
    as_then = {
        "preset": "smoke",
        "data.val_choice": "random",
        "data.max_train_patches": 192,
        "data.max_val_patches": 32,
    }
    as_then |= {"optim.schedule": "constant", "optim.warmup_steps": 0, "train.overlap_weight": 0.0}
    plan = plan_stage_a(as_then, {}, "1")
    giving_up = plan_stage_a(as_then | {"train.give_up_after": "0.5"}, {}, "1")
    assert plan.identity("d") == "17cd60215552053928df038820ccc1eabcdb9bee584a90dc84fc10ffbe85a84e"
    assert giving_up.identity("d") != plan.identity("d")


def test_runs_have_one_thread_unless_the_config_says_otherwise():
    assert {run.config.train.threads for run in plan_stage_a({"preset": "smoke"}, {}).runs} == {1}
    assert plan_stage_a({"preset": "smoke", "train.threads": "3"}, {}).common.train.threads == 3


def test_a_scan_means_the_same_file_from_every_folder(tmp_path, monkeypatch):
    (tmp_path / "scan.npz").touch()
    monkeypatch.chdir(tmp_path)
    plan = plan_stage_a({"preset": "scan", "data": "scan.npz"}, {})
    assert plan.study == "scan"
    assert plan.common.data.path == str(tmp_path / "scan.npz")
