"""What every consumer does: a delivery for each sale, for as long as this process has its lease."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from seckill import redis as servers
from seckill.consumer.delivery import Delivery
from seckill.consumer.journal import Journal, LeaseLost
from seckill.consumer.line import Attempt, Office, Tally
from seckill.consumer.pace import Pace, Turns
from seckill.durability import replicas_of
from seckill.engine import Engine
from seckill.errors import EventsTrimmed, SeckillError, UnknownSale
from seckill.keys import shard_keys, stream_key
from seckill.sale import Sale, check_key
from seckill.servers import OwnClient, Servers
from seckill.stream import join_group

if TYPE_CHECKING:
    pass

__all__ = ["LEASE_MS", "Runner"]

LEASE_MS: Final = 6_000
CONNECTIONS: Final = 16
STARTS: Final = 8
REFRESH_S: Final = 2.0
TROUBLE_MIN_S: Final = 0.2
TROUBLE_MAX_S: Final = 15.0
ONCE_TRIES: Final = 5

_log = logging.getLogger("seckill.consumer")


class Runner:
    """Hands the events of all sales, or of ``sales``, to ``attempt``. New sales are picked up.

    ``once`` ends when nothing is left to hand over now. ``lease_ms`` is how long the sales of a
    process that was killed wait for another one. The engine must be started; it belongs to the
    caller.
    """

    def __init__(
        self,
        engine: Engine,
        group: str,
        attempt: Attempt,
        *,
        sales: Sequence[str],
        once: bool,
        in_flight: int,
        give_up_s: float,
        after_trim: bool,
        pace: Pace | None,
        lease_ms: int,
    ) -> None:
        self._engine = engine
        self._group = check_key(group, "group")
        self._sales = tuple(sales)
        self._once = once
        self._after_trim = after_trim
        self._lease_ms = lease_ms
        self._token = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}".encode()
        self._journals = 0
        self._stopping = asyncio.Event()
        self.deliveries: dict[str, Delivery] = {}
        """The sales that are this process's now."""
        pace = pace or Pace()
        self.turns = Turns(in_flight, pace, group)
        self.tally = Tally()
        starts = asyncio.Semaphore(STARTS)
        shared = (group, attempt, self.turns, pace, starts, give_up_s, self.tally)
        self._office = Office(*shared, replicas_of(engine.durability))

    def stop(self) -> None:
        """Begins the end: attempts under way are finished, and written down."""
        self._stopping.set()
        for delivery in self.deliveries.values():
            delivery.stop()

    async def run(self) -> Tally:
        """Hands events over until ``stop``, or with ``once`` until nothing is left.

        Raises UnknownSale for a sale that was named and does not exist, EventsTrimmed, and with
        ``once`` RedisUnavailable and the like. Else it waits for a server that is away.
        """
        for sale in self._sales:
            await self._engine.sale(sale)
        where = Servers(self._engine.url, connections=CONNECTIONS, timeout_s=None)
        try:
            await self._run(where)
        finally:
            await where.aclose()
        return self.tally

    async def _run(self, where: Servers) -> None:
        tasks: dict[str, asyncio.Task[None]] = {}
        try:
            while not self._stopping.is_set():
                for sale in await self._names():
                    if sale not in tasks:
                        tasks[sale] = asyncio.create_task(self._serve(sale, where))
                if self._once:
                    break
                await self._sleep(REFRESH_S)
                for sale in [sale for sale, task in tasks.items() if task.done()]:
                    tasks.pop(sale).result()
            await asyncio.gather(*tasks.values())
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    async def _names(self) -> Sequence[str]:
        if self._sales:
            return self._sales
        try:
            return await self._engine.sales()
        except SeckillError as error:
            if self._once:
                raise
            _log.warning("the list of sales can't be read: %s", error)
            return ()

    async def _serve(self, sale: str, where: Servers) -> None:
        """One sale, again and again: whatever ends a delivery, its events are still there."""
        from redis.exceptions import RedisError

        name = f"{self._group}, sale {sale}"
        trouble_s, tries, told = TROUBLE_MIN_S, 0, ""
        give_up_at = asyncio.get_running_loop().time() + self._lease_ms * 1.5 / 1000
        while not self._stopping.is_set():
            try:
                await where.look()
                holder = await self._deliver(sale, where.client(stream_key(sale)))
                if holder is None:
                    return
                if self._once and asyncio.get_running_loop().time() >= give_up_at:
                    self.tally.elsewhere += (sale,)
                    return
                if told != holder:
                    _log.info("%s: standing by, process %s has it", name, holder)
                told = holder
                trouble_s = TROUBLE_MIN_S
                await self._sleep(self._lease_ms / 3_000)
                continue
            except EventsTrimmed:
                raise
            except UnknownSale:
                return  # It is gone. When it is made anew, it is found like any new one.
            except LeaseLost as error:
                problem = str(error)
            except (RedisError, OSError, EOFError, SeckillError) as error:
                where.lost(stream_key(sale))
                tries += 1
                if self._once and tries >= ONCE_TRIES:
                    with servers.our_errors():
                        raise
                problem = str(error) or "Redis does not answer"
            except Exception as error:  # One sale's bug must not end the others.
                if self._once:
                    raise
                problem = f"a bug, please report it: {error!r}"
            _log.warning("%s: taken up anew: %s", name, problem)
            await self._sleep(trouble_s)
            trouble_s = min(trouble_s * 2, TROUBLE_MAX_S)

    async def _deliver(self, sale: str, client: Any) -> str | None:
        """Delivers until the end; or says who has the lease. None as well when there is no sale."""
        self._journals += 1
        token = b"%b#%d" % (self._token, self._journals)
        journal = Journal(client, sale, self._group, token, lease_ms=self._lease_ms)
        async with self._office.starts:
            async with asyncio.timeout(servers.CONNECT_SECONDS):
                key = shard_keys(sale)[0]
                definition, origin_ms = await client.hmget(key, "definition", "origin_ms")
            if definition is None:
                return None
            # Before the lease, so that who can't go on doesn't keep it from others.
            await join_group(client, sale, self._group, after_trim=self._after_trim)
            if holder := await journal.acquire():
                return holder.decode(errors="replace")
        _log.info("%s, sale %s: this process has it", self._group, sale)
        # A read that blocks needs a connection of its own.
        async with OwnClient(self._engine.url, key, timeout_s=None) as reader:
            known = Sale.from_definition(definition)
            delivery = Delivery(self._office, known, int(origin_ms), journal, client, reader)
            self.deliveries[sale] = delivery
            try:
                if self._stopping.is_set():
                    delivery.stop()
                await delivery.run(once=self._once)
            finally:
                self.deliveries.pop(sale, None)
        return None

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass
