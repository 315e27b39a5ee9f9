"""The servers of a chaos run, and how each fault is done to them.

    Single      one server with an AOF, reached through a link
    Sentinel    a master, two replicas and three sentinels, each server behind a link
    Cluster     three masters and three replicas, see chaos_groups.py for both

Engines get ``url`` and ``durability``; ``inside_url`` leads past every link to the server that has
the sale. ``begin`` and ``end`` do a fault and undo it, ``heal`` undoes whatever is left.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, Self

import redis

from seckill.engine import Engine
from seckill.keys import shard_keys
from tests.faults.chaos_node import ChaosNode, StallingLink
from tests.faults.chaos_schedule import Fault
from tests.faults.topologies import HOST, Link, Node, Way

__all__ = ["NETWORK", "SALE", "Base", "Servers", "Single", "begin_memory", "header_of", "switch"]

SALE = "chaos"
HOUR_MS = 3_600_000
WAYS = {1: Way.THERE, 2: Way.BACK, 3: Way.BOTH}


class Servers(Protocol):
    """What a run needs of its servers. ``restored_s`` is when an old state was put back, if one
    was (monotonic), and ``rebuilt`` says whether the ledger has mended that."""

    url: str
    durability: str
    restored_s: float | None
    rebuilt: bool

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    @property
    def inside_url(self) -> str:
        """Where the sale is, past every link."""
        ...

    def begin(self, fault: Fault) -> None:
        """The fault happens."""
        ...

    def end(self, fault: Fault) -> None:
        """It is over."""
        ...

    def heal(self) -> None:
        """Everything is well again, whatever was begun."""
        ...

    def let_time_pass(self) -> None:
        """No call is made any more, and all clocks have come past every time that was written."""
        ...


def header_of(servers: Servers, *fields: str) -> list[str]:
    """Fields of the sale's header; "" for one that is not there."""
    with redis.Redis.from_url(servers.inside_url) as client:
        found = client.hmget(shard_keys(SALE)[0], list(fields))
    return [(value or b"").decode() for value in found]


def switch(link: Link, fault: Fault) -> bool:
    """Does a fault of the network; whether it is one."""
    if fault.name == "delay":
        link.delay(fault.amount, jitter_ms=fault.amount)
    elif fault.name == "drop":
        link.drop(WAYS[fault.amount])
    elif fault.name == "halve":
        link.halve(WAYS[fault.amount])
    elif fault.name == "cut":
        link.cut()
    else:
        return False
    return True


NETWORK = frozenset({"delay", "drop", "halve", "cut", "part", "stall"})


class Base:
    """What all of them have in common."""

    def __init__(self) -> None:
        self.url = ""
        self.durability = ""
        self.restored_s: float | None = None
        self.rebuilt = False
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def let_time_pass(self) -> None:
        """See Servers."""

    def _start(self) -> None:
        raise NotImplementedError


class Single(Base):
    """One server with an AOF."""

    def __init__(self, folder: Path, *, everysec: bool) -> None:
        super().__init__()
        # Engines refuse a server that syncs once a second if they are promised more.
        self.durability = "memory" if everysec else "aof"
        sync = "everysec" if everysec else "always"
        self._node = ChaosNode(folder / "server", {"appendonly": "yes", "appendfsync": sync})

    def _start(self) -> None:
        self._stack.enter_context(self._node)
        self._link = self._stack.enter_context(StallingLink(self._node.port))
        self.url = f"redis://{HOST}:{self._link.port}/0"

    @property
    def inside_url(self) -> str:
        return f"redis://{HOST}:{self._node.port}/0"

    def begin(self, fault: Fault) -> None:
        node, name = self._node, fault.name
        if name in NETWORK:
            self._begin_network(fault)
        elif name in ("kill_cut", "kill"):
            node.crash(cut=name == "kill_cut")
        elif name == "pause":
            node.pause()
        elif name in ("clock_forward", "clock_jump"):
            node.step_clock(fault.amount)
        elif name == "clock_back":
            node.step_clock(-fault.amount)
        elif name == "clock_back_late":
            self._link.stall()
        elif name == "disk_full":
            node.leave_room(fault.amount)
        elif name == "old_snapshot":
            node.keep_data()
        elif name == "rewrite":
            node.ask("BGREWRITEAOF")
        else:
            begin_memory(node, name)

    def end(self, fault: Fault) -> None:
        node, name = self._node, fault.name
        if name in NETWORK:
            self._link.heal()
        elif name in ("kill_cut", "kill"):
            node.start()
        elif name == "pause":
            node.unpause()
        elif name == "clock_back":
            node.step_clock(fault.amount)
        elif name == "clock_back_late":
            node.step_clock(-fault.amount)
            self._link.heal()
        elif name == "clock_jump":
            node.step_clock(-fault.amount)
            asyncio.run(_resume(self.inside_url))
        elif name == "disk_full":
            node.leave_room()
            node.mend()
        elif name == "maxmemory":
            node.ask("CONFIG", "SET", "maxmemory", 0)
        elif name == "old_snapshot":
            self.restored_s = time.monotonic()
            node.restore_data()

    def heal(self) -> None:
        node = self._node
        node.leave_room()
        self._link.heal()
        if node.paused:
            node.unpause()
        if not node.running:
            node.stop()
            node.start()
        node.ask("CONFIG", "SET", "maxmemory", 0)
        asyncio.run(_resume(self.inside_url))

    def let_time_pass(self) -> None:
        # Entries that were handed out while the clock was ahead seem to have been so in the future.
        self._node.step_clock(HOUR_MS)

    def _begin_network(self, fault: Fault) -> None:
        if fault.name == "part":
            self._link.partition()
        elif fault.name == "stall":
            self._link.stall()
        else:
            switch(self._link, fault)


def begin_memory(node: Node, name: str) -> None:
    """Does a fault of a server's memory. Raises LookupError for any other."""
    if name == "script_flush":
        node.ask("SCRIPT", "FLUSH")
    elif name == "maxmemory":
        node.ask("CONFIG", "SET", "maxmemory", node.info("memory")["used_memory"])
    else:
        raise LookupError(f"nobody knows how to do {name!r}")


async def _resume(url: str) -> None:
    """Lets a sale go on that was paused because the clock jumped, as a person would."""
    async with Engine(url, durability="memory", sweep_ms=0, timeout_ms=30_000) as engine:
        snapshot = await engine.snapshot(SALE)
        if snapshot.state == "paused":
            await engine.resume(SALE)
