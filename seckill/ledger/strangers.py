"""Orders that Redis has and the ledger does not: a server that came back with less than it had went
on selling before it was fenced. They were promised to their buyers, as were those in the ledger.

``admit`` takes them in after the ledger's own: first those that were paid, then by deadline. All of
it happens by the rules and events of ordinary calls, so that ``seckill verify`` can prove it.
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

__all__ = ["Admitted", "Stranger", "admit", "find"]

SCAN: Final = 1_000
ADMIT: Final = 200
READ: Final = 500


class Stranger(NamedTuple):
    """An order's record in Redis. ``new``: the ledger does not know the order at all; else it does
    not know these payments or this refund (``id,units return,limit back``)."""

    id: str
    record: str
    new: bool
    payments: tuple[str, ...]
    refund: str

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
        cursor, flat = await calls.attempt(partial(calls.client.execute_command, *words))
        ids = list(flat)
        known = await calls.attempt(partial(calls.client.hmget, built[3], ids)) if ids else []
        for order, ours in zip(ids, known, strict=True):
            stranger = _compare(order.decode(), flat[order].decode(), ours and ours.decode())
            found += [stranger] if stranger else []
        if int(cursor) == 0:
            return found


def _compare(order: str, record: str, ours: str | None) -> Stranger | None:
    payments, refund = _money(record)
    if ours is None:
        return Stranger(order, record, True, payments, refund)
    paid, refunded = _money(ours)
    news = tuple(payment for payment in payments if payment not in paid)
    if not news and refund in ("", refunded):
        return None
    return Stranger(order, record, False, news, "" if refunded else refund)


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
    await _check_definition(engine, sale, real)
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
        await _say_again(engine, built, each, states.get(each.id, ""))
    expired = sum(states[each.id] == "x" for each in new if each.wants)
    return Admitted(len(todo), expired)


def _rank(order: Stranger) -> tuple[int, int, str]:
    """Paid ones first, then by deadline; last those whose money has gone back already."""
    head = order.record.partition("|")[0]
    return {"c": 0, "f": 2}.get(head[0], 1), int(head[8:]), order.id


async def _say_again(engine: Engine, built: tuple[str, ...], order: Stranger, state: str) -> None:
    """What had happened to an order after it was reserved, by the verbs that did it."""
    calls = engine._calls
    payments = order.payments
    if order.new and order.record[0] == "f" and state == "r":
        payments = payments[1:]  # The first one went back already.
    if order.new and order.record[0] == "p" and state == "h":
        await calls.run("begin_payment", built, order.id, "")
    for payment in payments:
        await calls.run("confirm", built, order.id, payment)
    if order.refund and state != "r":
        await calls.run("refund", built, order.id, *order.refund.rsplit(",", 2))


async def _attrs(engine: Engine, stream: str, wanted: set[str]) -> dict[str, str]:
    """What the callers of reserve gave along with these orders: it is in their first events."""
    calls, start = engine._calls, "-"
    attrs = dict.fromkeys(wanted, "")
    while wanted:
        words = ("XRANGE", stream, start, "+", "COUNT", READ)
        entries: Any = await calls.attempt(partial(calls.client.execute_command, *words))
        for entry_id, fields in entries:
            start = "(" + entry_id.decode()
            for subject, value in zip(fields[::2], fields[1::2], strict=True):
                order = subject.decode()
                if order in attrs and order != SALE_SUBJECT and value.startswith(b"held|"):
                    attrs[order] = value.decode().split("|", 5)[5]
        if len(entries) < READ:
            break
    return attrs


async def _check_definition(engine: Engine, sale: Sale, real: tuple[str, ...]) -> None:
    calls = engine._calls
    definition = await calls.attempt(lambda: calls.client.hget(real[0], "definition_id"))
    if definition != sale.definition_id.encode():
        # A cart is written in the SKUs' places in the definition.
        raise NotAdmitted(sale.id, "they were made under another definition of the sale")


class NotAdmitted(SeckillError):
    """Orders that only Redis knows can't be taken in. The sale stays fenced, as it is."""

    def __init__(self, sale: str, problem: str) -> None:
        super().__init__(f"the orders of sale {sale!r} can't be taken in: {problem}")
