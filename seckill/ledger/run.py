"""From the streams of all sales into the ledger, as one of the consumer group ``ledger``.

Any number of runners share the work: each entry goes to one of them, and is acknowledged after the
commit. What a runner that died had taken goes to another one. Nothing has to be in order, because
an order's row only moves up to a higher version; so an event that can't be written becomes a dead
letter by itself, and even the later events of its order go on.

While one batch is being written the next is read.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from seckill import redis as servers
from seckill.durability import replicas_of
from seckill.engine import Engine
from seckill.errors import (
    LedgerForked,
    LedgerRefused,
    LedgerUnavailable,
    RedisUnavailable,
    SeckillError,
    UnknownSale,
)
from seckill.keys import shard_keys, stream_key
from seckill.ledger.batch import Batch, batch_of, halves
from seckill.ledger.database import RowRefused
from seckill.ledger.fence import fence
from seckill.ledger.ledger import Ledger
from seckill.ledger.letters import GROUP, Letters, LettersFull
from seckill.ledger.mark import OtherLedger, own
from seckill.ledger.membership import count_left, join, sign_off
from seckill.ledger.reused import tell_fork
from seckill.ledger.rows import Known, Raw
from seckill.sale import Sale
from seckill.servers import Servers
from seckill.settling import read_settled

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["GROUP", "LedgerRunner", "Written"]

REFRESH_S: Final = 2.0
BLOCK_MS: Final = 500
PAUSE_S: Final = 0.05
PATIENCE_S: Final = 5.0
# Entries of one read, over all sales; an entry has up to 32 events.
READ_ENTRIES: Final = 128
# How long what another runner has taken is its own. Longer than any commit should last.
RECLAIM_MS: Final = 30_000
# How long a database may take over one batch before it counts as away.
COMMIT_S: Final = 15.0
TROUBLE_MIN_S: Final = 0.1
TROUBLE_MAX_S: Final = 1.0

_T = TypeVar("_T")

_log = logging.getLogger("seckill.ledger")


class Written(msgspec.Struct):
    """What a runner has done so far. ``dead``: events that became dead letters; ``left``: entries
    that were taken and not acknowledged, at the end of ``once``; ``forked``: sales left out,
    because the ledger tells another story of them."""

    events: int = 0
    batches: int = 0
    dead: int = 0
    left: int = 0
    forked: tuple[str, ...] = ()


class LedgerRunner:
    """Writes the events of all sales, or of ``sales``. New sales are picked up.

    Engine and ledger must be started; they belong to the caller. ``reclaim_ms`` is how long what
    a runner that died had taken waits for another one. ``patient``: a Redis that belongs to another
    ledger is waited for from the start.
    """

    def __init__(
        self,
        engine: Engine,
        ledger: Ledger,
        *,
        sales: Sequence[str] = (),
        once: bool = False,
        reclaim_ms: int = RECLAIM_MS,
        patient: bool = False,
        chores: Callable[[Callable[[str], Redis]], Awaitable[None]] | None = None,
    ) -> None:
        self._engine = engine
        self._ledger = ledger
        self._where = Servers(engine.url, connections=4, timeout_s=None)
        self._sales = tuple(sales)
        self._once = once
        self._reclaim_ms = reclaim_ms
        self._patient = patient
        self._chores = chores
        self._name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._stopping = asyncio.Event()
        self._known: dict[str, Known] = {}
        self._forked: dict[str, str] = {}
        self._told: dict[str, str] = {}
        self._own = True
        self._refresh_at = self._reclaim_at = 0.0
        self.written = Written()

    @property
    def sales(self) -> tuple[str, ...]:
        """The sales that are being written."""
        return tuple(self._known)

    def stop(self) -> None:
        """Begins the end: what was read is written and acknowledged."""
        self._stopping.set()

    async def run(self) -> Written:
        """Writes until ``stop``, or with ``once`` until nothing is left.

        With ``once`` raises what goes wrong; else it says so in the log and tries again. Raises
        OtherLedger if the Redis is another's from the start; it is waited for if it becomes so.
        """
        for sale in self._sales:
            try:
                await self._engine.sale(sale)
            except UnknownSale:
                # One that Redis has lost is to be fenced, see the chores.
                await self._ledger.sale(sale)
        trouble_s, told = TROUBLE_MIN_S, ""
        try:
            while not self._stopping.is_set():
                before = self.written.batches
                try:
                    with servers.our_errors():
                        await self._where.look()
                        await self._work()
                    break
                except SeckillError as error:
                    self._where.lost("")
                    is_others = isinstance(error, OtherLedger)
                    if self._once or (is_others and not self._patient):
                        raise
                    if self.written.batches > before:
                        trouble_s, told = TROUBLE_MIN_S, ""
                    if str(error) != told:
                        _log.warning("the ledger falls behind: %s", error)
                    told = str(error)
                    # Streams may be gone, or there anew.
                    self._refresh_at = 0.0
                    self._known.clear()
                    await self._sleep(trouble_s)
                    trouble_s = min(trouble_s * 2, TROUBLE_MAX_S)
        finally:
            await self._where.aclose()
        return self.written

    def _client(self, sale: str) -> Any:
        """A client of the server that has this sale."""
        return self._where.client(stream_key(sale))

    async def _work(self) -> None:
        """Reads and writes until the end, or until something is wrong."""
        reading: asyncio.Task[Batch | None] | None = None
        # What an attempt that went wrong had taken is still ours.
        self._own = True
        try:
            while reading is not None or not self._stopping.is_set():
                if reading is None:
                    await self._look_around()
                    reading = asyncio.create_task(self._read())
                batch = await reading
                reading = None
                if batch is None:
                    if self._once:
                        break
                    continue
                if not (self._own or self._stopping.is_set() or monotonic() >= self._refresh_at):
                    reading = asyncio.create_task(self._read())
                await self._write(batch)
            self.written.left = await count_left(self._client, self._known if self._once else ())
            await sign_off(self._client, self._known, self._name)
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    # -- which sales --------------------------------------------------------------------------

    async def _look_around(self) -> None:
        """Picks up new sales, and what else must be done from time to time."""
        if monotonic() < self._refresh_at:
            return
        # Each time: a wrong one would take events from the right one.
        await _in_time(own(self._engine, self._ledger))
        # From now on its keepers are waited for who are to come back.
        self._patient = True
        names = self._sales or await self._engine.sales()
        for name in set(self._known) - set(names):
            del self._known[name]
        for name in names:
            await self._tend(name)
        if self._chores is not None:
            await self._chores(self._client)
        self._refresh_at = monotonic() + REFRESH_S

    async def _tend(self, name: str) -> None:
        """Gets to know a sale, and tries its dead letters again. One whose keys are damaged is left
        out and holds up no other."""
        try:
            with servers.our_errors():
                await self._know(name)
                if known := self._known.get(name):
                    sent = await _in_time(self._letters(known).send_again())
                    self.written.events += sent
        except Exception as error:
            is_about_all = isinstance(error, (LedgerUnavailable, LedgerRefused, RedisUnavailable))
            if self._once or (is_about_all and not isinstance(error, RowRefused)):
                raise
            self._known.pop(name, None)
            self._tell(name, error)
        else:
            self._told.pop(name, None)

    async def _know(self, name: str) -> None:
        client = self._client(name)
        async with asyncio.timeout(PATIENCE_S):
            header = await client.hmget(
                shard_keys(name)[0], "definition", "origin_ms", "made", "state"
            )
        definition, origin_ms, made, state = header
        before = self._known.get(name)
        if None in header or state == b"fenced":
            self._known.pop(name, None)
            return
        if made.decode() in (before and before.made, self._forked.get(name)):
            return
        self._known.pop(name, None)
        known = Known(Sale.from_definition(definition), int(origin_ms), made.decode())
        try:
            await _in_time(self._ledger.know(known))
        except LedgerForked as error:
            await self._leave_out(known, error)
            return
        await join(client, self._ledger, name)
        self._forked.pop(name, None)
        self._known[name] = known
        # It may be here again, and what was taken of it before is still ours.
        self._own = True

    async def _leave_out(self, known: Known, error: LedgerForked, wanted: str = "") -> None:
        """Nothing more of this sale is written, and nothing is sold, until it was made anew, by
        `seckill rebuild`."""
        await tell_fork(self._ledger, error)
        self._forked[known.sale.id] = known.made
        self._known.pop(known.sale.id, None)
        self.written.forked = tuple(sorted(self._forked))
        # Not by what the sale is now: it may have been rebuilt since its events were read.
        made = known.made.encode()
        await fence(self._engine, self._ledger, known.sale.id, made, wanted=wanted)

    def _tell(self, name: str, error: Exception) -> None:
        if self._told.get(name) != str(error):
            _log.error("sale %r is left out for now: %s", name, error)
        self._told[name] = str(error)

    # -- reading ------------------------------------------------------------------------------

    async def _read(self) -> Batch | None:
        """The next entries: first what others have left lying, then what is new. None: nothing."""
        names = list(self._known)
        if not names:
            await self._sleep(0 if self._once else BLOCK_MS / 1000)
            return None
        first = ">"
        if self._own:
            first = "0"
        elif monotonic() >= self._reclaim_at:
            claimed = await self._reclaim(names)
            if claimed is not None:
                return claimed
            self._reclaim_at = monotonic() + self._reclaim_ms / 2_000
        batch = batch_of(await self._read_streams(names, ">" if first == ">" else "0"))
        if batch is None and self._own:
            self._own = False
            return await self._read()
        return batch

    async def _reclaim(self, names: Sequence[str]) -> Batch | None:
        """What a runner that died had taken."""
        for name in names:
            cursor: Any = b"0-0"
            while True:
                words = (GROUP, self._name, self._reclaim_ms, cursor, "COUNT", READ_ENTRIES)
                async with asyncio.timeout(PATIENCE_S):
                    what = ("XAUTOCLAIM", stream_key(name), *words)
                    reply = await self._settled(name, *what)
                cursor = reply[0]
                if batch := batch_of({name: reply[1]}):
                    return batch
                if cursor == b"0-0":
                    break
        return None

    async def _read_streams(self, names: Sequence[str], first: str) -> dict[str, Any]:
        """The next entries of each sale: all in one command, which waits for something new. In a
        cluster one command may name one sale only, so they are asked in turn, and none waits."""
        count = max(4, READ_ENTRIES // len(names))
        waits = not (self._once or self._own)
        found: dict[str, Any] = {}
        parts = [[name] for name in names] if self._where.is_cluster else [list(names)]
        for part in parts:
            block = ("BLOCK", BLOCK_MS) if waits and len(parts) == 1 else ()
            keys = [stream_key(name) for name in part]
            words = ("GROUP", GROUP, self._name, "COUNT", count, *block, "STREAMS", *keys)
            # Not redis-py's own timeout; see stream.py.
            async with asyncio.timeout(BLOCK_MS / 1000 + PATIENCE_S):
                what = ("XREADGROUP", *words, *(first for _ in keys))
                reply = await self._settled(part[0], *what)
            name_of = {key.encode(): name for key, name in zip(keys, part, strict=True)}
            found |= {name_of[key]: entries for key, entries in reply or ()}
        if waits and len(parts) > 1 and not found:
            await self._sleep(PAUSE_S)
        return found

    async def _settled(self, sale: str, *command: Any) -> Any:
        replicas = replicas_of(self._engine.durability)
        return await read_settled(self._client(sale), replicas, shard_keys(sale)[0], *command)

    # -- writing ------------------------------------------------------------------------------

    async def _write(self, batch: Batch) -> None:
        """Writes a batch and acknowledges it. Raises LedgerUnavailable after a while."""
        here = {name: raws for name, raws in batch.raws.items() if name in self._known}
        await self._put([(self._known[name], raws) for name, raws in here.items()])
        for name, ids in batch.entries.items():
            if name in self._known:
                async with asyncio.timeout(PATIENCE_S):
                    await self._client(name).xack(stream_key(name), GROUP, *ids)
        self.written.batches += 1

    async def _put(self, todo: list[tuple[Known, list[Raw]]]) -> None:
        """Writes events; halves those that can't be written until the culprits are found."""
        todo = [(known, raws) for known, raws in todo if known.sale.id in self._known]
        if not todo:
            return
        count = sum(len(raws) for _, raws in todo)
        try:
            await self._persist(todo)
        except LedgerForked as error:
            forked = f"forked: event {error.seq} is not the one that the ledger has"
            await self._leave_out(self._known[error.sale], error, forked)
            await self._put(todo)
        except (LookupError, ValueError, RowRefused) as error:
            if count == 1:
                await self._give_up(*todo[0], error)
                return
            for half in halves(todo):
                await self._put(half)
        else:
            self.written.events += count

    def _letters(self, known: Known) -> Letters:
        return Letters(self._client(known.sale.id), self._ledger, known)

    async def _give_up(self, known: Known, raws: list[Raw], error: Exception) -> None:
        """Makes a dead letter of an event. Leaves its sale out while it has too many of them."""
        try:
            await self._letters(known).keep(raws[0], error)
        except LettersFull as full:
            if self._once:
                raise
            self._known.pop(known.sale.id, None)
            self._tell(known.sale.id, full)
        else:
            self.written.dead += 1

    async def _persist(self, todo: list[tuple[Known, list[Raw]]]) -> None:
        """Again and again while the database is away, for as long as nobody else takes it on."""
        give_up_at = monotonic() + self._reclaim_ms / 2_000
        wait_s = TROUBLE_MIN_S
        while True:
            try:
                await _in_time(self._ledger.write(todo))
                return
            except LedgerUnavailable:
                if self._once or monotonic() + wait_s >= give_up_at or self._stopping.is_set():
                    raise
                await self._sleep(wait_s)
                wait_s = min(wait_s * 2, TROUBLE_MAX_S)

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass


async def _in_time(work: Awaitable[_T]) -> _T:
    """A database that hangs must not hold up the end."""
    try:
        async with asyncio.timeout(COMMIT_S):
            return await work
    except TimeoutError:
        raise LedgerUnavailable(f"the database took longer than {COMMIT_S:.0f} s") from None
