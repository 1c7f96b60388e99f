"""Numbers next to zero count as zero while a network trains, and not before or after."""

import numpy as np
import pytest
import torch

from fnostab.config import resolve_config
from fnostab.training.denormals import denormals_are_zero
from fnostab.workflows.train import train_arm

TINY = {
    **{"preset": "smoke", "data.object_size": 64, "data.max_train_patches": 32, "data.max_val_patches": 8},
    **{"train.epochs": 2, "model.width": 4, "model.fno_blocks": 2, "train.artifacts": "numbers"},
}


def product():
    """1e-40: under 1.2e-38, the smallest normal number."""
    return (torch.tensor(1e-30) * 1e-10).item()


@pytest.fixture(autouse=True)
def _as_before():
    yield
    torch.set_flush_denormal(False)


pytestmark = pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor cannot take them as zero")


def test_they_are_zero_inside_the_block_and_come_back_after_it_even_after_an_error():
    assert product() > 0
    with denormals_are_zero():
        assert product() == 0
    assert product() > 0
    with pytest.raises(RuntimeError, match="inside"), denormals_are_zero():
        raise RuntimeError("inside")
    assert product() > 0


def test_who_had_them_as_zero_keeps_that():
    torch.set_flush_denormal(True)
    with denormals_are_zero():
        pass
    assert product() == 0


def test_they_are_zero_while_an_arm_trains_and_its_numbers_are_those_of_ordinary_arithmetic(fresh_store, monkeypatch):
    seen = []
    first = train_arm(resolve_config(TINY), lambda line: None, watch=lambda summary: seen.append(product()))
    assert seen == [0, 0]
    assert product() > 0
    monkeypatch.setattr(torch, "set_flush_denormal", lambda mode: False)  # as on a processor that cannot
    seen.clear()
    second = train_arm(resolve_config(TINY), lambda line: None, watch=lambda summary: seen.append(product()))
    assert min(seen) > 0
    np.testing.assert_array_equal(first.metrics["best_val_loss"], second.metrics["best_val_loss"])
