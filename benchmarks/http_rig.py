"""The rig of the benchmark `http`: the servers, the buyers, and one slice of one way, with the
checks without which it does not count.
"""

from __future__ import annotations

from contextlib import ExitStack
from hashlib import sha256
from math import ceil
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from time import time
from typing import Final

import msgspec

from benchmarks.http_books import Books, RedisBooks, RedisOneBooks, Sold, SqlBooks
from benchmarks.load import Load, send
from benchmarks.machine import cpu_seconds
from benchmarks.plan import Plan
from benchmarks.references.launch import (
    Built,
    Missing,
    Process,
    build_fastify,
    build_go,
    launched,
    started,
)
from benchmarks.references.start import start_of
from benchmarks.servers import Fsync, durability_of
from benchmarks.workload import STOCK, Wire, make_sale
from seckill.embedded import EmbeddedServer

__all__ = [
    "BATCH",
    "EVALSHA",
    "FASTIFY",
    "FSYNC",
    "GO",
    "INTAKE",
    "NOOP",
    "REFERENCES",
    "SQL",
    "Case",
    "Rig",
    "Slice",
    "Toolchains",
    "Way",
]

CONNECTIONS: Final = 128
BATCH: Final = 200
BATCH_CONNECTIONS: Final = 8
BUYERS: Final = 20_000
# More than any of them can take in a slice.
QUICK_SECONDS_MAX: Final = 5
NEW_TOKENS_A_SECOND: Final = 40_000
FSYNC: Final[Fsync] = "always"

INTAKE, NOOP, EVALSHA = "intake", "no-op", "EVALSHA an order"
FASTIFY, GO, SQL = "Fastify + ioredis", "Go net/http", "SQL only"
REFERENCES: Final = (EVALSHA, FASTIFY, GO, SQL)


class Case:
    """What the buyers ask for."""

    IN_STOCK: Final = "in stock"
    SELLING_OUT: Final = "selling out"
    SOLD_OUT: Final = "sold out"
    BATCHES: Final = f"in batches of {BATCH}"
    NEW: Final = "new user tokens"


_SECONDS: Final = {Case.IN_STOCK: 2, Case.SELLING_OUT: 1, Case.SOLD_OUT: 1}
_SECONDS_ELSE: Final = 2


class Way(msgspec.Struct, frozen=True):
    """Who is asked for what."""

    who: str
    case: str

    @property
    def orders_a_request(self) -> int:
        return BATCH if self.case == Case.BATCHES else 1

    @property
    def connections(self) -> int:
        return BATCH_CONNECTIONS if self.case == Case.BATCHES else CONNECTIONS


class Slice(msgspec.Struct, frozen=True):
    """What one way has done in one slice. ``orders``: those that were answered, with yes or no;
    ``sold``: those that are in the books. ``script_micros`` and ``script_calls`` are those of
    Redis, ``bytes_in`` what it was sent."""

    load: Load
    orders: int
    sold: int
    server_cpu_s: float
    store_cpu_s: float
    script_micros: int
    script_calls: int
    bytes_in: int

    @property
    def rate(self) -> float:
        return self.orders / self.load.took_s


class Toolchains:
    """The references in other languages, built once for all Redis servers of a run."""

    def __init__(self, plan: Plan, stack: ExitStack) -> None:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="seckill-bench-")))
        self.built: dict[str, Built] = {}
        self.missing: dict[str, str] = {}
        for who, build in ((FASTIFY, build_fastify), (GO, build_go)):
            plan.say(f"http: building {who}")
            try:
                self.built[who] = build(folder)
            except Missing as why:
                self.missing[who] = f"skipped: {why}"


