"""What is reported of a trained network, with the true patches, or others, in the place of its predictions."""

from dataclasses import replace

import numpy as np
import pytest

from fnostab.config import resolve_config
from fnostab.dataset import load_or_build
from fnostab.evaluation import baselines, can_be_stitched, consistency_warning, evaluate, half_scan_frc
from fnostab.formats.own import write_scan
from fnostab.metrics import half_bit_threshold
from fnostab.scan import reassemble

_SMALL = {
    "preset": "smoke",
    "data.N": 32,
    "data.object_size": 96,
    "nimgs_test": 2,
    "data.stride_test_px": 4,
    "data.max_train_patches": 64,
}
_COMPARED = {"amp_ssim", "phase_ssim", "amp_mae", "phase_mae", "amp_psnr", "phase_psnr", "frc50", "frc_one_seventh"}


@pytest.fixture(scope="module")
def simulated():
    return load_or_build(resolve_config(_SMALL).data)


@pytest.fixture(scope="module")
def phaseless():
    return load_or_build(resolve_config(_SMALL | {"data.phase": "none"}).data)


def _scan(folder, **arrays):
    """A simulated scan in a file, as if measured, and its true patches."""
    source = load_or_build(resolve_config(_SMALL | {"nimgs_test": 1}).data)
    counts, positions = source.test.counts, source.test.positions_px
    path = folder / "scan.npz"
    write_scan(path, counts=counts, probe=source.probe * source.scale, positions_px=positions, **arrays)
    return load_or_build(resolve_config({"preset": "scan", "data": str(path), "N": 32}).data), source


def _truth(dataset):
    """The true test patches, each with a phase of its own."""
    patches = dataset.test.patches_of(dataset.test_objects)
    phases = np.random.default_rng(0).uniform(-3, 3, len(patches))
    return (patches * np.exp(1j * phases)[:, None, None]).astype(np.complex64)


def test_true_patches_whatever_their_phases_are_reported_as_perfect(simulated):
    found = evaluate(_truth(simulated), simulated, simulated.probe, False).metrics
    assert {f"{name}" for name in _COMPARED} < set(found)
    assert found["amp_ssim"] > 0.999
    assert found["phase_ssim"] > 0.999
    assert found["phase_mae"] < 1e-3
    assert found["frc50"] > 0.45
    assert found["overlap_consistency"] > 0.999
    assert found["r_factor"] == pytest.approx(found["r_factor_patch"], rel=0.05)


def test_metrics_are_means_over_the_test_objects(simulated):
    patches = _truth(simulated)
    rng = np.random.default_rng(1)
    second = simulated.test.object_index == 1
    patches[second] *= 1 + 0.3 * rng.standard_normal(patches[second].shape)
    found = evaluate(patches, simulated, simulated.probe, False)
    each = [one.comparison["amp_ssim"] for one in found.reconstructions]
    assert each[1] < 0.95 < each[0]
    assert found.metrics["amp_ssim"] == pytest.approx(np.mean(each))


def test_a_ramp_counts_as_an_error_only_where_the_probe_is_known(simulated):
    # A ramp on the object that every patch takes part in: patches that agree, and a wrong object.
    column = np.arange(32)
    left = simulated.test.positions_px[:, 1, None]
    ramp = np.exp(0.01j * (left + column))[:, None, :]
    patches = (simulated.test.patches_of(simulated.test_objects) * ramp).astype(np.complex64)
    known = evaluate(patches, simulated, simulated.probe, False).metrics
    learnt = evaluate(patches, simulated, simulated.probe, True).metrics
    assert known["phase_mae"] > 0.05
    assert learnt["phase_mae"] < 0.01


def test_on_objects_without_phase_no_metric_claims_a_phase(phaseless):
    for patches in (_truth(phaseless), np.ones_like(_truth(phaseless))):
        found = evaluate(patches, phaseless, phaseless.probe, False)
        assert {"phase_mae", "phase_psnr", "phase_ssim"} <= set(found.vacuous)
        assert np.isnan(found.metrics["phase_ssim"])
        assert np.isnan(found.summary["ssim"][1])


def test_a_constant_prediction_has_no_ssim_no_frc_and_no_consistency(simulated):
    found = evaluate(np.ones_like(_truth(simulated)), simulated, simulated.probe, False)
    assert {"amp_ssim", "phase_ssim", "frc50", "frc_one_seventh", "overlap_consistency"} <= set(found.vacuous)
    assert found.metrics["amp_mae"] > 0.01
    assert found.metrics["object_correlation"] == 0


def test_the_twin_is_recognised(simulated):
    truth = simulated.test.patches_of(simulated.test_objects)
    for patches, closer, other in ((truth, "object", "twin"), (truth[:, ::-1, ::-1].conj(), "twin", "object")):
        found = evaluate(patches, simulated, simulated.probe, False).metrics
        assert found[f"{closer}_correlation"] > found[f"{other}_correlation"] + 0.1


def test_a_scan_reports_r_factor_and_consistency_and_nothing_made_up(tmp_path):
    scan, source = _scan(tmp_path)
    # The scale of a measured object is a convention: an object of ones has the scan's mean counts.
    found = evaluate((_truth(source) / scan.scale).astype(np.complex64), scan, scan.probe, True)
    assert set(found.metrics) == {
        "r_factor",
        "r_factor_patch",
        "overlap_consistency",
        "r_factor_constant",
        "r_factor_mean_pattern",
    }
    assert "twin_correlation" not in found.metrics
    assert "ssim" not in found.summary
    assert found.metrics["r_factor"] < 0.2 * found.metrics["r_factor_constant"]
    assert found.metrics["overlap_consistency"] > 0.99


