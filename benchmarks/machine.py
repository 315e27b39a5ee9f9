"""Where the figures come from: the machine, the versions, and what a process has cost it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

__all__ = [
    "children",
    "cpu_seconds",
    "describe",
    "family_seconds",
    "peak_bytes",
    "sync_micros",
]

_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
_SYNCS: Final = 50


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, all its threads, user and system: /proc, in steps of 10 ms. Raises
    FileNotFoundError or ProcessLookupError when there is no such process."""
    fields = _stat(Path(f"/proc/{pid}"))
    return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND


def family_seconds(pid: int) -> float:
    """CPU time of a process with its children: those that run, and those that it has waited for."""
    mine = _stat(Path(f"/proc/{pid}"))
    ticks = sum(int(field) for field in mine[11:15])
    for child in children(pid):
        # It may end while we look; then its time is its parent's from the next look on.
        with suppress(FileNotFoundError, ProcessLookupError):
            ticks += sum(int(field) for field in _stat(Path(f"/proc/{child}"))[11:13])
    return ticks / _TICKS_A_SECOND


def children(pid: int) -> list[int]:
    """The processes that this one has started and that run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if _stat(folder)[1] == str(pid):
                found.append(int(folder.name))
    return sorted(found)


def _stat(folder: Path) -> list[str]:
    # The name, in parentheses, may hold spaces; the fields after it are counted from 3.
    return (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()


def peak_bytes(pid: int) -> int:
    """The most memory that was ever resident in a process."""
    text = Path(f"/proc/{pid}/status").read_text("utf-8", "replace")
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024


def sync_micros(directory: Path) -> float:
    """How long the disk under ``directory`` takes to sync a small append, in µs."""
    took = []
    with tempfile.NamedTemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(_SYNCS):
            began = time.perf_counter()
            file.write(b"x" * 4096)
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - began) * 1e6)
    return median(took)


def describe(directory: Path, servers: list[str], *, loop: str) -> dict[str, Any]:
    """The facts that stand above every report."""
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {_version(name)}" for name in ("redis", "hiredis", "uvloop", "msgspec")]
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": f"{len(os.sched_getaffinity(0))} cores, {_cpu_model()}, {platform.release()}",
        "load": f"{load} (1, 5, 15 min) before the run",
        "disk": f"{directory}: a sync of 4 KB takes {sync_micros(directory):,.0f} µs",
        "versions": ", ".join(versions),
        "event loop": loop,
        "servers": ", ".join(servers),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