class Rig:
    """The servers and the buyers of one run on one Redis."""

    def __init__(
        self, plan: Plan, embedded: EmbeddedServer, stack: ExitStack, tools: Toolchains | None
    ) -> None:
        """``tools`` is None where the references in other languages, and the one that asks no Redis
        at all, are left out."""
        self.plan = plan
        self.embedded = embedded
        self.runner = stack.enter_context(plan.runner())
        self.wire = stack.enter_context(Wire(embedded))
        self.sales: list[str] = []
        self.versions: dict[str, str] = {}
        self.missing: dict[str, str] = dict(tools.missing) if tools else {}
        self._files = Path(stack.enter_context(TemporaryDirectory(prefix="seckill-bench-")))
        self._secret, self._numbers, self._new_tokens = token_hex(32), 0, 0
        self.write_tokens("tokens", BUYERS)
        self._books: dict[str, Books] = {}
        self._processes: dict[str, Process] = {}
        self._start(stack, tools)

    def _start(self, stack: ExitStack, tools: Toolchains | None) -> None:
        backend_key = f"sk_{token_hex(32)}"
        (self._files / "key").write_text(f"{backend_key}\n")
        backend_hash = f"sha256:{sha256(backend_key.encode()).hexdigest()}"
        ours = RedisBooks(self.embedded, self.wire, self.runner)
        theirs = RedisOneBooks(self.embedded, self.wire, self.runner)
        self._books = {INTAKE: ours, EVALSHA: theirs, FASTIFY: theirs, GO: theirs}
        modules = {INTAKE: "intake_server", NOOP: "noop_server", EVALSHA: "evalsha_server"}
        more = {"backend_hash": backend_hash}
        if tools:
            try:
                sql = SqlBooks(self.plan, stack)
            except Missing as why:
                self.missing[SQL] = f"skipped: {why}"
            else:
                self._books[SQL], modules[SQL] = sql, "sql_server"
                self.versions[SQL] = f"{sql.version}, asyncpg"
                more["database_url"] = sql.url
        durability = durability_of(FSYNC)
        start = start_of(self.embedded.url, durability, self._secret, **more)
        told = msgspec.json.encode(start).decode()
        for who, module in modules.items():
            self._processes[who] = stack.enter_context(started(f"references.{module}", told))
        for who, built in (tools.built if tools else {}).items():
            self._processes[who] = stack.enter_context(launched(built, told))
            self.versions[who] = built.versions

    def has(self, way: Way) -> bool:
        """Whether this server runs."""
        return way.who in self._processes

    def store(self, who: str) -> str:
        """What this server keeps its orders in; "" for nothing."""
        return self._books[who].store if who in self._books else ""

    def sold(self, sale: str) -> int:
        """Orders of a sale of the intake."""
        return self._books[INTAKE].count(sale).orders

    def write_tokens(self, name: str, count: int) -> None:
        """User tokens of so many buyers. Each is new, also for a buyer who had one before."""
        import jwt

        claims = {"iat": int(time()), "exp": int(time()) + 36_000, "jti": token_hex(4)}
        tokens = (
            jwt.encode({"sub": f"b{number:023}", **claims}, self._secret, algorithm="HS256")
            for number in range(count)
        )
        (self._files / name).write_text("".join(f"{token}\n" for token in tokens))

    def write_new_tokens(self) -> None:
        """As many as can be asked for in a slice, none of which anybody has seen."""
        self._new_tokens = NEW_TOKENS_A_SECOND * self._seconds(Way(INTAKE, Case.NEW))
        self.write_tokens("new", self._new_tokens)

    def _open(self, way: Way, stock: int) -> str:
        """A fresh sale for this way. A buyer comes back many times, with a new wish each time, so
        it has no limits."""
        self._numbers += 1
        sale, replace = make_sale(f"http-{self._numbers}"), msgspec.structs.replace
        gone = way.case == Case.SOLD_OUT
        item = replace(sale.items[0], limit_per_buyer=0, total=1 if gone else stock)
        sale = replace(sale, items=(item,), limit_per_buyer=0)
        if way.who in self._books:
            self._books[way.who].open(sale, gone=gone)
        if way.who == INTAKE:
            self.sales.append(sale.id)
        return sale.id

    def warm(self, way: Way) -> None:
        """A slice that is not counted, and a second one if the first did not show the server the
        token of every buyer. The no-op looks at none, and nobody sees what one costs SQL."""
        load = self.slice(way).load
        if load.requests < BUYERS and way.case == Case.IN_STOCK and way.who not in (NOOP, SQL):
            self.slice(way, seconds=ceil(1.5 * BUYERS / load.rate))

    def _seconds(self, way: Way) -> int:
        return 1 if self.plan.quick else _SECONDS.get(way.case, _SECONDS_ELSE)

    def slice(
        self, way: Way, file: str = "tokens", *, seconds: int = 0, stock: int = STOCK
    ) -> Slice:
        """Lets the buyers loose on a server and checks that it did what it should."""
        sale, process, books = self._open(way, stock), self._processes[way.who], self._books
        path = f"/v1/sales/{sale}/orders"
        if way.case == Case.BATCHES:
            path, file = f"{path}:batch", "key"
        elif (way.who, way.case) == (NOOP, Case.SOLD_OUT):
            path = f"/sold-out{path}"
        before = books[way.who].count(sale) if way.who in books else None
        self.wire.call("CONFIG", "RESETSTAT")
        server_s, store_s = cpu_seconds(process.pid), self._store_s(way.who)
        load = send(
            process.base + path,
            "batch" if way.case == Case.BATCHES else "orders",
            self._files / file,
            connections=way.connections,
            seconds=seconds or self._seconds(way),
        )
        if not load.requests and self.plan.quick and not seconds:
            # No figure is asked for, and a busy machine may need all of a second to begin.
            return self.slice(way, file, seconds=QUICK_SECONDS_MAX, stock=stock)
        micros, calls = _scripts(self.wire)
        found = Slice(
            load,
            load.requests * way.orders_a_request,
            0,
            cpu_seconds(process.pid) - server_s,
            self._store_s(way.who) - store_s,
            micros,
            calls,
            _bytes_in(self.wire),
        )
        _check_load(way, found, self._new_tokens)
        if before is None:
            return found
        after = books[way.who].count(sale)
        books[way.who].close(sale)
        _check_books(way, found, before, after)
        return msgspec.structs.replace(found, sold=after.orders - before.orders)

    def _store_s(self, who: str) -> float:
        return self._books[who].cpu_seconds() if who in self._books else 0.0


