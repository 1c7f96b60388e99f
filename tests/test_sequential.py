"""When a study until decided looks, which runs it wants next, and what it says; nothing is trained here."""

import math

import pytest

from fnostab.config import ConfigError
from fnostab.ranking import rank_arms
from fnostab.ranking.claims import Design
from fnostab.study.plan import plan_table
from fnostab.study.sequential import Standing, Until, schedule_of

INF = math.inf


def _plan(arms="abc", seeds="5"):
    return plan_table([{"name": arm} for arm in arms], {}, {"preset": "smoke", "seed": 1}, {}, seeds)


def _rows(losses, seeds, trained):
    """What the runs of `trained` would have left; the first loss is that of seed 1, None means a pruned run."""
    for arm, of_arm in losses.items():
        for seed in seeds:
            if (arm, seed) in trained:
                loss = of_arm[seed - 1]
                verdict = "pruned" if loss is None else "collapsed" if loss == INF else "converged"
                yield {"arm": arm, "seed": seed, "best_val_loss": loss, "verdict": verdict}


def _step(schedule, losses, trained):
    return schedule.next_runs(
        trained, lambda seeds: rank_arms(_rows(losses, seeds, trained), 0, 0, design=schedule.design)
    )


def _batches(schedule, losses):
    """All that a study with these losses trains, by arm the number of seeds of each batch; and its last words."""
    trained, batches = set(), []
    while (found := _step(schedule, losses, trained)).runs:
        assert trained.isdisjoint(found.runs)
        trained |= set(found.runs)
        arms = [arm for arm, _ in found.runs]
        batches.append({arm: arms.count(arm) for arm in arms})
    return batches, schedule.told(found.ranking, over=True), trained


def _series(start, number=30):
    return [start + 0.001 * seed for seed in range(number)]


def _mixed(number=30):
    """Losses that lie now below and now above 0.5, whichever arm has them."""
    return [0.5 + 0.1 * (-1) ** seed + 0.001 * seed for seed in range(number)]


def test_a_study_is_decided_at_its_first_look_where_arms_lie_apart():
    losses = {"a": _series(0.1), "b": _series(0.2), "c": _series(0.3)}
    batches, words, _ = _batches(schedule_of(Until(0.2, 10), _plan()), losses)
    assert batches == [{"a": 5, "b": 5, "c": 5}]
    assert words.startswith("decided after 5 seeds an arm: a over b (p = 0.0")
    assert "; a over c (p = " in words


def test_an_arm_whose_comparison_with_the_leader_is_decided_gets_no_more_seeds():
    losses = {"a": _mixed(), "b": [loss + 0.001 for loss in _mixed()], "c": _series(0.9)}
    batches, words, _ = _batches(schedule_of(Until(0.2, 12), _plan()), losses)
    assert batches == [{"a": 5, "b": 5, "c": 5}, {"a": 5, "b": 5}, {"a": 2, "b": 2}]
    assert words.startswith("not decided with the maximum of 12 seeds an arm: decided: a over c (p = ")
    assert "with 5 seeds); open: a and b (p = " in words


def test_arms_that_are_the_same_get_the_maximum_and_no_more():
    losses = dict.fromkeys("abc", _mixed())
    schedule = schedule_of(Until(None, 13), _plan())
    batches, words, trained = _batches(schedule, losses)
    assert [batch["a"] for batch in batches] == [5, 5, 3]
    assert trained == {(arm, seed) for arm in "abc" for seed in range(1, 14)}
    assert words == (
        "not decided with the maximum of 13 seeds an arm: decided: nothing; open: a and b (p = 1); a and c (p = 1)"
    )


def test_arms_that_come_into_an_open_comparison_with_a_new_leader_catch_up_first():
    """At 5 seeds a leads and beats c; at 10 b leads, and nobody has compared it with c yet."""
    a = [0.1, 0.11, 0.12, 0.13, 0.14, 0.6, 0.61, 0.62, 0.63, 0.64]
    b = [0.105, 0.115, 0.125, 0.45, 0.46, 0.2, 0.2, 0.2, 0.2, 0.2]
    c = [0.33, 0.34, 0.35, 0.36, 0.37, 0.3, 0.3, 0.3, 0.3, 0.3]
    losses = {
        arm: of_arm + _series(0.3 if arm == "a" else 0.28 if arm == "c" else 0.15, 20)
        for arm, of_arm in {"a": a, "b": b, "c": c}.items()
    }
    schedule = schedule_of(Until(0.2, 15), _plan())
    batches, words, _ = _batches(schedule, losses)
    assert batches[:3] == [{"a": 5, "b": 5, "c": 5}, {"a": 5, "b": 5}, {"c": 5}]
    assert "b over c" in words


def test_failed_runs_decide_as_the_worst_ones_do():
    losses = {"a": _series(0.1), "b": [INF] * 30}
    batches, words, _ = _batches(schedule_of(Until(0.05, 10), _plan("ab")), losses)
    assert batches == [{"a": 5, "b": 5}]
    assert words == "decided after 5 seeds an arm: a over b (p = 0.016 with 5 seeds)"


def test_arms_that_always_fail_are_never_told_apart():
    batches, words, _ = _batches(schedule_of(Until(0.05, 10), _plan("ab")), {"a": [INF] * 30, "b": [INF] * 30})
    assert [sum(batch.values()) for batch in batches] == [10, 10]
    assert words.startswith("not decided with the maximum of 10 seeds an arm")


