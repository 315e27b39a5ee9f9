"""The process that benchmarks/compare.py looks into: an intake as one worker of `seckill serve`,
and three sales. ``python -P benchmarks/compare_server.py COUNT URL SECRET BUYER…`` with PYTHONPATH
on the tree that is measured, of which it uses nothing that is not public: older trees must have it,
too. COUNT is ``python``, or ``callgrind`` where that watches.

It prints a line of JSON when it is ready, then answers lines from its standard input, each with a
line of JSON: ``start`` begins to count, ``stop`` ends that and says what there was, ``rest`` waits
until nothing is left to do, ``reserve SALE KEY TIMES`` orders for each buyer, past HTTP.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib import resources
from types import CodeType, FrameType
from typing import Any

from pydantic import SecretStr

import seckill.server
from seckill import Admission, Engine, Item, Sale
from seckill.server.settings import Limits, Server, Settings, Users

# Under callgrind everything takes fifty times as long, and nothing may be given up for that.
PATIENCE_MS = 300_000
# As long as may be, so that a sale that is sold out stays known as such.
LEASE_MS = 990
# Each buyer orders again and again. The limiter lets all through, and none is ever as good as new.
LIMITS = Limits(buyer_per_s=1, buyer_burst=10_000)
# What is left after the last answer: handlers end, and wait for the next request.
REST_ROUNDS = 20


class Counts:
    """What Python does between ``start`` and ``stop``."""

    def __init__(self) -> None:
        self._bytecodes: Counter[CodeType] = Counter()
        self._calls = 0

    def start(self) -> None:
        """From now on, in every frame that is entered or gone on with."""
        self._bytecodes.clear()
        self._calls = 0
        sys.setprofile(self._call)
        sys.settrace(self._enter)

    def stop(self) -> dict[str, Any]:
        """What there was: ``calls`` of Python's and of C's functions, ``bytecodes`` of all, and of
        each function."""
        sys.settrace(None)
        sys.setprofile(None)
        functions: Counter[str] = Counter()
        for code, count in self._bytecodes.items():
            functions[f"{_place(code.co_filename)}:{code.co_qualname}"] += count
        return {"calls": self._calls, "bytecodes": functions.total(), "functions": functions}

    def _call(self, frame: FrameType, event: str, argument: object) -> None:
        if event in ("call", "c_call"):
            self._calls += 1

    def _enter(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._inside

    def _inside(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        if event == "opcode":
            self._bytecodes[frame.f_code] += 1
        return self._inside


def _place(file: str) -> str:
    """A module's file, without what depends on where it lies."""
    for mark, kept in (("/site-packages/", ""), ("/seckill/", "seckill/")):
        if mark in file:
            return kept + file.rpartition(mark)[2]
    return file.rpartition("/")[2]


class Marks:
    """Tells callgrind, which was asked to look out for these two functions of the C library. Nobody
    else calls them."""

    def start(self) -> None:
        """From now on."""
        os.getloadavg()

    def stop(self) -> dict[str, Any]:
        """Callgrind has written down what there was."""
        os.getpriority(os.PRIO_PROCESS, 0)
        return {}


class Desk:
    """Answers what comes on standard input, in the event loop of the intake."""

    def __init__(self, engine: Engine, buyers: list[str], counts: Counts | Marks) -> None:
        self._engine = engine
        self._buyers = buyers
        self._counts = counts
        self._task: asyncio.Task[None] | None = None

    def open(self, ready: dict[str, Any]) -> None:
        """Says that the intake is ready, and listens."""
        asyncio.get_running_loop().add_reader(0, self._read)
        _say(ready)

    def _read(self) -> None:
        words = sys.stdin.readline().split()
        match words:
            case ["start"]:
                _say({})
                self._counts.start()
            case ["stop"]:
                _say(self._counts.stop())
            case ["rest"]:
                self._task = asyncio.create_task(self._rest())
            case ["reserve", sale, key, times]:
                self._task = asyncio.create_task(self._reserve(sale, key, int(times)))
            case _:
                # Whoever measures is gone, in whatever way.
                asyncio.get_running_loop().remove_reader(0)
                signal.raise_signal(signal.SIGTERM)

    async def _rest(self) -> None:
        for _ in range(REST_ROUNDS):
            await asyncio.sleep(0)
        _say({})

    async def _reserve(self, sale: str, key: str, times: int) -> None:
        asked = [
            self._engine.reserve(sale, buyer, f"{key}-{time}", {"tea": 1})
            for time in range(times)
            for buyer in self._buyers
        ]
        outcomes = await asyncio.gather(*asked)
        _say({"statuses": Counter(outcome.status.name for outcome in outcomes)})


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def _sale(name: str, units: int, **more: Any) -> Sale:
    now = datetime.now(UTC)
    opens_at = now + timedelta(hours=5 if more else -1)
    item = Item(sku="tea", title="tea", price_fen=9900, total=units, limit_per_buyer=0)
    return Sale(
        id=name,
        title="compare",
        opens_at=opens_at,
        ends_at=now + timedelta(hours=10),
        items=(item,),
        limit_per_buyer=0,
        **more,
    )


async def _prepare(url: str, buyers: list[str]) -> list[str]:
    """A sale with stock for everybody, one that is sold out, and one in whose queue these buyers
    wait; their tickets."""
    queue = Admission(mode="queue", rate_per_s=100)
    async with Engine(url, durability="memory", timeout_ms=PATIENCE_MS, sweep_ms=0) as engine:
        for sale in (
            _sale("stock", 1_000_000_000),
            _sale("gone", 1),
            _sale("line", 1_000, admission=queue),
        ):
            assert (await engine.create(sale)).ok
            assert (await engine.open(sale.id)).ok
        assert (await engine.reserve("gone", "someone-else", "k", {"tea": 1})).status.ok
        joined = [await engine.queue.join("line", buyer) for buyer in buyers]
        return [each.place.ticket for each in joined if each.place is not None]


def main() -> None:
    """Serves until SIGTERM."""
    count, url, secret, *buyers = sys.argv[1:]
    tickets = asyncio.run(_prepare(url, buyers))
    engine = Engine(url, durability="memory", timeout_ms=PATIENCE_MS, sweep_ms=0, lease_ms=LEASE_MS)
    settings = Settings(
        users=Users(secrets=(SecretStr(secret),)),
        limits=LIMITS,
        server=Server(keepalive_s=3_600),
    )
    desk = Desk(engine, buyers, Marks() if count == "callgrind" else Counts())
    files = [seckill.__file__, seckill.server.__file__, str(resources.files("seckill.lua"))]
    seckill.server.run(
        engine,
        port=0,
        settings=settings,
        on_ready=lambda at: desk.open({"url": at, "tickets": tickets, "files": files}),
    )


if __name__ == "__main__":
    main()