def test_a_reference_object_that_comes_with_the_scan_is_compared_with(tmp_path):
    source = load_or_build(resolve_config(_SMALL | {"nimgs_test": 1}).data)
    reference = np.roll(source.test_objects[0], (2, -1), axis=(0, 1))  # a reference in a frame of its own
    scan, _ = _scan(tmp_path, object=reference)
    found = evaluate(_truth(source), scan, scan.probe, True)
    assert found.metrics["amp_ssim"] > 0.98
    assert found.metrics["frc50"] > 0.3


@pytest.mark.parametrize("reference", [np.zeros((96, 96)), np.ones((10, 10))])
def test_a_reference_that_covers_little_or_nothing_is_none(tmp_path, reference):
    scan, source = _scan(tmp_path, object=reference.astype(np.complex64))
    found = evaluate(_truth(source), scan, scan.probe, True)
    assert not found.compared
    assert "amp_ssim" not in found.metrics


def test_photon_noise_is_estimated_for_a_scan_from_its_mean_pattern(tmp_path):
    scan, source = _scan(tmp_path)
    floors = [baselines(dataset, False)["val_loss_floor"] for dataset in (scan, source)]
    assert floors[0] == pytest.approx(floors[1], rel=0.2)


def test_with_a_learnt_probe_a_constant_object_is_no_worse_than_one_pattern_everywhere(tmp_path):
    scan, _ = _scan(tmp_path)
    poor = replace(scan, modes=np.roll(scan.modes, 5, axis=1) ** 2)
    known, learnt = baselines(poor, False), baselines(poor, True)
    assert known["val_loss_constant"] > learnt["val_loss_constant"] == known["val_loss_mean_pattern"]


def test_the_stitched_object_is_measured_by_knowing_nothing_of_the_same_patterns(tmp_path, simulated):
    known = baselines(simulated, False)
    assert known["r_stitched_constant"] == known["val_loss_constant"]
    assert known["r_stitched_mean_pattern"] == known["val_loss_mean_pattern"]
    scan, source = _scan(tmp_path)
    whole = evaluate((_truth(source) / scan.scale).astype(np.complex64), scan, scan.probe, True).metrics
    for learnt in (False, True):
        known = baselines(scan, learnt)
        assert known["r_stitched_mean_pattern"] == whole["r_factor_mean_pattern"] != known["val_loss_mean_pattern"]
    assert baselines(scan, False)["r_stitched_constant"] == whole["r_factor_constant"]
    poor = replace(scan, modes=np.roll(scan.modes, 5, axis=1) ** 2)
    assert baselines(poor, True)["r_stitched_constant"] == known["r_stitched_mean_pattern"]


def test_numbers_beyond_single_precision_are_not_stitched():
    patches = np.ones((2, 4, 4), np.complex64)
    assert can_be_stitched(patches)
    for value in (np.nan, np.inf, 1e20):
        patches[1, 2, 3] = value
        assert not can_be_stitched(patches)


def _one_scan(dataset):
    """The true patches of the first test object, and their positions."""
    first = dataset.test.object_index == 0
    return _truth(dataset)[first], dataset.test.positions_px[first]


def test_halves_of_true_patches_agree_up_to_the_last_ring_but_for_their_phases(simulated):
    patches, positions = _one_scan(simulated)
    frc = half_scan_frc(patches, positions, simulated.probe)
    assert frc.crossing(1 / 7) == frc.crossing(half_bit_threshold(frc.coefficients)) == 0.5


def test_detail_that_only_single_patches_have_does_not_repeat_in_the_other_half(simulated):
    patches, positions = _one_scan(simulated)
    noise = np.random.default_rng(0).standard_normal((2, *patches.shape))
    noisy = (patches + 0.5 * (noise[0] + 1j * noise[1])).astype(np.complex64)
    less = (patches + 0.1 * (noise[0] + 1j * noise[1])).astype(np.complex64)
    crossings = [half_scan_frc(those, positions, simulated.probe).crossing(1 / 7) for those in (noisy, less)]
    assert 0 < crossings[0] < crossings[1] <= 0.5


def test_patches_that_were_predicted_together_are_in_one_half(simulated):
    patches, positions = _one_scan(simulated)
    groups = np.arange(len(patches)) // 4
    apart = positions + np.where(groups % 2, 500, 0)[:, None]  # halves of whole groups have no light in common
    assert np.isnan(half_scan_frc(patches, apart, simulated.probe, groups).crossing(1 / 7))
    assert half_scan_frc(patches, apart, simulated.probe).crossing(1 / 7) > 0


def test_half_scans_without_common_light_or_contrast_or_partner_have_no_frc(simulated):
    patches, positions = _one_scan(simulated)
    apart = positions + np.where(np.arange(len(positions)) % 2, 500, 0)[:, None]
    for those, places in ((patches, apart), (np.ones_like(patches), positions), (patches[:1], positions[:1])):
        assert np.isnan(half_scan_frc(those, places, simulated.probe).crossing(1 / 7))


def test_a_consistency_that_means_nothing_is_said_with_its_reason(simulated):
    patches, positions = _one_scan(simulated)
    assert consistency_warning(reassemble(patches, positions, simulated.probe)) is None
    apart = consistency_warning(reassemble(patches, 15 * positions, simulated.probe))
    assert apart.startswith(
        "warning: the patches share 0.0 % of their light, under 1 %, so whether they agree is unknown"
    )
    constant = consistency_warning(reassemble(np.ones_like(patches), positions, simulated.probe))
    assert constant.startswith("warning: the patches are constant where they overlap")


def test_pairs_in_the_summary_are_of_amplitude_and_phase(simulated):
    found = evaluate(_truth(simulated), simulated, simulated.probe, False)
    assert found.summary["mae"] == [found.metrics["amp_mae"], found.metrics["phase_mae"]]
    assert len(found.summary["frc"]) == 2
