"""What the page of a study shows besides its tables: the chart of all arms, p-values, looks, stability, settings."""

from dataclasses import replace

import pytest
from test_study_report import THREE, Page, history_of, lines, sewn, study

from fnostab.report.chart import curve_charts
from fnostab.report.figures import FIGURES, draw_figures
from fnostab.report.study import html_report, summary_markdown
from fnostab.report.tables import p_values_table
from fnostab.study.sequential import Look


@pytest.fixture(scope="module")
def three():
    return study(THREE)


def with_stitched(verdict, rng, **about):
    series = history_of(verdict, rng, **about)
    return {**series, "r_stitched": ["NaN", *series["val_loss"][1:]]}


def test_the_chart_of_all_arms_has_a_line_a_run_and_a_switch_an_arm():
    result = study(THREE, history=with_stitched)
    page = html_report(result)
    found = Page(page)
    charts = curve_charts(result)
    assert [chart.title.split(" ")[0] for chart in charts] == ["val_loss", "r_stitched"]
    assert len(found.all("svg")) == 2
    boxes = [box["id"] for box in found.all("input")]
    assert boxes == ["arm-0", "arm-1", "arm-2", "show-runs", "show-medians"]
    for place, arm in enumerate(result.drawn_arms):
        assert f'<label for="arm-{place}">' in page
        assert f"#arm-{place}:not(:checked) ~ .plots .arm-{place} {{ display: none; }}" in page
        for chart in charts:
            assert chart.arms[place].arm == arm
            assert len(chart.arms[place].runs) == len(result.of_arm(arm))
            assert [run.end is not None for run in chart.arms[place].runs] == [run.failed for run in result.of_arm(arm)]
    assert "agc, seed 3: non_finite" in found.text


def test_a_line_of_the_chart_stands_where_its_values_are():
    losses = [0.4, "NaN", 0.1, 0.05]
    result = study({"a": ("hybrid", 0.1, ["converged"])}, history=lambda *_, **__: {"val_loss": losses})
    (chart,) = curve_charts(result)
    points = [tuple(map(float, point.split(","))) for point in chart.arms[0].runs[0].points.split()]
    assert len(points) == 3
    assert (points[0][0], points[-1][0]) == (chart.left, chart.right)
    ticks = {tick.text: tick.at for tick in chart.y_ticks}
    assert points[1][1] == pytest.approx(ticks["0.1"], abs=0.1)
    assert points[0][1] < points[1][1] < points[2][1] <= chart.bottom
    assert {tick.text: tick.at for tick in chart.x_ticks}["3"] == pytest.approx(points[1][0], abs=0.1)


def test_a_study_of_200_runs_has_a_page_that_a_browser_can_open():
    arms = {f"arm{place:02d}": ("hybrid", 0.02, ["converged"] * 18 + ["diverged"] * 2) for place in range(10)}
    result = study(arms, history=lambda verdict, rng, **about: history_of(verdict, rng, epochs=400, **about))
    page = html_report(result, {})
    assert len(page) < 2**20
    assert "<summary>All 45 pairs</summary>" in page
    assert max(len(run.points.split()) for arm in curve_charts(result)[0].arms for run in arm.runs) == 120


def test_p_values_stand_in_a_table_of_arms_by_arms(three):
    table = p_values_table(three.ranking)
    pairs = {(pair.a, pair.b): pair for pair in three.ranking.pairs}
    assert list(table.head[1:]) == [row[0].text for row in table.rows] == three.arms
    assert table.rows[0][1].text == ""
    assert table.rows[0][2].text == f"{pairs[three.arms[0], three.arms[1]].p_corrected:.2g}"
    clear = p_values_table(sewn().ranking)
    cells = {
        (row[0].text, arm): cell.interval
        for row in clear.rows
        for arm, cell in zip(clear.head[1:], row[1:], strict=True)
    }
    assert (cells["control", "agc"], cells["agc", "control"]) == ("better", "worse")
    assert p_values_table(study({"a": ("hybrid", 0.1, ["converged"])}).ranking) is None


def test_looks_are_told_with_what_each_decided(three):
    looks = [Look(5, "a", "nothing", "a and b (p = 1)"), Look(10, "a", "a over b (p = 0.02 with 10 seeds)", "nothing")]
    result = replace(three, looks=looks)
    for text in (html_report(result), summary_markdown(result)):
        assert "Looks" in text
        assert "a over b (p = 0.02 with 10 seeds)" in text
    assert "Looks" not in html_report(three)


def test_stability_has_a_dot_a_run_that_learnt():
    result = sewn()
    figure = FIGURES["stability"](result)
    learnt = [run for run in result.runs if run.numbers.get("max_drawdown") is not None]
    for axes, name in zip(figure.axes, ("max_drawdown", "relapses"), strict=True):
        drawn = [line.get_ydata()[0] for line in axes.lines]
        assert sorted(drawn) == sorted(run.numbers[name] for run in learnt)
    assert "stability" not in draw_figures(study({"a": ("hybrid", 0.1, ["converged"])}))[0]


def test_what_a_study_varies_is_drawn_as_a_way_through_its_values():
    arms = {name: ("hybrid", 0.02, ["converged", "converged", "diverged"]) for name in ("a", "b", "c")}
    values = {"a": ("0.001", "4"), "b": ("0.01", "4"), "c": ("0.01", "8")}
    settings = {arm: dict(zip(("optim.lr", "model.fno_blocks"), of, strict=True)) for arm, of in values.items()}
    result = replace(study(arms), settings=settings)
    figure = FIGURES["settings"](result)
    ways = {tuple(line.get_ydata()[:2]) for line in lines(figure, "arm")}
    assert ways == {(0, 0), (1, 0), (1, 1)}
    assert len(lines(figure, "run")) == 9
    assert sum(line.get_ydata()[0] > 1 for line in lines(figure, "run")) == 3
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [*settings["a"], "best val_loss"]
    assert "settings" not in draw_figures(study(arms))[0]