def _check_load(way: Way, found: Slice, new_tokens: int) -> None:
    """``new_tokens``: so many were written for whoever comes with a new one each time."""
    load, what = found.load, f"{way.who}, {way.case}"
    assert load.requests > 0, f"{what}: no request was answered"
    assert load.failed == 0, f"{what}: {load.failed} requests got no answer"
    if way.case == Case.SELLING_OUT:
        assert load.refused > 0, f"{what}: {load.requests} orders, and still something left"
    else:
        expected = load.requests if way.case == Case.SOLD_OUT else 0
        assert load.refused == expected, f"{what}: {load.refused} of {load.requests} were refused"
    if way.case == Case.NEW:
        assert load.requests <= new_tokens, f"{what}: tokens were used twice; make more"
    if (way.who, way.case) == (INTAKE, Case.SOLD_OUT):
        # An order takes 60 bytes and more to Redis; leases and sweeps always go on.
        most = 20 * load.requests + 50_000 * ceil(load.took_s)
        assert found.bytes_in < most, f"{what}: {found.bytes_in} bytes for {load.requests} answers"


def _check_books(way: Way, found: Slice, before: Sold, after: Sold) -> None:
    """As many orders as answers that said so, besides those that were still under way when the load
    ended; and each took one unit."""
    what, sold = f"{way.who}, {way.case}", after.orders - before.orders
    answered = found.orders - found.load.refused
    most = answered + way.connections * way.orders_a_request
    assert answered <= sold <= most, f"{what}: {sold} orders for {answered} answers"
    taken = before.left - after.left
    assert sold == taken, f"{what}: {sold} orders took {taken} units"
    if way.case in (Case.SELLING_OUT, Case.SOLD_OUT):
        assert after.left == 0, f"{what}: {after.left} units left"


def _scripts(wire: Wire) -> tuple[int, int]:
    """µs and calls of EVALSHA since CONFIG RESETSTAT."""
    text: str = wire.call("INFO", "commandstats").decode()
    for line in text.splitlines():
        if line.startswith("cmdstat_evalsha:"):
            fields = dict(field.split("=") for field in line.partition(":")[2].split(","))
            return int(fields["usec"]), int(fields["calls"])
    return 0, 0


def _bytes_in(wire: Wire) -> int:
    """What Redis has received since CONFIG RESETSTAT."""
    text: str = wire.call("INFO", "stats").decode()
    return int(text.partition("total_net_input_bytes:")[2].split()[0])
