"""Orders that Redis has and the ledger does not: a server that came back with less than it had went
on selling before it was fenced. They were promised to their buyers, as were those in the ledger.

``admit`` takes them in after the ledger's own: first those that were paid, then by deadline. All of
it happens by the events of ordinary calls, so that ``seckill verify`` can prove it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from seckill.engine import Engine
from seckill.errors import SeckillError
from seckill.sale import Sale
from seckill.status import Status
from seckill.stream import SALE_SUBJECT

__all__ = ["Admitted", "Stranger", "admit", "check_definition", "find"]

SCAN: Final = 1_000
ADMIT: Final = 200
READ: Final = 500
PAYMENTS_MAX: Final = 16
"""As in lua/lib/record.lua: to the next one nothing happens."""
VERSION_MAX: Final = 14
"""A version is one digit: from here on there is room for all that may happen to an order."""


class Stranger(NamedTuple):
    """An order's record in Redis. ``ours`` is the ledger's, empty when it does not know the order
    at all; else it does not know these payments or this refund (``id,units return,limit back``)."""

    id: str
    record: str
    ours: str
    payments: tuple[str, ...]
    refund: str

    @property
    def new(self) -> bool:
        """Whether the ledger does not know the order at all."""
        return not self.ours

    @property
    def wants(self) -> bool:
        """Whether units are to be found for it."""
        return self.new and self.record[0] in "hpcf"


class Admitted(NamedTuple):
    """How many were taken in, and how many of these only as expired: what they had is gone."""

    orders: int
    expired: int


async def find(engine: Engine, real: tuple[str, ...], built: tuple[str, ...]) -> list[Stranger]:
    """What is under the fenced sale's keys and not under those where it is being rebuilt."""
    calls, cursor = engine._calls, b"0"
    found: list[Stranger] = []
    while True:
        words = ("HSCAN", real[3], cursor, "COUNT", SCAN)
        cursor, flat = await calls.attempt(
            partial(calls.client_of(words[1]).execute_command, *words)
        )
        ids = list(flat)
        known = (
            await calls.attempt(partial(calls.client_of(built[3]).hmget, built[3], ids))
            if ids
            else []
        )
        for order, ours in zip(ids, known, strict=True):
            stranger = _compare(order.decode(), flat[order].decode(), ours and ours.decode())
            found += [stranger] if stranger else []
        if int(cursor) == 0:
            return found


def _compare(order: str, record: str, ours: str | None) -> Stranger | None:
    payments, refund = _money(record)
    if ours is None:
        return Stranger(order, record, "", payments, refund)
    paid, refunded = _money(ours)
    news = tuple(payment for payment in payments if payment not in paid)
    if not news and refund in ("", refunded):
        return None
    return Stranger(order, record, ours, news, "" if refunded else refund)


def _money(record: str) -> tuple[tuple[str, ...], str]:
    _, _, _, payments, refund, *_ = (*record.split("|"), "", "")
    return tuple(payments.split(",")) if payments else (), refund


async def admit(
    engine: Engine,
    place: tuple[Sale, tuple[str, ...], tuple[str, ...]],
    token: str,
    strangers: list[Stranger],
) -> Admitted:
    """Takes them in. ``place``: the sale as the ledger has it, the fenced sale's keys and those
    where it is being rebuilt. Raises NotAdmitted, when nothing of it stays."""
    sale, real, built = place
    todo = sorted(strangers, key=_rank)
    new = [each for each in todo if each.new]
    attrs = await _attrs(engine, real[6], {each.id for each in new})
    states: dict[str, str] = {}
    for at in range(0, len(new), ADMIT):
        part = new[at : at + ADMIT]
        columns = ([e.id for e in part], [e.record for e in part], [attrs[e.id] for e in part])
        status, found = await engine._calls.run(
            "rebuild_admit", built, token, msgspec.msgpack.encode(columns)
        )
        if status != Status.DONE:
            raise NotAdmitted(sale.id, "another rebuild of it has begun")
        states |= {each.id: state.decode() for each, state in zip(part, found, strict=True)}
    for each in todo:
        await _say_again(engine, (sale.id, built, token), each, states.get(each.id, ""))
    expired = sum(states[each.id] == "x" for each in new if each.wants)
    return Admitted(len(todo), expired)


