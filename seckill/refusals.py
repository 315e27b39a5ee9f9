"""How many orders of a sale were refused, by reason. Refusals leave no event, so they are counted:
here in each process, and put together in one hash of the sale a few seconds later.

What counts is the answer: who asks ten times for what is sold out counts ten. It is a figure for
the report and not for the books: a process that is killed takes with it what it counted since its
last flush, and so does a connection that breaks in one, because adding has no idempotency key.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from seckill import redis as servers
from seckill.errors import EngineClosed
from seckill.keys import refusals_key, shard_keys
from seckill.status import Status

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from seckill.calls import Calls

__all__ = ["Refusals", "read_refusals", "refusals_json"]

FLUSH_S: Final = 2.0
PATIENCE_S: Final = 1.0

_log = logging.getLogger("seckill.refusals")


class Refusals:
    """The refusals of one sale that this process has to tell yet.

    ``counts[status]`` grows where orders are answered, and is never set back. It is a list, because
    counting must not show beside an order that is refused from memory.
    """

    def __init__(self, sale: str, calls: Calls) -> None:
        self.counts = [0] * (max(Status) + 1)
        self._sale = sale
        self._calls = calls
        self._told = list(self.counts)
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Tells them every other second from now on."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        """Tells the last ones. Can be repeated."""
        self._ending.set()
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        # Woken instead of cancelled: what a flush had under way would be neither told nor kept.
        while not self._ending.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_S):
                    await self._ending.wait()
            try:
                await self.flush()
            except Exception:  # noqa: BLE001 - logged; no sale depends on these
                _log.exception("refusals of sale %s were not counted", self._sale)

    async def flush(self) -> None:
        """Adds what has changed to the sale's hash. What certainly did not arrive stays for the
        next time."""
        from redis.exceptions import RedisError

        before, now = self._told, list(self.counts)
        news = {each: now[each] - before[each] for each in Status if now[each] > before[each]}
        if not news:
            return
        self._told = now
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._add(news)
        except (RedisError, OSError, EngineClosed) as error:
            _log.debug("refusals of sale %s: %s", self._sale, error)
            if not servers.is_transient(error) or servers.never_connected(error):
                # The server said no (it is full, say), or nobody was there.
                self._told = before

    async def _add(self, news: dict[Status, int]) -> None:
        key = refusals_key(self._sale)
        client = self._calls.client_of(key)
        async with client.pipeline(transaction=True) as pipe:
            pipe.execute_command("EXISTS", shard_keys(self._sale)[0])
            for status, count in news.items():
                pipe.execute_command("HINCRBY", key, status.name.lower(), count)
            there, *_ = await pipe.execute()
        if not there:
            # The sale was removed meanwhile, and the next one of this id begins with nothing.
            await client.unlink(key)


async def read_refusals(client: Redis, sale: str) -> dict[str, int]:
    """The refusals of a sale by status, the most frequent first, as all processes have told them.
    Raises redis-py's exceptions."""
    found: Any = await client.hgetall(refusals_key(sale))
    counts = {name.decode(): int(count) for name, count in found.items()}
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


async def refusals_json(client: Redis, sale: str) -> str:
    """The same as the ledger keeps it (``Ledger.refused``)."""
    return msgspec.json.encode(await read_refusals(client, sale)).decode()
