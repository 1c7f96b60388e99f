"""Why a command ended without its result. `fnostab.cli.main` turns each into one line and an exit code."""

import signal

from fnostab.io.untrusted import printable


class ConfigError(ValueError):
    """A value that the user gave breaks a rule. The message is one line: parameter, value, rule; the exit code is 2."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class CommandFailed(RuntimeError):
    """The command cannot go on, and the message is all that its user needs to know: one line, exit code 1."""


class Interrupted(BaseException):
    """A stop signal ended the work once everything recorded was stored: one line, exit code 128 + `signum`.

    It is no `KeyboardInterrupt`: Lightning would turn that one into an exit of its own. `what_goes_on` is said besides.
    """

    def __init__(self, signum: int, what_goes_on: str = "") -> None:
        super().__init__("; ".join(filter(None, [f"stopped by {signal.Signals(signum).name}", what_goes_on])))
        self.signum = signum


#: What ends a command early. The last two are how SLURM announces, where a job asks for it, that its time runs out.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
