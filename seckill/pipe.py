"""Commands of many callers down two connections, for calls that are not worth a lane of their own.

Whatever waits when a connection is free leaves in one write, and its answers are read one after the
other: so a thousand callers wait as long as one where an answer takes its time, be it the network's
or the disk's. Alone you wait for nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import chain, islice
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from seckill.errors import EngineClosed, OutcomeUnknown
from seckill.fencing import LEFT, Greeting, NewServer, run_id_of
from seckill.redis import Command, is_transient
from seckill.scripts import Script
from seckill.settling import ask_settled
from seckill.status import Status

if TYPE_CHECKING:
    from redis.asyncio import BlockingConnectionPool
    from redis.asyncio.connection import AbstractConnection

    from seckill.home import Home

__all__ = ["Errand", "Pipe", "seen"]

SLOTS: Final = 2
# What a script's reply begins with when it did nothing.
_NEW_SERVER: Final = [int(Status.NEW_SERVER)]
_FENCED: Final = [int(Status.FENCED)]
BATCH_MAX: Final = 256

Commands = Sequence[Command]


def seen(keys: tuple[str, ...]) -> Command:
    """What to ask of a sale behind a command, in the same write: another sale that takes its place
    in between must not pass for the one that answered. Its definition's id, the seq that the caller
    is told of, the server that was trusted with it, its state, what tells it from others, and the
    servers before."""
    return ("HMGET", keys[0], "definition_id", "seq", "server", "state", "made", "servers")


class Errand:
    """One caller's commands, which are executed in this order but not as one. Awaiting a call of it
    sends them; it can be called again. The first may be a call of a ``script``, whose first
    argument, the caller's words, is known when there is a connection; else the last is ``seen``.
    ``trusting`` is for what may be asked of any server. ``sent`` says whether any of them ever
    left, ``run_id`` which server they went to. A call raises NewServer when a server did
    nothing, or is not to be believed."""

    def __init__(
        self,
        home: Home,
        commands: Commands,
        script: Script | None = None,
        *,
        trusting: bool = False,
    ) -> None:
        self.home = home
        self.script = script
        self.sent = False
        self._trusting = trusting
        self.run_id = self._trusted = ""
        self._commands = commands
        self._brings_source = False

    async def __call__(self) -> list[Any]:
        """The replies. Raises redis-py's exceptions: the first of an error reply, or the one that
        broke the connection."""
        from redis.exceptions import ConnectionError as BrokenConnection
        from redis.exceptions import NoScriptError

        replies = await self.home.pipe().exchange(self)
        if isinstance(replies[0], NoScriptError) and not self._brings_source:
            # The script was forgotten once more while it was told.
            self._brings_source = True
            replies = await self.home.pipe().exchange(self)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        if self.home.told.has_left(self._trusted, self.run_id):
            raise BrokenConnection(LEFT)
        if not self._trusting and self._is_new(replies):
            self.home.met_new_server()
            raise NewServer
        return replies

    def _is_new(self, replies: list[Any]) -> bool:
        """Whether the server is not known to have all that was told. A script says so by itself;
        beside other commands stands what is ``seen``."""
        if self.script is not None:
            return isinstance(replies[0], list) and replies[0][:1] == _NEW_SERVER
        _, seq, server, state, _, servers = replies[-1]
        if state == b"fenced":
            return False  # That has been found out, and what is missing there is said to be.
        name, before = (server or b"").decode(), (servers or b"").decode()
        is_other = server is not None and self.run_id not in ("", run_id_of(name))
        return is_other or self.home.told.is_missed_by(name, int(seq or 0), before)

    def hear(self, seen: list[Any]) -> None:
        """The caller is told what a server said that is trusted; ``seen`` stood behind it. What
        only looks at a sale is answered by any server: one that lacks what was told before is asked
        in a roll call, and what it says now does not make that forgotten."""
        _, seq, server, state, made, servers = seen
        name = (server or b"").decode()
        if server is None or self.run_id not in ("", run_id_of(name)) or state == b"fenced":
            return
        told = self.home.told
        if told.is_missed_by(name, int(seq), (servers or b"").decode()):
            self.home.met_new_server()
            return
        if made is not None and made.decode() != told.made:
            # Nothing is missing, so it has taken the other one's place by right.
            told.forget(made.decode())
        told.server = name
        told.note(int(seq), name)

    def is_fenced(self, replies: list[Any]) -> bool:
        """Whether a script did nothing because its sale is fenced."""
        if self._trusting or self.script is None:
            return False
        return isinstance(replies[0], list) and replies[0][:1] == _FENCED

    def commands(self, greeting: Greeting, *, source: bool = False) -> Commands:
        """The commands for that server; ``source`` if it does not know the script."""
        self.run_id, self._trusted = greeting.run_id, self.home.told.server
        if self.script is None:
            return self._commands
        (keys, *args), *then = self._commands
        words = greeting.words(self.home.told)
        if source or self._brings_source:
            call: Command = ("EVAL", self.script.source, len(keys), *keys, words, *args)
        else:
            call = ("EVALSHA", self.script.sha, len(keys), *keys, words, *args)
        return (call, *then)


_Waiting = tuple[Errand, "asyncio.Future[list[Any]]", float]
"""An errand, its caller's future, and when its caller has given up at last (monotonic seconds)."""


