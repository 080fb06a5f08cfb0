"""A Slurm cluster of virtual nodes on this machine, for tests: real daemons, real jobs, nothing of the host changed.

    with LocalCluster(folder, num_nodes=2) as cluster:
        cluster.run("sbatch", "--wait", "job.sh")

Each node is a set of Linux namespaces with its own address, host name, /dev/shm and processes; a bridge in the
namespace of a login node joins them. Needs root (CAP_SYS_ADMIN) and Debian's slurmctld, slurmd, slurm-client, munge
and iproute2. The processes die with the one that started them.
"""

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_SUBNET = "10.93.7"
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "ip", "nsenter", "unshare", "setpriv")
_START_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Hardware:
    """What each node says it has, in words of slurm.conf, and the plugin that binds processes to it."""

    description: str
    gpus: int  # 0 or 1
    task_plugin: str


CLAIMED = Hardware("CPUs=112 RealMemory=512000", gpus=1, task_plugin="task/none")
"""More than the machine has, so that a script's header is accepted as it stands."""


def real_hardware() -> Hardware:
    """What this machine has: Slurm can then bind processes to its CPUs."""
    done = subprocess.run(
        ["slurmd", "-C"], env={**os.environ, "PATH": _PATH}, capture_output=True, text=True, check=True
    )
    _, description = done.stdout.splitlines()[0].split(maxsplit=1)
    return Hardware(description, gpus=0, task_plugin="task/affinity")


