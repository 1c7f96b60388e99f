import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from fnostab.ranking import rank_arms
from fnostab.ranking.claims import ONE_LOOK, Design
from fnostab.report import figures as figures_module
from fnostab.report.axes import colours, to_rgb
from fnostab.report.chart import curve_charts
from fnostab.report.figures import FIGURES, draw_figures
from fnostab.report.study import html_report, note_markdown, summary_markdown
from fnostab.study.curves import NO_CURVES, Curves, binned
from fnostab.study.depth import compare_depth
from fnostab.study.result import StudyResult, StudyRun, best_and_worst

CONSTANT, FLOOR = 0.164, 0.011
REASONS = {
    "converged": "progress (0: constant object, 1: photon noise alone) reached 0.93 at epoch 48 and ended at 0.92",
    "stagnated": "never learnt: progress reached 0.0213, under 0.25; val_loss went from 0.171 to 0.161",
    "collapsed": "progress reached 0.81 at epoch 4, but then the object went flat: object_std_ratio ended at 0.004",
    "diverged": "progress reached 0.61 at epoch 9, but ended at -1.2e+03, under 0.5 of that",
    "inconsistent": "each patch explains its pattern, but the object does not: r_stitched ended at 0.132, over 0.130",
    "non_finite": "the loss or gradient was not finite at step 2100, first in `encoder.1.spectral`",
    "interrupted": "the run was interrupted (steps done: 900, epochs finished: 12)",
}
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


