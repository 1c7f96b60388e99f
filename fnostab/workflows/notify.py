"""Tell somebody when a command has come to its result: a POST to a webhook, or a command of the user's own."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from fnostab.config import ConfigError
from fnostab.health.history import each, finite_or_none
from fnostab.io.untrusted import printable, shown
from fnostab.workflows import PrintLine

#: Seconds after which a webhook, or a command, that has not ended is left alone.
TIMEOUT_S: Final = 10.0


@dataclass(frozen=True)
class Notice:
    """What is told: the `event` (verdict, study or decision), its `label` in a word, and `told`, as JSON takes it."""

    event: str
    label: str
    study: str
    run_id: str
    told: Mapping[str, Any]

    def to_json(self) -> str:
        """The text that is posted, or stands on the command's stdin; numbers that are not finite are null."""
        said = {"event": self.event, "label": self.label, "study": self.study, "run_id": self.run_id, **self.told}
        return json.dumps(each(said, finite_or_none), allow_nan=False)

    @property
    def environment(self) -> dict[str, str]:
        """What a command finds in its environment."""
        named = {"EVENT": self.event, "VERDICT": self.label, "STUDY": self.study, "RUN_ID": self.run_id}
        return {f"FNOSTAB_{name}": value.replace("\0", "") for name, value in named.items()}


class Notifier:
    """Sends notices to `target`, a URL of http or https, or a command with its arguments.

    Raises `ConfigError` for any other. A shell never sees the command, nor what it is told. Where sending does not
    work, a line says so and nothing else happens.
    """

    def __init__(self, target: str) -> None:
        self._url = target if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", target.strip()) else None
        self._command: list[str] = []
        if self._url is None:
            self._command = _checked_command(target)
        else:
            _check_url(target)

    def send(self, notice: Notice, report: PrintLine) -> None:
        """Send `notice`; `report` takes a line if that fails."""
        try:
            if self._url is None:
                self._run(notice)
            else:
                _in_time(partial(_post, self._url, notice))
        except Exception as error:
            report(f"warning: nobody was notified by {self._name}: {printable(str(error)) or type(error).__name__}")

    @property
    def _name(self) -> str:
        """What is said of the target: the rest of a webhook's address is often a secret."""
        return (
            self._command[0] if self._url is None else f"{urlsplit(self._url).scheme}://{urlsplit(self._url).hostname}"
        )

    def _run(self, notice: Notice) -> None:
        # Files instead of pipes: one that a grandchild holds open would have to be waited for.
        with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as said:
            told.write(notice.to_json().encode())
            told.seek(0)
            process = subprocess.Popen(
                self._command,
                stdin=told,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env=os.environ | notice.environment,
                start_new_session=True,
            )
            try:
                code = process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                raise OSError(f"it had not ended after {TIMEOUT_S:g} s") from None
            finally:
                if process.poll() is None:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            if code:
                said.seek(0)
                words = said.read(2000).decode(errors="replace").strip().partition("\n")[0]
                raise OSError(f"it ended with {code}" + (f": {words}" if words else ""))


def _post(url: str, notice: Notice) -> None:
    headers = {"Content-Type": "application/json", "User-Agent": "fnostab"}
    request = urllib.request.Request(url, notice.to_json().encode(), headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            pass
    except urllib.error.HTTPError as error:
        error.close()
        raise OSError(f"it answered {error.code}") from None
    except urllib.error.URLError as error:
        raise OSError(str(error.reason)) from None


def _in_time(send: Callable[[], None]) -> None:
    """Call `send`, and raise what it raises, or an OSError after `TIMEOUT_S`.

    The timeout of a socket is that of one answer: neither the search for the host's address counts, nor does a server
    that sends a byte now and then.
    """
    raised: list[Exception] = []

    def call() -> None:
        try:
            send()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    if thread.is_alive():
        raise OSError(f"no answer within {TIMEOUT_S:g} s")
    if raised:
        raise raised[0]


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        is_good = is_good and url.isprintable() and " " not in url
    except ValueError:  # a port that is no number
        is_good = False
    if not is_good:
        raise ConfigError(f"`notify` (={shown(url)}) must be a command, or a URL of http or https with a host")


def _checked_command(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"`notify` (={shown(text)}) must be a command whose quotes are closed: {error}") from None
    if not words or "\0" in text or shutil.which(words[0]) is None:
        raise ConfigError(f"`notify` (={shown(text)}) must be a command that can be run, or a URL of http or https")
    return words
