"""The relay: a delivery for each sale, for as long as this process has the sale's lease."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from seckill import redis as servers
from seckill.engine import Engine
from seckill.errors import SeckillError
from seckill.keys import shard_keys
from seckill.relay.delivery import Delivery
from seckill.relay.endpoint import Endpoint, Post
from seckill.relay.journal import Journal, LeaseLost
from seckill.relay.line import Office, Tally
from seckill.relay.pace import Pace, Turns
from seckill.sale import Sale

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["Relay", "Tally"]

LEASE_MS: Final = 6_000
CONNECTIONS: Final = 16
REFRESH_S: Final = 2.0
TROUBLE_MIN_S: Final = 0.2
TROUBLE_MAX_S: Final = 15.0
ONCE_TRIES: Final = 5

_log = logging.getLogger("seckill.relay")


class Relay:
    """Delivers the events of all sales, or of ``sales``, to one endpoint. New sales are picked up.

    ``once`` ends when nothing is left to deliver now. ``lease_ms`` is how long the sales of a relay
    that was killed wait for another one. The engine must be started; it belongs to the caller.
    """

    def __init__(
        self,
        engine: Engine,
        endpoint: Endpoint,
        *,
        sales: Sequence[str] = (),
        once: bool = False,
        pace: Pace | None = None,
        lease_ms: int = LEASE_MS,
    ) -> None:
        self._engine = engine
        self._endpoint = endpoint
        self._sales = tuple(sales)
        self._once = once
        self._pace = pace or Pace()
        self._lease_ms = lease_ms
        self._token = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}".encode()
        self._stopping = asyncio.Event()
        self.deliveries: dict[str, Delivery] = {}
        """The sales that are this relay's now."""
        self.turns = Turns(endpoint.in_flight, self._pace)
        self.tally = Tally()

    def stop(self) -> None:
        """Begins the end: attempts under way are finished, and written down."""
        self._stopping.set()
        for delivery in self.deliveries.values():
            delivery.stop()

    async def run(self) -> Tally:
        """Delivers until ``stop``, or with ``once`` until nothing is left.

        Raises UnknownSale for a sale that was named and does not exist, MissingExtra, and with
        ``once`` RedisUnavailable and the like. Else it waits for a server that is away.
        """
        for sale in self._sales:
            await self._engine.sale(sale)
        pool = servers.connect_pool(self._engine.url, connections=CONNECTIONS, timeout_s=None)
        try:
            async with Post(self._endpoint) as post:
                office = Office(self._endpoint, post, self.turns, self._pace, self.tally)
                await self._run(office, servers.connect_client(pool))
        finally:
            await pool.disconnect()
        return self.tally

    async def _run(self, office: Office, client: Redis) -> None:
        tasks: dict[str, asyncio.Task[None]] = {}
        try:
            while not self._stopping.is_set():
                tasks = {sale: task for sale, task in tasks.items() if not task.done()}
                for sale in await self._names():
                    if sale not in tasks:
                        tasks[sale] = asyncio.create_task(self._serve(sale, office, client))
                if self._once:
                    break
                await self._sleep(REFRESH_S)
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

    async def _serve(self, sale: str, office: Office, client: Redis) -> None:
        """One sale, again and again: whatever ends a delivery, its events are still there."""
        from redis.exceptions import RedisError

        trouble_s, tries, told = TROUBLE_MIN_S, 0, ""
        give_up_at = asyncio.get_running_loop().time() + self._lease_ms * 1.5 / 1000
        while not self._stopping.is_set():
            try:
                holder = await self._deliver(sale, office, client)
                if holder is None:
                    return
                if self._once and asyncio.get_running_loop().time() >= give_up_at:
                    self.tally.elsewhere += (sale,)
                    return
                if told != holder:
                    _log.info("sale %s: standing by, relay %s has it", sale, holder)
                told = holder
                trouble_s = TROUBLE_MIN_S
                await self._sleep(self._lease_ms / 3_000)
                continue
            except LeaseLost as error:
                problem = str(error)
            except (RedisError, OSError, EOFError, SeckillError) as error:
                tries += 1
                if self._once and tries >= ONCE_TRIES:
                    with servers.our_errors():
                        raise
                problem = str(error) or "Redis does not answer"
            except Exception as error:  # One sale's bug must not end the others.
                if self._once:
                    raise
                problem = f"a bug, please report it: {error!r}"
            _log.warning("sale %s is taken up anew: %s", sale, problem)
            await self._sleep(trouble_s)
            trouble_s = min(trouble_s * 2, TROUBLE_MAX_S)

    async def _deliver(self, sale: str, office: Office, client: Any) -> str | None:
        """Delivers until the end; or says who has the lease. None as well when there is no sale."""
        async with asyncio.timeout(servers.CONNECT_SECONDS):
            key = shard_keys(sale)[0]
            definition, origin_ms = await client.hmget(key, "definition", "origin_ms")
        if definition is None:
            return None
        journal = Journal(client, sale, self._token, lease_ms=self._lease_ms)
        if holder := await journal.acquire():
            return holder.decode(errors="replace")
        _log.info("sale %s: this relay has it", sale)
        # A read that blocks needs a connection of its own.
        pool = servers.connect_pool(self._engine.url, connections=1, timeout_s=None)
        try:
            reader = servers.connect_client(pool)
            known = Sale.from_definition(definition)
            delivery = Delivery(office, known, int(origin_ms), journal, client, reader)
            self.deliveries[sale] = delivery
            if self._stopping.is_set():
                delivery.stop()
            await delivery.run(once=self._once)
        finally:
            self.deliveries.pop(sale, None)
            await pool.disconnect()
        return None

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass
