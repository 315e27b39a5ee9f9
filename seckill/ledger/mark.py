"""Whose Redis this is: a mark in Redis names the one ledger that its sales go to.

    no mark         whoever writes or keeps a ledger leaves its own: a new server, or one wiped
    its own mark    all is well
    another's mark  OtherLedger: the two would share the events, each missing what the other took,
                    and fence each other's sales

The mark is the ledger's id, which is made with its tables. So a database that was moved, or was
restored from a backup, is the same ledger, and so is a copy of it: those can't be told apart.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from seckill.engine import Engine
from seckill.errors import SeckillError, ServerFull
from seckill.keys import LEDGER_MARK
from seckill.ledger.ledger import Ledger

__all__ = ["Mark", "OtherLedger", "adopt", "check_mark", "own", "read_mark", "refuse_other"]

_log = logging.getLogger("seckill.ledger")


class Mark(msgspec.Struct, frozen=True):
    """A ledger: its id, and where it was when the mark was made."""

    id: str
    name: str


class OtherLedger(SeckillError):
    """This Redis belongs to another ledger. Nothing was written, trimmed or fenced."""

    def __init__(self, theirs: Mark, ours: Mark) -> None:
        self.theirs = theirs
        self.ours = ours
        super().__init__(
            f"this Redis belongs to the ledger {theirs.name or theirs.id}, and {ours.name} is"
            " another one, which would take its events and fence its sales; name the right ledger"
            " (SECKILL_LEDGER, ledger.url) or the right Redis, or, if this one takes the other's"
            " place for good: seckill ledger adopt"
        )


async def read_mark(engine: Engine) -> Mark | None:
    """The ledger that this Redis belongs to; None as long as it belongs to none."""
    client = engine._calls.client_of(LEDGER_MARK)
    found: bytes | None = await engine._calls.attempt(lambda: client.get(LEDGER_MARK))
    return _mark(found)


async def check_mark(engine: Engine, ledger: Ledger) -> None:
    """For who only reads, or writes nothing that matters to a Redis without a mark. Raises
    OtherLedger, RedisUnavailable, LedgerUnavailable, LedgerRefused."""
    _compare(await read_mark(engine), await _mark_of(ledger))


async def refuse_other(client: Any, ledger: Ledger) -> None:
    """``check_mark`` by a client of the caller's own, inside ``servers.our_errors``."""
    _compare(_mark(await client.get(LEDGER_MARK)), await _mark_of(ledger))


async def own(engine: Engine, ledger: Ledger) -> None:
    """For who writes: leaves this ledger's mark where there is none. Raises as ``check_mark``."""
    ours = await _mark_of(ledger)
    _compare(await read_mark(engine) or await _mark_first(engine, ledger, ours), ours)


async def adopt(engine: Engine, ledger: Ledger) -> Mark | None:
    """From now on this Redis belongs to this ledger; the one that it belonged to, if any. Whoever
    keeps that one stops within seconds. Raises what a call to either side raises."""
    before, ours = await read_mark(engine), await _mark_of(ledger)
    await _calling(engine, "SET", LEDGER_MARK, _text(ours))
    return before


def _mark(found: bytes | None) -> Mark | None:
    if found is None:
        return None
    its_id, _, name = found.decode("utf-8", "replace").partition(" ")
    return Mark(its_id, name)


def _compare(theirs: Mark | None, ours: Mark) -> None:
    if theirs is not None and theirs.id != ours.id:
        raise OtherLedger(theirs, ours)


async def _mark_of(ledger: Ledger) -> Mark:
    return Mark(await ledger.identity(), ledger.name)


async def _mark_first(engine: Engine, ledger: Ledger, ours: Mark) -> Mark:
    try:
        is_first = await _calling(engine, "SET", LEDGER_MARK, _text(ours), "NX")
    except ServerFull:
        # It is marked later: what frees its memory, the trimming, must go on now.
        return ours
    if not is_first:
        return await read_mark(engine) or ours
    rows = [row for row in await ledger.sales() if not row["removed_at_ms"]]
    if rows and not await engine.sales():
        _log.warning(
            "this Redis has no sale and no mark of a ledger: it was wiped, or it is not the one"
            " of the ledger %s, whose sales (%d) are fenced here now",
            *(ours.name, len(rows)),
        )
    else:
        _log.info("this Redis belongs to the ledger %s from now on", ours.name)
    return ours


async def _calling(engine: Engine, *words: Any) -> Any:
    return await engine._calls.attempt(
        lambda: engine._calls.client_of(LEDGER_MARK).execute_command(*words)
    )


def _text(mark: Mark) -> str:
    return f"{mark.id} {mark.name}"
