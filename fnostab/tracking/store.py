"""The tracking store: where it is, whether it answers, and what is raised if it does not."""

import http.client
import os
import re
import socket
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, UNAUTHENTICATED, ErrorCode
from mlflow.store.db.utils import create_sqlalchemy_engine

from fnostab.config import ConfigError
from fnostab.io.endings import CommandFailed
from fnostab.io.files import SQLITE_FULL, is_disk_full
from fnostab.io.locks import file_lock

_DATABASE_PORTS: Final = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_REACH_TIMEOUT_S: Final = 5.0
#: Where MLflow looks for what a tracking server's login takes.
_SECRETS: Final = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_PASSWORD: Final = re.compile(r"(?<=://)([^\s/@:]*):[^\s/]*@")


#: What people can do about a run that is not wholly stored.
HOW_TO_FINISH: Final = "the same command, or `fnostab sync`, finishes the run"


class StoreUnavailable(CommandFailed):
    """The tracking store does not take what it is given; nothing is lost, the same command finishes the run later."""


def redacted(text: str) -> str:
    """`text` without passwords: those in URIs, and those that the environment holds for the tracking server."""
    text = _PASSWORD.sub(r"\1:***@", text)
    for name in _SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return text


def one_line(error: BaseException) -> str:
    """What `error` says, in one line without passwords; its kind where it says nothing."""
    words = str(error).strip()
    return redacted(words.splitlines()[0]) if words else type(error).__name__


def check_store(*, must_exist: bool = False) -> str:
    """Check, without writing anything, that the tracking store can be reached, and return its URI, paths absolute.

    The store is `MLFLOW_TRACKING_URI`, or `mlflow.db` in the working directory. Raises `ConfigError` within seconds if
    nothing answers there, and, if it `must_exist`, for a database that is not there yet.
    """
    # An outage must not hold up training for MLflow's default of several minutes a call.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = _without_login(mlflow.get_tracking_uri())
    if uri.startswith("sqlite:"):
        database = sqlite_file(uri)
        if must_exist and database is not None and not database.exists():
            raise ConfigError(f"{_setting(uri)} must name a tracking store: there is none yet")
        return uri if database is None else f"sqlite:///{database.resolve()}"
    try:
        _check_kind(uri)
        _call(uri)
    except ConfigError:
        raise
    except urllib.error.HTTPError as answer:  # any answer is an answer: other servers have no /health
        answer.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = redacted(str(getattr(error, "reason", None) or error))
        raise ConfigError(f"{_setting(uri)} must name a tracking server that answers: {reason}") from None
    return uri


def _without_login(uri: str) -> str:
    """The tracking URI, a login in it moved to the variables that MLflow has for it: URIs are printed and logged."""
    try:
        parts = urlsplit(uri)
        if parts.scheme not in ("http", "https") or parts.username is None:
            return uri
        login = unquote(parts.username), unquote(parts.password or "")
        clean = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    except ValueError:  # no URI at all: refused when it is called
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = login
    if os.environ.get("MLFLOW_TRACKING_URI") == uri:
        os.environ["MLFLOW_TRACKING_URI"] = clean
    else:
        mlflow.set_tracking_uri(clean)
    return clean


def _setting(uri: str) -> str:
    """The setting that names the store, and its value, for messages."""
    return f"`MLFLOW_TRACKING_URI` (={redacted(uri)})"


def connect() -> None:
    """Open the tracking store, initialising a fresh sqlite one; several processes may call this at once.

    Raises `ConfigError` within seconds if it cannot be opened.
    """
    uri = check_store()
    with sqlite_lock(uri):
        try:
            mlflow.MlflowClient().search_experiments(max_results=1)
        except Exception as error:
            if _is_refused_login(error):
                raise ConfigError(
                    f"{_setting(uri)} must be given a login that it takes: MLFLOW_TRACKING_USERNAME and "
                    "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
                ) from None
            raise ConfigError(f"{_setting(uri)} must name a tracking store that answers: {one_line(error)}") from None


