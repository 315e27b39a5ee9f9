"""Redis alone: what is the limit?

reserve.lua and nothing before it: no lane, no HTTP, no buyers. One bare connection on a unix socket
sends calls that were made and encoded beforehand, and does nothing else: eight calls are always
under way, so the server never waits for it, and answers are counted after the clock has stopped.
Whatever stands in front of Redis can at best come near to these figures.

Workload: the canonical orders of workload.py, 32,768 in a slice, in batches of 64 (a lane at a
fraction of its load) and of 256 (the most that a lane sends). In each round fresh sales, and for
each size of a batch, one after the other:

in stock      new orders of a sale with units for everybody; all are accepted
retried       the same calls once more: each order exists, and is answered with its record
selling out   new orders of a sale with units for half of them; it sells out within one batch
sold out      those that were refused, once more, twice over

Five rounds, to and fro, after one that warms up; once with appendfsync always, once without AOF.
Accepted, rejected and known orders are counted apart, and every slice must have exactly as many of
each as its sale had to give. Redis time is that of EVALSHA in `INFO commandstats`, which leaves out
reading, answering and the AOF; the CPU time of the whole process, from /proc, has them. What the µs
of a new order are made of is a question of its own: `cost`. In the end the sales of the last round
are verified; if one has broken a promise, no figure is given.

    python -m benchmarks lua
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Sequence
from time import perf_counter
from typing import Any, Final

import hiredis
import msgspec

from benchmarks.machine import cpu_seconds
from benchmarks.plan import Plan
from benchmarks.report import Row, Verdict
from benchmarks.servers import Fsync, durability_of, running
from benchmarks.workload import Wire, check_sale, encode_batches, make_sale
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.sale import Sale
from seckill.status import Status

__all__ = ["NAME", "Part", "Tally", "count_answers", "run"]

NAME: Final = "lua"
BATCHES: Final = (64, 256)
UNDER_WAY: Final = 8
IN_STOCK, RETRIED, SELLING_OUT, SOLD_OUT = "in stock", "retried", "selling out", "sold out"


class Tally(msgspec.Struct, frozen=True):
    """What became of the orders of some calls. ``known`` were accepted before."""

    accepted: int = 0
    rejected: int = 0
    known: int = 0

    @property
    def orders(self) -> int:
        """All of them."""
        return self.accepted + self.rejected + self.known


class Part(msgspec.Struct, frozen=True):
    """One slice: what became of its orders, how long it took, what it has cost. ``script_micros``
    are those of EVALSHA; CPU time comes in steps of 10 ms."""

    tally: Tally
    took_s: float
    script_micros: int
    server_cpu_s: float
    driver_cpu_s: float

    @property
    def micros(self) -> float:
        """Redis time of an order, in µs."""
        return self.script_micros / self.tally.orders


# By the size of the batches and the phase.
Found = dict[tuple[int, str], list[Part]]


class _Pipeline(Wire):
    """A connection on which a few calls are always under way."""

    def send(self, calls: Sequence[bytes]) -> tuple[list[Any], float]:
        """The answers to these calls, and the seconds until the last one. Raises
        hiredis.ReplyError."""
        answers: list[Any] = []
        sent = 0
        began_s = perf_counter()
        while len(answers) < len(calls):
            # The server reads whenever it is not busy, so this cannot block for good.
            self._socket.sendall(b"".join(calls[sent : len(answers) + UNDER_WAY]))
            sent = min(len(answers) + UNDER_WAY, len(calls))
            self._reader.feed(self._socket.recv(1 << 18))
            while (answer := self._reader.gets()) is not False:
                if isinstance(answer, hiredis.ReplyError):
                    raise answer
                answers.append(answer)
        return answers, perf_counter() - began_s


def count_answers(replies: Iterable[Sequence[Any]]) -> Tally:
    """What these answers of reserve.lua say. Raises AssertionError for one that none expects."""
    accepted = rejected = known = 0
    for reply in replies:
        for answer in reply[2]:
            if isinstance(answer, bytes):
                known += 1  # An order that exists is answered with its record.
            elif answer == Status.CREATED:
                accepted += 1
            else:
                assert answer == Status.SOLD_OUT, f"an order was answered {answer}"
                rejected += 1
    return Tally(accepted, rejected, known)


class _Test:
    """One server, once with an AOF and once without."""

    def __init__(self, plan: Plan, embedded: EmbeddedServer, wire: _Pipeline, fsync: Fsync) -> None:
        self.orders = 2_048 if plan.quick else 32_768
        self.durability = durability_of(fsync)
        self._embedded, self._wire = embedded, wire

    async def round(self, turn: int) -> tuple[Found, list[Sale]]:
        """A slice of every phase for every size, and the sales that they sold."""
        found: Found = {}
        sales: list[Sale] = []
        for batch in BATCHES[:: -1 if turn % 2 else 1]:
            stocked = await self._open(f"lua-{turn}-{batch}", 2 * self.orders)
            calls = encode_batches(stocked, self.orders, batch)
            found[batch, IN_STOCK] = [self._slice(calls, Tally(accepted=self.orders))]
            found[batch, RETRIED] = [self._slice(calls, Tally(known=self.orders))]
            # Half a batch more than half of them, so that it sells out amid a call.
            units = self.orders // 2 + batch // 2
            few = await self._open(f"lua-few-{turn}-{batch}", units)
            calls = encode_batches(few, self.orders, batch)
            expected = Tally(accepted=units, rejected=self.orders - units)
            found[batch, SELLING_OUT] = [self._slice(calls, expected)]
            refused = 2 * calls[units // batch + 1 :]
            found[batch, SOLD_OUT] = [self._slice(refused, Tally(rejected=len(refused) * batch))]
            sales += [stocked, few]
        return found, sales

    async def _open(self, name: str, units: int) -> Sale:
        sale = make_sale(name)
        item = msgspec.structs.replace(sale.items[0], total=units)
        sale = msgspec.structs.replace(sale, items=(item,))
        async with Engine(self._embedded.url, durability=self.durability, sweep_ms=0) as engine:
            assert (await engine.create(sale)).ok
            assert (await engine.open(sale.id)).ok
        return sale

    def _slice(self, calls: Sequence[bytes], expected: Tally) -> Part:
        wire, server, driver = self._wire, self._embedded.pid, os.getpid()
        gc.collect()
        wire.call("CONFIG", "RESETSTAT")
        server_s, driver_s = cpu_seconds(server), cpu_seconds(driver)
        answers, took_s = wire.send(calls)
        server_s, driver_s = cpu_seconds(server) - server_s, cpu_seconds(driver) - driver_s
        tally = count_answers(answers)
        assert tally == expected, f"{tally}, and {expected} was due"
        return Part(tally, took_s, wire.micros()["evalsha"], server_s, driver_s)

    async def verify(self, label: str, sales: Sequence[Sale]) -> Row:
        """The verdict on these sales: that on the last, or on the first that broke a promise."""
        assert sales
        for sale in sales:
            url, durability = self._embedded.url, self.durability
            row = await check_sale(NAME, label, url, durability, sale.id)
            if row.verdict is not Verdict.MET:
                return msgspec.structs.replace(row, note=f"sale {sale.id}: {row.note}")
        return msgspec.structs.replace(row, note=f"{len(sales)} sales; of the last: {row.note}")


def run(plan: Plan) -> Iterator[Row]:
    for server in plan.servers:
        for fsync in ("always", "off"):
            label = f"{server.name}, fsync {fsync}"
            with running(server, fsync) as embedded, plan.runner() as runner:
                yield from runner.run(_measure(plan, label, embedded, fsync))


async def _measure(plan: Plan, label: str, embedded: EmbeddedServer, fsync: Fsync) -> list[Row]:
    rounds = plan.rounds
    found: Found = {}
    with _Pipeline(embedded) as wire:
        test = _Test(plan, embedded, wire, fsync)
        for turn in range(rounds + 1):
            plan.say(f"{NAME}: {label}, round {turn} of {rounds}")
            parts, sales = await test.round(turn)
            if turn > 0:
                for key, part in parts.items():
                    found.setdefault(key, []).extend(part)
            if turn < rounds:
                wire.call("FLUSHALL", "SYNC")
        verdict = await test.verify(label, sales)
    if verdict.verdict is not Verdict.MET:
        return [verdict]
    return [*_rates(label, found), *_costs(label, found), verdict]


def _rates(label: str, found: Found) -> Iterator[Row]:
    for phase, (what, unit) in _COUNTED:
        for batch in BATCHES:
            parts = found[batch, phase]
            rates = [getattr(part.tally, what) / part.took_s for part in parts]
            yield Row.of(NAME, label, f"{phase}, {what}: batches of {batch}", unit, rates)


_ACCEPTED, _REJECTED = ("accepted", "orders/s"), ("rejected", "answers/s")
_COUNTED: Final = (
    (IN_STOCK, _ACCEPTED),
    (SELLING_OUT, _ACCEPTED),
    (SELLING_OUT, _REJECTED),
    (SOLD_OUT, _REJECTED),
    (RETRIED, ("known", "answers/s")),
)


def _costs(label: str, found: Found) -> Iterator[Row]:
    for phase in (IN_STOCK, SELLING_OUT, SOLD_OUT, RETRIED):
        for batch in BATCHES:
            micros = [part.micros for part in found[batch, phase]]
            question = f"Redis time of an order, {phase}: batches of {batch}"
            yield Row.of(NAME, label, question, "µs", micros)
    for who in ("server", "driver"):
        for batch in BATCHES:
            # Together, for a slice takes but a few of the steps that /proc counts in.
            parts = found[batch, IN_STOCK]
            spent_s = sum(getattr(part, f"{who}_cpu_s") for part in parts)
            values = [spent_s / sum(part.tally.orders for part in parts) * 10_000]
            question = f"CPU of the {who}, in stock: batches of {batch}"
            yield Row.of(NAME, label, question, "s/10k orders", values)
