"""A real SLURM on this machine, in a folder of its own: it listens on 127.0.0.1 and ends when the block does."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from servers import comfort, free_port, mourn, wait_until

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "sinfo", "scontrol")
_START_TIMEOUT_S = 180.0
#: Where Debian's packages have what is for administrators.
_ADMIN = "/usr/sbin"


def why_not() -> str:
    """Why there can be no SLURM here; nothing if there can."""
    path = f"{os.environ.get('PATH', '')}{os.pathsep}{_ADMIN}"
    if missing := [name for name in _PROGRAMS if shutil.which(name, path=path) is None]:
        return f"needs SLURM ({', '.join(missing)}): apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "needs root: slurmd starts jobs as their users"


class Slurm:
    """munged, slurmctld and slurmd; two partitions, of which jobs of `urgent` take the place of those of `debug`.

    There are no accounts: `sacct` knows nothing. `environment` lets SLURM's commands find this cluster.
    """

    def __init__(self) -> None:
        # SLURM's sockets have short names, and munged wants folders that nobody else writes to.
        self.folder = Path(
            tempfile.mkdtemp(prefix="fnostab-slurm-", dir="/run" if os.access("/run", os.W_OK) else None)
        )
        self.folder.chmod(0o755)  # munged wants its socket to be in reach of all users
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._path = f"{os.environ.get('PATH', '')}{os.pathsep}{_ADMIN}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._mourners: list[subprocess.Popen[bytes] | None] = []

    def __enter__(self) -> "Slurm":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):
            self.call("scancel", f"--user={os.getuid()}")
            wait_until(lambda: not self.states(), "jobs stay", 60.0)
        for process in reversed(self._processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(30)
            if process.poll() is None:
                process.kill()
                process.wait()
        for mourner in self._mourners:
            comfort(mourner)
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, *command: str) -> str:
        """What one of SLURM's commands says."""
        environment = os.environ | self.environment
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120).stdout

    def states(self) -> dict[str, str]:
        """The states of the jobs that wait or run."""
        lines = self.call("squeue", "--noheader", "--array", "--format=%i|%T").splitlines()
        return dict(line.split("|") for line in lines)

    def _start(self) -> None:
        self._write_configuration()
        munge = self.folder / "munge"
        names = {"socket": "socket", "pid-file": "pid", "log-file": "log", "key-file": "key", "seed-file": "seed"}
        self._run("munged", "--foreground", *(f"--{option}={munge / name}" for option, name in names.items()))
        wait_until(lambda: self._all_run() and (munge / "socket").exists(), "munged does not listen", _START_TIMEOUT_S)
        self._run("slurmctld", "-D", "-f", self.environment["SLURM_CONF"])
        self._run("slurmd", "-D", "-f", self.environment["SLURM_CONF"])
        wait_until(self._is_ready, "the node is not idle", _START_TIMEOUT_S, every_s=0.5, log=self.folder / "log")

    def _run(self, name: str, *arguments: str) -> None:
        program = shutil.which(name, path=self._path)
        assert program is not None
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen([program, *arguments], stdout=log, stderr=log, env=os.environ | self.environment)
        self._processes.append(process)
        self._mourners.append(mourn(process.pid, "TERM"))

    def _all_run(self) -> bool:
        if ended := [process.args for process in self._processes if process.poll() is not None]:
            raise RuntimeError(f"{ended} ended:\n{(self.folder / 'log').read_text(errors='replace')[-4000:]}")
        return True

    def _is_ready(self) -> bool:
        self._all_run()
        with suppress(subprocess.CalledProcessError):
            return self.call("sinfo", "--noheader", "--format=%T").split()[:1] == ["idle"]
        return False

    def _write_configuration(self) -> None:
        host, user = socket.gethostname().partition(".")[0], pwd.getpwuid(os.getuid()).pw_name
        (self.folder / "munge").mkdir(mode=0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        (self.folder / "slurm.conf").write_text(
            f"""
ClusterName=fnostab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge/socket
CryptoType=crypto/munge
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=60
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10
"""
        )
