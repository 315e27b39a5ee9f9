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
from sqlalchemy import ColumnElement, and_, exists, func, not_, or_, select

from seckill.engine import Engine
from seckill.errors import (
    InvalidInput,
    LedgerRefused,
    LedgerUnavailable,
    OutcomeUnknown,
    RedisUnavailable,
    UnknownSale,
)
from seckill.fencing import fence_sale, run_id_of
from seckill.keys import shard_keys, stream_key
from seckill.ledger.database import our_errors
from seckill.ledger.ledger import Ledger
from seckill.ledger.mark import check_mark, own
from seckill.ledger.rows import Known, event_row, raw_of
from seckill.ledger.tables import EVENTS, SALES
from seckill.redis import Command
from seckill.roll_call import Answer, call_roll
from seckill.status import Status
from seckill.stream import EventKind

__all__ = ["Fenced", "check", "check_new", "fence"]

SEEN_MS: Final = 60_000
"""How old the time may get at which Redis was last seen, while nothing happens in a sale."""

LEDGER_NAME: Final = "0" * 16
"""How a ledger answers in a roll call, whichever keeper it is that answers."""

ENTRY_MAX: Final = 32
"""Events that share an entry, see lua/reserve.lua."""

_log = logging.getLogger("seckill.ledger")


class Fenced(msgspec.Struct, frozen=True):
    """A sale that is fenced, and why."""

    sale: str
    reason: str


async def check(engine: Engine, ledger: Ledger) -> list[Fenced]:
    """Fences every sale of which Redis has lost something; all sales that are fenced by now.

    Also writes down how far Redis is, so that after a loss the ledger knows what it never got.
    Sales that are removed are left alone, and of one that is settled nothing can be sold, unless it
    was made anew. Raises OtherLedger, LedgerUnavailable, LedgerRefused, RedisUnavailable.
    """
    await own(engine, ledger)
    rows = await _rows(ledger)
    fenced: list[Fenced] = []
    run_ids: dict[str, str] = {}
    lagging: list[str] = []
    for row, (header, entries) in zip(rows, await _looks(engine, rows), strict=True):
        try:
            found, seq = await _check(engine, ledger, row, header, entries)
            if not found and not row["is_over"]:
                # First, because on a new server nobody is told how far the replicas are before it
                # is trusted, and for that the ledger is waited for.
                answer = await _claim_if_new(engine, row, header[5], run_ids)
                if answer is not None and answer.status is Status.FENCED:
                    found = Fenced(row["sale"], answer.why)
                elif seq is not None and (answer is None or answer.status is Status.DONE):
                    await _keep_up(engine, ledger, row, seq, lagging)
        except (LedgerUnavailable, LedgerRefused, RedisUnavailable):
            raise
        except OutcomeUnknown as error:
            _log.warning("sale %s can't be looked at: %s", row["sale"], error)
            continue
        except Exception as error:  # noqa: BLE001 - a damaged sale must not hide the others
            _log.warning("sale %s can't be looked at: %r", row["sale"], error)
            continue
        fenced += [found] if found else []
    return fenced


async def _check(
    engine: Engine, ledger: Ledger, row: dict[str, Any], header: Any, entries: Any
) -> tuple[Fenced | None, int | None]:
    """Whether a sale is fenced by now, and how far it is where it has all that the ledger has."""
    for reply in (header, entries):
        if isinstance(reply, Exception):
            raise reply
    sale, (seq, made, state, reason, trimmed, _) = row["sale"], header
    if state == b"fenced":
        return Fenced(sale, (reason or b"").decode()), None
    is_same = made is not None and made.decode() == row["made"]
    if row["is_over"]:
        return None if is_same or made is None else await fence(engine, ledger, sale, made), None
    # What was seen of Redis was there, even if its events never came here.
    if not is_same or int(seq) < max(row["last"], row["seen_seq"]):
        return await fence(engine, ledger, sale, made), None
    if row["last"] > int(trimmed or 0) and not _has(row, entries):
        # Perhaps it was trimmed between the two answers.
        [(header, entries)] = await _looks(engine, [row])
        if row["last"] > int(header[4] or 0) and not _has(row, entries):
            forked = f"forked: event {row['last']} is not the one that the ledger has"
            return await fence(engine, ledger, sale, made, wanted=forked), None
    return None, int(seq)


