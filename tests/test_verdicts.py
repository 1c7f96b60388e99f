"""Verdicts on real trainings: small ones that learn, stagnate, blow up and collapse."""

import json

import lightning
import pytest
import torch
from small_runs import fit

from fnostab.config import resolve_config
from fnostab.health import judge

#: Learns within some epochs, in seconds.
LEARNS = {
    "preset": "smoke",
    "data.N": 32,
    "data.object_size": 160,
    "data.max_train_patches": 192,
    "data.max_val_patches": 32,
    "data.val_choice": "random",  # from the whole object, not from its plain middle alone
    "width": 8,
    "fno_blocks": 2,
    "lr": 3e-3,
    "optim.schedule": "constant",
    "train.overlap_weight": 0.0,
    "epochs": 8,
}


def _verdict(folder, extra=(), **overrides):
    _, history, _ = fit(resolve_config(LEARNS | overrides), folder, extra=extra)
    return judge(json.loads(history.to_json()))


def test_a_run_that_learns_converges(tmp_path):
    verdict = _verdict(tmp_path)
    assert verdict.label == "converged"
    assert verdict.evidence["plateau_left_epoch"] > 1
    assert verdict.evidence["best_progress"] > 0.4


def test_a_run_that_learns_is_not_given_up(tmp_path):
    without, given = _verdict(tmp_path), _verdict(tmp_path, **{"train.give_up_after": 0.5})
    assert given == without
    assert given.evidence["epochs"] == 8


def test_a_run_that_cannot_learn_is_given_up_and_has_failed(tmp_path):
    verdict = _verdict(tmp_path, lr=1e-9, **{"train.give_up_after": 0.5})
    assert verdict.failed
    assert verdict.evidence["epochs"] == 4
    assert verdict.reason.endswith("; given up after epoch 4 of 8")


def test_zero_gammas_that_never_grow_stagnate_with_their_largest_magnitude_as_evidence(tmp_path):
    verdict = _verdict(tmp_path, arch="stable_hybrid", lr=1e-6, epochs=4)
    assert verdict.label == "stagnated"
    assert 0 < verdict.evidence["norm_weight_absmax"] < 1e-3
    assert f"norm weights never exceeded {verdict.evidence['norm_weight_absmax']:.3g}" in verdict.reason


def test_an_absurd_learning_rate_blows_up(tmp_path):
    verdict = _verdict(tmp_path, lr=10.0)
    assert verdict.label in ("diverged", "non_finite")


@pytest.mark.parametrize(
    ("layer", "factor", "named"), [("encoder.0.0.local", float("inf"), "encoder.0.0.local"), ("out", 1e38, "loss")]
)
def test_weights_scaled_up_are_not_finite_at_a_named_layer(tmp_path, layer, factor, named):
    class ScaleUp(lightning.Callback):
        def on_train_batch_start(self, trainer, module, *_):
            if trainer.global_step == 30:
                with torch.no_grad():
                    module.generator.get_submodule(layer).weight.mul_(factor)

    verdict = _verdict(tmp_path, [ScaleUp()])
    assert verdict.label == "non_finite"
    assert f"at step 30, first in `{named}`; that update was not applied" in verdict.reason


def test_an_output_that_is_zeroed_after_learning_has_collapsed(tmp_path):
    class Zero(lightning.Callback):
        def on_validation_start(self, trainer, module):
            if trainer.current_epoch == trainer.max_epochs - 1:
                for parameter in module.generator.out.parameters():
                    torch.nn.init.zeros_(parameter)

    verdict = _verdict(tmp_path, [Zero()])
    assert verdict.label == "collapsed"
    assert verdict.evidence["last_object_std_ratio"] == 0


def test_a_network_that_unlearns_has_diverged(tmp_path):
    class Unlearn(lightning.Callback):
        def on_validation_start(self, trainer, module):
            if trainer.current_epoch == trainer.max_epochs - 1:
                with torch.no_grad():
                    module.generator.out.weight.mul_(3)

    verdict = _verdict(tmp_path, [Unlearn()])
    assert verdict.label == "diverged"
    assert verdict.evidence["best_progress"] > 0.25
