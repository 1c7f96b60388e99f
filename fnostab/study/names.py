"""The names under which a run is tracked, one line each: its numbers, its series and its tags.

The store's name of a number groups it (`val/loss`); its name in Python (`val_loss`) is that of the series in `History`
and `history.json`, of the entry of `metrics.json` and of a verdict's evidence, and of the column of a ranking. No
store's name is a path under another's: a store of files would need a file and a folder of one name.
"""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple


class Number(NamedTuple):
    """A number of a run: its name in the store, its name in Python, when it is recorded, and what it is.

    `<block>`, `<stage>` and `<parameter>` stand for the name of a layer or a tensor of the network. Numbers that are
    `observed` have a value from before the first step, and then one an epoch.
    """

    metric: str
    name: str
    when: Literal["start", "step", "some steps", "epoch", "observed", "end"]
    meaning: str


NUMBERS: Final = (
    Number("val/loss_constant", "val_loss_constant", "start", "R-factor of the best constant object"),
    Number("val/loss_mean_pattern", "val_loss_mean_pattern", "start", "R-factor of one mean pattern everywhere"),
    Number("val/loss_floor", "val_loss_floor", "start", "R-factor of photon noise alone"),
    Number("val/r_stitched_constant", "r_stitched_constant", "start", "that of the best constant object, stitched"),
    Number("val/r_stitched_mean_pattern", "r_stitched_mean_pattern", "start", "that of one mean pattern everywhere"),
    Number(
        "val/supervised_loss_constant", "supervised_loss_constant", "start", "supervised: that of a constant object"
    ),
    Number("train/loss", "loss_step", "step", "training loss"),
    Number("grad/norm_preclip", "grad_norm_preclip", "step", "norm of all gradients before clipping"),
    Number("grad/norm_postclip", "grad_norm_postclip", "step", "norm of all gradients after clipping"),
    Number("grad/clipped_fraction", "clipped_fraction", "step", "share of what clipping looks at that it changed"),
    Number("weight_grad_norm/<parameter>", "", "some steps", "norm of a parameter's gradient before clipping"),
    Number("watch/loss", "", "some steps", "watched: R-factor of the fixed batch"),
    Number("watch/object_std_ratio", "", "some steps", "watched: its object's deviation over the truth's"),
    Number("watch/act_std/<stage>", "", "some steps", "watched: standard deviation of a stage's output"),
    Number("watch/pattern_std/<stage>", "", "some steps", "watched: its deviation over patterns alone"),
    Number("watch/middle_std/<stage>", "", "some steps", "watched: the same in the middle of its images"),
    Number("watch/dead_channels/<stage>", "", "some steps", "watched: share of its channels that are constant"),
    Number("watch/grad_norm/<stage>", "", "some steps", "watched: norm of its gradient before clipping"),
    Number("watch/weight_norm/<stage>", "", "some steps", "watched: norm of its parameters"),
    Number("val/loss", "val_loss", "epoch", "R-factor on the validation patterns"),
    Number("val/progress", "progress", "epoch", "0: best constant object, 1: photon noise alone"),
    Number("val/r_stitched", "r_stitched", "epoch", "R-factor of the one object that validation patches make together"),
    Number("val/patch_consistency", "patch_consistency", "epoch", "how far those patches agree: 1 fully, 0 unrelated"),
    Number("val/shared_light", "shared_light", "epoch", "share of their light that others share"),
    Number("val/amp_ssim", "val_amp_ssim", "epoch", "SSIM of the validation object's amplitude, if the truth is known"),
    Number("val/supervised_loss", "supervised_loss", "epoch", "supervised: its loss on the true validation patches"),
    Number("lr", "lr", "epoch", "learning rate"),
    Number("health/object_std_ratio", "object_std_ratio", "epoch", "the predicted object's deviation over the truth's"),
    Number("health/parameters_moved", "parameters_moved", "epoch", "share of the blocks' tensors that changed"),
    Number("health/moved/<block>", "moved/<block>", "observed", "the same of one block"),
    Number("health/update_std/<block>", "update_std/<block>", "observed", "deviation of what a block adds"),
    Number("health/act_mean/<block>", "act_mean/<block>", "observed", "mean of a block's output"),
    Number("health/act_std/<block>", "act_std/<block>", "observed", "standard deviation of a block's output"),
    Number(
        "health/pattern_share/<stage>",
        "pattern_share/<stage>",
        "observed",
        "its deviation over patterns / whole",
    ),
    Number("health/norm_weight_absmax", "norm_weight_absmax", "observed", "largest norm weight of stable blocks"),
    Number("health/norm_weight_absmean", "norm_weight_absmean", "observed", "mean magnitude of those"),
    Number("health/norm_weight_absmax_of/<block>", "norm_weight_absmax_of/<block>", "observed", "largest of one block"),
    Number("health/layerscale_absmax", "layerscale_absmax", "observed", "largest factor of stable blocks' LayerScale"),
    Number("health/layerscale_absmean", "layerscale_absmean", "observed", "mean magnitude of those"),
    Number("best_val_loss", "best_val_loss", "end", "lowest R-factor on the validation patterns"),
    Number("samples_per_s", "samples_per_s", "end", "training patterns a second, validation and checkpoints included"),
    Number("grad/norm_median", "grad_norm_median", "end", "median gradient norm before clipping"),
    Number("grad/norm_max", "grad_norm_max", "end", "largest gradient norm before clipping"),
    Number("val/plateau_left_epoch", "plateau_left_epoch", "end", "first epoch at which the network had learnt"),
    # Of the epochs since the network had learnt; also after each of them, as they stood then.
    Number("stability/max_drawdown", "max_drawdown", "end", "largest ratio of a val_loss to the lowest up to then"),
    Number("stability/mean_excess", "mean_excess", "end", "mean of that ratio, less 1"),
    Number("stability/relapses", "relapses", "end", "rises of val_loss over 1.5 times the lowest before"),
    Number("stability/relapses_per_1e5_steps", "relapses_per_1e5_steps", "end", "those in 100,000 optimizer steps"),
    Number("stability/dead_blocks", "dead_blocks", "end", "blocks whose parameters or whose update do not move"),
    Number("stability/lost_stages", "lost_stages", "end", "stages whose output hardly depends on the pattern any more"),
    Number("test/r_factor", "r_factor", "end", "R-factor of the one stitched object"),
    Number("test/r_factor_patch", "r_factor_patch", "end", "R-factor of each patch by itself"),
    Number("test/r_factor_constant", "r_factor_constant", "end", "scans: that of the best constant object"),
    Number("test/r_factor_mean_pattern", "r_factor_mean_pattern", "end", "scans: that of one mean pattern everywhere"),
    Number("test/overlap_consistency", "overlap_consistency", "end", "1: overlapping patches agree, 0: are unrelated"),
    Number("test/frc_halves_one_seventh", "frc_halves_one_seventh", "end", "reconstruct: FRC of half scans under 1/7"),
    Number("test/frc_halves_half_bit", "frc_halves_half_bit", "end", "the same, under the half-bit curve"),
    Number("test/r_factor_network", "r_factor_network", "end", "reconstruct --refine: R-factor before the refinement"),
    Number("test/object_correlation", "object_correlation", "end", "agreement of the patches with the object"),
    Number("test/twin_correlation", "twin_correlation", "end", "agreement of the patches with the object's twin"),
    Number("test/amp_ssim", "amp_ssim", "end", "SSIM of the stitched object's amplitude"),
    Number("test/phase_ssim", "phase_ssim", "end", "SSIM of its phase"),
    Number("test/amp_mae", "amp_mae", "end", "mean absolute error of its amplitude"),
    Number("test/phase_mae", "phase_mae", "end", "mean absolute error of its phase, rad"),
    Number("test/amp_psnr", "amp_psnr", "end", "peak signal-to-noise ratio of its amplitude, dB"),
    Number("test/phase_psnr", "phase_psnr", "end", "peak signal-to-noise ratio of its phase, dB"),
    Number("test/frc50", "frc50", "end", "where its FRC with the truth falls under 0.5, cycles a pixel"),
    Number("test/frc_one_seventh", "frc_one_seventh", "end", "under 1/7, meant for half scans: for earlier runs"),
)

