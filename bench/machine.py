"""What machine this is, and how busy its processors are. Linux in full; elsewhere what the platform module knows."""

import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """`cores`: those that this process may use."""

    cores: int
    cpu: str
    python: str
    kernel: str
    filesystem: str

    def line(self) -> str:
        return f"{self.cores} cores of {self.cpu}; Python {self.python}; {self.kernel}; {self.filesystem}"

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def machine(folder: Path) -> Machine:
    """`folder`: where the databases of the bench will be."""
    return Machine(
        cores=cores(),
        cpu=_cpu_model(),
        python=platform.python_version(),
        kernel=f"{platform.system()} {platform.release()}",
        filesystem=_filesystem(folder),
    )


def cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    for line in _lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _filesystem(folder: Path) -> str:
    """The type of what `folder` is on, by the longest mount point above it."""
    path, best, kind = folder.resolve(), -1, "filesystem unknown"
    for line in _lines("/proc/self/mounts"):
        fields = line.split()
        mount = Path(fields[1].replace("\\040", " "))
        if len(fields) > 2 and path.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), fields[2]
    return kind


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


def process_cpu_s(pid: int) -> float | None:
    """Seconds of processor time that a process has used, all threads; None where the system does not say."""
    return _cpu_s(f"/proc/{pid}/stat")


def main_thread_cpu_s(pid: int) -> float | None:
    """As `process_cpu_s`, of its first thread: in a node the event loop, and not the thread that writes SQLite."""
    return _cpu_s(f"/proc/{pid}/task/{pid}/stat")


def _cpu_s(path: str) -> float | None:
    lines = _lines(path)
    if not lines:
        return None
    fields = lines[0].rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S  # utime, stime


@dataclass(frozen=True, slots=True)
class Busy:
    """A moment of the whole machine: seconds of processor time, busy and in all, and the clock."""

    busy_s: float
    all_s: float
    at_s: float

    def cores_since(self, before: "Busy") -> float:
        """How many cores were busy on average."""
        return (self.busy_s - before.busy_s) / max(self.at_s - before.at_s, 1e-9)


def busy() -> Busy | None:
    lines = _lines("/proc/stat")
    if not lines:
        return None
    fields = [int(text) for text in lines[0].split()[1:9]]
    idle = fields[3] + fields[4]  # idle, iowait
    return Busy((sum(fields) - idle) / _TICKS_PER_S, sum(fields) / _TICKS_PER_S, time.monotonic())
