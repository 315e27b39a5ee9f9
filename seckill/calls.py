"""Calls to the server that are not worth a lane: one command or script, retried until its time is
over. Every script may be repeated, so a lost answer is fetched by asking again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from seckill.durability import Durability, replicas_of
from seckill.errors import EngineClosed, OutcomeUnknown, RedisUnavailable, UnsuitableServer
from seckill.fencing import LOST, NewServer
from seckill.home import Home
from seckill.pipe import Errand, Pipe, seen
from seckill.redis import (
    CONNECT_SECONDS,
    ServerFacts,
    check_server,
    is_transient,
    refusal_of,
)
from seckill.scripts import script
from seckill.servers import Servers

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.connection import AbstractConnection

    from seckill.pools import Pool
    from seckill.redis import Command

__all__ = ["BACKOFF_MAX_S", "BACKOFF_MIN_S", "Calls"]

CONNECTIONS: Final = 32
BACKOFF_MIN_S: Final = 0.01
BACKOFF_MAX_S: Final = 0.25
LOOK_ON_S: Final = 1.0
_log = logging.getLogger("seckill.servers")
_CLOSED: Final = "the engine is not started; use `async with Engine(…)`"


class Calls:
    """The servers of one engine, reached through pools whose connections never retry by themselves.
    Scripts, and what is read of one order, go down a pipe that all callers share."""

    def __init__(self, *, timeout_ms: int) -> None:
        self._timeout_s = timeout_ms / 1000
        self._servers: Servers | None = None
        self._pipes: dict[Pool, Pipe] = {}
        self._watch: asyncio.Task[None] | None = None
        self._homes: dict[str, Home] = {}
        self.replicas = 0
        """How many must have what is answered."""
        self.on_new_server: Callable[..., None] = _nobody
        """Is told the sale's key when its server answered NEW_SERVER."""

    @property
    def servers(self) -> Servers:
        """Which server has what. Raises EngineClosed."""
        if self._servers is None:
            raise EngineClosed(_CLOSED)
        return self._servers

    def client_of(self, key: str) -> Redis:
        """A client of the server that has this key, whichever that is when a command is sent, for
        commands inside ``attempt``. Its methods raise EngineClosed, RedisUnavailable."""
        return cast("Redis", _Located(self, key))

    def home(self, sale_key: str) -> Home:
        """The server of a sale, and what was told of that sale."""
        home = self._homes.get(sale_key)
        if home is None:
            home = self._homes[sale_key] = Home(self, sale_key)
        return home

    def connection(self, key: str) -> AbstractConnection:
        """A connection of the caller's own, not yet connected. Raises EngineClosed."""
        return self.servers.pool(key).make_connection()

    def pipe(self, key: str) -> Pipe:
        """The pipe to the server that has this key. Raises EngineClosed."""
        pool = self.servers.pool(key)
        pipe = self._pipes.get(pool)
        if pipe is None:
            pipe = self._pipes[pool] = Pipe(pool, self._timeout_s, self.replicas)
        return pipe

    async def look(self) -> None:
        """Finds out which server has what, if that is in doubt. Raises RedisUnavailable."""
        await self.servers.look()
        for pool in [pool for pool in self._pipes if pool.is_retired]:
            # Whoever waits there meets a broken connection, and asks elsewhere.
            await self._pipes.pop(pool).let_go()

    def lost(self, key: str) -> None:
        """Whoever asked that server met an error which says "not here", or "not now"."""
        if self._servers is not None:
            self._servers.lost(key)

    async def let_go(self) -> None:
        """What is asked next in the pipes goes by new connections."""
        for pipe in list(self._pipes.values()):
            await pipe.let_go()

    def met_new_server(self, key: str, *, afresh: bool = True) -> None:
        """A script answered NEW_SERVER. ``afresh`` is whether our connections may be to blame."""
        self.on_new_server(key, afresh=afresh)

    async def open(
        self, url: str, durability: Durability, *, allow_unverified: bool
    ) -> ServerFacts:
        """Connects and checks the server.

        Raises UnsuitableServer, RedisUnavailable or InvalidInput (the URL).
        """
        # No timeout of redis-py's: every call and every batch here has one of its own.
        self._servers = Servers(url, connections=CONNECTIONS, timeout_s=None)
        self.replicas = replicas_of(durability)
        try:
            async with asyncio.timeout(max(CONNECT_SECONDS, self._timeout_s)):
                await self._servers.look()
                check = partial(
                    check_server,
                    durability=durability,
                    allow_unverified=allow_unverified,
                    in_cluster=self._servers.is_cluster,
                    may_move=self._servers.may_move,
                )
                facts = {name: await check(it) for name, it in self._servers.named_masters()}
        except TimeoutError:
            raise RedisUnavailable("the server does not answer") from None
        if self._servers.may_move:
            watching = self._look_on(self._servers, set(facts), check)
            self._watch = asyncio.get_running_loop().create_task(watching)
        if not facts:
            raise RedisUnavailable("no node of the cluster has any slots")
        return next(iter(facts.values()))

    async def _look_on(
        self, servers: Servers, checked: set[str], check: Callable[[Redis], Awaitable[ServerFacts]]
    ) -> None:
        """A master that hangs, or that only we still reach, breaks no connection: those who know
        better are asked all the time, and a new master's coming cuts what leads to the old one.

        A new one that may carry no sale is said to be so. It is sold on all the same: to end a sale
        in the middle is not for us to decide."""
        while True:
            await asyncio.sleep(LOOK_ON_S)
            servers.lost("")
            try:
                await self.look()
                masters = dict(servers.named_masters())
                for name in masters.keys() - checked:
                    async with asyncio.timeout(CONNECT_SECONDS):
                        await check(masters[name])
                    _log.warning("%s is a master now", name)
                    checked.add(name)
                checked &= masters.keys()
            except (RedisUnavailable, TimeoutError):
                pass  # Nobody knows yet, or it is only becoming one.
            except UnsuitableServer as error:
                checked.add(name)
                _log.error("%s is a master now, and should not be: %s", name, error)
            except Exception:  # noqa: BLE001 - whatever it is, who looks on must go on
                _log.exception("a look at the servers failed")

    async def aclose(self) -> None:
        """Disconnects. Can be repeated."""
        pipes, self._pipes = list(self._pipes.values()), {}
        for pipe in pipes:
            await pipe.aclose()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._watch = None
        known, self._servers = self._servers, None
        self._homes.clear()
        if known is not None:
            await known.aclose()

    async def run(self, verb: str, keys: tuple[str, ...], *args: Any) -> Any:
        """Runs a script. Raises what ``attempt`` raises."""
        reply, _ = await self.run_on_sale(verb, keys, *args)
        return reply

    async def run_on_sale(self, verb: str, keys: tuple[str, ...], *args: Any) -> tuple[Any, Any]:
        """``run``, and the definition id of the sale that was there right after it.

        Raises what ``attempt`` raises.
        """
        errand = Errand(self.home(keys[0]), ((keys, *args), seen(keys)), script(verb))
        reply, seen_now = await self.attempt(errand)
        errand.hear(seen_now)
        return reply, seen_now[0]

    async def run_anywhere(self, verb: str, keys: tuple[str, ...], *args: Any) -> Any:
        """``run`` for what is asked of a server that nobody trusts yet."""
        errand = Errand(self.home(keys[0]), ((keys, *args),), script(verb), trusting=True)
        return (await self.attempt(errand))[0]

    async def read_on_sale(self, keys: tuple[str, ...], *command: Any) -> tuple[Any, Any]:
        """The same for one command. Raises OutcomeUnknown, too, when nothing is found of a sale
        that is fenced, because that may be what its server has lost."""
        errand = Errand(self.home(keys[0]), (command, seen(keys)))
        reply, seen_now = await self.attempt(errand)
        errand.hear(seen_now)
        if reply is None and seen_now[3] == b"fenced":
            raise OutcomeUnknown(LOST)
        return reply, seen_now[0]

    async def read_many(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to commands on many keys, each its second word, in their order; error replies
        are exceptions among them. Raises what ``attempt`` raises."""
        if not commands:
            return []

        async def read() -> list[Any]:
            replies: dict[int, Any] = {}
            numbers = dict.fromkeys(range(len(commands)))
            for part in self.servers.apart(str(command[1]) for command in commands):
                keys = set(part)
                mine = [n for n in numbers if str(commands[n][1]) in keys]
                async with self.servers.client(part[0]).pipeline(transaction=False) as pipe:
                    for n in mine:
                        pipe.execute_command(*commands[n])
                    replies |= zip(mine, await pipe.execute(raise_on_error=False), strict=True)
            return [replies[n] for n in numbers]

        found: list[Any] = await self.attempt(read)
        return found

    async def run_id(self, key: str) -> str:
        """That of this key's server as it is now, which may have been restarted since we connected.
        Empty where it does not tell. Raises what ``attempt`` raises."""
        info = await self.attempt(lambda: self.client_of(key).info("server"))
        return str(info.get("run_id", ""))

    async def attempt(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Awaits ``call()``, again and again while the server is away, until the time is over. When
        it went wrong, it is found out first who the server is by now.

        Raises RedisUnavailable when nothing was ever sent, else OutcomeUnknown, also when the
        sale is fenced by the time of a second attempt; ServerFull and ScriptFailed at once.
        """
        from redis.exceptions import RedisError

        errand = call if isinstance(call, Errand) else _Pooled(call)
        give_up_s = monotonic() + self._timeout_s
        backoff_s = BACKOFF_MIN_S
        # Whether an attempt ended without an answer, so that it may have been executed.
        unsure = False
        while True:
            try:
                async with asyncio.timeout(max(0.0, give_up_s - monotonic())):
                    await self.look()
                    replies = await errand()
                if unsure and isinstance(errand, Errand) and errand.is_fenced(replies):
                    raise OutcomeUnknown(LOST)
                return replies
            except (RedisError, OSError, EOFError, NewServer, RedisUnavailable) as error:
                if isinstance(error, NewServer):
                    errand.sent = unsure
                elif isinstance(error, RedisUnavailable):
                    pass  # Nobody knows yet who the master is.
                elif not is_transient(error):
                    raise refusal_of(error) from None
                else:
                    self.lost("")
                unsure = errand.sent
                if monotonic() + backoff_s >= give_up_s:
                    if errand.sent:
                        said = f": {error}" if str(error) else ""
                        raise OutcomeUnknown(f"no answer in time{said}") from None
                    raise RedisUnavailable(_never_sent(error)) from None
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)


class _Located:
    """A client of whoever has a key by now."""

    def __init__(self, calls: Calls, key: str) -> None:
        self._calls = calls
        self._key = key

    def __getattr__(self, name: str) -> Any:
        return getattr(self._calls.servers.client(self._key), name)


class _Pooled:
    """A call that takes a connection of the pool. ``sent`` says whether it ever got one."""

    def __init__(self, call: Callable[[], Awaitable[Any]]) -> None:
        self._call = call
        self.sent = False

    async def __call__(self) -> Any:
        from seckill.pools import leaving

        token = leaving.set(self)
        try:
            return await self._call()
        finally:
            leaving.reset(token)


def _nobody(_key: str, *, afresh: bool) -> None:
    """Nobody wants to know."""


def _never_sent(error: Exception) -> str:
    if isinstance(error, NewServer):
        return str(error)
    if isinstance(error, TimeoutError):
        return "Redis had no time for this; nothing was sent"
    return f"no Redis answers there: {error}"
