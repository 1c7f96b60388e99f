"""Monitored runs are ranked by `compare` under their own arms' names."""

import json

import pytest
from monitored import toy, train

from fnostab.workflows.compare import compare_study


def test_two_arms_of_a_toy_problem_are_ranked_and_reported(fresh_store, tmp_path):
    for seed in range(3):
        for arm, lr in (("slow", 2e-3), ("fast", 1e-2)):
            model, optimizer = toy(seed, lr)
            place = {"study": "linear", "arm": arm, "seed": seed, "baseline": 2.0, "dataset": "linear-16"}
            run = train(model, optimizer, epochs=8, steps=8, clip=("norm", 1.0), **place)
            assert run.verdict.label in ("converged", "stagnated")
    found = compare_study("linear", out=tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "linear_metrics.json").read_text())
    assert [row["arm"] for row in rows] == ["fast", "slow"]
    assert [row["runs"] for row in rows] == [3, 3]
    assert rows[0]["arch"] == "Toy"
    summary = (tmp_path / "out" / "linear_summary.md").read_text()
    words = ("photon", "stitched", "SSIM", "phase", "twin", "R-factor")
    assert [word for word in words if word in summary] == []
    assert found.unreadable == 0


def test_where_no_baseline_is_given_compare_says_so(fresh_store):
    for seed in range(2):
        train(*toy(seed), epochs=1, **{"study": "open", "seed": seed})
    with pytest.raises(ValueError, match=r"^`study` \(=open\) must have runs that can be ranked.*baseline"):
        compare_study("open")
