"""Tables and figures of why it came out as it did, from runs that are made up; and the power of what is claimed."""

import gzip
import json

import numpy as np
import pytest

from fnostab.ranking.exact_tests import failure_rate_test, rank_test
from fnostab.report.axes import to_rgb
from results import activations, causes, losses, planned, power, runs, survival, why

_STAGES = ("lifter", "encoder.0", "bottleneck", "output")


def _watched(dead_from):
    """Series of a run that is watched at steps 0, 10, ... 100, whose bottleneck dies first."""
    steps = list(range(0, 101, 10))
    watched = {"step": steps, "loss": [0.1] * 11}
    watched["object_std_ratio"] = [0.0 if dead_from is not None and step >= dead_from else 0.5 for step in steps]
    for place, stage in enumerate(_STAGES):
        gone = [dead_from is not None and place >= 2 and step >= dead_from for step in steps]
        for name in ("pattern_std", "middle_std"):
            watched[f"{name}/{stage}"] = [0.0 if dead else 0.1 * 2**place for dead in gone]
        watched[f"act_std/{stage}"] = [1.0] * 11
    return watched


def _run(study, arm, seed, losses=(0.2, 0.1, 0.05), *, dead_from=None, watched=False, params=(), **metrics):
    """A line of an exported study; a run that is dead from a step on has a constant object in the end."""
    is_dead = dead_from is not None
    losses = [0.2] * len(losses) if is_dead else list(losses)
    history = {
        "val_loss": losses,
        "val_loss_constant": 0.2,
        "val_loss_floor": 0.0,
        "object_std_ratio": [0.0 if is_dead else 1.0] * len(losses),
        "grad_norm_preclip": [1.0] * 24 + [50.0] + [1.0] * 76,
        "health": {},
    }
    if watched:
        history["watched"] = _watched(dead_from)
    best = min(losses) * (1 + 0.01 * (seed % 7))
    measured = {"best_val_loss": best, "val/r_stitched": best + 0.02, "test/amp_ssim": 0.7, "samples_per_s": 32.0}
    measured |= {"grad/norm_max": 50.0, "grad/norm_median": 1.0}
    known = {"preset": "quick", "model.arch": "hybrid", "optim.lr": "0.001", "data.max_train_patches": "1024"}
    tags = {"study": study, "arm": arm, "seed": str(seed), "verdict": "converged", "verdict_reason": ""}
    return {
        **{"run_id": f"{arm}-{seed}", "name": f"{arm}-{seed}", "ended_ms": 1, "config": None, "history": history},
        **{"tags": tags, "params": known | dict(params), "metrics": measured | metrics},
    }


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Make the runs of a study those that are shipped."""
    monkeypatch.setattr(runs, "DATA", tmp_path)
    for cached in (runs.read_runs, runs.ranked):
        cached.cache_clear()

    def ship(study, lines):
        header = {"format": "fnostab runs", "version": 1, "study": study}
        text = "".join(json.dumps(line) + "\n" for line in (header, *lines))
        (tmp_path / f"{study}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        return runs.read_runs(study)

    yield ship
    for cached in (runs.read_runs, runs.ranked):
        cached.cache_clear()


@pytest.fixture
def mortal(shipped):
    """Ten runs of stable, of which eight die at steps 30 to 60, and ten of control, which live."""
    lines = [_run("w1", "control", seed, watched=True) for seed in range(10)]
    lines += [_run("w1", "stable", s, watched=True, dead_from=30 + 10 * (s % 4) if s < 8 else None) for s in range(10)]
    return shipped("w1", lines)


def _cells(table, first):
    """The cells of the row of a table that begins with `first`, without emphasis."""
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip(" *") for cell in line.strip("|").split("|")]


def test_the_table_of_deaths_says_how_many_died_when_where_and_after_which_gradient(mortal):
    cells = _cells(survival.deaths(mortal), "stable")
    assert cells[2].startswith("8 of 10 [")
    assert cells[3:5] == ["45 (30 to 60)", "bottleneck (8)"]
    assert cells[5].endswith("(1 to 50)")  # the peak is at step 24, and those that died at 30 alone have it before
    cells = _cells(survival.deaths(mortal), "control")
    assert cells[2].startswith("0 of 10 [")
    assert cells[3:7] == ["–"] * 4


def test_a_stage_is_lost_from_the_step_on_after_which_it_never_came_back(shipped):
    lines = [_run("w1", "a", seed, watched=True) for seed in range(4)] + [_run("w1", "b", 1, watched=True)]
    for line, values in zip(lines, ([0.1, 0.049], [0.049, 0.1], [0.049, 0.049], [0.049, 0.051]), strict=False):
        line["history"]["watched"]["middle_std/bottleneck"] = [0.5, values[0]] * 3 + [values[1]] * 5
    found = shipped("w1", lines)
    assert [losses.lost_stages(run) for run in found[:2]] == [{"bottleneck": 60}, {}]
    assert losses.lost_stages(found[2]) == {"bottleneck": 50}
    cells = _cells(losses.stages("w1"), "a")
    assert cells[1].startswith("2 of 4 [")
    assert cells[2:5] == ["55 (50 to 60)", "bottleneck (2)", "50 (50 to 50)"]  # the peak is at step 24
    assert cells[5].startswith("1 (1 to 1)")  # the made-up deviations of outputs never grow
    assert float(cells[6]) > 0
    other = _cells(losses.stages("w1"), "b")
    assert (other[2:5], other[6]) == (["–"] * 3, "–")
    assert "| a, b | 2 of 4 | 0 of 1 |" in losses.stages("w1")
    (axes,) = losses.kept("w1").axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert set(lines) == {"a: 2 of 4 lost a stage", "b: 0 of 1 lost a stage"}
    steps, shares = lines["a: 2 of 4 lost a stage"].get_data()
    assert list(steps) == [0, 50, 60, 100]
    assert shares[-1] == pytest.approx(0.5)


def test_lost_stages_are_counted_by_learning_rate_and_by_block_where_a_run_can_tell(shipped, monkeypatch):
    monkeypatch.setattr(losses, "LATER", ())
    monkeypatch.setattr(losses, "WHY", ("w1",))
    fast = {"optim.lr": "0.003", "model.arch": "stable_hybrid"}
    lines = [_run("w1", "slow", seed, watched=True, dead_from=30 if seed < 2 else None) for seed in range(4)]
    lines += [_run("w1", "fast", seed, watched=True, dead_from=30, params=fast) for seed in range(2)]
    at_end = _run("w1", "at_end", 1, params=fast)
    at_end["history"]["health"] = {"pattern_share/ups.0": [0.4, 0.3]}
    shipped("w1", [*lines, at_end, _run("w1", "nobody_looked", 1)])
    text = losses.by_rate()
    assert [cell.partition(" [")[0] for cell in _cells(text, "0.001")] == ["0.001", "2 of 4", "–", "2 of 4"]
    assert [cell.partition(" [")[0] for cell in _cells(text, "0.003")] == ["0.003", "–", "2 of 3", "2 of 3"]


def _grown(arm, rate, seed, times, dead_from=None):
    run = _run("q5_lr", f"{arm}-lr{rate}", seed, params={"optim.lr": str(rate)}, dead_from=dead_from)
    run["history"]["health"] = {"act_std/bottleneck": [0.5, 0.5 * times, "NaN", 0.6]}
    return run


def test_the_growth_of_activations_is_told_by_arm_and_rate_with_what_failed(shipped):
    dies = {("control", 0.01): 30}
    lines = [
        _grown(arm, rate, seed, times + seed, dead_from=dies.get((arm, rate)))
        for (arm, rate), times in {
            ("control", 0.001): 10,
            ("control", 0.01): 1e6,
            ("stable", 0.001): 1,
            ("stable", 0.01): 7,
        }.items()
        for seed in range(5)
    ]
    shipped("q5_lr", lines)
    assert _cells(activations.by_rate(), "control") == ["control", "12", "1e+06, 5 of 5 failed"]
    assert _cells(activations.by_rate(), "stable") == ["stable", "3", "9"]
    (axes,) = activations.grown_by_rate().axes
    crosses = [line for line in axes.get_lines() if line.get_marker() == "x" and len(line.get_xdata())]
    assert [len(line.get_xdata()) for line in crosses] == [5]
    assert min(crosses[0].get_ydata()) == pytest.approx(1e6)


def test_growth_by_step_is_drawn_from_where_it_began_and_marks_the_loss_of_a_stage(shipped):
    line = _run("w1", "control", 1, watched=True)
    watched = line["history"]["watched"]
    watched["act_std/bottleneck"] = [1.0 * 2**place for place in range(11)]
    watched["middle_std/bottleneck"] = [0.4, 0.8, 1.6] + [1e-3] * 8
    shipped("w1", [line])
    (axes,) = activations.grown_by_step("w1").axes
    grown, lost = axes.get_lines()[:2]
    assert list(grown.get_ydata()) == [2.0**place for place in range(11)]
    assert (list(lost.get_xdata()), list(lost.get_ydata())) == ([30], [8.0])


def test_numbers_of_deaths_are_compared_by_boschloo_corrected_for_all_pairs(shipped):
    lines = [
        _run("w1", arm, seed, watched=True, dead_from=30 if seed < died else None)
        for arm, died in (("a", 0), ("b", 8), ("c", 1))
        for seed in range(10)
    ]
    text = survival.comparisons(shipped("w1", lines))
    assert "for the 3 comparisons. Bold is clear" in text
    p = failure_rate_test(0, 10, 8, 10)
    assert _cells(text, "a, b")[1:] == ["0 of 10", "8 of 10", f"p = {p:.2g}", f"p = {3 * p:.2g}"]
    assert "Nothing here is clear" in survival.comparisons([run for run in shipped("w1", lines) if run.arm != "b"])
    text = survival.compared({"a": (0, 10), "b": (8, 10), "c": (1, 10)}, "died", against="a")
    assert _cells(text, "a, b")[3:] == [f"p = {p:.2g}", f"p = {2 * p:.2g}"]
    assert "b, c" not in text


def test_a_run_that_was_not_watched_is_refused(shipped):
    with pytest.raises(ValueError, match=r"`run` must have been watched .*control-1 was not"):
        survival.deaths(shipped("w1", [_run("w1", "control", 1)]))


def test_the_share_alive_falls_at_each_death_and_stays_where_nobody_dies(mortal):
    figure = survival.shares_alive({"a panel": mortal})
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert set(lines) == {"control: 0 of 10 died", "stable: 8 of 10 died"}
    steps, shares = lines["stable: 8 of 10 died"].get_data()
    assert list(steps) == [0, 30, 30, 40, 40, 50, 50, 60, 60, 100]
    assert shares[0] - shares[-1] == pytest.approx(0.8)
    assert np.ptp(lines["control: 0 of 10 died"].get_ydata()) == 0
    assert to_rgb(figure).std() > 0


def test_the_figure_around_a_death_has_the_stages_of_both_runs_and_its_step(mortal):
    dying = next(run for run in mortal if run.arm == "stable")
    living = next(run for run in mortal if run.arm == "control")
    upper, other, *_ = survival.around_death(dying, living).axes
    assert [line.get_label() for line in other.get_lines()] == list(_STAGES)
    assert upper.get_lines()[-1].get_xdata()[0] == 30
    with pytest.raises(ValueError, match="`dying` must have died: control, seed 0, did not"):
        survival.around_death(living, dying)


def _two_by_two(shipped):
    arms = {"plain": 0.050, "control": 0.060, "stable": 0.051, "stable_norm": 0.070}
    return shipped("w2", [_run("w2", arm, s, (0.2, loss)) for arm, loss in arms.items() for s in range(10)])


def test_effects_of_block_and_clipping_are_given_each_with_the_other_fixed(shipped):
    _two_by_two(shipped)
    text = causes.blocks("w2")
    assert _cells(text, "clipping, block of control")[1:3] == ["control against plain", "+20.0 %"]
    assert _cells(text, "stable block, clipped")[1:3] == ["stable_norm against control", "+16.7 %"]
    assert _cells(text, "clipping, block of control")[3].startswith("0.00 [0.00, 0.00], p < 0.0001")
    assert "the study's 6 comparisons" in text


def test_block_and_clipping_are_compared_seed_by_seed_each_with_the_other_fixed(shipped, monkeypatch):
    _two_by_two(shipped)
    text = causes.block_pairs("w2")
    assert _cells(text, "control")[1:4] == ["10", "1.200 [1.200, 1.200]", "0"]
    assert _cells(text, "not clipped")[1:4] == ["10", "1.020 [1.020, 1.020]", "0"]
    assert text.count("| all | 20 |") == 2
    monkeypatch.setattr(why, "_BLOCKS", "w2")
    pieces = list(why.blocks())
    assert "+20.0 % in the block of control and +37.3 % in the stable one" in pieces
    assert "0 of 20 runs that clip" in pieces


def test_epsilons_are_compared_within_an_arm_and_pre_with_the_others_at_the_same(shipped):
    medians = {("plain", "1e-08"): 0.06, ("plain", "1e-12"): 0.05, ("pre", "1e-08"): 0.048, ("pre", "1e-12"): 0.048}
    shipped(
        "w3_epsilon",
        [
            _run("w3_epsilon", f"{arm}-eps{eps}", seed, (0.2, loss), params={"optim.eps": eps})
            for (arm, eps), loss in medians.items()
            for seed in range(10)
        ],
    )
    rows = [line.split("|") for line in causes.epsilon().splitlines() if line.startswith("| plain |")]
    assert [row[2].strip() for row in rows] == ["1e-08", "1e-12"]
    assert [row[-3].strip() for row in rows] == ["20 %", "4 %"]
    assert rows[0][5].strip() == ""
    assert rows[1][5].strip(" *").startswith("1.00 [1.00, 1.00], p < 0.0001")


def test_epsilons_are_compared_seed_by_seed(shipped):
    shipped(
        "w3_epsilon",
        [
            _run("w3_epsilon", f"{arm}-eps{eps}", seed, (0.2, loss), params={"optim.eps": eps})
            for (arm, eps), loss in {("plain", "1e-08"): 0.06, ("plain", "1e-12"): 0.045}.items()
            for seed in range(4)
        ],
    )
    for arm in ("plain", "all"):
        assert _cells(causes.epsilon_pairs(), arm)[1:4] == ["4", "0.750 [0.750, 0.750]", "4"]


@pytest.mark.parametrize(
    ("losses", "ssim", "is_crash"),
    [
        ((0.2, 0.05), 0.7, False),
        ((0.2, 0.05), 0.49, True),
        ((0.05, 0.16), 0.7, True),
        ((0.2, 0.05), None, False),
        ((0.2, 0.2), None, True),
        ((0.2, "NaN"), 0.7, True),
    ],
)
def test_the_crash_of_the_later_runs_is_a_low_ssim_or_a_high_last_loss(shipped, losses, ssim, is_crash):
    (run,) = shipped("w5", [_run("w5", "control", 1) | {}])
    run.history["val_loss"][:] = losses
    run.metrics["test/amp_ssim"] = float("nan") if ssim is None else ssim
    assert causes.crashed(run) is is_crash


def test_both_rules_for_failure_stand_beside_each_other(shipped):
    lines = [_run("w5", "layerscale", seed, **{"test/amp_ssim": 0.4 if seed < 3 else 0.8}) for seed in range(10)]
    lines += [_run("w5", "original", seed, dead_from=30 if seed < 2 else None) for seed in range(10)]
    shipped("w5", lines)
    text = causes.crashes("w5")
    assert [cell.partition(" [")[0] for cell in _cells(text, "layerscale")[1:4]] == ["0 of 10", "3 of 10", "0"]
    assert [cell.partition(" [")[0] for cell in _cells(text, "original")[1:4]] == ["2 of 10", "2 of 10", "2"]


def test_rules_against_the_accident_are_told_with_what_was_thrown_back_and_the_largest_gradient(shipped):
    lines = [_run("w4_rules", "none", seed, (0.2, 0.05, 0.09, 0.06), **{"grad/norm_max": 700.0}) for seed in range(6)]
    lines += [_run("w4_rules", "norm_1", seed, (0.2, 0.05, 0.04, 0.04)) for seed in range(6)]
    shipped("w4_rules", lines)
    cells = _cells(causes.remedies("w4_rules"), "none")
    assert cells[2].startswith("6 of 6")
    assert cells[3:7] == ["1.80", "1.80", "700", "700"]


def test_long_trainings_are_told_with_their_rises_and_drawn_by_epoch_and_by_minutes(shipped):
    arms = {"pre_cosine": (0.2, 0.1, 0.04), "pre": (0.2, 0.05, 0.06)}
    shipped("w6_long", [_run("w6_long", arm, seed, of) for arm, of in arms.items() for seed in range(1, 11)])
    text = causes.long_runs("w6_long")
    assert _cells(text, "pre")[6:10] == ["1.20", "1.20", "1.20", "0"]
    assert _cells(text, "pre_cosine")[6:10] == ["1.00", "1.00", "0.50", "0"]
    epochs, minutes = causes.long_curves("w6_long").axes
    assert [line.get_label() for line in epochs.get_lines()] == ["pre_cosine", "pre"]
    assert list(minutes.get_lines()[0].get_xdata()) == pytest.approx([32 * k / 60 for k in (1, 2, 3)])


def test_the_rate_of_an_arm_is_that_with_the_lowest_stitched_r_on_the_seeds_of_the_selection(shipped):
    shipped("w6_long", [_run("w6_long", "pre", seed, (0.2, 0.06)) for seed in range(1, 11)])
    losses = {"0.0005": (0.2, 0.05), "0.002": (0.2, 0.04)}
    shipped(
        "w6_rates",
        [
            _run(
                "w6_rates",
                f"pre-lr{rate}",
                seed,
                of,
                params={"optim.lr": rate},
                dead_from=30 if (rate, seed) == ("0.002", 2) else None,
            )
            for rate, of in losses.items()
            for seed in (1, 2, 3)
        ],
    )
    rows = [line.split(" | ") for line in causes.chosen_rates().splitlines() if line.startswith("| pre |")]
    assert [(row[1], row[2], row[4]) for row in rows] == [
        ("0.0005", "0 of 3 [0, 56 %]", "**0.071**"),
        ("0.001", "0 of 3 [0, 56 %]", "0.081"),
        ("0.002", "1 of 3 [6, 79 %]", "∞"),
    ]


def test_the_power_of_the_rank_test_is_what_a_direct_simulation_gives():
    rng = np.random.default_rng(5)
    shift = np.sqrt(2) * 1.2815515655446004  # of a probability of 0.9
    found = [rank_test(rng.standard_normal(10), rng.standard_normal(10) + shift) <= 0.05 / 6 for _ in range(1000)]
    assert power.rank_power(0.9, 10, 6) == pytest.approx(np.mean(found), abs=0.06)


def test_with_equal_arms_a_claim_is_as_rare_as_it_says():
    assert power.rank_power(0.5, 10) <= 0.06
    for rate in (0.1, 0.4):
        assert power.rate_power(rate, rate, 10) <= 0.05 + 1e-9


def test_what_can_be_shown_comes_nearer_with_more_seeds_and_lies_farther_with_more_comparisons():
    found = [power.shown_probability(seeds) for seeds in (5, 10, 20)]
    assert found == sorted(found, reverse=True)
    assert power.shown_probability(10, 6) > power.shown_probability(10)
    assert power.shown_probability(3) is None  # the least p-value of three seeds is 0.1
    assert power.shown_rate(0.0, 10) == pytest.approx(0.48, abs=0.02)
    assert power.shown_rate(0.1, 5, 10) is None


def test_a_later_study_is_told_with_its_commits_and_its_page(shipped, tmp_path, monkeypatch):
    for page, study in (("epsilon.md", "w3_epsilon"), ("long.md", "w6_long")):
        (tmp_path / page).write_text(f"<!-- table {study}_pairs: begin -->\n")
    monkeypatch.setattr(planned, "DATA", tmp_path / "data")
    monkeypatch.setattr(planned, "LATER", ())
    monkeypatch.setattr(planned, "WHY", ("w6_long",))
    commits = {("a", 1): "0123456789", ("a", 2): "0123456789", ("b", 1): "abcdef0123"}
    lines = [_run("w6_long", *of) for of in commits]
    for line, commit in zip(lines, commits.values(), strict=True):
        line["tags"]["git_commit"] = commit
    shipped("w6_long", lines)
    assert _cells(planned.later(), "[`w6_long`](long.md)")[1:] == ["3", "2", "2", "0123456, abcdef0"]


def test_what_is_planned_is_told_with_what_has_run_and_the_hours_left(shipped, tmp_path, monkeypatch):
    (tmp_path / "studies").mkdir()
    table = "study: w6_long\npreset: quick\nseeds: [1, 2, 3]\n"
    table += "arms: [{name: a, arch: hybrid}, {name: b, arch: stable_hybrid}]\n"
    table += "grid: {lr: [0.1, 0.2], optim.eps: [0.1, 0.2]}\n"
    (tmp_path / "studies" / "w6_long.yaml").write_text(table)
    (tmp_path / "studies" / "w1_survival_width32.yaml").write_text(
        "preset: seed_study\nseeds: 20\narms: [{name: a, arch: hybrid}]\n"
    )
    monkeypatch.setattr(planned, "DATA", tmp_path / "data")
    monkeypatch.setattr(planned, "WHY", ("w6_long",))
    shipped("w6_long", [_run("w6_long", "a", seed) for seed in range(2)])
    text = planned.progress()
    hours = [f"{runs * planned.MINUTES['w6'] / 120:.1f}" for runs in (24, 22)]
    assert _cells(text, "`w6_long`") == ["`w6_long`", "24", "2", *hours]
    assert _cells(text, "`w1_survival_width32`")[1:] == ["20", "0", "on a GPU", "on a GPU"]