def why_not() -> str:
    """Why no cluster can run here; empty where one can."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"{', '.join(missing)} not installed (apt-get install slurmctld slurmd slurm-client munge iproute2)"
    probe = ["unshare", "-n", "-m", "-u", "-p", "--fork", "--mount-proc", "ip", "link", "add", "b0", "type", "bridge"]
    tried = subprocess.run(probe, capture_output=True, text=True, env={**os.environ, "PATH": _PATH})
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


class LocalCluster:
    """`num_nodes` nodes named node1, node2, ..., each with all of `hardware`."""

    def __init__(self, folder: Path, num_nodes: int = 2, hardware: Hardware = CLAIMED) -> None:
        self._folder, self._hardware = folder, hardware
        self._names = [f"node{number}" for number in range(1, num_nodes + 1)]
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._env = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def run(
        self, *command: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout_s: float = 60.0
    ) -> str:
        """Standard output of a command on the login node; an AssertionError with all of its output if it fails."""
        done = subprocess.run(
            [*self._on_login(cwd or self._folder), *command],
            env={**self._env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def fail(self, node: str) -> None:
        """The node loses power: every process in it is gone, and its network."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()

    def heal(self, node: str) -> None:
        """Starts a node that failed."""
        self._start_node(node)

    def processes(self, words: str) -> list[int]:
        """Processes of this machine, virtual nodes included, whose command line has these words."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (OSError, ValueError):
                continue
            if entry.name.isdigit() and words in line and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        return found

    def stop(self) -> None:
        """Kills jobs, nodes and daemons."""
        for name in reversed(list(self._daemons)):
            daemon = self._daemons.pop(name)
            daemon.send_signal(signal.SIGKILL if name in self._names else signal.SIGTERM)
            try:
                daemon.wait(5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _start(self) -> None:
        self._write_files()
        folder = self._folder
        self._daemon(
            *("munged", "munged", "--foreground", "--force", f"--key-file={folder}/munge.key"),
            *(f"--socket={folder}/munge.sock", f"--pid-file={folder}/munged.pid"),
            *(f"--seed-file={folder}/munged.seed", f"--log-file={folder}/munged.log"),
        )
        bridge = f"ip link add br0 type bridge; ip addr add {_SUBNET}.1/24 dev br0; ip link set br0 up"
        # /etc is the login node's own view: the names of the nodes, and no name server to wait for.
        view = f"mount --bind {folder}/hosts /etc/hosts; mount --bind {folder}/nsswitch.conf /etc/nsswitch.conf"
        script = f"set -e; hostname login; {view}; ip link set lo up; {bridge}; touch {folder}/login; exec sleep inf"
        self._daemon("login", "unshare", "-n", "-m", "-u", "bash", "-c", script)
        self._wait_until((folder / "login").exists, "the login node")
        self._daemon("slurmctld", *self._on_login(folder), "slurmctld", "-D", "-i")
        for node in self._names:
            self._start_node(node)
        self._wait_until(lambda: self._idle_nodes() == set(self._names), "idle nodes")

    def _start_node(self, node: str) -> None:
        number = self._names.index(node) + 1
        folder = self._folder
        view = f"mount --bind {folder}/hosts /etc/hosts; mount --bind {folder}/nsswitch.conf /etc/nsswitch.conf"
        wait = "until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done"
        network = f"{wait}; ip addr add {_SUBNET}.{10 + number}/24 dev eth0; ip link set eth0 up"
        # bash stays as the first process of the node, to reap what jobs orphan.
        script = (
            f"set -e; hostname {node}; {view}; mount -t tmpfs tmpfs /dev/shm; ip link set lo up; {network}; "
            f"slurmd -D -N {node} & wait"
        )
        flags = ("-n", "-m", "-u", "-p", "--fork", "--kill-child", "--mount-proc")
        daemon = self._daemon(node, "unshare", *flags, "bash", "-c", script)
        own = _network_of("self")
        self._wait_until(lambda: _network_of(daemon.pid) != own, f"the network of {node}")
        outside = f"v{number}"
        for command in (
            ["ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", str(daemon.pid)],
            ["ip", "link", "set", outside, "master", "br0", "up"],
        ):
            subprocess.run([*self._on_login(folder), *command], env=self._env, check=True)

    def _daemon(self, name: str, *command: str) -> "subprocess.Popen[bytes]":
        with (self._folder / f"{name}.out").open("ab") as output:
            daemon = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._daemons[name] = daemon
        return daemon

    def _on_login(self, cwd: Path) -> list[str]:
        return ["nsenter", "-t", str(self._daemons["login"].pid), "-n", "-u", "-m", f"--wd={cwd}", "--"]

    def _idle_nodes(self) -> set[str]:
        asked = [*self._on_login(self._folder), "sinfo", "-h", "-N", "-t", "idle", "-o", "%N"]
        return set(subprocess.run(asked, env=self._env, capture_output=True, text=True).stdout.split())

    def _wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not condition():
            ended = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = "\n".join(f"-- {path}\n{path.read_text()[-2000:]}" for path in self._folder.glob("*.out"))
                raise RuntimeError(f"no {what}; ended: {', '.join(ended) or 'none'}\n{logs}")
            time.sleep(0.05)

    def _write_files(self) -> None:
        folder = self._folder
        for name in ("state", *(f"spool-{node}" for node in self._names)):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        hosts = [f"{_SUBNET}.{11 + place} {node}" for place, node in enumerate(self._names)]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", f"{_SUBNET}.1 login", *hosts, ""]))
        (folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        gpus = self._hardware.gpus
        # Slurm counts files, whatever they are.
        (folder / "gres.conf").write_text(f"Name=gpu Count={gpus} File=/dev/zero\n" if gpus else "")
        (folder / "slurm.conf").write_text(self._slurm_conf())

    def _slurm_conf(self) -> str:
        settings = {
            "ClusterName": "virtual",
            "SlurmctldHost": f"login({_SUBNET}.1)",
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            # A requeued job may start again once its old credentials have expired: two minutes if unset or below 5.
            "AuthInfo": f"socket={self._folder}/munge.sock,cred_expire=5",
            "StateSaveLocation": f"{self._folder}/state",
            "SlurmdSpoolDir": f"{self._folder}/spool-%n",
            "SlurmctldPidFile": f"{self._folder}/slurmctld.pid",
            "SlurmdPidFile": f"{self._folder}/slurmd-%n.pid",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": self._hardware.task_plugin,
            "GresTypes": "gpu",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU_Memory",
            "SchedulerType": "sched/backfill",
            "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,bf_interval=1",
            "AccountingStorageType": "accounting_storage/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "SwitchType": "switch/none",
            "MpiDefault": "none",
            "ReturnToService": 2,
            "SlurmdTimeout": 10,
            "KillWait": 5,
            "MinJobAge": 3600,
            # Nodes may claim more than the machine has.
            "SlurmdParameters": "config_overrides",
        }
        lines = [f"{name}={value}" for name, value in settings.items()]
        has = f"{self._hardware.description}{f' Gres=gpu:{self._hardware.gpus}' if self._hardware.gpus else ''}"
        for place, node in enumerate(self._names):
            address = f"NodeAddr={_SUBNET}.{11 + place} NodeHostname={node}"
            lines.append(f"NodeName={node} {address} {has} State=UNKNOWN")
        lines.append("PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
        return "\n".join([*lines, ""])


def _network_of(process: int | str) -> Path:
    return Path(f"/proc/{process}/ns/net").readlink()
