"""The buyers: wrk where it is installed, otherwise a client of our own (clients.py), which is
slower and takes more of the machine from those it measures. Either is a process of its own.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final, Literal

import msgspec

__all__ = ["Load", "Script", "generator", "send"]

Script = Literal["orders", "batch"]

_SCRIPTS: Final = Path(__file__).with_name("wrk")


class Load(msgspec.Struct, frozen=True):
    """What came of it. ``requests`` were answered, ``refused`` of them with a status above 399;
    ``failed`` got no answer. ``cpu_s`` is what the load itself has cost."""

    requests: int
    took_s: float
    refused: int
    failed: int
    p50_ms: float
    p99_ms: float
    cpu_s: float = 0.0

    @property
    def rate(self) -> float:
        return self.requests / self.took_s


def generator() -> str:
    """Who sends the requests."""
    return "wrk" if shutil.which("wrk") else "our asyncio client, for want of wrk"


def send(url: str, script: Script, file: Path, *, connections: int, seconds: int) -> Load:
    """Asks as fast as it is answered, on so many connections; each asks again when it is answered.
    ``file`` holds what the requests prove themselves with, a line each."""
    if wrk := shutil.which("wrk"):
        command = [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
        command += ["-s", str(_SCRIPTS / f"{script}.lua"), url, "--", str(file)]
    else:
        command = [sys.executable, "-m", "benchmarks.clients", url, script, str(file)]
        command += [str(connections), str(seconds)]
    before = _children_s()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + 2 * seconds)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stdout}{done.stderr[-500:]}")
    found = msgspec.json.decode(done.stdout.splitlines()[-1], type=Load)
    return msgspec.structs.replace(found, cpu_s=_children_s() - before)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
