"""The canonical workload: one SKU with stock for everybody, one unit an order, one order a buyer,
random 24-character buyer ids and our own 24-character order ids; and a plain blocking connection
that sends it, so that a driver costs nothing while the server is measured.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from time import time
from typing import Any, Final, Self

import hiredis
import msgspec

from benchmarks.report import Row, Verdict
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import SeckillError
from seckill.keys import shard_keys
from seckill.order import order_id
from seckill.redis import Durability
from seckill.sale import Item, Sale
from seckill.scripts import FORMAT, script
from seckill.status import Status

__all__ = [
    "KEY",
    "Wire",
    "buyer_ids",
    "check_sale",
    "created",
    "encode_batches",
    "entry",
    "inner_micros",
    "make_sale",
    "open_sale",
]

KEY: Final = "k1"
SKU: Final = "tea"
CART: Final = {SKU: 1}
STOCK: Final = 1_000_000_000


def make_sale(name: str) -> Sale:
    """A sale that has been open for an hour and stays so."""
    now = datetime.now(UTC)
    return Sale(
        id=name,
        title="benchmark",
        opens_at=now - timedelta(hours=1),
        ends_at=now + timedelta(hours=10),
        items=(Item(sku=SKU, title="tea", price_fen=9900, total=STOCK),),
        limit_per_order=5,
        limit_per_buyer=5,
    )


async def open_sale(url: str, durability: Durability, name: str) -> Sale:
    """Creates and opens the canonical sale."""
    sale = make_sale(name)
    async with Engine(url, durability=durability, sweep_ms=0) as engine:
        assert (await engine.create(sale)).ok
        assert (await engine.open(sale.id)).ok
    return sale


def buyer_ids(count: int) -> list[str]:
    """Random ids of 24 characters."""
    text = os.urandom(12 * count).hex()
    return [text[i : i + 24] for i in range(0, 24 * count, 24)]


def entry(sale: Sale, buyers: Sequence[str]) -> tuple[Any, ...]:
    """EVALSHA of reserve.lua for these buyers, as a lane would send it."""
    count = len(buyers)
    # The columns of prints and attrs are left out when there are no attrs.
    columns = (
        [int(time() * 1000) + 36_000_000] * count,
        [order_id(sale.id, buyer, KEY) for buyer in buyers],
        buyers,
        ["0"] * count,
    )
    keys = shard_keys(sale.id)
    packed = msgspec.msgpack.encode(columns)
    return (
        "EVALSHA",
        script("reserve").sha,
        len(keys),
        *keys,
        FORMAT,
        sale.definition_id,
        packed,
    )


def created(reply: list[Any]) -> int:
    """How many orders this answer of reserve.lua has accepted: all, or this is no benchmark."""
    answers: list[Any] = reply[2]
    assert all(answer == Status.CREATED for answer in answers), answers[:5]
    return len(answers)


def encode_batches(sale: Sale, orders: int, batch: int) -> list[bytes]:
    """So many new orders as ready bytes, one command a batch."""
    buyers = buyer_ids(orders)
    return [_encode(entry(sale, buyers[i : i + batch])) for i in range(0, orders, batch)]


def _encode(command: tuple[Any, ...]) -> bytes:
    encoded: bytes = hiredis.pack_command(command)
    return encoded


class Wire:
    """A blocking connection. Commands are encoded beforehand, several are sent at a time."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(server.url.removeprefix("unix://"))
        self._reader = hiredis.Reader()
        self.call("SCRIPT", "LOAD", script("reserve").source)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self, *command: Any) -> Any:
        """One command and its answer."""
        return self.pipeline([_encode(command)])[0]

    def pipeline(self, commands: Sequence[bytes]) -> list[Any]:
        """The answers to commands that are sent together. Few enough to fit in the buffers of both
        sockets: neither side reads while it writes."""
        self._socket.sendall(b"".join(commands))
        answers: list[Any] = []
        while len(answers) < len(commands):
            self._reader.feed(self._socket.recv(1 << 18))
            while (answer := self._reader.gets()) is not False:
                if isinstance(answer, Exception):
                    raise answer
                answers.append(answer)
        return answers

    def reserve(self, batches: Sequence[bytes], *, together: int = 8) -> int:
        """Sends batches and returns how many orders were accepted."""
        accepted = 0
        for i in range(0, len(batches), together):
            for answer in self.pipeline(batches[i : i + together]):
                accepted += created(answer)
        return accepted

    def reserve_timed(self, batches: Sequence[bytes]) -> list[int]:
        """The same, and the µs of each batch inside the server."""
        look = _encode(("INFO", "commandstats"))
        totals = [self.micros().get("evalsha", 0)]
        for i in range(0, len(batches), 8):
            looked = self.pipeline([part for batch in batches[i : i + 8] for part in (batch, look)])
            assert all(created(answer) for answer in looked[::2])
            totals += [_micros(text)["evalsha"] for text in looked[1::2]]
        return [after - before for before, after in pairwise(totals)]

    def micros(self) -> dict[str, int]:
        """µs spent in each command since CONFIG RESETSTAT."""
        return _micros(self.call("INFO", "commandstats"))


def _micros(text: bytes) -> dict[str, int]:
    spent = {}
    for line in text.decode().splitlines():
        if line.startswith("cmdstat_"):
            name, _, fields = line.removeprefix("cmdstat_").partition(":")
            spent[name] = int(dict(field.split("=") for field in fields.split(","))["usec"])
    return spent


def inner_micros(spent: dict[str, int]) -> Iterator[tuple[str, int]]:
    """The commands that reserve.lua called, the dearest first."""
    outer = ("evalsha", "config|resetstat", "info", "script|load")
    inner = ((name, micros) for name, micros in spent.items() if name not in outer)
    return iter(sorted(inner, key=lambda item: -item[1]))


async def check_sale(
    benchmark: str, server: str, url: str, durability: Durability, sale: str
) -> Row:
    """Whether the sale that was just measured kept every promise: the verdict of its stream."""
    from seckill.verify import verify

    target = "no violation"
    try:
        async with Engine(url, durability=durability, sweep_ms=0, timeout_ms=60_000) as engine:
            verdict = await verify(engine, sale)
    except SeckillError as error:
        return Row.fact(benchmark, server, "verify", Verdict.MISSED, target, f"failed: {error}")
    note = f"{verdict.events:,} events, {verdict.orders:,} orders"
    if verdict.ok:
        return Row.fact(benchmark, server, "verify", Verdict.MET, target, note)
    first = verdict.violations[0]
    note += f"; seq {first.seq}: {first.rule}: {first.text}"
    return Row.fact(benchmark, server, "verify", Verdict.MISSED, target, note)
