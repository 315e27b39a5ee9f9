"""What ``inspect.lua`` tells of a sale: one consistent picture, as of one seq."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec

from seckill.errors import ScriptFailed
from seckill.fencing import run_id_of
from seckill.keys import shard_keys
from seckill.sale import Sale

if TYPE_CHECKING:
    from seckill.engine import Engine

__all__ = ["Snapshot", "Stock", "fenced_sales", "read_snapshot"]


class Stock(msgspec.Struct, frozen=True):
    """Units of one SKU. ``available + held + confirmed == total``, always."""

    available: int
    held: int
    confirmed: int
    total: int


class Snapshot(msgspec.Struct, frozen=True):
    """A sale at one moment of the server's time ``at_ms``.

    ``state`` is created, open, paused, closed, settled or fenced (the server has lost a part of
    it); ``reason`` says why it is paused or fenced. A fenced sale may have no stock: it reads as 0.
    ``server`` is the run_id of the server that is trusted with it, empty where it tells none.
    ``orders`` counts every order ever accepted, ``buyers`` who made them; ``holds_queue`` and
    ``paying_queue`` are entries still to be swept, of which some may have moved on.
    """

    sale: str
    at_ms: int
    state: str
    reason: str
    seq: int
    opens_ms: int
    ends_ms: int
    stock: dict[str, Stock]
    orders: int
    buyers: int
    holds_queue: int
    paying_queue: int
    entries: int
    format: int
    server: str

    @property
    def phase(self) -> str:
        """What a buyer sees: the state, with an open sale split by the clock into "not started",
        "selling" and "ended"."""
        if self.state != "open":
            return self.state
        if self.at_ms < self.opens_ms:
            return "not started"
        return "selling" if self.at_ms < self.ends_ms else "ended"


def read_snapshot(sale: Sale, reply: list[Any]) -> Snapshot | None:
    """The reply of inspect.lua as a struct, or None when it is not of this definition. Raises
    ScriptFailed when somebody has damaged its header or stock."""
    header = _pairs(reply[2])
    if header["definition_id"] != sale.definition_id:
        return None
    stock = _pairs(reply[3])
    names = msgspec.structs.fields(Stock)
    if header["state"] == "fenced":
        lost = {f"{index}:{field.name}": "0" for index in range(len(sale.items)) for field in names}
        stock = lost | stock
    try:
        return _snapshot(sale, reply, header, stock)
    except (KeyError, ValueError) as error:
        raise ScriptFailed(f"the header or stock of sale {sale.id} is damaged: {error}") from None


def _snapshot(
    sale: Sale, reply: list[Any], header: dict[str, str], stock: dict[str, str]
) -> Snapshot:
    names = msgspec.structs.fields(Stock)
    return Snapshot(
        sale=sale.id,
        at_ms=int(reply[1]),
        state=header["state"],
        reason=header["reason"],
        seq=int(header["seq"]),
        opens_ms=int(header["opens_ms"]),
        ends_ms=int(header["ends_ms"]),
        stock={
            item.sku: Stock(*(int(stock[f"{index}:{field.name}"]) for field in names))
            for index, item in enumerate(sale.items)
        },
        orders=int(reply[4]),
        buyers=int(reply[5]),
        holds_queue=int(reply[6]),
        paying_queue=int(reply[7]),
        entries=int(reply[8]),
        format=int(header["format"]),
        server=run_id_of(header["server"]),
    )


async def fenced_sales(engine: Engine) -> dict[str, str]:
    """The sales that are fenced, each with its reason."""
    names = await engine.sales()
    asked = [("HMGET", shard_keys(name)[0], "state", "reason") for name in names]
    headers = await engine._calls.read_many(asked)
    return {
        name: (header[1] or b"").decode()
        for name, header in zip(names, headers, strict=True)
        # A damaged key is an error, and no reason to call the others into question.
        if not isinstance(header, Exception) and header[0] == b"fenced"
    }


def _pairs(flat: list[bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in list(pairwise(flat))[::2]}
