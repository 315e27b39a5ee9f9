"""Asks all engines what they were told, before a server is sold on that may have lost some of it.

Every engine that takes orders of a sale answers to its name once a second (lua/roll_call.lua), so
the sale knows who lives. A server that was restarted, or promoted, answers NEW_SERVER until
everyone who lived has said how far it was told, and it has all of that: then it is trusted. Else
the sale is fenced there, and `seckill rebuild` brings it back.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from seckill.calls import Calls
from seckill.errors import SeckillError
from seckill.fencing import fence_sale, run_id_of
from seckill.keys import LEDGER_MARK, crew_key, removed_key, shard_keys
from seckill.status import Status

if TYPE_CHECKING:
    from seckill.sale import Sale
    from seckill.shard import Shard

__all__ = ["WAIT_MS", "Answer", "RollCall", "call_roll"]

WAIT_MS: Final = 2_000
"""How long a new server waits for those who do not answer to their names."""
LAPSE_MS: Final = 5_000
CALL_S: Final = 1.0
AGAIN_S: Final = 0.05
# Who was told nothing new for longer than this knows less than the others, and need not be missed.
LATELY_S: Final = 2 * LAPSE_MS / 1000
# Whoever wants something of a server that is not trusted begins it again.
AGAIN_FOR_S: Final = 30.0

_log = logging.getLogger("seckill.fencing")
_HEADER: Final = re.compile(r"sk:\{(.+):0\}:sale")


class Answer(msgspec.Struct, frozen=True):
    """What a roll call came to: DONE when this server is trusted, NEW_SERVER when somebody has not
    answered yet, FENCED, UNKNOWN_SALE or UPGRADE_NEEDED. ``why`` is what is missing, or wrong;
    ``server`` is the name of one that is trusted."""

    status: Status
    seq: int
    made: str
    beat: int
    why: str
    server: str = ""


async def call_roll(
    calls: Calls,
    sale: str,
    name: str,
    *,
    made: str = "",
    seq: int = 0,
    teller: str = "",
    role: Literal["engine", "ledger"] = "engine",
    needs_ledger: bool = False,
    beat: int = 0,
    wait_ms: int = WAIT_MS,
    passed_ms: int = 0,
) -> Answer:
    """Answers to one's name, once; ``teller`` is the name of who told ``seq``. Raises what
    Calls.run raises."""
    keys = (*shard_keys(sale), crew_key(sale), removed_key(sale))
    options = (wait_ms, LAPSE_MS, role, int(needs_ledger), beat, passed_ms, teller)
    reply = await calls.run_anywhere("roll_call", keys, name, made, seq, *options)
    status, seq, made_here, beat, why, server = reply
    return Answer(Status(status), seq, made_here.decode(), beat, why.decode(), server.decode())


class _Known:
    """What this engine has said of one sale."""

    __slots__ = ("beat", "is_fenced", "seq", "since_s")

    def __init__(self) -> None:
        self.seq = -1
        self.since_s = 0.0
        self.beat = 0
        self.is_fenced = False


class RollCall:
    """One engine's part in it. ``shards`` are the sales that it knows, by id; ``forget`` drops one
    that was made anew."""

    def __init__(
        self,
        calls: Calls,
        shards: Callable[[], Mapping[str, Shard]],
        forget: Callable[[Shard], Awaitable[None]],
    ) -> None:
        self._calls = calls
        self._shards = shards
        self._forget = forget
        self._waits = True
        self._closed = False
        self._name = secrets.token_hex(8)
        self._known: dict[str, _Known] = {}
        self.created: dict[str, Sale] = {}
        """The sales that this engine has created, for it may have told somebody so."""
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._ticker: asyncio.Task[None] | None = None

    def start(self, *, waits: bool) -> None:
        """Begins to answer once a second, for what was sold lately. ``waits`` says whether others
        may have been told of what a new server has not: it waits for them, and for the ledger."""
        self._waits = waits
        self._closed = False  # An engine may be started again.
        self._calls.on_new_server = self._met
        self._ticker = asyncio.get_running_loop().create_task(self._tick())

    async def aclose(self) -> None:
        """Ends it. Can be repeated."""
        self._closed = True
        tasks = [task for task in (self._ticker, *self._asking.values()) if task is not None]
        self._ticker = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def answer(self, sale: str) -> Answer:
        """Answers for one sale. Raises what Calls.run raises."""
        home = self._calls.home(shard_keys(sale)[0])
        told = home.told
        known = self._known.setdefault(sale, _Known())
        seq = told.seq
        answer = await call_roll(
            self._calls,
            sale,
            self._name,
            made=told.made,
            seq=seq,
            teller=told.teller if seq else "",
            needs_ledger=await self._has_ledger(),
            beat=known.beat,
            wait_ms=WAIT_MS if self._waits else 0,
            passed_ms=home.patience.passed_ms,
        )
        if seq != known.seq:
            known.seq, known.since_s = seq, monotonic()
        if answer.status is Status.DONE:
            known.beat = max(known.beat, answer.beat)
            shard = self._shards().get(sale)
            if answer.made != told.made or (shard is not None and shard.made != answer.made):
                # Another sale under the same id.
                await self._begin_anew(sale, answer.made)
            told.trust(answer.server)
        elif answer.status is Status.UNKNOWN_SALE and seq:
            await self._begin_anew(sale)  # It was removed.
        elif answer.status is Status.FENCED and not known.is_fenced:
            _log.error("sale %s is fenced until `seckill rebuild %s`: %s", sale, sale, answer.why)
        elif answer.status is Status.NEW_SERVER and seq and await self._is_gone(sale):
            answer = await self._tell_gone(sale)
        known.is_fenced = answer.status is Status.FENCED
        return answer

    async def _has_ledger(self) -> bool:
        if not self._waits:
            return False
        return bool(
            await self._calls.attempt(
                lambda: self._calls.client_of(LEDGER_MARK).exists(LEDGER_MARK)
            )
        )

    def _met(self, sale_key: str, *, afresh: bool = True) -> None:
        """Somebody was answered NEW_SERVER. ``afresh`` asks by a new connection: those that are
        there may lead to another server than his."""
        found = _HEADER.fullmatch(sale_key)
        if found and not self._closed and found[1] not in self._asking:
            sale = found[1]
            task = asyncio.get_running_loop().create_task(self._ask_on(sale, afresh=afresh))
            self._asking[sale] = task
            task.add_done_callback(lambda _: self._asking.pop(sale, None))

    async def _ask_on(self, sale: str, *, afresh: bool) -> None:
        """Calls the roll until it comes to an end."""
        began_s, why = monotonic(), ""
        if afresh:
            await self._calls.let_go()
        while monotonic() < began_s + AGAIN_FOR_S:
            try:
                answer = await self.answer(sale)
                if answer.status is Status.DONE and why:
                    said = "sale %s: its server is new, and is trusted now, after %.1f s"
                    _log.warning(said, sale, monotonic() - began_s)
                if answer.status is not Status.NEW_SERVER:
                    return
                why = answer.why
            except SeckillError as error:
                why = str(error)
            await asyncio.sleep(AGAIN_S)
        _log.warning("sale %s: its server is new and not trusted yet: %s", sale, why)

    async def _is_gone(self, sale: str) -> bool:
        key = shard_keys(sale)[0]
        return not await self._calls.attempt(lambda: self._calls.client_of(key).exists(key))

    async def _tell_gone(self, sale: str) -> Answer:
        """A sale of which somebody was told is not there."""
        key, shard = shard_keys(sale)[0], self._shards().get(sale)
        definition = shard.sale if shard is not None else self.created.get(sale)
        told = self._calls.home(key).told
        if await self._calls.run_id(key) == run_id_of(told.teller):
            # The server that told of it is still the same, so somebody has removed the sale.
            await self._begin_anew(sale)
            return Answer(Status.UNKNOWN_SALE, 0, "", 0, "")
        if definition is None:
            return Answer(Status.NEW_SERVER, 0, "", 0, "the sale is not there")
        # Where it begins is written when it is created.
        origin_ms = shard.origin_ms if shard is not None else definition.opens_ms
        status, why, _ = await fence_sale(
            self._calls, definition, origin_ms, made=told.made, seq=told.seq
        )
        _log.error("sale %s is fenced until `seckill rebuild %s`: %s", sale, sale, why)
        return Answer(status, 0, "", 0, why)

    async def _begin_anew(self, sale: str, made: str = "") -> None:
        told = self._calls.home(shard_keys(sale)[0]).told
        if told.made != made:
            told.forget(made)
        self._known.pop(sale, None)
        shard = self._shards().get(sale)
        if shard is not None and shard.made != made:
            await self._forget(shard)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(CALL_S)
            for sale in list(self._shards()):
                key = shard_keys(sale)[0]
                known = self._known.setdefault(sale, _Known())
                seq = self._calls.home(key).told.seq
                lately = seq != known.seq or known.since_s + LATELY_S > monotonic()
                if seq and lately:
                    self._met(key, afresh=False)
