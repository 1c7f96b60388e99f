import pytest

from fnostab.config import resolve_config
from fnostab.report.card import model_card
from fnostab.study.stored_run import StoredRun


def _card(tags=None, measured=None, **overrides):
    config = resolve_config({"preset": "quick", "arch": "prenorm_hybrid", "clip_algo": "none", **overrides})
    params = {key: str(value) for key, value in config.flat().items()}
    metrics = {"best_val_loss": 0.05851, "test/r_factor": 0.0503, "test/amp_ssim": 0.915, **(measured or {})}
    run = StoredRun("r", "0", "FINISHED", 0, {"arm": "pre", "seed": "2", **(tags or {})}, params, metrics)
    return model_card("fnostab-champion", run)


def test_a_card_says_what_goes_in_how_good_it_is_and_how_to_use_it():
    card = _card()
    for part in (
        "counts, float32 (n, 64, 64), zero frequency at index 32",
        'mlflow.pyfunc.load_model("models:/fnostab-champion@champion")',
        "**Network:** prenorm_hybrid, width 16, 4 encoder blocks; clipping none; arm pre, seed 2.",
        "**Data:** simulated objects (lines, phase tanh), 1024 patches; probe curved_disk; 1e+09 photons a pattern.",
        "R-factor 0.0585 on patterns that were not trained on (0: perfect), of the stitched test object 0.0503",
        "SSIM 0.915, its phase's –.",
        "**Limits:** it knows one probe",
    ):
        assert part in card


@pytest.mark.parametrize(
    ("overrides", "data"),
    [
        ({"data": "here/star_*.npz"}, "measured scan star\\_\\*.npz; probe of the scan, as given."),
        ({"data": "star.npz", "data.probe": "a/p.npz", "train.learn_probe": True}, "probe p.npz, learnt on."),
        ({"data.probe": "a/p.npz", "data.max_train_patches": None, "clip_algo": "agc"}, "probe p.npz; 1e+09 photons"),
    ],
)
def test_a_card_names_the_data_without_their_folders(overrides, data):
    assert data in _card(**overrides)


def test_a_card_names_the_clipping_rule_with_its_limit():
    assert "clipping agc 0.01;" in _card(clip_algo="agc")


def test_a_card_says_how_the_network_was_trained():
    tags = {"precision": "bf16-mixed", "git_commit": "0123456789"}
    card = _card(tags, **{"optim.schedule": "cosine", "train.epochs": 40})
    told = "40 epochs in batches of 16, adam from 0.001 by a cosine to 0, overlap term 0.5, bf16-mixed; commit 0123456."
    assert f"- **Training:** {told}\n- **How good:**" in card
    assert "8 epochs in batches of 16, adam at 0.001.\n" in _card(**{"train.overlap_weight": 0})


def test_a_card_tells_the_object_of_the_validation_patches_and_how_steadily_the_network_trained():
    numbers = {"val/r_stitched": 0.0712, "val/r_stitched_mean_pattern": 0.161}
    card = _card(tags={"stability": "relapsed"}, measured=numbers)
    assert "0.0712 of the one object that these patches make together (one mean pattern everywhere: 0.161)," in card
    assert (
        "**Stability of its training:** relapsed: its val_loss rose to more than 1.5 times its lowest before." in card
    )
    assert "Stability" not in _card()


def test_every_paragraph_of_a_card_is_one_line_since_mlflow_shows_each_end_of_a_line():
    lines = _card(tags={"stability": "steady"}).splitlines()
    starts = ("# ", "One diffraction", "    ", "A whole scan: ", "- **")
    assert all(line.startswith(starts) for line in lines if line)
    assert lines[4:6] == [
        '    model = mlflow.pyfunc.load_model("models:/fnostab-champion@champion")',
        "    patches = model.predict(counts)",
    ]


def test_a_card_says_how_groups_of_patterns_go_in():
    card = _card(**{"data.gridsize": 2})
    assert "counts, float32 (n, 4, 64, 64), zero frequency at index 32, in a group the two upper patterns first" in card
    assert "float32 (n, 4, 64, 64, 2)" in card
    assert "One diffraction pattern in" not in card
    assert "Groups of four" not in _card()