async def _keep_up(
    engine: Engine, ledger: Ledger, row: dict[str, Any], seq: int, lagging: list[str]
) -> None:
    if (kept := await _kept_seq(engine, row, seq, lagging)) is not None:
        await _note(ledger, row, kept)


async def _kept_seq(
    engine: Engine, row: dict[str, Any], seq: int, lagging: list[str]
) -> int | None:
    """How far a sale is that no failover takes it back from, or None while the replicas are behind:
    nobody was told of what they have not, so it may be lost and nothing is missing. ``lagging`` are
    the sales of which that was found, and after the first nobody waits for another."""
    if not engine._calls.replicas or seq <= row["seen_seq"]:
        return seq
    keys = shard_keys(row["sale"])
    try:
        if not lagging:
            found, _ = await engine._calls.read_on_sale(keys, "HGET", keys[0], "seq")
            return int(found or 0)
    except OutcomeUnknown:
        lagging.append(row["sale"])
    return None


async def _claim_if_new(
    engine: Engine, row: dict[str, Any], trusted: bytes | None, run_ids: dict[str, str]
) -> Answer | None:
    """Says in the roll call of a server that is new what the ledger has of a sale, and what came of
    it; None where the server is trusted. ``run_ids`` are those of the servers that were asked
    already."""
    key = shard_keys(row["sale"])[0]
    server = engine._calls.servers.address(key)
    if server not in run_ids:
        run_ids[server] = await engine._calls.run_id(key)
    if run_ids[server] in ("", run_id_of((trusted or b"").decode())):
        return None
    seq = max(row["last"], row["seen_seq"])
    return await call_roll(
        engine._calls, row["sale"], LEDGER_NAME, made=row["made"], seq=seq, role="ledger"
    )


def _has(row: dict[str, Any], entries: Any) -> bool:
    """Whether Redis has the ledger's last event of a sale. It may have gone back and on again, and
    then that number is another event's."""
    for entry_id, fields in entries:
        for raw in raw_of(entry_id, fields):
            if raw.seq == row["last"]:
                return event_row(row["sale"], raw) == {
                    "sale": row["sale"],
                    "seq": row["last"],
                    **{name: row[name] for name in ("at_ms", "kind", "subject", "body")},
                }
    return False


async def check_new(engine: Engine, ledger: Ledger, sale: str) -> None:
    """To be asked before a sale is created. Raises InvalidInput when the ledger knows it and Redis
    does not: it was lost, and its units would be sold a second time; or it was removed, and the
    ledger would take none of its events. Raises OtherLedger when it would go to another one."""
    await check_mark(engine, ledger)
    try:
        row = await ledger.sale(sale)
    except UnknownSale:
        return
    client = engine._calls.client_of(shard_keys(sale)[0])
    if await engine._calls.attempt(lambda: client.exists(shard_keys(sale)[0])):
        return
    if row["removed_at_ms"]:
        raise InvalidInput("id", f"{sale!r} was a sale that is over and removed", "take another id")
    last_seq, _ = await ledger.last(sale)
    problem = f"Redis has lost {sale!r}, of which the ledger has {last_seq:,} events"
    raise InvalidInput("id", problem, f"bring it back with `seckill rebuild {sale}`")


