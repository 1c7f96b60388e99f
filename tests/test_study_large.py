"""Studies of many arms and many seeds: what of them is drawn, and that this is said."""

import json

import numpy as np
import pytest

from fnostab.ranking import rank_arms
from fnostab.report.figures import FIGURES
from fnostab.report.study import html_report, summary_markdown
from fnostab.study.curves import Curves
from fnostab.study.result import StudyResult, StudyRun, best_and_worst

_CONSTANTS = {"val_loss_constant": 0.164, "val_loss_floor": 0.011}


def _history(rng, steps=2000):
    norms = rng.lognormal(-1, 0.4, steps).tolist()
    losses = (0.02 + 0.1 * rng.random(6)).tolist()
    return {"val_loss": losses, "grad_norm_preclip": [*norms, "NaN", "Infinity"], "loss_step": norms, **_CONSTANTS}


def _study(arms, seeds):
    rng = np.random.default_rng(0)
    runs = []
    for arm in range(arms):
        for seed in range(seeds):
            verdict = "stagnated" if seed % 10 == 7 else "converged"
            loss = (0.01 + 0.001 * arm) * float(rng.lognormal(0, 0.2))
            run_id, name = f"{arm:08x}{seed:08x}", f"arm{arm:02d}"
            runs.append(StudyRun(name, seed, run_id, verdict, "told", loss, Curves.of(_history(rng, 50 + arms))))
    rows = [
        {"arm": run.arm, "seed": run.seed, "verdict": run.verdict, "best_val_loss": run.best_val_loss} for run in runs
    ]
    return StudyResult("large", rank_arms(rows, 0, resamples=100), runs, "5f" * 32)


def test_what_is_kept_of_a_history_does_not_grow_with_its_steps():
    short, long = (Curves.of(_history(np.random.default_rng(0), steps)) for steps in (2_000, 40_000))
    sizes = [sum(len(part) for part in vars(kept.grad_norm).values()) for kept in (short, long)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("[1, 2]", "it must hold an object"),
        ('{"val_loss": 0.1}', "`val_loss` must be a list"),
        ('{"grad_norm_preclip": {"0": 1}}', "`grad_norm_preclip` must be a list"),
    ],
)
def test_what_is_no_history_is_refused(text, rule):
    with pytest.raises(ValueError, match=rule):
        Curves.of(json.loads(text))


def test_a_number_that_no_float_holds_is_not_drawn():
    assert np.isnan(Curves.of({"grad_norm_preclip": [10**400]}).grad_norm.median).all()


def test_of_many_seeds_some_are_drawn_from_the_best_to_the_worst_in_their_order():
    result = _study(1, 100)
    drawn = result.drawn("arm00")
    assert len(drawn) == 25
    assert [run.seed for run in drawn] == sorted({run.seed for run in drawn})
    assert {run.seed for run in best_and_worst(result.of_arm("arm00"))} <= {run.seed for run in drawn}
    assert sum(run.failed for run in drawn) in (2, 3)  # 10 of 100 failed
    few = _study(1, 25)
    assert few.drawn("arm00") == few.of_arm("arm00")


def test_of_many_arms_the_first_in_rank_are_drawn_and_the_report_says_so():
    result = _study(30, 2)
    titles = [axes.get_title(loc="left") for axes in FIGURES["learning_curves"](result).axes]
    assert titles == result.arms[:12]
    names = [label.get_text() for label in FIGURES["failure_rates"](result).axes[0].get_yticklabels()]
    assert names == result.arms[:24]
    page = html_report(result)
    assert page.count("The first 12 of 30 arms in rank.") >= 2
    assert page.count("The first 24 of 30 arms in rank.") >= 2
    assert "Of 18 more arms there are no pictures here" in page
    assert all(arm in page for arm in result.arms)  # the tables have all


def test_a_report_that_draws_everything_speaks_of_nothing_left_out():
    page = html_report(_study(12, 3))
    assert "arms in rank." not in page
    assert "no pictures here" not in page
    assert "at even distances" not in page


def test_a_brief_summary_names_every_arm_and_no_run():
    result = _study(3, 50)
    brief, whole = summary_markdown(result, brief=True), summary_markdown(result)
    assert all(arm in brief for arm in result.arms)
    assert not any(run.run_id in brief for run in result.all_runs)
    assert all(run.run_id in whole for run in result.all_runs)
    assert len(brief) < 4000 < len(whole)
