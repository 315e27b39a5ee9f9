"""What does an order cost at the HTTP intake, next to no work at all and to the common pattern?

One worker of our intake with its default settings (limits and metrics on), served by
`seckill.server.run`; a no-op aiohttp handler that decodes and encodes the same JSON; and aiohttp
with one EVALSHA an order through redis-py and the same check of user tokens (see references/). Each
is a process of its own on uvloop, and so are Redis (appendfsync always, the default durability) and
the load: wrk with one thread, or our own client where wrk is missing. A round is one slice of 3 s
for each way, interleaved, to and fro; ratios are taken within a round, their median counts.

in stock    128 connections; 20,000 buyers in turn, each with a user token of their own (JWT, HS256,
            made beforehand and verified before the clock starts); a new idempotency key and one
            unit of the canonical sale of workload.py in each request; a fresh sale in each slice
sold out    the same requests for a sale whose only unit is gone; the no-op answers with a problem
            document; counts only if Redis was not asked for each of them
batch       POST orders:batch with 200 orders of new buyers, 8 connections, the backend's API key
new tokens  in stock, and every request brings a user token that the worker has never seen

A slice counts only if every order asked for was accepted, and if Redis holds as many orders as the
load got answers for, and no more than those that were still under way besides. Every sale is
verified afterwards; if one has broken a promise, no figure is given.

    python -m benchmarks http

Where the rest goes: while it runs, in another shell (time without work is not sampled),

    py-spy record -d 60 -r 500 -f speedscope -o intake.speedscope.json \\
        --pid $(pgrep -n -f benchmarks.references.intake_server)
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from math import ceil
from pathlib import Path
from secrets import token_hex
from statistics import median
from tempfile import TemporaryDirectory
from time import time
from typing import Final

import msgspec

from benchmarks.load import Load, generator, send
from benchmarks.machine import cpu_seconds
from benchmarks.plan import Plan
from benchmarks.report import RATIO, Row, Verdict
from benchmarks.servers import Server, durability_of, running
from benchmarks.workload import Wire, check_sale, make_sale
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import shard_keys

__all__ = ["CONNECTIONS", "INTAKE", "NAME", "NOOP", "Process", "run", "started"]

NAME: Final = "http"
CONNECTIONS: Final = 128
BATCH: Final = 200
BATCH_CONNECTIONS: Final = 8
BUYERS: Final = 20_000
# More than any of them can take in a slice.
NEW_TOKENS_A_SECOND: Final = 40_000
FSYNC: Final = "always"
START_S: Final = 20

INTAKE, NOOP, EVALSHA = "intake", "no-op", "EVALSHA an order"
IN_STOCK, SOLD_OUT, BATCHES, NEW = "in stock", "sold out", "batch", "new tokens"


class _Way(msgspec.Struct, frozen=True):
    """Who is asked for what."""

    who: str
    case: str

    @property
    def orders_a_request(self) -> int:
        return BATCH if self.case == BATCHES else 1


# In this order, and back: those that are compared stand side by side.
_WAYS: Final = (
    _Way(EVALSHA, IN_STOCK),
    _Way(INTAKE, IN_STOCK),
    _Way(NOOP, IN_STOCK),
    _Way(NOOP, SOLD_OUT),
    _Way(INTAKE, SOLD_OUT),
    _Way(INTAKE, BATCHES),
)
# Apart from the others, for it makes the worker forget the tokens that those use.
_NEW_WAYS: Final = (_Way(INTAKE, NEW), _Way(NOOP, IN_STOCK))


class _Slice(msgspec.Struct, frozen=True):
    """What one way has done in one slice."""

    load: Load
    orders: int
    server_cpu_s: float
    redis_cpu_s: float
    redis_micros: int

    @property
    def rate(self) -> float:
        return self.orders / self.load.took_s


class Process(msgspec.Struct, frozen=True):
    """A server under test."""

    base: str
    pid: int


_Found = dict[_Way, list[_Slice]]


class _Test:
    """The servers and the buyers of one run."""

    def __init__(self, plan: Plan, embedded: EmbeddedServer, stack: ExitStack) -> None:
        self.plan = plan
        self.embedded = embedded
        self.runner = stack.enter_context(plan.runner())
        self.wire = stack.enter_context(Wire(embedded))
        self.seconds = 1 if plan.quick else 3
        self.sales: list[str] = []
        self.files = Path(stack.enter_context(TemporaryDirectory(prefix="seckill-bench-")))
        self.secret, backend_key = token_hex(32), f"sk_{token_hex(32)}"
        self.write_tokens("tokens", BUYERS)
        (self.files / "key").write_text(f"{backend_key}\n")
        start = {
            "url": embedded.url,
            "durability": durability_of(FSYNC),
            "user_secret": self.secret,
            "backend_hash": f"sha256:{sha256(backend_key.encode()).hexdigest()}",
        }
        modules = {INTAKE: "intake_server", NOOP: "noop_server", EVALSHA: "evalsha_server"}
        self.servers = {
            who: stack.enter_context(
                started(f"references.{module}", msgspec.json.encode(start).decode())
            )
            for who, module in modules.items()
        }

    def write_tokens(self, name: str, count: int) -> None:
        """User tokens of so many buyers. Each is new, also for a buyer who had one before."""
        import jwt

        claims = {"iat": int(time()), "exp": int(time()) + 36_000, "jti": token_hex(4)}
        tokens = (
            jwt.encode({"sub": f"b{number:023}", **claims}, self.secret, algorithm="HS256")
            for number in range(count)
        )
        (self.files / name).write_text("".join(f"{token}\n" for token in tokens))

    def open_sale(self, way: _Way) -> str:
        """A fresh sale for this way."""
        return self.runner.run(self._open(way))

    async def _open(self, way: _Way) -> str:
        sale, replace = make_sale(f"http-{len(self.sales)}"), msgspec.structs.replace
        # A buyer comes back many times, with a new wish each time.
        item = replace(sale.items[0], limit_per_buyer=0)
        if way.case == SOLD_OUT:
            item = replace(item, total=1)
        sale = replace(sale, items=(item,), limit_per_buyer=0)
        url, durability = self.embedded.url, durability_of(FSYNC)
        async with Engine(url, durability=durability, sweep_ms=0) as engine:
            assert (await engine.create(sale)).ok
            assert (await engine.open(sale.id)).ok
            if way.case == SOLD_OUT:
                assert (await engine.reserve(sale.id, "first", "k1", {"tea": 1})).ok
        if way.who == EVALSHA:
            for key in shard_keys(sale.id)[:2]:
                self.wire.call("COPY", key, f"{key}-one")
        self.sales.append(sale.id)
        return sale.id

    def accepted(self, way: _Way, sale: str) -> int:
        """Orders in Redis."""
        _, _, _, orders, *_ = shard_keys(sale)
        return int(self.wire.call("HLEN", f"{orders}-one" if way.who == EVALSHA else orders))

    def warm(self, way: _Way) -> None:
        """A slice that is not counted, and a second one if the first did not show the server the
        token of every buyer."""
        load = self.slice(way).load
        if load.requests < BUYERS and way.case != BATCHES and way.who != NOOP:
            self.slice(way, seconds=ceil(1.5 * BUYERS / load.rate))

    def slice(self, way: _Way, file: str = "tokens", seconds: int = 0) -> _Slice:
        """Lets the buyers loose on a server and checks that it did what it should."""
        sale, process = self.open_sale(way), self.servers[way.who]
        path = f"/v1/sales/{sale}/orders"
        if way.case == BATCHES:
            path, file = f"{path}:batch", "key"
        elif (way.who, way.case) == (NOOP, SOLD_OUT):
            path = f"/sold-out{path}"
        self.wire.call("CONFIG", "RESETSTAT")
        server_s, redis_s = cpu_seconds(process.pid), cpu_seconds(self.embedded.pid)
        load = send(
            process.base + path,
            "batch" if way.case == BATCHES else "orders",
            self.files / file,
            connections=BATCH_CONNECTIONS if way.case == BATCHES else CONNECTIONS,
            seconds=seconds or self.seconds,
        )
        found = _Slice(
            load,
            load.requests * way.orders_a_request,
            cpu_seconds(process.pid) - server_s,
            cpu_seconds(self.embedded.pid) - redis_s,
            self.wire.micros().get("evalsha", 0),
        )
        self._check(way, sale, found)
        return found

    def _check(self, way: _Way, sale: str, found: _Slice) -> None:
        load, what = found.load, f"{way.who}, {way.case}"
        assert load.requests > 0, f"{what}: no request was answered"
        assert load.failed == 0, f"{what}: {load.failed} requests got no answer"
        expected = load.requests if way.case == SOLD_OUT else 0
        assert load.refused == expected, f"{what}: {load.refused} of {load.requests} were refused"
        if way.who == NOOP:
            return
        accepted = self.accepted(way, sale)
        if way.case == SOLD_OUT:
            assert accepted == 1, f"{what}: {accepted} orders for one unit"
            # An order takes 60 bytes and more to Redis; leases and sweeps always go on.
            most, sent = 20 * load.requests + 50_000 * self.seconds, _bytes_in(self.wire)
            assert sent < most, f"{what}: {sent} bytes to Redis for {load.requests} answers"
            return
        connections = BATCH_CONNECTIONS if way.case == BATCHES else CONNECTIONS
        # Those that were under way when the load ended were accepted, too.
        most = found.orders + connections * way.orders_a_request
        assert found.orders <= accepted <= most, f"{what}: {accepted} orders for {found.orders}"
        if way.case == NEW:
            count = NEW_TOKENS_A_SECOND * self.seconds
            assert load.requests <= count, f"{what}: tokens were used twice; make more"


def run(plan: Plan) -> Iterator[Row]:
    for server in plan.servers:
        with running(server, FSYNC) as embedded, ExitStack() as stack:
            yield from _compare(_Test(plan, embedded, stack), server)


def _compare(test: _Test, server: Server) -> Iterator[Row]:
    plan = test.plan
    rounds, new_rounds = (1, 1) if plan.quick else (5, 3)
    label = f"{server.name}, fsync {FSYNC}"
    found = _rounds(test, label, rounds)
    again: _Found = {way: [] for way in _NEW_WAYS}
    for turn in range(new_rounds):
        plan.say(f"{NAME}: {label}, new tokens, round {turn + 1} of {new_rounds}")
        test.write_tokens("new", NEW_TOKENS_A_SECOND * test.seconds)
        for way in _NEW_WAYS[:: 1 if turn % 2 else -1]:
            again[way].append(test.slice(way, "new"))
    verdict = _verify(test, label)
    if verdict.verdict is Verdict.MET:
        yield from _rows(label, found)
        yield from _new_rows(label, again)
    yield verdict


def _rounds(test: _Test, label: str, rounds: int) -> _Found:
    found: _Found = {way: [] for way in _WAYS}
    if not test.plan.quick:
        for way in _WAYS:
            test.plan.say(f"{NAME}: {label}, warming up, {way.who} {way.case}")
            test.warm(way)
    for turn in range(rounds):
        for way in _WAYS[:: -1 if turn % 2 else 1]:
            test.plan.say(f"{NAME}: {label}, round {turn + 1} of {rounds}, {way.who} {way.case}")
            found[way].append(test.slice(way))
    return found


def _verify(test: _Test, label: str) -> Row:
    """One row for all sales: the first that broke a promise, or how much was looked at."""
    durability, orders = durability_of(FSYNC), 0
    for number, sale in enumerate(test.sales, 1):
        test.plan.say(f"{NAME}: {label}, verify {number} of {len(test.sales)}")
        checked = check_sale(NAME, label, test.embedded.url, durability, sale)
        row = test.runner.run(checked)
        if row.verdict is not Verdict.MET:
            return msgspec.structs.replace(row, note=f"sale {sale}: {row.note}")
        orders += test.accepted(_Way(INTAKE, IN_STOCK), sale)
    note = f"{len(test.sales)} sales, {orders:,} orders of the intake"
    return Row.fact(NAME, label, "verify", Verdict.MET, "no violation", note)


def _rows(label: str, found: _Found) -> Iterator[Row]:
    ours, noop = found[_Way(INTAKE, IN_STOCK)], found[_Way(NOOP, IN_STOCK)]
    pattern = found[_Way(EVALSHA, IN_STOCK)]
    sold_out, noop_sold_out = found[_Way(INTAKE, SOLD_OUT)], found[_Way(NOOP, SOLD_OUT)]
    batches = found[_Way(INTAKE, BATCHES)]
    for question, above, below, at_least in (
        ("in stock against a no-op handler", ours, noop, 0.70),
        ("in stock against one EVALSHA an order", ours, pattern, 3.0),
        ("sold out against a no-op handler", sold_out, noop_sold_out, 0.85),
    ):
        yield Row.of(NAME, label, question, RATIO, _ratios(above, below), at_least=at_least)
    rates = [part.rate for part in batches]
    question = f"accepted in batches of {BATCH}"
    yield Row.of(NAME, label, question, "orders/s", rates, at_least=50_000, note=_times(batches))
    for way, parts in found.items():
        if way.case != BATCHES:
            unit = "answers/s" if way.who == NOOP or way.case == SOLD_OUT else "orders/s"
            rates = [part.rate for part in parts]
            yield Row.of(NAME, label, _of(way), unit, rates, note=_times(parts))
    for way, parts in found.items():
        yield from _costs(label, way, parts)


def _new_rows(label: str, found: _Found) -> Iterator[Row]:
    ours, noop = found.values()
    question = "in stock, every user token new, against a no-op handler"
    yield Row.of(NAME, label, question, RATIO, _ratios(ours, noop))
    yield from _costs(label, _Way(INTAKE, NEW), ours)


def _costs(label: str, way: _Way, parts: Sequence[_Slice]) -> Iterator[Row]:
    """CPU of each process, and what Redis spent in the script."""
    who = {"the server": [part.server_cpu_s for part in parts]}
    if way.who != NOOP:
        who["Redis"] = [part.redis_cpu_s for part in parts]
    who["the load"] = [part.load.cpu_s for part in parts]
    for name, spent_s in who.items():
        values = [s / part.orders * 10_000 for s, part in zip(spent_s, parts, strict=True)]
        yield Row.of(NAME, label, f"CPU of {name}, {_of(way)}", "s/10k orders", values)
    if way.who != NOOP and way.case != SOLD_OUT:
        micros = [part.redis_micros / part.orders for part in parts]
        yield Row.of(NAME, label, f"Redis time of an order, {_of(way)}", "µs", micros)


def _of(way: _Way) -> str:
    return f"{way.who}, {way.case}"


def _times(parts: Sequence[_Slice]) -> str:
    p50_ms = median(part.load.p50_ms for part in parts)
    p99_ms = median(part.load.p99_ms for part in parts)
    return f"{generator()}: p50 {p50_ms:.1f}, p99 {p99_ms:.1f} ms"


def _ratios(above: Sequence[_Slice], below: Sequence[_Slice]) -> list[float]:
    return [ours.rate / theirs.rate for ours, theirs in zip(above, below, strict=True)]


def _bytes_in(wire: Wire) -> int:
    """What Redis has received since CONFIG RESETSTAT."""
    text: str = wire.call("INFO", "stats").decode()
    return int(text.partition("total_net_input_bytes:")[2].split()[0])


@contextmanager
def started(module: str, start: str) -> Iterator[Process]:
    """A server that is a module of benchmarks/, once it takes requests."""
    command = [sys.executable, "-m", f"benchmarks.{module}", start]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            base = process.stdout.readline().strip()
            assert base.startswith("http://"), f"{module} did not start: {base}"
            yield Process(base, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(timeout=START_S)
            except subprocess.TimeoutExpired:
                process.kill()
