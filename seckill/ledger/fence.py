"""Notices that Redis has less of a sale than the ledger, and stops that sale (lua/fence.lua).

A server that was wiped, restored from a backup, or failed over to a replica that lagged behind
would sell units again that the ledger knows as sold. Every runner of the ledger looks for that all
the time: one query and one round trip for all sales. `seckill rebuild` brings a fenced sale back.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

import msgspec
from sqlalchemy import func, select

from seckill.engine import CLOCK_JUMP_MS, Engine
from seckill.errors import InvalidInput, UnknownSale
from seckill.keys import SALES as SALES_KEY
from seckill.keys import shard_keys
from seckill.ledger.database import our_errors
from seckill.ledger.ledger import Ledger
from seckill.ledger.rows import Known
from seckill.ledger.tables import EVENTS, SALES
from seckill.status import Status

__all__ = ["Fenced", "check", "check_new", "fence"]

SEEN_MS: Final = 60_000
"""How old the time may get at which Redis was last seen, while nothing happens in a sale."""

_log = logging.getLogger("seckill.ledger")


class Fenced(msgspec.Struct, frozen=True):
    """A sale that is fenced, and why."""

    sale: str
    reason: str


async def check(engine: Engine, ledger: Ledger) -> list[Fenced]:
    """Fences every sale of which Redis has lost something; all sales that are fenced by now.

    Also writes down how far Redis is, so that after a loss the ledger knows what it never got.
    Sales that are settled or removed are left alone. Raises LedgerUnavailable, RedisUnavailable.
    """
    rows = await _rows(ledger)
    fenced: list[Fenced] = []
    for row, header in zip(rows, await _headers(engine, rows), strict=True):
        sale = row["sale"]
        if isinstance(header, Exception):
            _log.warning("sale %s: its header can't be read: %s", sale, header)
            continue
        seq, made, state, reason = header
        if state == b"fenced":
            fenced.append(Fenced(sale, reason.decode()))
        elif made is not None and made.decode() == row["made"] and int(seq) >= row["last"]:
            await _note(ledger, row, int(seq))
        else:
            found = await fence(engine, ledger, sale, made)
            fenced += [found] if found else []
    return fenced


async def check_new(engine: Engine, ledger: Ledger, sale: str) -> None:
    """To be asked before a sale is created. Raises InvalidInput when the ledger knows it and Redis
    does not: it was lost, and its units would be sold a second time; or it was removed, and the
    ledger would take none of its events."""
    try:
        row = await ledger.sale(sale)
    except UnknownSale:
        return
    client = engine._calls.client
    if await engine._calls.attempt(lambda: client.exists(shard_keys(sale)[0])):
        return
    if row["removed_at_ms"]:
        raise InvalidInput("id", f"{sale!r} was a sale that is over and removed", "take another id")
    last_seq, _ = await ledger.last(sale)
    problem = f"Redis has lost {sale!r}, of which the ledger has {last_seq:,} events"
    raise InvalidInput("id", problem, f"bring it back with `seckill rebuild {sale}`")


async def fence(engine: Engine, ledger: Ledger, sale: str, made: bytes | None) -> Fenced | None:
    """Fences one sale if it has to be; None when nothing is wrong with it. ``made`` is what its
    header was just seen to have, None for no header.

    The ledger is asked after that: a rebuild tells the ledger first which sale is the right one, so
    one that has just been rebuilt is never taken for a wrong one. Raises UnknownSale.
    """
    known: Known = await ledger.known(sale)
    last_seq, _ = await ledger.last(sale)
    definition = known.sale
    status, reason, new = await engine._calls.run(
        "fence",
        shard_keys(sale),
        made or b"",
        known.made,
        last_seq,
        definition.definition_id,
        definition.definition(),
        known.origin_ms,
        definition.opens_ms,
        definition.ends_ms,
        definition.hold_ms,
        definition.pay_ms,
        definition.limit_per_order,
        definition.limit_per_buyer,
        definition.max_lapsed,
        CLOCK_JUMP_MS,
    )
    if status != Status.FENCED:
        return None
    if new:
        _log.error("sale %s is fenced until `seckill rebuild %s`: %s", sale, sale, reason.decode())
        # Whoever is on duty must see it, also where the list of sales was lost as well.
        client = engine._calls.client
        await engine._calls.attempt(lambda: client.sadd(SALES_KEY, sale))
    return Fenced(sale, reason.decode())


async def _rows(ledger: Ledger) -> list[dict[str, Any]]:
    """What the ledger has of each sale that may still sell, without the bulk of its definition."""
    last = select(func.max(EVENTS.c.seq)).where(EVENTS.c.sale == SALES.c.sale).scalar_subquery()
    query = (
        select(
            SALES.c.sale,
            SALES.c.made,
            SALES.c.seen_seq,
            SALES.c.seen_at_ms,
            func.coalesce(last, 0).label("last"),
        )
        .where(SALES.c.state != "settled", SALES.c.removed_at_ms == 0)
        .order_by(SALES.c.sale)
    )
    with our_errors():
        async with ledger.engine.connect() as connection:
            return [dict(row) for row in (await connection.execute(query)).mappings()]


async def _headers(engine: Engine, rows: list[dict[str, Any]]) -> list[Any]:
    if not rows:
        return []
    client = engine._calls.client

    async def ask() -> list[Any]:
        async with client.pipeline(transaction=False) as pipe:
            for row in rows:
                words = ("seq", "made", "state", "reason")
                pipe.execute_command("HMGET", shard_keys(row["sale"])[0], *words)
            return await pipe.execute(raise_on_error=False)

    found: list[Any] = await engine._calls.attempt(ask)
    return found


async def _note(ledger: Ledger, row: dict[str, Any], seq: int) -> None:
    """Writes down how far Redis is."""
    if seq > row["seen_seq"] or time.time() * 1000 - row["seen_at_ms"] >= SEEN_MS:
        await ledger.seen(row["sale"], seq)
