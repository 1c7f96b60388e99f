"""The monitor: somebody else's network and loop, recorded, clipped if asked, judged, and ranked by `fnostab compare`.

`run` is for a plain PyTorch loop, `StabilityMonitor` for a Lightning trainer, which is imported only when it is asked
for. docs/monitor.md has both.
"""

from typing import TYPE_CHECKING, Any

from fnostab.monitor.loop import MonitoredRun as MonitoredRun, run as run

if TYPE_CHECKING:
    from fnostab.monitor.callback import StabilityMonitor as StabilityMonitor


def __getattr__(name: str) -> Any:
    """Import the Lightning callback: a plain loop does not pay for Lightning."""
    if name != "StabilityMonitor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fnostab.monitor.callback import StabilityMonitor

    return StabilityMonitor