#: Name in the store, by name in Python.
METRIC: Final[Mapping[str, str]] = {number.name: number.metric for number in NUMBERS if number.name}
#: Beginnings of the numbers of single layers and parameters, of which a run has many.
DETAILS: Final = tuple(number.metric.partition("<")[0] for number in NUMBERS if "<" in number.metric)

#: Series of a study in its parent run (`study/arm_series.py`), and what each is; `<n>` stands for a number of runs.
ARM_SERIES: Final = {
    "runs_done/<arm>": "runs of the arm that have a result, by the number of finished runs of the study",
    "failure_rate/<arm>": "the share of them that failed",
    "best_val_loss_median/<arm>": "the median of their best val_loss, failed runs counted as infinite",
    "val_loss_median_of_<n>/<arm>": "median of val_loss over the arm's n runs, by epoch",
    "val_loss_low_quartile_of_<n>/<arm>": "the lower quartile",
    "val_loss_high_quartile_of_<n>/<arm>": "the upper quartile",
    "r_stitched_median_of_<n>/<arm>": "median of the stitched R-factor over the arm's n runs, by epoch",
    "r_stitched_low_quartile_of_<n>/<arm>": "the lower quartile",
    "r_stitched_high_quartile_of_<n>/<arm>": "the upper quartile",
}

#: A run's tags, and what each says.
TAGS: Final = {
    "study": "the study that the run belongs to",
    "arm": "the arm that it trains",
    "arch": "its architecture",
    "clip_algo": "its clipping rule",
    "seed": "its training seed",
    "dataset_sha256": "hash of the arrays that it sees",
    "datasets_sha256": "with data.seeds: hash of what all datasets of its study are made of",
    "probe_sha256": "hash of the probe that it starts from",
    "init_sha256": "with train.init_from: hash of the weights that it starts from",
    "config_sha256": "hash of all settings that decide its numbers",
    "fnostab_version": "version of this package",
    "git_commit": "commit of the checkout; with `-dirty`, the artifact `code.diff` holds what it lacks",
    "device": "what it trains on",
    "precision": "of its training steps: 32-true, bf16-mixed or tf32",
    "seeds_at_once": "with `--seeds_at_once`: how many runs began their training together, itself among them",
    "verdict": "how it went, in one word",
    "verdict_reason": "and why",
    "verdict_version": "the version of the rules that decided it; none is the first",
    "verdict_before": "the verdict of an imported run by earlier rules, where today's differs",
    "stability": "how steadily it trained once it had learnt",
    "vacuous": "the metrics that mean nothing here",
    "twin": "whether the twin image is closer than the object",
}


def tracked(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return `numbers` by their names in Python under their names in the store."""
    return {METRIC[name]: value for name, value in numbers.items()}
