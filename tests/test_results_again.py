"""The rankings of docs/results, computed a second time: from the shipped files, by NumPy and SciPy alone."""

import gzip
import itertools
import json

import numpy as np
import pytest
from scipy import stats

from results.runs import DATA, STUDIES, ranked, read_runs


def _stored(study):
    """The runs of a shipped file as they lie there."""
    with gzip.open(DATA / f"{study}.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines][1:]


def _verdict(history):
    """Rules 1 to 5 of the verdict, else converged; no run here has the series of rule 6, or lacks what rule 3 needs."""
    if history.get("events", {}).get("non_finite"):
        return "non_finite"
    losses = np.nan_to_num(np.array(history["val_loss"], float), nan=np.inf, posinf=np.inf)
    contrast = np.array(history["object_std_ratio"], float)
    constant, floor = history["val_loss_constant"], history["val_loss_floor"]
    progress = (constant - losses) / (constant - floor)
    if contrast[-1] < 1e-6:
        return "collapsed"
    if progress.max() < 0.25:
        grew = not np.isfinite(losses[-1]) or losses[-1] > 2 * losses[0] or losses[-1] > 10 * constant
        return "diverged" if grew else "stagnated"
    if losses[-1] > 2 * losses.min() or progress[-1] < 0.5 * progress.max():
        return "collapsed" if contrast[-1] < 0.1 or contrast[-1] < 0.1 * np.nanmax(contrast) else "diverged"
    return "converged"


def _p_value(a, b):
    """Two-sided exact p-value of the rank sum; with ties by trying every way to deal the ranks."""
    together = np.array([*a, *b])
    if len(set(together)) == len(together):
        return stats.mannwhitneyu(a, b, method="exact").pvalue
    ranks = stats.rankdata(together)
    sums = ranks[np.array(list(itertools.combinations(range(len(together)), len(a))))].sum(axis=1)
    away = np.abs(sums - len(a) * (len(together) + 1) / 2)
    return np.mean(away >= away[0] - 1e-9)  # the first way is the one that was seen


def _holm(p_values):
    """Adjusted p-values, by key: the k-th smallest of m times m - k + 1, and never less than the one before."""
    adjusted, least = {}, 0.0
    for place, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, p * (len(p_values) - place)))
        adjusted[key] = least
    return adjusted


@pytest.mark.parametrize("study", STUDIES)
def test_a_second_computation_with_scipy_alone_agrees_with_p_values_medians_and_failure_counts(study):
    runs, ranking = _stored(study), ranked(study)
    failed, values = {}, {}
    for run in runs:
        arm, lost = run["tags"]["arm"], _verdict(run["history"]) != "converged"
        failed.setdefault(arm, []).append(lost)
        for by, metric in (("best_val_loss", "best_val_loss"), ("r_stitched", "test/r_factor")):
            value = np.inf if lost else run["metrics"][metric]
            values.setdefault(by, {}).setdefault(arm, []).append(value)
    assert {row["arm"]: row["failures"] for row in ranking.table} == {arm: sum(of) for arm, of in failed.items()}
    for by, found in (("best_val_loss", ranking.pairs), ("r_stitched", ranking.other_pairs)):
        medians = {arm: np.median(of) for arm, of in values[by].items()}
        assert {row["arm"]: row[f"median_{by}"] for row in ranking.table} == pytest.approx(medians)
        p_values = {pair: _p_value(*(values[by][arm] for arm in pair)) for pair in itertools.combinations(medians, 2)}
        tests = dict(p_values)
        if {"agc", "control"} <= failed.keys():
            counts = [(sum(failed[arm]), len(failed[arm]) - sum(failed[arm])) for arm in ("agc", "control")]
            tests["rates"] = stats.boschloo_exact(np.transpose(counts)).pvalue if counts[0][0] + counts[1][0] else 1.0
        corrected = _holm(tests)
        assert ranking.comparisons == len(tests)
        compared = {(pair.a, pair.b): pair for pair in found}
        assert {pair: compared[pair].p for pair in p_values} == pytest.approx(p_values)
        assert {pair: compared[pair].p_corrected for pair in p_values} == pytest.approx(
            {pair: corrected[pair] for pair in p_values}
        )
        for pair in p_values:
            first, second = (values[by][arm] for arm in pair)
            ranks = stats.rankdata([*first, *second])
            lower = pair[int(ranks[: len(first)].mean() > ranks[len(first) :].mean())]
            assert compared[pair].better == (lower if corrected[pair] <= 0.05 else None)


def test_verdicts_of_a_second_computation_agree_run_by_run():
    for study in STUDIES:
        assert [run.verdict for run in read_runs(study)] == [_verdict(run["history"]) for run in _stored(study)]
