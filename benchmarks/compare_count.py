"""One run of benchmarks/compare.py: a tree's intake in a process of its own, on a Redis of its own,
and what each operation costs there, in units that hardly depend on the machine.

Each burst is counted by itself, and the lower quartile counts: what the intake does every second or
so, whoever asks, falls into some of the bursts, and into more of them where it is slower.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks.compare_buyers import Buyers, Failed, Operation, buyer_names
from benchmarks.compare_intake import BYTECODES, CALLS, INSTRUCTIONS, Intake
from seckill.embedded import EmbeddedServer

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["COMMANDS", "UNITS", "Cost", "run"]

COMMANDS: Final = "Redis commands"
UNITS: Final = (BYTECODES, CALLS, COMMANDS, INSTRUCTIONS)

# Python replaces code that has run often by faster code, caches fill, a lane opens.
WARM_UP: Final = 128
# What is answered from memory is tried again where Redis was asked meanwhile, be it by something
# else that the intake does; and so many must be left.
TRIES: Final = 4
LEFT_MIN: Final = 3
EMPTY: Final = 5
# Under callgrind few, so that little else falls into the time of a burst.
BUYERS: Final = 64
BUYERS_CALLGRIND: Final = 16


class Cost(msgspec.Struct, frozen=True):
    """What one operation costs, by unit; and its bytecodes by function."""

    operation: str
    units: dict[str, float]
    functions: dict[str, float] = {}


class _Count(msgspec.Struct, frozen=True):
    """What was counted during one burst."""

    units: dict[str, int]
    functions: dict[str, int]


def run(tree: Path, bursts: int, *, callgrind: bool, say: Callable[[str], None]) -> list[Cost]:
    """What each operation costs in this tree: INSTRUCTIONS, or all the others. Under callgrind a
    machine may be too slow for what goes by the clock; that is left out. Raises Failed."""
    names = buyer_names(BUYERS_CALLGRIND if callgrind else BUYERS)
    with (
        TemporaryDirectory(prefix="seckill-compare-") as folder,
        EmbeddedServer(Path(folder, "redis"), appendfsync="no") as server,
        Intake(tree, server.url, Path(folder), names, callgrind=callgrind) as intake,
        _client(server.url) as redis,
    ):
        buyers = Buyers(names, intake.tickets, intake.pid, intake.url, intake.ask)
        try:
            probe = _Probe(intake, redis)
            costs = []
            for operation in buyers.operations():
                say(operation.name)
                if (cost := probe.cost(operation, bursts)) is not None:
                    costs.append(cost)
                elif not callgrind:
                    raise Failed(f"{operation.name}: Redis was asked each time")
            return costs
        finally:
            buyers.close()


def _client(url: str) -> Redis:
    from redis import Redis

    return Redis.from_url(url)


class _Probe:
    """Counts around bursts."""

    def __init__(self, intake: Intake, redis: Redis) -> None:
        self._intake = intake
        self._redis = redis

    def cost(self, operation: Operation, bursts: int) -> Cost | None:
        """What one costs; None if the intake had to ask Redis too often where it should not."""
        for _ in range(ceil(WARM_UP / operation.size)):
            operation.burst()
        self._intake.ready()
        # The counting itself, which is part of each burst.
        nothing = [self._count(lambda: None) for _ in range(EMPTY)]
        found = self._bursts(operation, bursts)
        if len(found) < LEFT_MIN:
            return None

        def each(counts: list[dict[str, int]], empty: list[dict[str, int]]) -> dict[str, float]:
            low, least = _low(counts), _low(empty)
            return {name: max(0, low[name] - least.get(name, 0)) / operation.size for name in low}

        return Cost(
            operation.name,
            each([count.units for count in found], [count.units for count in nothing]),
            each([count.functions for count in found], [count.functions for count in nothing]),
        )

    def _bursts(self, operation: Operation, bursts: int) -> list[_Count]:
        found: list[_Count] = []
        for _ in range(TRIES * bursts if operation.from_memory else bursts):
            if operation.before is not None:
                operation.before()
            asked = self._asked()
            count = self._count(operation.burst)
            if not operation.from_memory or self._asked() == asked:
                found.append(count)
                if len(found) == bursts:
                    break
        return found

    def _count(self, work: Callable[[], None]) -> _Count:
        before = sum(self._commands().values())
        units, functions = self._intake.count(work)
        if BYTECODES in units:
            # Under callgrind it would only be the same once more.
            units |= {COMMANDS: sum(self._commands().values()) - before}
        return _Count(units, functions)

    def _asked(self) -> int:
        """How often the intake has asked Redis."""
        return self._commands().get("evalsha", 0)

    def _commands(self) -> dict[str, int]:
        """How often each command was called, from scripts as well, by others than us."""
        stats = self._redis.info("commandstats")
        return {
            name.removeprefix("cmdstat_"): fields["calls"]
            for name, fields in stats.items()
            if name != "cmdstat_info"
        }


def _low(counts: list[dict[str, int]]) -> dict[str, int]:
    """The lower quartile of each number."""
    at = (len(counts) - 1) // 4
    names = dict.fromkeys(name for count in counts for name in count)
    return {name: sorted(count.get(name, 0) for count in counts)[at] for name in names}
