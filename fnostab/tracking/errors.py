"""What is raised, and said, when the tracking store does not answer or refuses; no message has a password in it."""

import http
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes

from fnostab.io.endings import CommandFailed
from fnostab.io.files import SQLITE_FULL, is_disk_full

#: Where MLflow looks for what a tracking server's login takes.
_SECRETS: Final = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_PASSWORD: Final = re.compile(r"(?<=://)([^\s/@:]*):[^\s/]*@")
#: Codes of a store that cannot do now what it may do later; with any other it refuses what it was asked.
_OUTAGES: Final = (
    *(codes.INTERNAL_ERROR, codes.TEMPORARILY_UNAVAILABLE, codes.DEADLINE_EXCEEDED, codes.REQUEST_LIMIT_EXCEEDED),
    *(codes.SERVICE_UNDER_MAINTENANCE, codes.UNPARSEABLE_HTTP_ERROR, codes.IO_ERROR, codes.ABORTED),
)
_MISSING_FILES: Final = (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)
#: What people can do about a run that is not wholly stored, and about a command that only reads or registers.
HOW_TO_FINISH: Final = "the same command, or `fnostab sync`, finishes the run"
HOW_TO_REPEAT: Final = "give the same command again when it does"


class StoreUnavailable(CommandFailed):
    """The tracking store does not answer, or refuses what it is given; nothing that was recorded is lost."""


def redacted(text: str) -> str:
    """`text` without passwords: those in URIs, and those that the environment holds for the tracking server."""
    text = _PASSWORD.sub(r"\1:***@", text)
    for name in _SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return text


def one_line(error: BaseException) -> str:
    """What `error` says, in one line without passwords and MLflow's code; its kind where it says nothing."""
    words = str(error).strip().removeprefix(f"{getattr(error, 'error_code', '')}: ")
    return redacted(words.splitlines()[0]) if words else type(error).__name__


@contextmanager
def translated_store_errors(remedy: str = HOW_TO_FINISH) -> Iterator[None]:
    """Turn what MLflow raises when its store is away, or refuses, into `StoreUnavailable`; `remedy` is for outages."""
    try:
        yield
    except (MlflowException, OSError) as error:  # requests' exceptions are OSErrors
        hint = f"; {remedy}" if is_outage(error) else ""
        raise StoreUnavailable(f"{failure_text(error)}{hint}") from error


def failure_text(error: BaseException) -> str:
    """What is wrong with the store that answered a call with `error`."""
    if SQLITE_FULL in str(error):  # in MLflow's words it may come after others, on what SQLAlchemy did meanwhile
        return f"the tracking store has no room ({SQLITE_FULL})"
    if is_disk_full(error):
        return f"the tracking store has no room ({one_line(error)})"
    return f"the tracking store {'does not answer' if is_outage(error) else 'refuses this'} ({one_line(error)})"


def is_outage(error: BaseException) -> bool:
    """Whether a store that answered a call with `error` may take the same call later."""
    if isinstance(error, MlflowException):
        return has_code(error, *_OUTAGES)
    status = getattr(getattr(error, "response", None), "status_code", None)  # of an HTTP error
    if status is not None:
        return bool(status >= 500 or status == http.HTTPStatus.TOO_MANY_REQUESTS)
    return not isinstance(error, _MISSING_FILES)


def is_unknown(error: BaseException) -> bool:
    """Whether the store says that it has no such thing, or that none can have such a name."""
    return has_code(error, codes.RESOURCE_DOES_NOT_EXIST, codes.INVALID_PARAMETER_VALUE)


def has_code(error: BaseException, *expected: int) -> bool:
    """Whether `error` is MLflow's, with one of these error codes."""
    return isinstance(error, MlflowException) and error.error_code in map(codes.ErrorCode.Name, expected)