class Pipe:
    """Not thread-safe: it belongs to one event loop. Its connections are made as ``pool`` makes
    them, but are none of the pool's. Whoever waits gives up by cancelling, after ``timeout_s`` at
    the latest. ``replicas`` is how many must have what is answered, see settling.py."""

    def __init__(self, pool: BlockingConnectionPool, timeout_s: float, replicas: int) -> None:
        self._timeout_s = timeout_s
        self._waiting: deque[_Waiting] = deque()
        self._idle = [_Slot(pool, replicas) for _ in range(SLOTS)]
        self._busy: set[asyncio.Task[None]] = set()
        self._closed = False

    async def exchange(self, errand: Errand) -> list[Any]:
        """Sends the errand's commands and returns their replies; an error reply is an exception
        among them. Raises redis-py's exceptions for a connection that breaks, EngineClosed."""
        if self._closed:
            raise EngineClosed("the engine was stopped; nothing was sent")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        self._waiting.append((errand, future, monotonic() + self._timeout_s))
        if self._idle:
            task = loop.create_task(self._serve(self._idle.pop()))
            self._busy.add(task)
            task.add_done_callback(self._busy.discard)
        return await future

    async def let_go(self) -> None:
        """Hangs up where nothing is under way; its server may be no longer the one to talk to."""
        for slot in self._idle:
            await slot.drop()

    async def aclose(self) -> None:
        """Disconnects; who waits is told so. Can be repeated."""
        self._closed = True
        for _, future, _ in self._waiting:
            if not future.done():
                future.set_exception(EngineClosed("the engine was stopped; nothing was sent"))
        self._waiting.clear()
        for task in self._busy:
            task.cancel()
        await asyncio.gather(*self._busy, return_exceptions=True)
        for slot in self._idle:
            await slot.drop()

    async def _serve(self, slot: _Slot) -> None:
        """Sends what waits until nothing does."""
        batch: list[_Waiting] = []
        try:
            while batch := self._take():
                try:
                    # Everybody here has given up by then, so this connection is of no use.
                    async with asyncio.timeout(batch[-1][2] - monotonic()):
                        connection = await slot.connect()
                        # Who gave up meanwhile was told that nothing was sent, and so it must be.
                        batch = self._still_waiting(batch)
                        if not batch:
                            continue
                        errands = [errand for errand, _, _ in batch]
                        replies = await slot.exchange(connection, errands)
                except Exception as error:  # noqa: BLE001 - every caller is told, and judges it
                    # Whatever was in this socket must not be read as the answer to the next batch.
                    await slot.drop()
                    for _, future, _ in batch:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for (_, future, _), reply in zip(batch, replies, strict=True):
                    if not future.done():
                        future.set_result(reply)
        except asyncio.CancelledError:
            await slot.drop()
            for _, future, _ in batch:
                if not future.done():
                    future.set_exception(OutcomeUnknown("the engine was stopped before the answer"))
            raise
        finally:
            self._idle.append(slot)

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        now_s = monotonic()
        while self._waiting and len(batch) < BATCH_MAX:
            errand, future, give_up_s = self._waiting.popleft()
            # Who has given up, or is about to, is not sent any more: nobody would learn of it.
            if not future.done() and give_up_s > now_s:
                batch.append((errand, future, give_up_s))
        return batch

    @staticmethod
    def _still_waiting(batch: list[_Waiting]) -> list[_Waiting]:
        now_s = monotonic()
        return [each for each in batch if not each[1].done() and each[2] > now_s]


class _Slot:
    """One connection, made when it is needed."""

    def __init__(self, pool: BlockingConnectionPool, replicas: int) -> None:
        self._pool = pool
        self._replicas = replicas
        self._greeting = Greeting()
        self._connection: AbstractConnection | None = None

    async def connect(self) -> AbstractConnection:
        """The connection. It may take long to make."""
        connection = self._connection
        if connection is None:
            # Kept before it is connected, so that drop() closes a half-open one.
            connection = self._connection = self._pool.make_connection()
            self._greeting.meet(connection)
        # Connects it, too. One that the server has closed meanwhile is noticed here, where it is
        # certain yet that nothing was sent.
        await self._pool.ensure_connection(connection)
        return connection

    async def exchange(
        self, connection: AbstractConnection, errands: list[Errand]
    ) -> list[list[Any]]:
        """The replies to each errand's commands."""
        from redis.exceptions import NoScriptError

        for errand in errands:
            errand.sent = True
        replies = await self._ask(connection, errands)
        unknown = [n for n, told in enumerate(replies) if isinstance(told[0], NoScriptError)]
        if unknown:
            told = await self._ask(connection, [errands[n] for n in unknown], again=True)
            for n, reply in zip(unknown, told, strict=True):
                replies[n] = reply
        if any(_tells_to_leave(reply) for told in replies for reply in told):
            await self.drop()
        return replies

    async def _ask(
        self, connection: AbstractConnection, errands: list[Errand], *, again: bool = False
    ) -> list[list[Any]]:
        # When scripts are unknown, one of each brings its source along, and with it all who come
        # after it.
        told: set[Script | None] = set()
        asked: list[Commands] = []
        for errand in errands:
            source = again and errand.script not in told
            told.add(errand.script)
            asked.append(errand.commands(self._greeting, source=source))
        commands = [*chain.from_iterable(asked)]
        first, *others = dict.fromkeys(errand.home.sale_key for errand in reversed(errands))
        rest = iter(await ask_settled(connection, commands, self._replicas, first, others=others))
        return [list(islice(rest, len(commands))) for commands in asked]

    async def drop(self) -> None:
        """Hangs up. Can be repeated."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)


def _tells_to_leave(reply: Any) -> bool:
    """A server that is a replica now, say: another connection may lead to one that is not."""
    return isinstance(reply, Exception) and is_transient(reply)