async def fence(
    engine: Engine, ledger: Ledger, sale: str, made: bytes | None, *, wanted: str = ""
) -> Fenced | None:
    """Fences one sale if it has to be; None when nothing is wrong with it. ``made`` is what its
    header was just seen to have, None for no header; ``wanted`` is a reason to fence it all the
    same.

    The ledger is asked after that: a rebuild tells the ledger first which sale is the right one,
    so one that has just been rebuilt is never taken for a wrong one. Raises UnknownSale,
    UpgradeNeeded.
    """
    row = await ledger.sale(sale)
    if row["removed_at_ms"] and await _is_over(ledger, sale):
        return None
    known: Known = await ledger.known(sale)
    last_seq = max((await ledger.last(sale))[0], row["seen_seq"])
    status, reason, is_new = await fence_sale(
        engine._calls,
        known.sale,
        known.origin_ms,
        made=known.made,
        seq=last_seq,
        seen_made=(made or b"").decode(),
        wanted=wanted,
    )
    if status is not Status.FENCED:
        return None
    if is_new:
        _log.error("sale %s is fenced until `seckill rebuild %s`: %s", sale, sale, reason)
    return Fenced(sale, reason)


def _settled() -> ColumnElement[bool]:
    """Whether a sale's state is that it is settled, by the event that gave it. The row alone is not
    believed: whoever edits it would take the sale out of our sight."""
    of = EVENTS.alias()
    is_settled = or_(
        of.c.kind == str(EventKind.SALE_SETTLED),
        and_(of.c.kind == str(EventKind.SALE_REBUILT), of.c.body.like("%|settled|%")),
    )
    its_own = and_(of.c.sale == SALES.c.sale, of.c.seq == SALES.c.state_seq)
    return exists().where(its_own, is_settled).correlate(SALES)


async def _is_over(ledger: Ledger, sale: str) -> bool:
    query = select(func.count()).select_from(SALES).where(SALES.c.sale == sale, _settled())
    with our_errors():
        async with ledger.engine.connect() as connection:
            return bool(await connection.scalar(query))


async def _rows(ledger: Ledger) -> list[dict[str, Any]]:
    """What the ledger has of each sale that may still sell, without the bulk of its definition, and
    its last event."""
    of = EVENTS.alias()
    newest = select(func.max(of.c.seq)).where(of.c.sale == SALES.c.sale)
    last = and_(
        EVENTS.c.sale == SALES.c.sale,
        EVENTS.c.seq == newest.correlate(SALES).scalar_subquery(),
    )
    # A sale that was closed early would sell again if it were made anew.
    is_over = _settled()
    sells = or_(not_(is_over), SALES.c.ends_ms > int(time.time() * 1000))
    query = (
        select(
            *(SALES.c.sale, SALES.c.made, SALES.c.seen_seq, SALES.c.seen_at_ms),
            is_over.label("is_over"),
            func.coalesce(EVENTS.c.seq, 0).label("last"),
            *(EVENTS.c.at_ms, EVENTS.c.kind, EVENTS.c.subject, EVENTS.c.body),
        )
        .select_from(SALES.outerjoin(EVENTS, last))
        .where(sells, or_(SALES.c.removed_at_ms == 0, not_(is_over)))
        .order_by(SALES.c.sale)
    )
    with our_errors():
        async with ledger.engine.connect() as connection:
            return [dict(row) for row in (await connection.execute(query)).mappings()]


async def _looks(engine: Engine, rows: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    """Of each sale its header, and the entry of the stream in which the ledger's last event is."""
    asked: list[Command] = []
    for row in rows:
        words = ("seq", "made", "state", "reason", "trimmed_seq", "server")
        asked.append(("HMGET", shard_keys(row["sale"])[0], *words))
        at_ms, last = row["at_ms"] or 0, row["last"]
        # An entry is called by the last of its events.
        place = (f"{at_ms}-{last}", f"{at_ms}-{last + ENTRY_MAX}")
        asked.append(("XRANGE", stream_key(row["sale"]), *place, "COUNT", 1))
    found = await engine._calls.read_many(asked)
    return list(zip(found[::2], found[1::2], strict=True))


async def _note(ledger: Ledger, row: dict[str, Any], seq: int) -> None:
    """Writes down how far Redis is."""
    if seq > row["seen_seq"] or time.time() * 1000 - row["seen_at_ms"] >= SEEN_MS:
        await ledger.seen(row["sale"], seq)
