"""Gradient clipping by a named rule, with what it did reported as device tensors.

Every rule runs without waiting for the device, without a Python loop over elements, and in place, so gradients keep
their memory format. Complex gradients are treated through their real views: multiplying a complex infinity or negative
zero by one would change it. Norms are taken in single precision at least. Sparse gradients are refused.

**Non-finite gradients are never clipped.** A limit has no meaning against an infinite or undefined norm: scaling by
`limit / inf` would turn every finite element into zero, and clamping would turn an infinity into an ordinary number.
So if the total norm (for AGC: a unit's norm) is `inf` or NaN, those gradients stay as they are: `norm_preclip` and
`norm_postclip` are both non-finite, and the first bad layer can still be found. The caller has to skip the update.
(PyTorch's `clip_grad_norm_` writes zeros and NaN in this case, its `clip_grad_value_` finite numbers.) Nor does such a
norm enter the history that a rule keeps.
"""

from fnostab.clipping.adagc import adagc_ as adagc_
from fnostab.clipping.agc import AGC_EPS as AGC_EPS, adaptive_gradient_clip_ as adaptive_gradient_clip_
from fnostab.clipping.clipper import Clipper as Clipper
from fnostab.clipping.skip import skip_ as skip_
from fnostab.clipping.stateless import clip_gradients_ as clip_gradients_
from fnostab.clipping.stats import ClipStats as ClipStats
from fnostab.clipping.zclip import ZCLIP_EPS as ZCLIP_EPS, zclip_ as zclip_