def test_a_run_without_a_result_of_its_own_is_not_wanted_again_and_its_look_decides_nothing():
    losses = {"a": _series(0.1), "b": [0.5, None, *_series(0.5)]}
    batches, words, _ = _batches(schedule_of(Until(0.05, 10), _plan("ab")), losses)
    assert batches == [{"a": 5, "b": 5}, {"a": 5, "b": 5}]
    assert words == "decided after 10 seeds an arm: a over b (p < 0.0001 with 10 seeds)"


@pytest.mark.parametrize("cut", range(1, 15))
def test_a_study_that_was_killed_in_the_middle_of_a_look_goes_on_with_the_rest_of_it(cut):
    losses = {"a": _mixed(), "b": [loss + 0.01 for loss in _mixed()], "c": _series(0.4)}
    schedule = schedule_of(Until(0.2, 20), _plan())
    trained = set()
    while (found := _step(schedule, losses, trained)).runs:
        part = found.runs[:cut]
        assert _step(schedule, losses, trained | set(part)).runs[: len(found.runs) - len(part)] == found.runs[cut:]
        trained |= set(found.runs)
    assert len(trained) > 15


def test_a_larger_maximum_goes_on_after_the_looks_that_were_taken():
    schedule = schedule_of(Until(None, 8), _plan())
    assert schedule.design == Design(0.05, (5, 8))
    later = schedule_of(Until(None, 15), _plan(), range(1, 9), schedule.design)
    assert later.design == Design(0.05, (5, 8, 13, 15))
    assert later.plan.seeds == tuple(range(1, 16))
    losses = dict.fromkeys("abc", _mixed())
    trained = {(arm, seed) for arm in "abc" for seed in range(1, 9)}
    assert _step(schedule, losses, trained).runs == []
    assert {seed for _, seed in _step(later, losses, trained).runs} == set(range(9, 14))


def test_what_is_not_given_again_is_what_the_study_was_begun_with():
    begun = Design(0.1, (3, 8, 12))
    schedule = schedule_of(Until(), _plan(), range(1, 4), begun)
    assert schedule.design == begun
    assert schedule.plan.seeds == tuple(range(1, 13))


def test_seeds_that_the_study_has_already_are_not_skipped():
    schedule = schedule_of(Until(None, 10), _plan(seeds="1,2,5"), [1, 2, 5, 9])
    assert schedule.design.looks == (3, 8, 10)
    assert schedule.plan.seeds == (1, 2, 5, 9, 10, 11, 12, 13, 14, 15)


@pytest.mark.parametrize(
    ("asked", "arms", "seeds", "message"),
    [
        ({"alpha": 0.0}, "ab", "5", r"^`alpha` \(=0\) must be above 0 and at most 0.5$"),
        ({"alpha": 0.51}, "ab", "5", r"^`alpha` \(=0.51\) must be above 0 and at most 0.5$"),
        ({"alpha": math.nan}, "ab", "5", r"^`alpha` \(=nan\) must be above 0 and at most 0.5$"),
        ({"max_seeds": 4}, "ab", "5", r"^`max_seeds` \(=4\) must be >= 5, the number of seeds that there are$"),
        ({"max_seeds": 1001}, "ab", "5", r"^`max_seeds` \(=1001\) must be <= 1000$"),
        ({}, "a", "5", r"^`until` \(=decided\) needs two arms to compare: there is a alone$"),
        ({}, "ab", "4294967290,", r"^`seeds` \(=4294967290\) must leave room for 30 seeds below 2\*\*32$"),
    ],
)
def test_what_no_study_until_decided_can_have_is_refused(asked, arms, seeds, message):
    with pytest.raises(ConfigError, match=message):
        schedule_of(Until(**asked), _plan(arms, seeds))


@pytest.mark.parametrize(
    ("asked", "seeds", "message"),
    [
        ({"alpha": 0.1}, "5", r"^`alpha` \(=0.1\) must be 0.05, which this study was begun with$"),
        ({"max_seeds": 9}, "5", r"^`max_seeds` \(=9\) must be >= 10, which this study was begun with$"),
        ({"max_seeds": 6}, "5", r"^`max_seeds` \(=6\) must be >= 7, the number of seeds that there are$"),
        ({}, "2,9", r"^`seeds` \(=2, 9\) must be the first ones of the study, which has 1, 2, 3, 4, 5, 6, 7 already$"),
    ],
)
def test_what_does_not_fit_to_what_a_study_was_begun_with_is_refused(asked, seeds, message):
    with pytest.raises(ConfigError, match=message):
        schedule_of(Until(**asked), _plan("ab", seeds), range(1, 8), Design(0.05, (5, 10)))


def test_it_is_said_where_so_few_seeds_can_decide_nothing():
    losses = {"a": _series(0.1), "b": _series(0.2), "c": _series(0.3)}
    runs = [(arm, seed) for arm in "abc" for seed in range(1, 4)]
    for most, words in ((12, "fewer than 8 seeds an arm can decide nothing"), (4, "fewer than 5 seeds")):
        schedule = schedule_of(Until(None, most), _plan(seeds="3"))
        ranking = rank_arms(_rows(losses, (1, 2, 3), runs), 0, 0, design=schedule.design)
        assert schedule.told(ranking, over=False).startswith("after 3 seeds an arm: decided: nothing; open: a and b (")
        assert words in schedule.told(ranking, over=False)


def test_the_standing_says_what_each_arm_has():
    losses = {"a": _series(0.1), "b": _series(0.2)}
    runs = [("a", seed) for seed in range(1, 11)] + [("b", seed) for seed in range(1, 6)]
    ranking = rank_arms(_rows(losses, range(1, 11), runs), 0, 0, design=Design(0.05, (5, 10)))
    tags = Standing.of(ranking).tags()
    assert tags == {"decided": "a over b (p = 0.016 with 5 seeds)", "open": "nothing", "seeds_used": "a 10, b 5"}
