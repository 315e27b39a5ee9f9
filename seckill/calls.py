"""Calls to the server that are not worth a lane: one command or script, retried until its time is
over. Every script may be repeated, so a lost answer is fetched by asking again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from seckill import redis as servers
from seckill.errors import EngineClosed, OutcomeUnknown, RedisUnavailable
from seckill.scripts import FORMAT, script

if TYPE_CHECKING:
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.connection import AbstractConnection

__all__ = ["BACKOFF_MAX_S", "BACKOFF_MIN_S", "Calls"]

CONNECTIONS: Final = 32
BACKOFF_MIN_S: Final = 0.01
BACKOFF_MAX_S: Final = 0.25


class Calls:
    """One server, reached through a pool whose connections never retry by themselves."""

    def __init__(self, *, timeout_ms: int) -> None:
        self._timeout_s = timeout_ms / 1000
        self._pool: BlockingConnectionPool | None = None
        self._client: Redis | None = None

    @property
    def client(self) -> Redis:
        """The client, for one command inside ``attempt``. Raises EngineClosed."""
        if self._client is None:
            raise EngineClosed("the engine is not started; use `async with Engine(…)`")
        return self._client

    def connection(self) -> AbstractConnection:
        """A connection of the caller's own, not yet connected. Raises EngineClosed."""
        if self._pool is None:
            raise EngineClosed("the engine is not started; use `async with Engine(…)`")
        connection: AbstractConnection = self._pool.make_connection()
        return connection

    async def open(
        self, url: str, durability: servers.Durability, *, allow_unverified: bool
    ) -> servers.ServerFacts:
        """Connects and checks the server.

        Raises UnsuitableServer, RedisUnavailable or InvalidInput (the URL).
        """
        # No timeout of redis-py's: every call and every batch here has one of its own.
        self._pool = servers.connect_pool(url, connections=CONNECTIONS, timeout_s=None)
        client = servers.connect_client(self._pool)
        try:
            async with asyncio.timeout(max(servers.CONNECT_SECONDS, self._timeout_s)):
                facts = await servers.check_server(
                    client, durability, allow_unverified=allow_unverified
                )
        except TimeoutError:
            raise RedisUnavailable("the server does not answer") from None
        self._client = client
        return facts

    async def aclose(self) -> None:
        """Disconnects. Can be repeated."""
        pool, self._pool, self._client = self._pool, None, None
        if pool is not None:
            await pool.disconnect()

    async def run(self, verb: str, keys: tuple[str, ...], *args: Any) -> Any:
        """Runs a script. Raises what ``attempt`` raises."""
        from redis.exceptions import NoScriptError

        client = self.client
        code = script(verb)

        async def call() -> Any:
            try:
                return await client.evalsha(code.sha, len(keys), *keys, FORMAT, *args)
            except NoScriptError:
                return await client.eval(code.source, len(keys), *keys, FORMAT, *args)

        return await self.attempt(call)

    async def run_on_sale(self, verb: str, keys: tuple[str, ...], *args: Any) -> tuple[Any, Any]:
        """``run``, and the definition id of the sale that was there right after it.

        Raises what ``attempt`` raises.
        """
        from redis.exceptions import NoScriptError

        code = script(verb)
        rest = (len(keys), *keys, FORMAT, *args)

        async def call() -> tuple[Any, Any]:
            try:
                return await self._with_definition(keys, "EVALSHA", code.sha, *rest)
            except NoScriptError:
                return await self._with_definition(keys, "EVAL", code.source, *rest)

        replies: tuple[Any, Any] = await self.attempt(call)
        return replies

    async def read_on_sale(self, keys: tuple[str, ...], *command: Any) -> tuple[Any, Any]:
        """The same for one command."""
        replies: tuple[Any, Any] = await self.attempt(lambda: self._with_definition(keys, *command))
        return replies

    async def _with_definition(self, keys: tuple[str, ...], *command: Any) -> tuple[Any, Any]:
        # Both in one write and one read. Asked after the command, for a sale that takes another's
        # place in between must not pass for the one that answered.
        async with self.client.pipeline(transaction=False) as pipe:
            pipe.execute_command(*command)
            pipe.execute_command("HGET", keys[0], "definition_id")
            replies = await pipe.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies[0], replies[1]

    async def attempt(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Awaits ``call()``, again and again while the server is away, until the time is over.

        Raises RedisUnavailable when nothing was ever sent, else OutcomeUnknown; ServerFull and
        ScriptFailed at once.
        """
        from redis.exceptions import RedisError

        give_up_s = monotonic() + self._timeout_s
        backoff_s = BACKOFF_MIN_S
        sent = False
        while True:
            try:
                async with asyncio.timeout(max(0.0, give_up_s - monotonic())):
                    return await call()
            except (RedisError, OSError, EOFError) as error:
                if not servers.is_transient(error):
                    raise servers.refusal_of(error) from None
                sent = sent or not servers.never_connected(error)
                if monotonic() + backoff_s >= give_up_s:
                    if sent:
                        raise OutcomeUnknown(f"no answer in time: {error}") from None
                    raise RedisUnavailable(f"no Redis answers there: {error}") from None
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
