"""What /proc says about processes, which all figures of CPU time and memory come from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.machine import children, cpu_seconds, family_seconds, peak_bytes

SPENT_S = 0.2
STEP_S = 0.01
MEMORY = 64 << 20
BURN = """
import time
end = time.process_time() + float({spent_s})
while time.process_time() < end:
    pass
"""
CHILD = (
    BURN
    + """
print("done", flush=True)
input()
"""
)
# Burns CPU time itself, in a child that stays, or in one that it has waited for, and says what it
# has used itself. Its name, in parentheses in /proc, has both a blank and a parenthesis in it.
PROGRAM = """
import ctypes, subprocess, sys, time
ctypes.CDLL(None).prctl(15, b"a) b (c", 0, 0, 0)
who, burn, child = sys.argv[1:]
command = [sys.executable, "-c", child]
if who == "itself":
    exec(burn)
elif who == "a child that ended":
    subprocess.run(command, input=b"end\\n", stdout=subprocess.PIPE, check=True)
elif who == "a child":
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
elif who == "memory":
    del [b"x" * {memory}][0]
print(time.process_time(), flush=True)
sys.stdin.readline()
""".replace("{memory}", str(MEMORY))


@contextmanager
def running(who: str) -> Iterator[tuple[int, float]]:
    """A process, and the CPU time that it says it has used."""
    burn, child = (program.format(spent_s=SPENT_S) for program in (BURN, CHILD))
    command = [sys.executable, "-c", PROGRAM, who, burn, child]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.pid, float(process.stdout.readline())
        # Its standard input is closed, and so it ends.


@pytest.mark.parametrize("who", ["nobody", "itself", "a child", "a child that ended"])
def test_cpu_time_of_a_process_and_of_its_family(who: str) -> None:
    with running(who) as (pid, own_s):
        assert own_s > SPENT_S or who != "itself"
        # Since then it has only begun to wait.
        assert cpu_seconds(pid) == pytest.approx(own_s, abs=4 * STEP_S)
        others_s = family_seconds(pid) - cpu_seconds(pid)
        if "child" in who:
            assert others_s >= SPENT_S - 2 * STEP_S
        else:
            # Two readings, of which one may be a step further.
            assert others_s == pytest.approx(0.0, abs=2 * STEP_S)
        assert len(children(pid)) == (who == "a child")


def test_the_most_memory_that_was_resident() -> None:
    with running("nobody") as (pid, _):
        bare = peak_bytes(pid)
    with running("memory") as (pid, _):
        # It has given the memory back, which does not matter.
        assert MEMORY * 0.9 < peak_bytes(pid) - bare < MEMORY * 2


def test_no_process() -> None:
    with running("nobody") as (pid, _):
        pass
    for look in (cpu_seconds, family_seconds, peak_bytes):
        with pytest.raises((FileNotFoundError, ProcessLookupError)):
            look(pid)
    assert children(pid) == []
