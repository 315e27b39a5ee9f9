"""What does an order on a buyer's WebSocket cost, next to one over HTTP and to no work at all?

One worker of our intake (user tokens, limits and metrics on; every order is counted by the limiter,
which lets all through), served by `seckill.server.run`, against references/noop_server.py, a no-op
aiohttp handler that decodes and encodes the same JSON over HTTP. Each is a process of its own on
uvloop, and so are Redis (appendfsync always, the default durability) and the load: socket_client.py
for sockets, wrk with one thread for HTTP, or our own client where wrk is missing. A round is one
slice of 3 s for each way, interleaved, to and fro; ratios are taken within a round, their median
counts.

socket      128 sockets, opened before the clock starts, a buyer each with a user token of their
            own; one message under way on each: a new idempotency key, one unit of the canonical
            sale of workload.py; a fresh sale in each slice
socket, 4   the same with 4 messages under way on each socket
HTTP        the same orders of the same intake on 128 keep-alive connections, by the hot route
no-op       the no-op handler, 128 keep-alive connections

A slice counts only if every order asked for was accepted, and if Redis holds as many orders as the
load got answers for, and no more than those that were still under way besides. Every sale is
verified afterwards; if one has broken a promise, no figure is given.

The load is a program in Python and takes more of the machine than wrk: on two cores it is the load
and Redis that end first. The CPU times say so.

    python -m benchmarks socket
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from secrets import token_hex
from statistics import median
from tempfile import TemporaryDirectory
from time import time
from typing import Final

import msgspec

from benchmarks.load import Load, _children_s, generator, send
from benchmarks.machine import cpu_seconds
from benchmarks.plan import Plan
from benchmarks.references.launch import Process, started
from benchmarks.references.start import start_of
from benchmarks.report import RATIO, Row, Verdict
from benchmarks.servers import Server, durability_of, running
from benchmarks.workload import Wire, check_sale, make_sale
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import shard_keys

__all__ = ["NAME", "run"]

NAME: Final = "socket"
SOCKETS: Final = 128
FSYNC: Final = "always"
TARGET: Final = 1.5

ONE, FOUR, HTTP, NOOP = "socket", "socket, 4", "HTTP", "no-op"
# In this order, and back.
_WAYS: Final = (HTTP, ONE, NOOP, FOUR)
_IN_FLIGHT: Final = {ONE: 1, FOUR: 4, HTTP: 1, NOOP: 1}


class _Slice(msgspec.Struct, frozen=True):
    """What one way has done in one slice."""

    load: Load
    server_cpu_s: float
    redis_cpu_s: float


_Found = dict[str, list[_Slice]]


class _Rig:
    """The servers and the buyers of one run."""

    def __init__(self, plan: Plan, embedded: EmbeddedServer, stack: ExitStack) -> None:
        self.embedded = embedded
        self.runner = stack.enter_context(plan.runner())
        self.wire = stack.enter_context(Wire(embedded))
        self.seconds = 1 if plan.quick else 3
        self.sales: list[str] = []
        self.tokens = Path(stack.enter_context(TemporaryDirectory(prefix="seckill-bench-")), "t")
        secret = token_hex(32)
        self._write_tokens(secret)
        start = start_of(embedded.url, durability_of(FSYNC), secret)
        text = msgspec.json.encode(start).decode()
        self.intake = stack.enter_context(started("socket_server", text))
        self.noop = stack.enter_context(started("references.noop_server", text))

    def _write_tokens(self, secret: str) -> None:
        import jwt

        claims = {"iat": int(time()), "exp": int(time()) + 36_000}
        tokens = (
            jwt.encode({"sub": f"b{number:023}", **claims}, secret, algorithm="HS256")
            for number in range(SOCKETS)
        )
        self.tokens.write_text("".join(f"{token}\n" for token in tokens), encoding="ascii")

    async def _open(self) -> str:
        sale, replace = make_sale(f"socket-{len(self.sales)}"), msgspec.structs.replace
        # A buyer comes back many times, with a new wish each time.
        item = replace(sale.items[0], limit_per_buyer=0)
        sale = replace(sale, items=(item,), limit_per_buyer=0)
        url, durability = self.embedded.url, durability_of(FSYNC)
        async with Engine(url, durability=durability, sweep_ms=0) as engine:
            assert (await engine.create(sale)).ok
            assert (await engine.open(sale.id)).ok
        self.sales.append(sale.id)
        return sale.id

    def slice(self, way: str) -> _Slice:
        """Lets the buyers loose and checks that all was as it should be."""
        sale = self.runner.run(self._open())
        process = self.noop if way == NOOP else self.intake
        server_s, redis_s = cpu_seconds(process.pid), cpu_seconds(self.embedded.pid)
        if way in (HTTP, NOOP):
            url = f"{process.base}/v1/sales/{sale}/orders"
            load = send(url, "orders", self.tokens, connections=SOCKETS, seconds=self.seconds)
        else:
            load = self._send(process, sale, _IN_FLIGHT[way])
        server_s = cpu_seconds(process.pid) - server_s
        redis_s = cpu_seconds(self.embedded.pid) - redis_s
        assert load.requests > 0, f"{way}: nothing was answered"
        assert load.failed == load.refused == 0, f"{way}: {load}"
        if way != NOOP:
            accepted = self.accepted(sale)
            most = load.requests + SOCKETS * _IN_FLIGHT[way]
            assert load.requests <= accepted <= most, f"{way}: {accepted} for {load.requests}"
        return _Slice(load, server_s, redis_s)

    def _send(self, process: Process, sale: str, in_flight: int) -> Load:
        url = f"{process.base}/v1/sales/{sale}/socket"
        command = [sys.executable, "-m", "benchmarks.socket_client", url, str(self.tokens)]
        command += [str(SOCKETS), str(in_flight), str(self.seconds)]
        before_s = _children_s()
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"the sockets failed: {done.stdout}{done.stderr[-500:]}")
        load = msgspec.json.decode(done.stdout, type=Load)
        return msgspec.structs.replace(load, cpu_s=_children_s() - before_s)

    def accepted(self, sale: str) -> int:
        """Orders in Redis."""
        return int(self.wire.call("HLEN", shard_keys(sale)[3]))


def run(plan: Plan) -> Iterator[Row]:
    for server in plan.servers:
        with running(server, FSYNC) as embedded, ExitStack() as stack:
            yield from _compare(plan, _Rig(plan, embedded, stack), server)


def _compare(plan: Plan, rig: _Rig, server: Server) -> Iterator[Row]:
    label, found = f"{server.name}, fsync {FSYNC}", _rounds(plan, rig, server.name)
    verdict = _verify(plan, rig, label)
    if verdict.verdict is Verdict.MET:
        yield from _rows(label, found)
    yield verdict


def _rounds(plan: Plan, rig: _Rig, name: str) -> _Found:
    found: _Found = {way: [] for way in _WAYS}
    rounds = plan.rounds
    if not plan.quick:
        for way in _WAYS:
            plan.say(f"{NAME}: {name}, warming up, {way}")
            rig.slice(way)
    for turn in range(rounds):
        for way in _WAYS[:: -1 if turn % 2 else 1]:
            plan.say(f"{NAME}: {name}, round {turn + 1} of {rounds}, {way}")
            found[way].append(plan.stolen.least(partial(rig.slice, way)))
    return found


def _verify(plan: Plan, rig: _Rig, label: str) -> Row:
    """One row for all sales: the first that broke a promise, or how much was looked at."""
    durability, orders = durability_of(FSYNC), 0
    for number, sale in enumerate(rig.sales, 1):
        plan.say(f"{NAME}: {label}, verify {number} of {len(rig.sales)}")
        checked = check_sale(NAME, label, rig.embedded.url, durability, sale)
        row = rig.runner.run(checked)
        if row.verdict is not Verdict.MET:
            return msgspec.structs.replace(row, note=f"sale {sale}: {row.note}")
        orders += rig.accepted(sale)
    note = f"{len(rig.sales)} sales, {orders:,} orders"
    return Row.fact(NAME, label, "verify", Verdict.MET, "no violation", note)


def _rows(label: str, found: _Found) -> Iterator[Row]:
    noop = found[NOOP]
    for way in (ONE, FOUR):
        pairs = list(zip(found[way], noop, strict=True))
        ratios = [ours.load.rate / theirs.load.rate for ours, theirs in pairs]
        question = f"orders on sockets against a no-op handler over HTTP ({way})"
        yield Row.of(NAME, label, question, RATIO, ratios, at_least=TARGET)
        ratios = [
            (theirs.server_cpu_s / theirs.load.requests) / (ours.server_cpu_s / ours.load.requests)
            for ours, theirs in pairs
        ]
        yield Row.of(NAME, label, f"the same by the server's CPU time ({way})", RATIO, ratios)
    for way, parts in found.items():
        unit = "answers/s" if way == NOOP else "orders/s"
        rates = [part.load.rate for part in parts]
        yield Row.of(NAME, label, way, unit, rates, note=_times(way, parts))
    for way, parts in found.items():
        yield from _costs(label, way, parts)


def _costs(label: str, way: str, parts: Sequence[_Slice]) -> Iterator[Row]:
    who = {"the server": [part.server_cpu_s for part in parts]}
    if way != NOOP:
        who["Redis"] = [part.redis_cpu_s for part in parts]
    who["the load"] = [part.load.cpu_s for part in parts]
    for name, spent_s in who.items():
        values = [s / p.load.requests * 10_000 for s, p in zip(spent_s, parts, strict=True)]
        yield Row.of(NAME, label, f"CPU of {name}, {way}", "s/10k orders", values)


def _times(way: str, parts: Sequence[_Slice]) -> str:
    p50_ms = median(part.load.p50_ms for part in parts)
    p99_ms = median(part.load.p99_ms for part in parts)
    who = generator() if way in (HTTP, NOOP) else "our socket client"
    return f"{who}: p50 {p50_ms:.1f}, p99 {p99_ms:.1f} ms"
