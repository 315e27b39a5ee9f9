"""Does an order cost more CPU time when two workers share the cores with the load beside them?

`seckill serve` with its default settings, once with one worker and once with two, both on the same
Redis (appendfsync always). Two workers are two processes with a lane each: whatever they do now and
then they do twice. On two cores they have Redis and the load beside them, as on a small machine.

Two workers are compared with one twice: each with as many connections as the one has, as one adds
workers when more buyers come, and both with as many as the one has alone. Then their batches are
half as large, and what a batch costs is shared by half as many orders; that is what a worker more
than needed costs.

Workload: that of `http`, in stock: wrk with one thread and 128 connections a worker, or our own
client where wrk is missing; 20,000 buyers in turn with a user token of their own, which each worker
has met before the clock starts; a new idempotency key and one unit of the canonical sale of
workload.py in each request; a fresh sale in each slice. Slices of two seconds, interleaved, to and
fro. What counts is the CPU time of the parent and all its workers, from /proc, for 10,000 orders
that were answered; the ratio is taken within a round, its median counts. A slice counts only if
every order was accepted, and if the books hold as many as were answered and no more than were still
under way besides. Every sale that was measured is verified; if one has broken a promise, no figure
is given.

    python -m benchmarks workers
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from secrets import token_hex
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

import msgspec

from benchmarks.footprint_http import user_tokens
from benchmarks.http_books import RedisBooks
from benchmarks.http_rig import QUICK_SECONDS_MAX
from benchmarks.load import Load, generator, send
from benchmarks.machine import children, cpu_seconds, family_seconds
from benchmarks.plan import Plan
from benchmarks.references.launch import START_S, Process
from benchmarks.report import RATIO, Row, Verdict
from benchmarks.servers import durability_of, running
from benchmarks.workload import Wire, check_sale, make_sale
from seckill.embedded import EmbeddedServer

__all__ = ["NAME", "Slice", "rows", "run"]

NAME: Final = "workers"
TARGET: Final = 1.1
FSYNC: Final = "always"
WORKERS: Final = (1, 2)
CONNECTIONS: Final = 128
WAYS: Final = ((1, CONNECTIONS), (2, 2 * CONNECTIONS), (2, CONNECTIONS))
"""Workers, and the connections of all of them."""
BUYERS: Final = 20_000
SECONDS: Final = 2
# After so many a worker has met all but one of 256 user tokens, whichever of the two is asked.
PASSES: Final = 8
WARM_SLICES_MAX: Final = 30
_NAMES: Final = {1: "one worker", 2: "two workers"}
_SHORT: Final = {
    WAYS[0]: "one worker",
    WAYS[1]: "two workers",
    WAYS[2]: "two workers, 64 connections each",
}


class Slice(msgspec.Struct, frozen=True):
    """What an intake has done in one slice. ``busiest`` is the part of the workers' CPU time that
    was the busiest worker's, from 1 / workers to 1."""

    requests: int
    took_s: float
    intake_cpu_s: float
    redis_cpu_s: float
    load_cpu_s: float
    busiest: float

    @property
    def rate(self) -> float:
        return self.requests / self.took_s

    def each(self, cpu_s: float) -> float:
        """Seconds for 10,000 orders."""
        return cpu_s / self.requests * 10_000


Way = tuple[int, int]
Found = dict[Way, list[Slice]]


def run(plan: Plan) -> Iterator[Row]:
    for server in plan.servers:
        label = f"{server.name}, fsync {FSYNC}"
        with running(server, FSYNC) as embedded, ExitStack() as stack:
            rig = _Rig(plan, label, embedded, stack)
            found = rig.measure()
            verdict = rig.verify()
        if verdict.verdict is Verdict.MET:
            yield from rows(label, found)
        yield verdict