def history_of(verdict, rng, epochs=50, steps_per_epoch=60, best=0.02):
    """Series like those of a run with this verdict."""
    t = np.arange(1, epochs + 1)
    loss = best + (CONSTANT - best) * np.exp(-t / (0.12 * epochs)) * np.exp(0.06 * rng.standard_normal(epochs))
    norms = (
        0.4 * (1 + 20 / np.arange(10, 10 + epochs * steps_per_epoch)) * rng.lognormal(0, 0.3, epochs * steps_per_epoch)
    )
    if verdict == "stagnated":
        loss = CONSTANT * (1 + 0.004 * rng.standard_normal(epochs))
        norms *= 0.01
    elif verdict == "collapsed":
        loss[epochs // 5 :] = CONSTANT * (1 + 0.01 * rng.standard_normal(epochs - epochs // 5))
    elif verdict == "diverged":
        loss[epochs // 3 :] *= np.exp(0.3 * np.arange(epochs - epochs // 3))
        norms[len(norms) // 3 :] *= np.exp(np.linspace(0, 9, len(norms) - len(norms) // 3))
    elif verdict in ("non_finite", "interrupted"):
        loss, norms = loss[: epochs // 3], norms[: len(norms) // 3]
    norms[rng.integers(0, len(norms), 3)] *= 30
    preclip = norms.tolist() + (["NaN"] if verdict == "non_finite" else [])
    return {
        "val_loss": loss.tolist(),
        "grad_norm_preclip": preclip,
        "val_loss_constant": CONSTANT,
        "val_loss_floor": FLOOR,
        "train_loss": loss.tolist(),
    }


def study(arms, name="stage_a", history=history_of, numbers=None, by="best_val_loss", design=ONE_LOOK, **changes):
    """A ranked study; `arms` maps each name to (arch, median of its best losses, verdicts by seed).

    `numbers` gives r_stitched and measures of stability of a run from its arm, seed and verdict.
    """
    rng = np.random.default_rng(0)
    runs, rows = [], []
    for arm, (arch, level, verdicts) in arms.items():
        for seed, verdict in enumerate(verdicts):
            loss = float(level * rng.lognormal(0, 0.2))
            run_id = rng.bytes(16).hex()
            series = history(verdict, rng, best=loss) if history else None
            curves = Curves.of(series) if series else NO_CURVES
            known = numbers(arm, seed, verdict) if numbers else {}
            stability = "relapsed" if known.get("relapses") else "steady" if known else ""
            runs.append(StudyRun(arm, seed, run_id, verdict, REASONS[verdict], loss, curves))
            runs[-1] = replace(runs[-1], numbers=known, stability=stability)
            norms = [value for value in (series or {}).get("grad_norm_preclip", []) if value != "NaN"]
            rows.append(
                {
                    **{"arm": arm, "arch": arch, "seed": seed, "run_id": run_id, "verdict": verdict},
                    **{"best_val_loss": loss, "amp_ssim": 1 - 4 * loss, "phase_ssim": 1 - loss},
                    **{"amp_mae": 1.5 * loss, "phase_mae": 3 * loss, "plateau_left_epoch": 3 + seed},
                    "grad_norm_median": float(np.median(norms)) if norms else None,
                    "grad_norm_max": max(norms, default=None),
                    **known,
                }
            )
    arms_of = {arm: [run for run in runs if run.arm == arm] for arm in arms}
    shown = {run.run_id for of_arm in arms_of.values() for run in best_and_worst(of_arm)}
    runs = [replace(run, pictures={"reconstruction": PNG}) if run.run_id in shown else run for run in runs]
    facts = {"preset": "stage_a", "device": "cpu", "epochs": "50"}
    return StudyResult(name, rank_arms(rows, 0, by=by, design=design), runs, "5f" * 32, facts, **changes)


THREE = {
    "control": ("hybrid", 0.021, ["converged", "converged", "collapsed", "converged", "converged"]),
    "stable": ("stable_hybrid", 0.03, ["stagnated", "converged", "stagnated", "stagnated", "diverged"]),
    "agc": ("hybrid", 0.024, ["converged", "converged", "converged", "non_finite", "interrupted"]),
}
LONG = "stable_hybrid-norm-with-layerscale-1e-3-and-warm-up-over-10-epochs-" * 3
HOSTILE = (
    '<script>alert(1)</script><img src="http://evil.example/x.png" onerror=alert(1)> $\\frac{ | `x` [a](http://e.x)'
)


@pytest.fixture(scope="module")
def three():
    return study(THREE, notes=["No run of arm wide was found."])


@pytest.fixture(scope="module")
def drawn(three):
    """The figures of the study `three` by name."""
    return {name: draw(three) for name, draw in FIGURES.items() if name not in ("depth", "r_stitched", "settings")}


def lines(figure, gid):
    return [line for axes in figure.axes for line in axes.lines if line.get_gid() == gid]


class Page(HTMLParser):
    """What a page holds; fails where tags do not nest."""

    VOID = {"meta", "img", "br", "link", "input"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if not self.open or self.open[-1] != "style" else ""

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def cells(text, heading, name):
    """The cells of the row called `name` in the Markdown table under `heading`."""
    part = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in part.splitlines() if "|" in line]
    return next(row for row in rows if name in row)


def test_the_summary_begins_with_the_decision_and_holds_the_rankings_numbers(three):
    text = summary_markdown(three)
    assert text.index(three.ranking.decision.text.partition(": ")[2][:60]) < text.index("## Ranking")
    for place, row in enumerate(three.ranking.table, start=1):
        found = cells(text, "Ranking", row["arm"])
        assert found[:4] == [str(place), row["arm"], row["arch"], str(row["runs"])]
        low, high = 100 * row["failure_rate_low"], 100 * row["failure_rate_high"]
        assert found[4] == f"{row['failures']} [{low:.0f}, {high:.0f} %]"
        more = cells(text, "More of each arm", row["arm"])
        for cell, name in ((found[5], "median_best_val_loss"), (more[1], "iqm_best_val_loss")):
            numbers = [float(number.replace("∞", "inf")) for number in re.findall(r"[\d.e-]+|∞", cell)]
            assert numbers == pytest.approx([row[name], row[f"{name}_low"], row[f"{name}_high"]], rel=6e-3)
        assert float(more[2]) == pytest.approx(row["best_val_loss"], rel=6e-3)
        assert found[6] == f"{row['amp_ssim']:.3f} / {row['phase_ssim']:.3f}"


def test_the_summary_tells_each_pair_once_the_better_ranked_first(three):
    pairs = {(pair.a, pair.b): pair for pair in three.ranking.pairs}
    text = summary_markdown(three).partition("## Pairs of arms")[2].partition("## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if "[" in line]
    order = [row["arm"] for row in three.ranking.table]
    assert [(row[0], row[1]) for row in rows] == [(order[0], order[1]), (order[0], order[2]), (order[1], order[2])]
    for row in rows:
        pair = pairs[row[0], row[1]]
        assert row[2] == (f"clear: {pair.better}" if pair.p_corrected <= 0.05 else "open")
        assert row[3] == f"{pair.probability:.2f} [{pair.low:.2f}, {pair.high:.2f}]"
        assert row[4:] == [f"{pair.p:.2g}", f"{pair.p_corrected:.2g}"]


def sewn(**changes):
    """A study in which control is clearly first by val_loss, and agc, whose runs relapse, clearly by r_stitched."""
    levels = {"control": 0.06, "agc": 0.03, "stable": 0.05}

    def numbers(arm, seed, verdict):
        relapses = 2 if arm == "agc" and seed == 1 else 0
        return {
            **{"r_stitched": 0.132 if verdict == "inconsistent" else levels[arm] * (1 + 0.01 * seed)},
            **{"max_drawdown": 1.9 if relapses else 1.05, "relapses": relapses, "dead_blocks": 0, "lost_stages": 0},
        }

    arms = {
        "control": ("hybrid", 0.01, ["converged"] * 5),
        "agc": ("hybrid", 0.03, ["converged"] * 5),
        "stable": ("stable_hybrid", 0.05, ["converged", "inconsistent", "converged", "converged", "collapsed"]),
    }
    return study(arms, numbers=numbers, **changes)


def row_of_pair(text, a, b):
    part = text.partition("## Pairs of arms\n")[2].partition("\n## ")[0]
    return next(line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith(f"| {a} | {b} |"))


def test_where_loss_and_reconstruction_clearly_disagree_nothing_is_claimed_and_the_headline_says_so():
    text = summary_markdown(sewn())
    assert "\n**Loss and reconstruction disagree; control ranks first.**\n" in text
    assert row_of_pair(text, "control", "agc")[-1].startswith("0.00, opposite")
    assert row_of_pair(text, "agc", "stable")[-1].startswith("1.00, agrees")


def test_of_a_pair_that_is_open_it_is_told_whether_the_other_column_agrees_with_its_order():
    result = study({name: ("hybrid", 0.02, ["converged"] * 5) for name in ("a", "b")}, numbers=_far_apart)
    first, second = (row["arm"] for row in result.ranking.table)
    pair = next(pair for pair in result.ranking.pairs if pair.a == first)
    assert pair.is_open
    found = row_of_pair(summary_markdown(result), first, second)
    favoured = first if pair.probability > 0.5 else second
    expected = f"{'1.00' if first == 'b' else '0.00'}, {'agrees' if favoured == 'b' else 'opposite'}"
    assert (found[2], found[-1].split(" [")[0]) == ("open", expected)


def _far_apart(arm, seed, verdict):
    return {"r_stitched": (0.1 if arm == "b" else 0.2) + 0.001 * seed}


def test_by_r_stitched_that_column_comes_first_and_the_best_run_is_the_one_with_the_best_object():
    result = sewn(by="r_stitched")
    text = summary_markdown(result)
    assert "In the order of the median r_stitched over all runs" in text
    assert cells(text, "Ranking", "rank")[5:7] == ["median r_stitched", "median val_loss"]
    assert cells(text, "Ranking", "agc")[5].startswith("0.0306 [0.03, ")
    assert row_of_pair(text, "agc", "control")[-1].startswith("0.00, opposite")
    assert "| 1 | agc | hybrid | 5 | 0 [0, 43 %] | 0.0306 [0.03, " in note_markdown(result, 8000).replace("&ensp;", "")
    page = html_report(result)
    lowest = min(result.of_arm("agc"), key=lambda run: run.numbers["r_stitched"])
    assert f"Best run: seed {lowest.seed}" in page.partition('<section id="extremes">')[2]


def test_the_tables_tell_how_steadily_arms_and_runs_trained():
    result = sewn()
    text = summary_markdown(result)
    assert cells(text, "Ranking", "agc")[7:9] == ["1.05", "2 / 0 / 0"]
    for run in result.runs:
        found = cells(text, "Runs", run.run_id)
        assert found[2] == ("relapsed" if (run.arm, run.seed) == ("agc", 1) else "steady")
        assert found[6:] == [
            f"{run.numbers[name]:.3g}"
            for name in ("r_stitched", "max_drawdown", "relapses", "dead_blocks", "lost_stages")
        ]
    page = Page(html_report(result))
    assert page.text.partition("All runs")[2].count("relapsed") == 1
    assert len([image for image in page.all("img") if image["alt"].startswith("Stitched R-factor of 15 runs")]) == 1


def test_what_is_not_known_of_any_run_has_no_column():
    text = summary_markdown(study({name: ("hybrid", 0.02, ["converged"] * 5) for name in ("a", "b")}, history=None))
    assert "r_stitched" not in text
    assert "drawdown" not in text
    assert "grad norm" not in text


def test_the_report_says_what_clear_means_and_what_stability_and_its_verdicts_are():
    text = summary_markdown(sewn()).partition("## How to read this")[2]
    assert "at most 0.05 after correction (Holm) for all 4 comparisons" in text
    assert "of studies whose arms do not differ at all, at most 5 % call any difference clear" in text
    assert "They describe and decide nothing." in text
    assert "A relapse is a rise to more than 1.5 times the lowest val_loss" in text
    assert "\n- Inconsistent: " in text
    assert "\n- Stagnated: " not in text  # no run was


def test_a_sequential_study_tells_its_looks_and_after_how_many_seeds_a_pair_was_decided():
    result = sewn(design=Design(alpha=0.1, looks=(5, 10)))
    text = summary_markdown(result)
    assert "after 5, 10 seeds an arm" in text
    assert "at most 0.1 after correction" in text
    found = row_of_pair(text, "control", "agc")
    pair = next(pair for pair in result.ranking.pairs if (pair.a, pair.b) == ("control", "agc"))
    assert (found[2], found[6]) == ("clear: control", "5")
    assert pair.seeds == 5


def test_the_figure_of_stitched_objects_has_their_r_factors():
    result = sewn()
    _, axes = FIGURES["r_stitched"](result).axes
    dots = sorted(line.get_ydata()[0] for line in axes.lines if line.get_gid() == "run")
    assert dots == sorted(run.numbers["r_stitched"] for run in result.runs if not run.failed)


def test_the_summary_names_every_run_why_runs_failed_and_what_is_missing(three):
    text = summary_markdown(three)
    for run in three.runs:
        found = cells(text, "Runs", run.run_id)
        assert (found[0], found[1], found[3]) == (run.arm, run.verdict, str(run.seed))
    failures = text.partition("## Why runs failed")[2].partition("## ")[0]
    assert failures.count("\n- ") == sum(run.failed for run in three.runs) == 6
    missing = text.partition("## What is missing")[2].partition("## ")[0]
    assert missing.strip().splitlines() == ["- agc, seed 4: interrupted.", "- No run of arm wide was found."]


def test_a_note_fits_a_description_whatever_the_study(three):
    sweep = study({f"arm-{LONG}-{place}": ("hybrid", 0.02, ["converged"] * 3) for place in range(60)}, history=None)
    hostile = study({f"{HOSTILE}{place}": ("hybrid", 0.02, ["converged"] * 3) for place in range(3)}, history=None)
    for result in (three, sweep, hostile, replace(three, study="x" * 3000)):
        for most in (1000, 8000):
            assert 100 < len(note_markdown(result, most)) <= most
    told = re.search(r"And (\d+) more arms\.", note_markdown(sweep, 8000))
    assert note_markdown(sweep, 8000).count("\n| ") == 2 + 60 - int(told[1])


def test_a_note_has_the_decision_and_the_ranking_table(three):
    note = note_markdown(three, 8000)
    assert note.startswith("**Study stage_a: No decision between")
    rows = [line for line in note.splitlines() if line.startswith("| ")]
    assert rows[0].replace("&ensp;", "").startswith("| rank | arm | arch | runs | failed | median val_loss |")
    assert [row.split("&ensp; | ")[1] for row in rows[2:]] == three.arms
    assert note.endswith(f"Dataset {three.dataset_sha256[:12]}.")


def test_the_page_is_whole_and_asks_nothing_of_the_network(three):
    page = Page(html_report(replace(three, runs=[replace(run, url="https://a.example/run") for run in three.runs])))
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert all(image["alt"] for image in page.all("img"))
    assert not re.search(r"url\(|@import|srcset|\bsrc=\"(?!data:)", html_report(three))
    assert [link["href"] for link in page.all("a") if "a.example" in link["href"]] == ["https://a.example/run"] * 15
    assert len(page.all("h1")) == 1
    targets = {attributes.get("id") for _, attributes in page.tags}
    assert all(link["href"][1:] in targets for link in page.all("a") if link["href"].startswith("#"))


def test_the_page_shows_the_best_and_the_worst_run_of_each_arm_with_its_reason(three):
    text = html_report(three)
    page = Page(text)
    for arm in three.arms:
        best, worst = best_and_worst(three.of_arm(arm))
        assert best.verdict == "converged"
        assert worst.failed
        for run in (best, worst):
            assert sum(f"of {arm}, seed {run.seed}, {run.verdict}" in image["alt"] for image in page.all("img")) == 1
    assert (text.count("Best run: seed"), text.count("Worst run: seed")) == (3, 3)


@pytest.mark.parametrize("name", [HOSTILE, "$x^$_{", "a\nb | c", "<!--", "{{ 7 * 7 }}{% raw %}"])
def test_hostile_text_is_inert(name):
    result = study({name: ("hybrid", 0.02, ["converged", "diverged"])}, name=name, notes=[name], history=None)
    runs = [replace(run, verdict_reason=name, pictures={name: PNG}, url="javascript:alert(1)") for run in result.runs]
    result = replace(result, runs=runs, facts={name: name})
    page = Page(html_report(result))
    assert not page.all("script")
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert {link["href"] for link in page.all("a")} == {"#reading"}
    assert " ".join(name.split()) in " ".join(page.text.split())
    text = summary_markdown(result)
    assert "<" not in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert not re.search(r"(?<!\\)\]\(", summary_markdown(result))


def test_every_run_is_a_line_of_its_arms_panel_and_failed_ones_are_marked(three, drawn):
    for figure in (drawn["learning_curves"], drawn["gradient_norms"]):
        assert [axes.get_title(loc="left") for axes in figure.axes] == three.arms
    assert len(lines(drawn["learning_curves"], "run")) == 15
    assert len(lines(drawn["learning_curves"], "failed")) == 6
    assert len(lines(drawn["gradient_norms"], "maximum")) == 15
    for axes, arm in zip(drawn["learning_curves"].axes, three.arms, strict=True):
        converged = [line for line in axes.lines if line.get_gid() == "run" and line.get_linestyle() == "-"]
        assert {line.get_color() for line in converged} == {colours(three.arms)[arm]}
        assert len(converged) == sum(run.verdict == "converged" for run in three.of_arm(arm))
        levels = [line.get_ydata()[0] for line in axes.lines if line.get_gid() == "level"]
        assert levels == [CONSTANT, FLOOR]


def test_noise_far_below_all_runs_is_named_and_does_not_press_the_curves_together():
    result = study({"a": ("fno", 8 * FLOOR, ["converged"] * 2)})
    figure = FIGURES["learning_curves"](result)
    assert figure.axes[0].get_ylim()[0] > 4 * FLOOR
    assert f"photon noise alone: {FLOOR:.3g}, below" in [text.get_text() for text in figure.legends[0].texts]
    chart = curve_charts(result)[0]
    assert [level.text for level in chart.levels] == ["best constant object"]
    assert chart.below == f"noise: {FLOOR:.3g}"
    assert chart.below in html_report(result)


def test_the_median_curve_counts_a_run_that_ended_as_infinite(three, drawn):
    axes = drawn["learning_curves"].axes[three.arms.index("agc")]
    (middle,) = [line.get_ydata() for line in axes.lines if line.get_gid() == "median"]
    curves = [run.curves.val_loss for run in three.of_arm("agc") if run.verdict != "interrupted"]
    assert middle[0] == pytest.approx(np.median([curve[0] for curve in curves]))
    assert middle[-1] == pytest.approx(np.median([curves[0][-1], curves[1][-1], curves[2][-1], math.inf]))


def test_the_median_curve_counts_what_is_not_a_number_as_infinite():
    result = study({"control": ("hybrid", 0.02, ["converged"] * 3)})
    curves = [run.curves.val_loss for run in result.runs]
    curves[0][5] = np.nan
    (middle,) = lines(FIGURES["learning_curves"](result), "median")
    assert middle.get_ydata()[5] == max(curves[1][5], curves[2][5])


def test_every_counted_run_is_a_dot_and_failed_ones_lie_in_the_band(three, drawn):
    figure = drawn["best_val_loss"]
    band, axes = figure.axes
    dots = sorted(line.get_ydata()[0] for line in axes.lines if line.get_gid() == "run")
    assert dots == sorted(run.best_val_loss for run in three.runs if run.verdict == "converged")
    assert len([line for line in band.lines if line.get_gid() == "failed"]) == 6
    finite = [row["median_best_val_loss"] for row in three.ranking.table if np.isfinite(row["median_best_val_loss"])]
    assert [line.get_ydata()[0] for line in axes.lines if line.get_gid() == "median"] == finite
    assert len([line for line in band.lines if line.get_gid() == "median"]) == 1


def test_failure_rates_have_their_intervals(three, drawn):
    axes = drawn["failure_rates"].axes[0]
    assert [text.get_text() for text in axes.texts] == [f"{r['failures']} of {r['runs']}" for r in three.ranking.table]
    for bar, row in zip(lines(drawn["failure_rates"], "interval"), three.ranking.table, strict=True):
        expected = [100 * row["failure_rate_low"], 100 * row["failure_rate_high"]]
        np.testing.assert_allclose(bar.get_xdata(), expected)


@pytest.mark.parametrize("step", [0, 12345, 42999])
def test_binning_keeps_a_spike_of_one_step_and_the_median_without_it(step):
    values = np.ones(43_000)
    values[step] = 500.0
    found = binned(values)
    assert len(found.step) < 1000
    at = int(np.abs(found.step - step).argmin())
    assert found.maximum[at] == 500
    assert sum(found.maximum > 1) == 1
    assert (found.median == 1).all()


def test_binning_leaves_short_series_alone_and_sets_what_is_not_finite_apart():
    values = np.array([3.0, np.nan, 1.0, np.inf, 2.0])
    found = binned(values)
    np.testing.assert_array_equal(found.step, np.arange(5))
    np.testing.assert_array_equal(found.maximum, [3, np.nan, 1, np.nan, 2])
    np.testing.assert_array_equal(found.not_finite, [1, 3])
    assert binned(np.empty(0)).not_finite.size == 0


def one_epoch(verdict, rng, best):
    return history_of(verdict, rng, epochs=1, steps_per_epoch=1, best=best)


def broken(verdict, rng, best):
    history = {**history_of(verdict, rng, best=best), "val_loss_floor": "NaN", "val_loss_constant": None}
    history["val_loss"][:4] = ["NaN", "Infinity", "-Infinity", None]
    return history if verdict == "converged" else {"val_loss": [], "grad_norm_preclip": ["NaN"] * 7}


@pytest.mark.parametrize(
    ("arms", "history"),
    [
        ({"control": ("hybrid", 0.02, ["converged"])}, one_epoch),
        ({"a": ("fno", 0.02, ["stagnated"]), "b": ("fno", 0.02, ["stagnated", "diverged"])}, history_of),
        ({"a": ("fno", 0.02, ["stagnated"]), "b": ("fno", 0.02, ["converged"])}, None),
        ({"a": ("fno", 0.02, ["interrupted"]), "b": ("fno", 0.02, ["converged"])}, history_of),
        ({LONG: ("fno", 0.02, ["converged"] * 3), HOSTILE: (None, 1e-9, ["diverged", "converged"])}, broken),
        ({f"arm {i}": ("fno", 0.02, ["converged", "collapsed"] * 3) for i in range(12)}, one_epoch),
    ],
    ids=["1x1", "all failed", "no history", "arm without result", "broken history", "12 arms"],
)
def test_any_study_can_be_told(arms, history):
    result = study(arms, history=history)
    for name in ("best_val_loss", "failure_rates", "learning_curves", "gradient_norms"):
        assert to_rgb(FIGURES[name](result)).std() > 1
    page = Page(html_report(result))
    figures = 4 if history else 2  # without a record no curves
    assert len(page.all("img")) == figures + sum(bool(run.pictures) for run in result.runs)
    assert "nan" not in summary_markdown(result).lower().replace("dominant", "")


@pytest.mark.parametrize(
    ("losses", "seeds", "label", "expected"),
    [
        ((0.01, 0.02, 0.03), 5, "best", "control beats every other arm"),
        ((0.01, 0.02, 0.03), 3, "undecided", "No decision between the arms; control ranks first"),
        ((0.01, 0.01, 0.03), 5, "undecided", "No decision between control and tam; control ranks first"),
        ((0.03, 0.02, 0.01), 5, "best", "zed beats every other arm"),
    ],
)
def test_the_headline_of_other_arms_than_stage_a_compares_them_all(losses, seeds, label, expected):
    names = ("control", "tam", "zed")
    arms = {name: ("hybrid", loss, ["converged"] * seeds) for name, loss in zip(names, losses, strict=True)}
    result = study(arms)
    assert result.ranking.decision.label == label
    assert f"\n**{expected}.**\n" in summary_markdown(result)


def test_an_arm_keeps_its_colour_whatever_its_rank_and_company():
    assert colours(["stable", "agc", "control"]) == colours(["control", "stable", "agc"])
    assert colours(["x", "control"])["control"] == colours(["control"])["control"]
    twelve = [f"arm {place}" for place in range(12)]
    assert len(set(colours(twelve).values())) == 12


def in_both_stages(a, *verdicts_by_arm):
    """A Stage B of control and agc, compared with the rows of Stage A's study."""
    rows = {row["arm"]: row for row in a.ranking.table}
    names = ("control", "agc")[: len(verdicts_by_arm)]
    deep = study({arm: ("hybrid", 0.02, of) for arm, of in zip(names, verdicts_by_arm, strict=True)}, name="stage_b")
    return replace(
        deep,
        depths=[compare_depth(rows[row["arm"]], row, depth_a=4, depth_b=8) for row in deep.ranking.table],
    )


def test_stage_b_is_told_beside_stage_a(three):
    result = in_both_stages(three, ["converged", "diverged", "collapsed"])
    (depth,) = result.depths
    assert "Instability emerged from 4 to 8 blocks" in summary_markdown(result)
    advice = "Stay at 4 blocks, or try control at 8 blocks with clip_algo=agc or another clip_val"
    assert advice in note_markdown(result, 8000)
    found = cells(summary_markdown(result), "Stage A and Stage B", "failure rate")
    assert found[1:] == ["20 % [4, 62 %]", "67 % [21, 94 %]", "+47 points"]
    found = cells(summary_markdown(result), "Stage A and Stage B", "amplitude SSIM")
    assert found[1].startswith(f"{depth['amp_ssim'].a.value:.3g}")
    assert found[2].startswith(f"{result.ranking.table[0]['amp_ssim']:.3g}")
    points = {tuple(np.round(line.get_ydata(), 6)) for line in lines(FIGURES["depth"](result), "metric")}
    assert (0.2, 0.666667) in points
    assert (round(depth["amp_ssim"].a.value, 6), round(result.ranking.table[0]["amp_ssim"], 6)) in points
    page = Page(html_report(result))
    assert advice in page.text
    assert len([image for image in page.all("img") if image["alt"].startswith("What depth changed of 3 runs")]) == 1


def test_a_stage_b_of_two_arms_tells_each_beside_its_own_stage_a(three):
    result = in_both_stages(three, ["diverged"] * 3, ["converged"] * 3)
    text = summary_markdown(result)
    assert "**Instability of agc did not emerge from 4 to 8 blocks; of control emerged from 4 to 8 blocks.**" in text
    rates = {arm: cells(text, f"Stage A and Stage B: {arm}", "failure rate")[2] for arm in ("control", "agc")}
    assert rates == {"control": "100 % [44, 100 %]", "agc": "0 % [0, 56 %]"}
    assert [axes.get_ylabel() for axes in FIGURES["depth"](result).axes[::5]] == ["agc", "control"]
    assert len(Page(html_report(result)).all("table")) == 6  # ranking, pairs, both depths, runs, more of each arm


def test_a_figure_that_cannot_be_drawn_is_said_and_costs_nothing_else(three, monkeypatch):
    def broken_figure(result):
        raise ValueError("Expected end of text, found '$'")

    monkeypatch.setitem(figures_module.FIGURES, "failure_rates", broken_figure)
    pictures, faults = draw_figures(three)
    assert list(pictures) == ["best_val_loss", "learning_curves", "gradient_norms"]
    assert faults == [
        "The figure failure_rates could not be drawn: ValueError: Expected end of text, found '$'.",
    ]
    page = html_report(replace(three, notes=faults), pictures)
    assert page.count("Failure rates") == 0
    assert "The figure failure_rates could not be drawn" in page
