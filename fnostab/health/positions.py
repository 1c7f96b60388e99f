"""Whether the axes of a scan's positions are wrong: what conventional reconstructions of it say about that."""

import math
from collections.abc import Mapping
from typing import Final

from fnostab.health.config import DEFAULTS, HealthConfig

#: Name of the orientation of the positions as they were given.
AS_GIVEN: Final = "as_given"


def better_orientation(r_by_orientation: Mapping[str, float], config: HealthConfig = DEFAULTS) -> str:
    """Say in which orientation of its positions a scan fits clearly better; empty if in none, or if none is known.

    `r_by_orientation` holds R-factors of conventional reconstructions, as `dataset.r_by_orientation` gives them;
    one of 1 or more is worse than an object that lets no light through, and says nothing.
    """
    given = r_by_orientation.get(AS_GIVEN, math.nan)
    turned = {name: r for name, r in r_by_orientation.items() if name != AS_GIVEN and math.isfinite(r)}
    best = min(turned, key=lambda name: turned[name], default="")
    if not best or not turned[best] < config.orientation_ratio * min(given, 1):
        return ""
    found = f"{turned[best]:.3g} turned by {best}, and {given:.3g} as given"
    return f"a conventional reconstruction has an R-factor of {found}"
