import json
import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

from fnostab.health import EPOCH_SERIES, STEP_SERIES, History, judge

_numbers = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(st.lists(_numbers, min_size=4, max_size=4)), st.lists(_numbers))
def test_history_survives_its_json_with_non_finite_values(rows, val_losses):
    history = History()
    history.add_steps(rows)
    for value in val_losses:
        history.add_epoch(train_loss=value, val_loss=value, lr=1e-3, object_std_ratio=1.0, val_amp_ssim=value)
        history.add_health({"act_mean/bottleneck": value})
    restored = History()
    restored.load(json.loads(history.to_json()))
    assert repr(restored) == repr(history)  # repr tells NaN from numbers, == does not


def test_non_finite_values_are_named_in_json():
    history = History()
    history.add_steps([[math.nan, math.inf, -math.inf, 0.5]])
    mapping = json.loads(history.to_json())
    assert [mapping[name] for name in STEP_SERIES] == [["NaN"], ["Infinity"], ["-Infinity"], [0.5]]


def test_events_are_absent_unless_there_are_some():
    history = History()
    assert "events" not in history.to_mapping()
    history.events["interrupted"] = True
    assert history.to_mapping()["events"] == {"interrupted": True}


def test_a_scan_has_no_ssim_series():
    history = History()
    history.add_epoch(train_loss=1.0, val_loss=1.0, lr=1e-3, object_std_ratio=1.0, val_amp_ssim=None)
    assert history.val_amp_ssim == []


def test_each_series_has_one_unit_and_steps_keep_their_stored_order():
    series = {name for name, value in vars(History()).items() if isinstance(value, list)}
    assert {*STEP_SERIES, *EPOCH_SERIES} == series
    assert not set(STEP_SERIES) & set(EPOCH_SERIES)
    assert STEP_SERIES == ("loss_step", "grad_norm_preclip", "grad_norm_postclip", "clipped_fraction")


@pytest.mark.parametrize("foreign", [None, [1.0, 2.0], "converged", 3])
def test_what_is_no_history_is_refused_in_one_line(foreign: Any):
    for use in (History().load, judge):
        with pytest.raises(ValueError, match=r"^`history` \(=.*\) must be an object of series by name, as in history"):
            use(foreign)


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ({"val_loss": 0.1}, r"^`val_loss` \(=0.1\) of a history must be a list of numbers$"),
        ({"loss_step": [1.0, "x\ny"]}, r"^`loss_step` \(=.*\) of a history must be a list of numbers$"),
        ({"val_loss_floor": [1.0]}, r"^`val_loss_floor` \(=\[1.0\]\) of a history must be a number$"),
        ({"health": []}, r"^`health` \(=\[\]\) of a history must be an object$"),
    ],
)
def test_a_damaged_history_is_refused_in_one_line_and_nothing_of_it_is_taken(damaged: dict[str, Any], message: str):
    history = History()
    with pytest.raises(ValueError, match=message) as caught:
        history.load({"lr": [1.0], **damaged})
    assert "\n" not in str(caught.value)
    assert repr(history) == repr(History())