def _is_refused_login(error: Exception) -> bool:
    """Whether a server wants another login, or one at all."""
    return isinstance(error, MlflowException) and error.error_code in (
        ErrorCode.Name(code) for code in (UNAUTHENTICATED, PERMISSION_DENIED)
    )


def _check_kind(uri: str) -> None:
    """Refuse a store of a kind that neither MLflow nor a plugin of it knows; asks of others only what those are."""
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme in ("", "http", "https", "file", *_DATABASE_PORTS):
        return
    try:
        mlflow.MlflowClient(uri)
    except MlflowException:
        raise ConfigError(f"{_setting(uri)} must be of a kind that MLflow knows") from None


def _call(uri: str) -> None:
    """Open a connection to the host that `uri` names; stores without a host pass."""
    parts = urlsplit(uri)
    host, port = parts.hostname, parts.port or _DATABASE_PORTS.get(parts.scheme.partition("+")[0])
    if parts.scheme in ("http", "https"):
        urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=_REACH_TIMEOUT_S).close()
    elif host is not None and port is not None:
        socket.create_connection((host, port), timeout=_REACH_TIMEOUT_S).close()
        _open_database(uri)


def _open_database(uri: str) -> None:
    """Log in once: what a database refuses, a password for instance, MLflow tries ten times within two minutes."""
    try:
        engine = create_sqlalchemy_engine(uri)  # type: ignore[no-untyped-call]
        try:
            engine.connect().close()
        finally:
            engine.dispose()
    except Exception as error:  # of the driver, or that there is none
        raise ConnectionError(one_line(error)) from None


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite store, new or a database, in a folder that exists; None for one in memory."""
    name = uri.removeprefix("sqlite:///")
    if name in ("", ":memory:"):
        return None
    database = Path(name)
    if not database.parent.is_dir():
        raise ConfigError(f"{_setting(uri)} must lie in a folder that exists")
    if database.is_file() and database.stat().st_size and not _is_database(database):
        raise ConfigError(f"{_setting(uri)} must be a sqlite database")
    return database


def _is_database(path: Path) -> bool:
    """Whether sqlite can read the tables of `path`; nothing is written, and a lock on it does not matter."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.OperationalError:
        return True
    except sqlite3.DatabaseError:
        return False
    return True


@contextmanager
def sqlite_lock(uri: str) -> Iterator[None]:
    """Hold a file lock beside a sqlite store: MLflow's migration breaks when several processes run it at once."""
    database = sqlite_file(uri) if uri.startswith("sqlite:") else None
    if database is None:
        yield
        return
    with file_lock(database.with_name(database.name + ".lock"), timeout_s=120):
        yield


@contextmanager
def translated_store_errors() -> Iterator[None]:
    """Turn what MLflow raises when its store is away, or refuses, into `StoreUnavailable`."""
    try:
        yield
    except (MlflowException, OSError) as error:  # requests' exceptions are OSErrors
        raise StoreUnavailable(f"{failure_text(error)}; {HOW_TO_FINISH}") from error


def failure_text(error: BaseException) -> str:
    """What is wrong with the store that answered a call with `error`."""
    if SQLITE_FULL in str(error):  # in MLflow's words it may come after others, on what SQLAlchemy did meanwhile
        return f"the tracking store has no room ({SQLITE_FULL})"
    fault = "has no room" if is_disk_full(error) else "does not answer"
    return f"the tracking store {fault} ({one_line(error)})"


def all_pages(search: Callable[..., Any], query: str, page: int = 1000) -> Iterator[Any]:
    """Everything that one of MLflow's searches finds, `page` entries at a time."""
    token = None
    while True:
        found = search(filter_string=query, max_results=page, page_token=token)
        yield from found
        token = found.token
        if not token:
            return
