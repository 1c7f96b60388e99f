"""The tracking store: how it is opened, and searched."""

import os
import socket
import sqlite3
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes
from mlflow.store.db.utils import create_sqlalchemy_engine
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from fnostab.config import ConfigError
from fnostab.io.endings import CommandFailed
from fnostab.io.locks import file_lock
from fnostab.study.stored_run import StoredRun
from fnostab.tracking.errors import (
    HOW_TO_REPEAT,
    has_code,
    is_outage,
    one_line,
    redacted,
    translated_store_errors,
)
from fnostab.tracking.target import check_target

_DATABASE_PORTS: Final = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_REACH_TIMEOUT_S: Final = 5.0
LOCK_TIMEOUT_S: Final = 120.0


def open_store(*, must_exist: bool = False) -> str:
    """Open the tracking store, making a sqlite one that is not there yet, and return its URI, paths absolute.

    The store is `MLFLOW_TRACKING_URI`, or `mlflow.db` in the working directory. Several processes may open it at once.
    Raises `ConfigError` within seconds if it cannot be opened, and, if it `must_exist`, for one that is not there.
    """
    uri = check_store(must_exist=must_exist)
    if _is_new(uri):
        _log_in(uri)
    return uri


def check_store(*, must_exist: bool = False, for_new_run: bool = False) -> str:
    """Do as `open_store` does, but make no sqlite store: for what has other things to check before it writes.

    If it is `for_new_run`, refuse also a run, an experiment or a place for artifacts that cannot be written to.
    """
    # An outage must not hold up training for MLflow's default of several minutes a call.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = _without_login(mlflow.get_tracking_uri())
    if not _is_new(uri):
        _reach(uri)
        _log_in(uri)
    elif must_exist:
        raise ConfigError(f"{_setting(uri)} must name a tracking store: there is none yet")
    database = sqlite_file(uri)
    if for_new_run:
        if database is not None and not os.access(database.parent if _is_new(uri) else database, os.W_OK):
            raise ConfigError(f"{_setting(uri)} must name a database that can be written to")
        check_target(is_local=not uri.startswith("http"), is_new=_is_new(uri))
    return uri if database is None else f"sqlite:///{database.resolve()}"


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


def _reach(uri: str) -> None:
    """Call the host that `uri` names, with little patience; stores without a host pass."""
    try:
        parts = urlsplit(uri)
        scheme = parts.scheme.partition("+")[0]
        if scheme in ("http", "https"):
            # MLflow's own request, with the certificates and the login that it uses. Any answer is an answer: other
            # servers have no /health.
            login = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
            limits = {"timeout": _REACH_TIMEOUT_S, "max_retries": 0, "raise_on_status": False}
            http_request(login, "/health", "GET", **limits)  # type: ignore[no-untyped-call]
        elif scheme in _DATABASE_PORTS and parts.hostname is not None:
            address = (parts.hostname, parts.port or _DATABASE_PORTS[scheme])
            socket.create_connection(address, timeout=_REACH_TIMEOUT_S).close()
            _open_database(uri)
    except (MlflowException, OSError, ValueError) as error:
        cause = _cause(error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise ConfigError(
                f"{_setting(uri)} must name a server whose certificate is trusted: {one_line(cause)}; "
                "MLFLOW_TRACKING_SERVER_CERT_PATH names a file of trusted certificates, "
                "MLFLOW_TRACKING_INSECURE_TLS=true trusts any"
            ) from None
        raise ConfigError(f"{_setting(uri)} must name a tracking server that answers: {one_line(cause)}") from None


def _cause(error: BaseException) -> BaseException:
    """What was wrong with the connection, of all that was raised on the way from there to `error`."""
    cause, link = error, error.__context__
    while link is not None:
        cause = link if isinstance(link, (OSError, ValueError)) else cause
        link = link.__context__
    return cause


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


def _log_in(uri: str) -> None:
    """Ask the store for something; a sqlite one is made if it is not there."""
    try:
        with sqlite_lock(uri):
            mlflow.MlflowClient().search_experiments(max_results=1)
    except CommandFailed:  # another process holds the lock
        raise
    except Exception as error:  # MLflow's, the database driver's, or that of a plugin that knows the store
        if has_code(error, codes.UNAUTHENTICATED, codes.PERMISSION_DENIED):
            raise ConfigError(
                f"{_setting(uri)} must be given a login that it takes: MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            ) from None
        if isinstance(error, UnsupportedModelRegistryStoreURIException):
            raise ConfigError(f"{_setting(uri)} must be of a kind that MLflow knows") from None
        rule = "that answers" if is_outage(error) else "that can be opened"
        raise ConfigError(f"{_setting(uri)} must name a tracking store {rule}: {one_line(error)}") from None


def _is_new(uri: str) -> bool:
    """Whether `uri` names a sqlite store that is still to be made."""
    database = sqlite_file(uri)
    return database is not None and not database.exists()


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite store, new or a database, in a folder that exists; None for one in memory, or elsewhere."""
    name = uri.removeprefix("sqlite:///")
    if name in ("", ":memory:") or not uri.startswith("sqlite:"):
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
    database = sqlite_file(uri)
    if database is None:
        yield
        return
    with file_lock(database.with_name(database.name + ".lock"), timeout_s=LOCK_TIMEOUT_S):
        yield


def all_pages(search: Callable[..., Any], query: str, page: int = 1000) -> Iterator[Any]:
    """Everything that one of MLflow's searches finds, `page` entries at a time."""
    token = None
    while True:
        found = search(filter_string=query, max_results=page, page_token=token)
        yield from found
        token = found.token
        if not token:
            return


def search_runs(**tags: str) -> Iterator[StoredRun]:
    """All active runs with these tags, newest first; a page at a time, so that only what is kept fills memory."""
    for key, value in tags.items():
        if any(letter in value for letter in "'\"\\"):
            raise ConfigError(f"`{key}` (={value}) must be a name without quotes and backslashes")
    query = " and ".join(f"tags.{key} = '{value}'" for key, value in tags.items())
    client = mlflow.MlflowClient()
    with translated_store_errors(HOW_TO_REPEAT):
        experiments = [experiment.experiment_id for experiment in all_pages(client.search_experiments, "")]
        for run in all_pages(partial(client.search_runs, experiments), query):
            yield stored_run(run)


def read_stored_run(run_id: str) -> StoredRun:
    """The run `run_id` as the store tells it; raises `StoreUnavailable` also where there is none."""
    with translated_store_errors(HOW_TO_REPEAT):
        return stored_run(mlflow.MlflowClient().get_run(run_id))


def stored_run(run: Run) -> StoredRun:
    """What is kept of a run that MLflow's client gave."""
    info, data = run.info, run.data
    ended_ms = info.end_time or info.start_time or 0
    tags, params = ({_once(key): _once(value) for key, value in of.items()} for of in (data.tags, data.params))
    metrics = {_once(key): value for key, value in data.metrics.items()}
    return StoredRun(info.run_id, info.experiment_id, info.status, ended_ms, tags, params, metrics, info.artifact_uri)


def _once(text: str) -> str:
    """`text`, in memory once: the runs of a study have nearly all names and values in common."""
    return sys.intern(str(text))
