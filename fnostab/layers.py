"""The statistics of a network's layers: the public path of `fnostab.models.layers`."""

from fnostab.models.layers import block_statistics, first_bad_layer, norm_statistics

__all__ = ["block_statistics", "first_bad_layer", "norm_statistics"]
