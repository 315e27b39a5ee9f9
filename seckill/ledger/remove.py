"""The end of a sale's life in Redis: once the ledger has all of it, its keys go.

    checked    settled, every event in the ledger, nobody has anything left to read
    archived   if that is wanted
    marked     in the ledger, before anything goes: a sale that is marked is missed by nobody
    unlinked   all keys at once, and only if nothing happened since the check

What is left is one small key which says that it was removed (``removed_key``). Cut off anywhere it
is repeated from the start and ends the same. Keys have no EXPIRE as a backstop:
a server frees what expires while everybody waits, 355 ms for a hash of a million fields, unless it
is told otherwise; and a date set by a crash would take away a sale that the ledger has no word of.
The backstop is ``remove_settled``, which looks at every sale again.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import and_, select, update

from seckill import redis as servers
from seckill.engine import Engine
from seckill.errors import SeckillError
from seckill.groups import groups
from seckill.keys import (
    LEDGER_GROUP,
    LEDGER_MARK,
    crew_key,
    drawing_key,
    group_keys,
    queue_keys,
    refusals_key,
    removed_key,
    shard_keys,
)
from seckill.keys import SALES as SALES_KEY
from seckill.ledger.archive import write_archive
from seckill.ledger.database import our_errors
from seckill.ledger.ledger import Ledger
from seckill.ledger.mark import refuse_other
from seckill.ledger.report import left_out
from seckill.ledger.tables import EVENTS, SALES
from seckill.refusals import refusals_json
from seckill.servers import Servers

if TYPE_CHECKING:
    pass

__all__ = ["REMEMBERED_MS", "CannotRemove", "Removed", "remove", "remove_settled"]

REMEMBERED_MS: Final = 30 * 24 * 3_600_000
"""How long an engine that was told of the sale finds out that it was removed, not lost. That is one
small key, which may go by itself."""

_log = logging.getLogger("seckill.ledger")

# They may have keys without having read anything.
_OWN_GROUPS: Final = (LEDGER_GROUP, "webhook")


class CannotRemove(SeckillError):
    """A sale must stay in Redis yet; the message says why. Nothing was changed."""

    def __init__(self, sale: str, problem: str) -> None:
        self.sale = sale
        super().__init__(f"sale {sale!r} can't be removed: {problem}")


class Removed(msgspec.Struct, frozen=True):
    """What was done. ``keys`` counts the keys that were there: 0 when they had gone before."""

    sale: str
    events: int
    keys: int
    archive: str = ""


async def remove(
    engine: Engine, ledger: Ledger, sale: str, *, archive: Path | None = None
) -> Removed:
    """Removes a settled sale from Redis; the ledger keeps it.

    Raises CannotRemove, UnknownSale (the ledger has no such sale), OtherLedger, OSError (the
    archive), RedisUnavailable, LedgerUnavailable.
    """
    row = await ledger.sale(sale)
    # Not the engine's own pool, whose connections wait without end.
    where = Servers(engine.url, connections=2, timeout_s=servers.CONNECT_SECONDS)
    try:
        with servers.our_errors():
            await where.look()
            await refuse_other(where.client(LEDGER_MARK), ledger)
        return await _Removal(where, ledger, row).run(archive)
    finally:
        await where.aclose()


async def remove_settled(engine: Engine, ledger: Ledger, *, before_ms: int) -> list[Removed]:
    """Removes all sales that were settled before this time; for whoever keeps the ledger to call
    now and then. What stands against one is logged, and it is tried again the next time."""
    query = (
        select(SALES.c.sale, SALES.c.removed_at_ms)
        .join(EVENTS, and_(EVENTS.c.sale == SALES.c.sale, EVENTS.c.seq == SALES.c.state_seq))
        .where(SALES.c.state == "settled", EVENTS.c.at_ms < before_ms)
        .order_by(SALES.c.sale)
    )
    with our_errors():
        async with ledger.engine.connect() as connection:
            rows = (await connection.execute(query)).all()
    # One that is marked and still listed was cut off; one that is marked and not listed is done.
    listed = set(await engine.sales())
    removed = []
    for name, removed_at_ms in rows:
        if removed_at_ms and name not in listed:
            continue
        try:
            removed.append(await remove(engine, ledger, name))
        except CannotRemove as error:
            _log.warning("%s", error)
    return removed


class _Header(msgspec.Struct, frozen=True):
    """What Redis says of a sale. ``seq`` is its last event."""

    state: str
    seq: int
    made: str


class _Removal:
    """One sale's removal."""

    def __init__(self, where: Servers, ledger: Ledger, row: dict[str, Any]) -> None:
        self._list: Any = where.client(SALES_KEY)
        self._client: Any = where.client(shard_keys(row["sale"])[0])
        self._ledger = ledger
        self._row = row
        self._sale: str = row["sale"]
        self._keys = shard_keys(self._sale)

    async def run(self, archive: Path | None) -> Removed:
        header = await self._header()
        if header is None:
            return await self._gone_already(archive)
        await self._check_header(header)
        await self._check_groups()
        await self._check_ledger(header.seq)
        with servers.our_errors():
            refusals = await refusals_json(self._client, self._sale)
        await self._ledger.seen(self._sale, header.seq)
        await self._ledger.refused(self._sale, refusals)
        if archive is not None:
            await write_archive(self._ledger, self._sale, archive, through_seq=header.seq)
        await self._mark(int(time.time() * 1000))
        keys = await self._unlink(header)
        return Removed(self._sale, header.seq, keys, str(archive or ""))

    async def _header(self) -> _Header | None:
        with servers.our_errors():
            state, seq, made = await self._client.hmget(self._keys[0], "state", "seq", "made")
        if state is None:
            return None
        return _Header(state.decode(), int(seq), made.decode())

    async def _check_header(self, header: _Header) -> None:
        if header.made != self._row["made"]:
            raise self._refusal("the one in Redis is another sale that was made under its id")
        if header.state == "closed":
            raise self._refusal(await self._unsettled())
        if header.state == "fenced":
            raise self._refusal(f"it is fenced; bring it back (seckill rebuild {self._sale})")
        if header.state != "settled":
            raise self._refusal(
                f"it is {header.state}; close it (seckill sale close), it is settled once nothing"
                " is held any more"
            )

    async def _unsettled(self) -> str:
        """What a sale that is closed waits for."""
        with servers.our_errors():
            fields = await self._client.hgetall(self._keys[1])
        held = sum(int(units) for name, units in fields.items() if name.endswith(b":held"))
        ways = (
            "they are paid, given up (seckill order release), or lapse at their deadline, which"
            " takes a program that sweeps: `seckill serve`, or an engine of yours"
        )
        return f"it is closed, and settled once no unit is held: {held} still are until {ways}"

    async def _check_groups(self) -> None:
        """Nobody has anything left to read, also not what was left lying."""
        with servers.our_errors():
            found = await groups(self._client, self._sale)
            lying = {
                name: int(await self._client.hlen(group_keys(self._sale, name).dead))
                for name in {*(group.name for group in found), *_OWN_GROUPS}
            }
        for group in found:
            # The ledger itself was asked what it has, which is what counts.
            if group.name != LEDGER_GROUP and (group.unread or group.pending):
                raise self._refusal(
                    f"group {group.name!r} has {group.unread} events unread and {group.pending}"
                    " entries pending; let its consumers finish, or drop it (seckill groups drop)"
                )
        for name, letters in sorted(lying.items()):
            if letters:
                raise self._refusal(
                    f"group {name!r} has {letters} dead letters; retry or drop them (seckill dead)"
                )

    async def _check_ledger(self, seq: int) -> None:
        events, _ = await self._ledger.counts(self._sale)
        last, _ = await self._ledger.last(self._sale)
        with our_errors():
            async with self._ledger.engine.connect() as connection:
                wanted = seq - await left_out(connection, self._sale)
        if (events, last) != (wanted, seq):
            raise self._refusal(
                f"the ledger has {events} of its {wanted} events; let `seckill ledger run` catch up"
            )

    async def _gone_already(self, archive: Path | None) -> Removed:
        """Redis has no such sale: it was removed before, or is lost. If the ledger has all of it,
        and it was settled, there is nothing to bring back."""
        last, _ = await self._ledger.last(self._sale)
        if self._row["state"] != "settled":
            raise self._refusal(
                f"Redis has lost it, and by the ledger it is {self._row['state']};"
                " bring it back (seckill rebuild)"
            )
        await self._check_ledger(max(last, self._row["seen_seq"]))
        if archive is not None:
            await write_archive(self._ledger, self._sale, archive, through_seq=last)
        if not self._row["removed_at_ms"]:
            await self._mark(int(time.time() * 1000))
        with servers.our_errors():
            keys = await self._client.unlink(*await self._all_keys())
            await self._remember(self._row["made"])
            await self._list.srem(SALES_KEY, self._sale)
        return Removed(self._sale, last, int(keys), str(archive or ""))

    async def _mark(self, at_ms: int) -> None:
        with our_errors():
            async with self._ledger.engine.begin() as connection:
                await connection.execute(
                    update(SALES).where(SALES.c.sale == self._sale).values(removed_at_ms=at_ms)
                )

    async def _unlink(self, header: _Header) -> int:
        """All keys in one step, unless something has happened since they were checked."""
        from redis.exceptions import WatchError

        with servers.our_errors():
            keys = await self._all_keys()
            async with self._client.pipeline(transaction=True) as pipe:
                await pipe.watch(self._keys[0])
                if await self._header() == header:
                    pipe.multi()
                    pipe.execute_command("UNLINK", *keys)
                    try:
                        [unlinked] = await pipe.execute()
                    except WatchError:
                        pass
                    else:
                        await self._remember(header.made)
                        # A listed sale that does not exist is harmless.
                        await self._list.srem(SALES_KEY, self._sale)
                        return int(unlinked)
        if await self._header() is None:
            return 0  # Somebody else has removed it at the same time.
        await self._mark(0)
        raise self._refusal("something has just happened in it; try again")

    async def _remember(self, made: str) -> None:
        """Says that this one was removed; after that, because of one that is there it must not be
        said, and because a full server has room then."""
        from redis.exceptions import OutOfMemoryError

        try:
            await self._client.set(removed_key(self._sale), made, px=REMEMBERED_MS)
        except OutOfMemoryError:
            _log.warning("sale %s: Redis is too full to note that it was removed", self._sale)

    async def _all_keys(self) -> list[str]:
        """Every key that there may be of the sale."""
        names = set(_OWN_GROUPS)
        if await self._client.exists(self._keys[-1]):
            found = await self._client.xinfo_groups(self._keys[-1])
            names |= {group["name"].decode("utf-8", "replace") for group in found}
        of_groups = [key for name in sorted(names) for key in group_keys(self._sale, name)]
        of_queue = (*queue_keys(self._sale), drawing_key(self._sale))
        return [*self._keys, crew_key(self._sale), refusals_key(self._sale), *of_queue, *of_groups]

    def _refusal(self, problem: str) -> CannotRemove:
        return CannotRemove(self._sale, problem)