def _rank(order: Stranger) -> tuple[int, int, str]:
    """Paid ones first, then by deadline; last those whose money has gone back already."""
    head = order.record.partition("|")[0]
    return {"c": 0, "f": 2}.get(head[0], 1), int(head[8:]), order.id


async def _say_again(
    engine: Engine, place: tuple[str, tuple[str, ...], str], order: Stranger, state: str
) -> None:
    """What had happened to an order after it was reserved. The payment that had bought it goes by
    confirm; all others had been answered with "due back", and must not buy anything now."""
    calls, (sale, built, token) = engine._calls, place
    said = _said(order, state)

    async def due(payments: tuple[str, ...]) -> None:
        # A new one has its version already.
        least = 0 if order.new else min(int(order.record[1], 36), VERSION_MAX)
        packed = msgspec.msgpack.encode(payments)
        reply = await calls.run("rebuild_due", built, token, order.id, least, packed)
        if reply[0] != Status.DONE:
            raise NotAdmitted(sale, "another rebuild of it has begun")

    if not order.new and (said.paid or said.refund) and len(_money(order.ours)[0]) < PAYMENTS_MAX:
        await due(())
    if order.new and order.record[0] == "p" and state == "h":
        await calls.run("begin_payment", built, order.id, "")
    if said.paid:
        await calls.run("confirm", built, order.id, said.paid)
    if said.refund:
        await calls.run("refund", built, order.id, *said.refund.rsplit(",", 2))
    if said.due:
        if order.ours[:1] in ("h", "p") and order.record[0] in "rx":
            # It was given up there before that money came.
            await calls.run("release", built, order.id, "")
        await due(said.due)


class _Said(NamedTuple):
    """What is to be said again: the payment that bought the order, its refund, the others."""

    paid: str
    refund: str
    due: tuple[str, ...]


def _said(order: Stranger, state: str) -> _Said:
    """``state``: that of a new order, as it was taken in."""
    if order.record[0] not in "cf":
        return _Said("", "", order.payments)
    first = _money(order.record)[0][0]
    paid = first if first in order.payments else ""
    refund, others = order.refund, tuple(each for each in order.payments if each != first)
    bought = order.ours[:1] == "c" and _money(order.ours)[0][0] == first
    if order.record[0] == "f" and not bought and (state or order.ours[0]) not in "hp":
        # This money came and went back, and the order here was never bought with it.
        paid = refund = ""
    return _Said(paid, refund, others)


async def _attrs(engine: Engine, stream: str, wanted: set[str]) -> dict[str, str]:
    """What the callers of reserve gave along with these orders: it is in their first events."""
    calls, start = engine._calls, "-"
    attrs = dict.fromkeys(wanted, "")
    while wanted:
        words = ("XRANGE", stream, start, "+", "COUNT", READ)
        entries: Any = await calls.attempt(
            partial(calls.client_of(words[1]).execute_command, *words)
        )
        for entry_id, fields in entries:
            start = "(" + entry_id.decode()
            for subject, value in zip(fields[::2], fields[1::2], strict=True):
                order = subject.decode()
                if order in attrs and order != SALE_SUBJECT and value.startswith(b"held|"):
                    attrs[order] = value.decode().split("|", 5)[5]
        if len(entries) < READ:
            break
    return attrs


async def check_definition(engine: Engine, sale: Sale, real: tuple[str, ...]) -> None:
    """Whether the orders in Redis can be compared with the ledger's. Raises NotAdmitted."""
    calls = engine._calls
    definition = await calls.attempt(
        lambda: calls.client_of(real[0]).hget(real[0], "definition_id")
    )
    if definition == sale.definition_id.encode():
        return
    orders = await calls.attempt(lambda: calls.client_of(real[3]).hlen(real[3]))
    if orders:
        # A cart is written in the SKUs' places in the definition.
        raise NotAdmitted(
            sale.id,
            f"there are {orders:,} in Redis that were made under another definition of the sale;"
            " pay back what was paid for them, take them away with"
            f" `redis-cli UNLINK '{real[3]}'`, and run `seckill rebuild {sale.id}` again",
        )


class NotAdmitted(SeckillError):
    """Orders that only Redis knows can't be taken in. The sale stays fenced, as it is."""

    def __init__(self, sale: str, problem: str) -> None:
        super().__init__(f"the orders of sale {sale!r} can't be taken in: {problem}")
