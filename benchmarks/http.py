"""What does an order cost at the HTTP intake, next to no work at all and to other stacks?

One worker of our intake with its default settings (limits and metrics on), served by
`seckill.server.run`; a no-op aiohttp handler that decodes and encodes the same JSON; and
references, each as a good engineer of its stack would write it, with the same checks and answers:
aiohttp and redis-py, Fastify and ioredis, Go's net/http on one core, aiohttp and PostgreSQL (see
references/). What this machine can't build is skipped with a word. Each is a process of its own,
and so are Redis (appendfsync always, the default durability), PostgreSQL (synchronous_commit on)
and the load: wrk with one thread, or our own client where wrk is missing. A round is a slice of one
or two seconds for each way, interleaved, to and fro; ratios are taken within a round, their median
counts. Of several kinds of Redis the references meet only the first, but for the common pattern,
which is aiohttp with redis-py; --full shows them to all.

in stock      128 connections; 20,000 buyers in turn, each with a user token of their own (JWT,
              HS256, made beforehand and verified before the clock starts); a new idempotency key
              and one unit of the canonical sale of workload.py in each request; a fresh sale in
              each slice
selling out   the same for a sale that is soon sold out; the intake only
sold out      the same for a sale whose units are gone; the no-op answers with a problem document,
              the references ask their store; the intake counts only if it did not ask each time
in batches    POST orders:batch with 200 orders of new buyers, 8 connections, a backend's API key
new tokens    in stock, and every request brings a user token that the worker has never seen

A slice counts only if every order asked for was accepted, or refused where nothing was left, and if
the books (Redis, PostgreSQL) hold as many orders as the load got answers for, and no more than
those that were still under way besides, each for a unit that is no longer there. Every sale of the
intake is verified afterwards; if one has broken a promise, no figure is given.

    python -m benchmarks http [--plots DIR]

Where the rest goes: while it runs, in another shell (time without work is not sampled),

    py-spy record -d 60 -r 500 -f speedscope -o intake.speedscope.json \\
        --pid $(pgrep -n -f benchmarks.references.intake_server)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Final

import msgspec

from benchmarks.http_rig import (
    CONNECTIONS,
    EVALSHA,
    FASTIFY,
    FSYNC,
    GO,
    INTAKE,
    NOOP,
    REFERENCES,
    SQL,
    Case,
    Rig,
    Slice,
    Toolchains,
    Way,
)
from benchmarks.http_rows import NAME, Found, new_rows, rows, skipped_rows
from benchmarks.plan import Plan
from benchmarks.references.launch import Process, started
from benchmarks.report import Row, Verdict
from benchmarks.servers import Server, durability_of, running
from benchmarks.workload import STOCK, check_sale

__all__ = ["CONNECTIONS", "INTAKE", "NAME", "NOOP", "Process", "run", "started"]

# In this order, and back: those that are compared stand side by side.
_WAYS: Final = (
    *(Way(who, Case.IN_STOCK) for who in (SQL, EVALSHA, FASTIFY, INTAKE, GO, NOOP)),
    *(Way(who, Case.SOLD_OUT) for who in (NOOP, INTAKE, GO, FASTIFY, EVALSHA, SQL)),
    Way(INTAKE, Case.SELLING_OUT),
    Way(INTAKE, Case.BATCHES),
)
# What only says over again that it runs.
_LONGER: Final = tuple(Way(who, Case.SOLD_OUT) for who in REFERENCES)
# Apart from the others, for it makes the worker forget the tokens that those use.
_NEW_WAYS: Final = (Way(INTAKE, Case.NEW), Way(NOOP, Case.IN_STOCK))
# Of what would have been sold in a slice, this part is there to be sold out.
_SOLD_OUT_AFTER: Final = 1 / 8


def run(plan: Plan) -> Iterator[Row]:
    with ExitStack() as outer:
        tools = Toolchains(plan, outer)
        for number, server in enumerate(plan.servers):
            with running(server, FSYNC) as embedded, ExitStack() as stack:
                here = tools if plan.full or number == 0 else None
                rig = Rig(plan, embedded, stack, here)
                yield from _compare(rig, server, plan.servers[0])


def _compare(rig: Rig, server: Server, first: Server) -> Iterator[Row]:
    label = f"{server.name}, fsync {FSYNC}"
    found, new = _rounds(rig, label), _new_rounds(rig, label)
    verdict = _verify(rig, label)
    if verdict.verdict is Verdict.MET:
        yield from rows(rig, label, found)
        yield from new_rows(label, new)
        yield from skipped_rows(rig, label, first.name)
    yield verdict


def _rounds(rig: Rig, label: str) -> Found:
    ways = [way for way in _WAYS if rig.has(way) and not (rig.plan.quick and way in _LONGER)]
    found: Found = {way: [] for way in ways}
    rounds, say = rig.plan.rounds, rig.plan.say
    if not rig.plan.quick:
        for way in ways:
            if way.case in (Case.IN_STOCK, Case.BATCHES):
                say(f"{NAME}: {label}, warming up, {way.who} {way.case}")
                rig.warm(way)
    for turn in range(rounds):
        for way in ways[:: -1 if turn % 2 else 1]:
            say(f"{NAME}: {label}, round {turn + 1} of {rounds}, {way.who} {way.case}")
            found[way].append(rig.plan.stolen.least(partial(_slice, rig, way, found)))
    return found


def _slice(rig: Rig, way: Way, found: Found) -> Slice:
    return rig.slice(way, stock=_stock(way, found))


def _stock(way: Way, found: Found) -> int:
    if way.case != Case.SELLING_OUT:
        return STOCK
    last: Slice = found[Way(way.who, Case.IN_STOCK)][-1]
    return max(1, int(last.rate * _SOLD_OUT_AFTER))


def _new_rounds(rig: Rig, label: str) -> Found:
    rounds = 1 if rig.plan.quick else 3
    found: Found = {way: [] for way in _NEW_WAYS}
    for turn in range(rounds):
        rig.plan.say(f"{NAME}: {label}, {Case.NEW}, round {turn + 1} of {rounds}")
        for way in _NEW_WAYS[:: 1 if turn % 2 else -1]:
            found[way].append(rig.plan.stolen.least(partial(_new_slice, rig, way)))
    return found


def _new_slice(rig: Rig, way: Way) -> Slice:
    # What was seen in one slice is not new in the next, which may be the same one taken again.
    rig.write_new_tokens()
    return rig.slice(way, "new")


def _verify(rig: Rig, label: str) -> Row:
    """One row for all sales of the intake: the first that broke a promise, or how much was looked
    at."""
    durability, orders = durability_of(FSYNC), 0
    for number, sale in enumerate(rig.sales, 1):
        rig.plan.say(f"{NAME}: {label}, verify {number} of {len(rig.sales)}")
        row = rig.runner.run(check_sale(NAME, label, rig.embedded.url, durability, sale))
        if row.verdict is not Verdict.MET:
            return msgspec.structs.replace(row, note=f"sale {sale}: {row.note}")
        orders += rig.sold(sale)
    note = f"{len(rig.sales)} sales, {orders:,} orders of the intake"
    return Row.fact(NAME, label, "verify", Verdict.MET, "no violation", note)
