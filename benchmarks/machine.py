"""Where the figures come from: the machine, the versions, and what a process has cost it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
import time
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

__all__ = ["cpu_seconds", "describe", "sync_micros"]

_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
_SYNCS: Final = 50


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, all its threads, user and system: /proc, in steps of 10 ms."""
    # The name, in parentheses, may hold spaces; the fields after it are counted from 3.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND


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
