"""What does durability cost?

The same orders with each of the three promises: `memory` (a server without an AOF), `aof` (one that
has every batch on disk before it is answered: appendfsync always) and `replicas:1` (one with a
replica that has every batch; both write their AOF once a second, as docs/redis.md asks for). Each
has a server of its own on this machine's disk; all of them run all the time, and one of them is
asked at a time. The replica shares the cores with everybody else: on two cores it is much of what
`replicas:1` costs here, and nothing of it on a machine of its own.

HTTP path     one worker of the intake, in stock as in `http`: wrk with one thread and 128
              connections (or our own client), 20,000 buyers in turn with a user token of their own,
              a new idempotency key and one unit of the canonical sale of workload.py in each
              request; slices of two seconds, a fresh sale in each
engine path   256 callers of Engine.reserve in this process as in `lane`, each of whom asks again as
              soon as it is answered; five slices of a fifth of a second in each round

Interleaved, to and fro; ratios are taken within a round, and their median counts. A slice counts
only if every order was accepted; on the HTTP path the books must hold as many as were answered and
no more than were still under way besides. Every sale is verified; if one has broken a promise, no
figure is given. A promise that can't be had on this machine is skipped with a word.

    python -m benchmarks durability
    python -m benchmarks.durability_table --write [REPORT …]      # the table of docs/durability.md
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from itertools import count
from pathlib import Path
from secrets import token_hex
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Final

import msgspec

from benchmarks.durability_sites import Site, sites
from benchmarks.footprint_http import user_tokens
from benchmarks.http_rig import QUICK_SECONDS_MAX
from benchmarks.load import Load, generator, send
from benchmarks.machine import cpu_seconds
from benchmarks.plan import Plan
from benchmarks.references.launch import Process, started
from benchmarks.references.start import start_of
from benchmarks.report import RATIO, Row, Verdict, summed
from benchmarks.servers import Server
from benchmarks.workload import CART, KEY, buyer_ids, make_sale
from seckill.engine import Engine
from seckill.status import Status

__all__ = ["ENGINE", "HTTP", "NAME", "TARGETS", "Part", "against", "rows", "run"]

NAME: Final = "durability"
HTTP: Final = "HTTP path"
ENGINE: Final = "engine path"
TARGETS: Final = {"aof": 0.80, "replicas:1": 0.75}
"""Of `memory`, on the HTTP path."""
CONNECTIONS: Final = 128
BUYERS: Final = 20_000
SECONDS: Final = 2
SLICES: Final = 5


class Part(msgspec.Struct, frozen=True):
    """What one promise has done in one round. ``latency_ms``: p50 and p99, of the HTTP path."""

    orders: int
    took_s: float
    asker_cpu_s: float
    server_cpu_s: float
    replica_cpu_s: float = 0.0
    latency_ms: tuple[float, float] | None = None

    @property
    def rate(self) -> float:
        return self.orders / self.took_s


Found = dict[str, list[Part]]


def run(plan: Plan) -> Iterator[Row]:
    for server in plan.servers:
        yield from _compare(plan, server)


def _compare(plan: Plan, server: Server) -> Iterator[Row]:
    with ExitStack() as stack, plan.runner() as runner:
        here, skipped = sites(plan, server, runner, stack)
        checked: list[Row] = []
        found = {HTTP: _http_rounds(plan, server, here, checked)}
        # Their sales make room for the others'.
        for site in here.values():
            site.flush()
        found[ENGINE] = _engine_rounds(plan, server, here, checked, runner)
    verdict = summed(checked)
    if verdict.verdict is Verdict.MET:
        yield from rows(server.name, found)
        for mode, why in skipped.items():
            target = f"≥ {TARGETS[mode]:g}"
            yield Row.fact(NAME, server.name, against(HTTP, mode), Verdict.INFO, target, why)
    yield verdict


# -- HTTP path ----------------------------------------------------------------------------------


def _http_rounds(plan: Plan, server: Server, here: dict[str, Site], checked: list[Row]) -> Found:
    found: Found = {mode: [] for mode in here}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="seckill-bench-")))
        secret, tokens = token_hex(32), folder / "tokens"
        tokens.write_text("".join(f"{token}\n" for token in user_tokens(secret, BUYERS)))
        intakes = {}
        for mode, site in here.items():
            told = msgspec.json.encode(start_of(site.url, site.mode, secret)).decode()
            process = stack.enter_context(started("references.intake_server", told))
            intakes[mode] = _Intake(plan, site, tokens, process)
        for mode, intake in intakes.items():
            plan.say(f"{NAME}: {server.name}, warming up, {mode}")
            intake.warm()
        for turn in range(plan.rounds):
            for mode in list(intakes)[:: -1 if turn % 2 else 1]:
                plan.say(f"{NAME}: {server.name}, {HTTP}, round {turn + 1}, {mode}")
                found[mode].append(plan.stolen.least(intakes[mode].slice))
    for mode, intake in intakes.items():
        for number, sale in enumerate(intake.sales, 1):
            plan.say(f"{NAME}: {server.name}, {mode}, verify {number} of {len(intake.sales)}")
            checked.append(here[mode].check(NAME, server.name, sale))
    return found


class _Intake:
    """One worker, and the buyers before it."""

    def __init__(self, plan: Plan, site: Site, tokens: Path, process: Process) -> None:
        self._plan, self._site, self._tokens, self._process = plan, site, tokens, process
        self._slices = 0
        self.sales: list[str] = []

    def warm(self) -> None:
        """Lets the worker meet the user token of every buyer."""
        requests = 0
        while not self._plan.quick and requests < BUYERS:
            requests += self.slice().orders
            # No figure comes of this slice, so nobody has to vouch for its sale.
            self.sales.pop()

    def slice(self, *, seconds: int = 0) -> Part:
        """Opens a sale and lets the buyers loose on it."""
        site, process = self._site, self._process
        self._slices += 1
        sale = msgspec.structs.replace(make_sale(f"http-{self._slices}"), limit_per_buyer=0)
        item = msgspec.structs.replace(sale.items[0], limit_per_buyer=0)
        site.open(msgspec.structs.replace(sale, items=(item,)))
        self.sales.append(sale.id)
        before = (cpu_seconds(process.pid), *site.cpu_seconds())
        load = send(
            f"{process.base}/v1/sales/{sale.id}/orders",
            "orders",
            self._tokens,
            connections=CONNECTIONS,
            seconds=seconds or (1 if self._plan.quick else SECONDS),
        )
        if not load.requests and self._plan.quick and not seconds:
            # No figure is asked for, and a busy machine may need all of a second to begin.
            return self.slice(seconds=QUICK_SECONDS_MAX)
        after = (cpu_seconds(process.pid), *site.cpu_seconds())
        _check(load, site.orders(sale.id))
        cpu_s = [late - early for late, early in zip(after, before, strict=True)]
        latency_ms = (load.p50_ms, load.p99_ms)
        return Part(load.requests, load.took_s, cpu_s[0], cpu_s[1], cpu_s[2], latency_ms)


def _check(load: Load, sold: int) -> None:
    """Every request was accepted, and stands in the books, besides those that were still under way
    when the load ended."""
    assert load.requests > 0, "no request was answered"
    assert load.failed == load.refused == 0, load
    most = load.requests + CONNECTIONS
    assert load.requests <= sold <= most, f"{sold} orders for {load.requests} answers"


# -- engine path --------------------------------------------------------------------------------


def _engine_rounds(
    plan: Plan, server: Server, here: dict[str, Site], checked: list[Row], runner: asyncio.Runner
) -> Found:
    found: Found = {mode: [] for mode in here}
    names = (f"engine-{number}" for number in count(1))
    for turn in range(plan.rounds + 1):
        plan.say(f"{NAME}: {server.name}, {ENGINE}, round {turn} of {plan.rounds}")
        sales: list[str] = []

        def once(sales: list[str] = sales, turn: int = turn) -> dict[str, Part]:
            sale = make_sale(next(names))
            sales.append(sale.id)
            for site in here.values():
                site.open(sale)
            return runner.run(_round(here, sale.id, turn, plan.quick))

        parts = plan.stolen.least(once)
        for mode, site in here.items():
            if turn > 0:  # the first round only warms everybody up
                found[mode].append(parts[mode])
            checked += [site.check(NAME, server.name, sale) for sale in sales]
            # It makes room for the next.
            site.flush()
    return found


async def _round(here: dict[str, Site], sale: str, turn: int, quick: bool) -> dict[str, Part]:
    buyers = buyer_ids(20_000 if quick else 300_000)
    callers, slice_s = (16, 0.02) if quick else (256, 0.2)
    async with AsyncExitStack() as stack:
        parts, calls = {}, {}
        for mode, site in here.items():
            # Nobody is to give up on a busy machine.
            engine = Engine(site.url, durability=site.mode, timeout_ms=60_000)
            await stack.enter_async_context(engine)
            asker = _Asker(engine, sale, iter(buyers))
            # Opens the lane.
            await asker.ask(callers, 0.0)
            calls[mode], parts[mode] = asker, Part(0, 0.0, 0.0, 0.0)
        for i in range(SLICES):
            # To and fro, so that none always runs right after the same other one.
            for mode in list(calls)[:: 1 if (turn + i) % 2 else -1]:
                parts[mode] = await _slice(here[mode], calls[mode], callers, slice_s, parts[mode])
        return parts


async def _slice(site: Site, asker: _Asker, callers: int, slice_s: float, so_far: Part) -> Part:
    gc.collect()
    before, began = (cpu_seconds(os.getpid()), *site.cpu_seconds()), perf_counter()
    accepted = await asker.ask(callers, slice_s)
    took_s = perf_counter() - began
    after = (cpu_seconds(os.getpid()), *site.cpu_seconds())
    spent = [late - early for late, early in zip(after, before, strict=True)]
    return Part(
        so_far.orders + accepted,
        so_far.took_s + took_s,
        so_far.asker_cpu_s + spent[0],
        so_far.server_cpu_s + spent[1],
        so_far.replica_cpu_s + spent[2],
    )


class _Asker:
    """The callers of one engine; no buyer comes twice."""

    def __init__(self, engine: Engine, sale: str, buyers: Iterator[str]) -> None:
        self._engine, self._sale, self._buyers = engine, sale, buyers

    async def ask(self, callers: int, seconds: float) -> int:
        """Lets each of the callers ask again and again until the time is over; how many orders were
        accepted, which is all."""
        end, accepted = perf_counter() + seconds, 0

        async def caller() -> None:
            nonlocal accepted
            for buyer in self._buyers:
                outcome = await self._engine.reserve(self._sale, buyer, KEY, CART)
                assert outcome.status is Status.CREATED, outcome
                accepted += 1
                if perf_counter() >= end:
                    return
            raise AssertionError("out of buyers: give it more")

        await asyncio.gather(*(caller() for _ in range(callers)))
        return accepted


# -- rows ---------------------------------------------------------------------------------------


def rows(server: str, found: dict[str, Found]) -> Iterator[Row]:
    """Ratios, rates, and what they cost. ``found``: by path, then by promise."""
    for path, by_mode in found.items():
        memory = by_mode["memory"]
        for mode, parts in by_mode.items():
            if mode != "memory":
                ratios = [ours.rate / base.rate for ours, base in zip(parts, memory, strict=True)]
                at_least = TARGETS[mode] if path == HTTP else None
                yield Row.of(NAME, server, against(path, mode), RATIO, ratios, at_least=at_least)
    for path, by_mode in found.items():
        for mode, parts in by_mode.items():
            rates = [part.rate for part in parts]
            yield Row.of(NAME, server, f"{path}: {mode}", "orders/s", rates, note=_times(parts))
    for path, by_mode in found.items():
        for mode, parts in by_mode.items():
            yield from _costs(server, path, mode, parts)


def against(path: str, mode: str) -> str:
    """The question of a ratio."""
    return f"{path}, {mode} against: memory"


def _times(parts: Sequence[Part]) -> str:
    times = [part.latency_ms for part in parts if part.latency_ms is not None]
    if not times:
        return ""
    p50_ms, p99_ms = (median(each) for each in zip(*times, strict=True))
    return f"{generator()}: p50 {p50_ms:.1f}, p99 {p99_ms:.1f} ms"


def _costs(server: str, path: str, mode: str, parts: Sequence[Part]) -> Iterator[Row]:
    asker = "the intake" if path == HTTP else "engine and callers"
    spent = {
        asker: [part.asker_cpu_s / part.orders for part in parts],
        "Redis": [part.server_cpu_s / part.orders for part in parts],
    }
    if mode == "replicas:1":
        spent["its replica"] = [part.replica_cpu_s / part.orders for part in parts]
    for who, values in spent.items():
        question = f"CPU {path}: {mode} / {who}"
        yield Row.of(NAME, server, question, "s/10k orders", [each * 10_000 for each in values])