class _Rig:
    """Both intakes, and the buyers."""

    def __init__(self, plan: Plan, label: str, embedded: EmbeddedServer, stack: ExitStack) -> None:
        self._plan, self._label, self._embedded = plan, label, embedded
        self._runner = stack.enter_context(plan.runner())
        self._books = RedisBooks(embedded, stack.enter_context(Wire(embedded)), self._runner)
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="seckill-bench-")))
        secret = token_hex(32)
        self._tokens = folder / "tokens"
        self._tokens.write_text("".join(f"{token}\n" for token in user_tokens(secret, BUYERS)))
        self._sales: list[str] = []
        self._slices = 0
        self._intakes = {
            workers: stack.enter_context(_serving(folder, embedded.url, secret, workers))
            for workers in WORKERS
        }

    def measure(self) -> Found:
        """Slices of both."""
        rounds = self._plan.rounds
        if not self._plan.quick:
            for workers in WORKERS:
                self._warm(workers)
        found: Found = {way: [] for way in WAYS}
        for turn in range(rounds):
            for way in WAYS[:: -1 if turn % 2 else 1]:
                self._say(f"round {turn + 1} of {rounds}, {_SHORT[way]}")
                found[way].append(self._plan.stolen.least(partial(self._slice, *way)))
        return found

    def _warm(self, workers: int) -> None:
        """Lets each worker meet the user tokens of nearly all buyers."""
        missing = BUYERS * (PASSES if workers > 1 else 1)
        for _ in range(WARM_SLICES_MAX):
            self._say(f"warming up, {_NAMES[workers]}, {missing:,} requests to go")
            missing -= self._slice(workers, CONNECTIONS).requests
            # No figure comes of this slice, so nobody has to vouch for its sale.
            self._sales.pop()
            if missing <= 0:
                return
        raise AssertionError(f"{_NAMES[workers]} did not get warm: {missing:,} requests to go")

    def _slice(self, workers: int, connections: int, *, seconds: int = 0) -> Slice:
        intake, books = self._intakes[workers], self._books
        self._slices += 1
        sale = msgspec.structs.replace(make_sale(f"workers-{self._slices}"), limit_per_buyer=0)
        item = msgspec.structs.replace(sale.items[0], limit_per_buyer=0)
        books.open(msgspec.structs.replace(sale, items=(item,)), gone=False)
        self._sales.append(sale.id)
        pids = children(intake.pid)
        assert len(pids) == workers, f"{len(pids)} workers, and {workers} were asked for"
        each = [cpu_seconds(pid) for pid in pids]
        intake_s, redis_s = family_seconds(intake.pid), books.cpu_seconds()
        load = send(
            f"{intake.base}/v1/sales/{sale.id}/orders",
            "orders",
            self._tokens,
            connections=connections,
            seconds=seconds or (1 if self._plan.quick else SECONDS),
        )
        if not load.requests and self._plan.quick and not seconds:
            # No figure is asked for, and a busy machine may need all of a second to begin.
            return self._slice(workers, connections, seconds=QUICK_SECONDS_MAX)
        intake_s, redis_s = family_seconds(intake.pid) - intake_s, books.cpu_seconds() - redis_s
        assert children(intake.pid) == pids, "a worker has died"
        each = [cpu_seconds(pid) - before for pid, before in zip(pids, each, strict=True)]
        _check(load, books.count(sale.id).orders, connections)
        busiest = max(each) / sum(each) if sum(each) else 1.0
        return Slice(load.requests, load.took_s, intake_s, redis_s, load.cpu_s, busiest)

    def verify(self) -> Row:
        """One row for all sales: the first that broke a promise, or how much was looked at."""
        durability, orders = durability_of(FSYNC), 0
        for number, sale in enumerate(self._sales, 1):
            self._say(f"verify {number} of {len(self._sales)}")
            checked = check_sale(NAME, self._label, self._embedded.url, durability, sale)
            row = self._runner.run(checked)
            if row.verdict is not Verdict.MET:
                return msgspec.structs.replace(row, note=f"sale {sale}: {row.note}")
            orders += self._books.count(sale).orders
        note = f"{len(self._sales)} sales, {orders:,} orders"
        return Row.fact(NAME, self._label, "verify", Verdict.MET, "no violation", note)

    def _say(self, text: str) -> None:
        self._plan.say(f"{NAME}: {self._label}, {text}")


@contextmanager
def _serving(folder: Path, url: str, secret: str, workers: int) -> Iterator[Process]:
    """`seckill serve` once all its workers take requests; its process is the parent."""
    config = folder / f"seckill-{workers}.toml"
    config.touch(0o600)
    config.write_text(f'[redis]\nurl = "{url}"\n\n[users]\nsecrets = ["{secret}"]\n')
    command = [sys.executable, "-m", "seckill.cli", "serve", "--config", str(config)]
    command += ["--port", "0", "--workers", str(workers)]
    # Nothing but these settings counts, and its log goes to where ours goes.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SECKILL_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield Process(_address(process), process.pid)
        finally:
            process.terminate()
            try:
                process.wait(timeout=START_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if "Ctrl-C ends it" in line:
            break
    found = re.search(r"takes orders on (http://\S+)", said)
    assert found, f"seckill serve did not start: {said}"
    return found[1]


def _check(load: Load, sold: int, connections: int) -> None:
    """Every request was accepted, and stands in the books, besides those that were still under way
    when the load ended."""
    assert load.requests > 0, "no request was answered"
    assert load.failed == load.refused == 0, load
    most = load.requests + connections
    assert load.requests <= sold <= most, f"{sold} orders for {load.requests} answers"


def rows(label: str, found: Found) -> Iterator[Row]:
    """The ratio, and what it is made of."""
    one = found[WAYS[0]]
    for way, at_most in zip(WAYS[1:], (TARGET, None), strict=True):
        ratios = [
            two.each(two.intake_cpu_s) / a.each(a.intake_cpu_s)
            for a, two in zip(one, found[way], strict=True)
        ]
        question = f"CPU of the intake an order, {_SHORT[way]}, against one"
        yield Row.of(NAME, label, question, RATIO, ratios, at_most=at_most, note=generator())
    for way, parts in found.items():
        rates = [part.rate for part in parts]
        note = _shares(parts) if way[0] > 1 else ""
        yield Row.of(NAME, label, f"in stock: {_SHORT[way]}", "orders/s", rates, note=note)
    for way, parts in found.items():
        for who in ("intake", "redis", "load"):
            values = [part.each(getattr(part, f"{who}_cpu_s")) for part in parts]
            question = f"CPU in stock: {_SHORT[way]} / {_WHO[who]}"
            yield Row.of(NAME, label, question, "s/10k orders", values)


_WHO: Final = {"intake": "the intake", "redis": "Redis", "load": "the load"}


def _shares(parts: Sequence[Slice]) -> str:
    return f"the busier has {median(part.busiest for part in parts):.0%} of their CPU time"
