import json
import math

from hypothesis import given
from hypothesis import strategies as st

from fnostab.health.history import STEP_SERIES, History

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
