"""Buyers who come when they come, whether or not those before them have been answered.

A load that waits for each answer before it asks again (closed loop, such as wrk) asks less just
when the server is slow, and never sees what the others would have waited. Here every request has
its moment in a schedule that is made beforehand, and its latency counts from that moment: also the
time that it waited for a free connection, and what this client itself was late.

    answers = offer(Ask(url=…, file=…, phases=(Phase(per_s=10_000, seconds=3),)))

``offer`` runs the client (arrivals_client.py) as a process of its own. It keeps so many connections
open, writes ready bytes and reads only the status line, the length and Retry-After of an answer.
How late it was with its own schedule is part of what it tells.

The client sleeps until the next arrival or answer: one that never sleeps would take from those it
asks what is to be measured. With a ``core`` of its own it can offer the most; without one it shares
theirs.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Self

import msgspec

__all__ = ["Answers", "Ask", "Came", "Phase", "Times", "load_core", "moments", "offer", "sharing"]


class Phase(msgspec.Struct, frozen=True):
    """So many arrivals a second, for so long. 0 a second is a closed loop: every connection asks
    again as soon as it is answered."""

    per_s: float
    seconds: float


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be offered, and how.

    ``file`` has a user token a line. Without ``seed`` arrivals come at equal distances, with one as
    a Poisson process. An arrival that finds all connections waiting for an answer ``waits`` for one
    until its deadline, or is not sent. ``deadline_ms`` is how long a buyer waits for an answer.
    ``core`` is one that the client has for itself.
    """

    url: str
    file: str
    phases: tuple[Phase, ...]
    connections: int = 128
    seed: int | None = None
    waits: bool = True
    deadline_ms: int = 4_000
    core: int | None = None


class Times(msgspec.Struct, frozen=True):
    """ms from the scheduled moment to the whole answer."""

    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float

    @classmethod
    def of(cls, took_s: list[float]) -> Self:
        """Of these samples; of none, zeros."""
        ordered = sorted(took_s) or [0.0]
        return cls(*(1e3 * quantile(ordered, at) for at in (0.5, 0.99, 0.999, 1.0)))


class Came(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one phase, by the kind of answer. All that was ``offered`` is in one of them.

    ``accepted`` 2xx in time; ``refused`` 503 or 429 with Retry-After in time; ``wrong`` any other
    answer in time, ``odd`` counts those by status; ``overdue`` any answer after the deadline;
    ``lost`` was sent and not even answered after twice the deadline; ``unsent`` found no
    connection, or none before its deadline.

    ``times`` are those of accepted answers, from the schedule; ``late`` is what the client itself
    was late; ``punctual_times`` are ``times`` without that.

    ``done`` are the moments of accepted answers in tenths of a second, whatever phase they arrived
    in: ``done[0]`` counts those of the first tenth of this phase. ``began_s`` is time.monotonic().
    """

    offered: int
    accepted: int
    refused: int
    wrong: int
    overdue: int
    lost: int
    unsent: int
    odd: dict[str, int]
    times: Times
    punctual_times: Times
    refused_times: Times
    late: Times
    began_s: float
    seconds: float
    done: tuple[int, ...]

    def goodput(self, *, skip_s: float = 0.0) -> float:
        """Accepted answers a second within the phase, without those of its first ``skip_s``."""
        tenths = self.done[round(10 * skip_s) :]
        return 10 * sum(tenths) / len(tenths) if tenths else 0.0


class Answers(msgspec.Struct, frozen=True):
    """What came of an Ask, and the CPU time that the client itself has taken."""

    phases: tuple[Came, ...]
    busy_s: float

    @property
    def limit_per_s(self) -> float:
        """What this client could offer at most: it does one thing at a time."""
        sent = sum(came.offered - came.unsent for came in self.phases)
        return sent / self.busy_s if self.busy_s else 0.0


def offer(ask: Ask) -> Answers:
    """Sends the buyers. Raises RuntimeError when the client fails, which it does when nobody
    listens."""
    command = [sys.executable, "-m", "benchmarks.arrivals_client"]
    seconds = sum(phase.seconds for phase in ask.phases)
    done = subprocess.run(
        command,
        input=msgspec.json.encode(ask),
        capture_output=True,
        timeout=60 + 4 * seconds + ask.deadline_ms / 1000,
    )
    if done.returncode:
        raise RuntimeError(f"the load failed: {done.stderr.decode()[-500:]}")
    return msgspec.json.decode(done.stdout, type=Answers)


def moments(phase: Phase, seed: int | None) -> Iterator[float]:
    """When the arrivals of a phase come, in seconds after its start."""
    if seed is None:
        yield from (number / phase.per_s for number in range(int(phase.per_s * phase.seconds)))
        return
    draw = random.Random(seed)
    gaps = (draw.expovariate(phase.per_s) for _ in iter(int, 1))
    for moment in accumulate(gaps):
        if moment >= phase.seconds:
            return
        yield moment


def quantile(ordered: list[float], at: float) -> float:
    """The smallest sample that so large a part of all does not exceed."""
    return ordered[min(len(ordered) - 1, max(0, -int(-at * len(ordered) // 1) - 1))]


def load_core() -> int | None:
    """The core that the load has for itself; None where there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[-1] if len(cores) > 1 else None


@contextmanager
def sharing(core: int | None) -> Iterator[None]:
    """Keeps this process, and all it starts meanwhile, off the core of the load."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, before - {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
