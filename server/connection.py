"""Connections: slow clients are cut, and an end is announced before it comes.

aiohttp lets a client take as long for the head of a request as it keeps idle connections, and for
reading an answer as long as it likes. ``Connections`` gives both a limit. One timer looks at those
that are late; a request that comes whole costs it two attributes.

At the end every open connection first gets one more answer, which says ``Connection: close``.
aiohttp would close idle connections at once, also those on which the next request is already on its
way, and its client would never know whether that was done.

What of aiohttp is used here and is not documented: ``RequestHandler._waiter`` (pending while a
connection waits for a request), ``_request_handler`` (what is called for each request),
``_messages`` with ``_ErrInfo`` (what was read and not answered), ``resume_reading`` with
``_reading_paused``, ``data_received`` with nothing (which reads what its parser has left),
``_process_keepalive`` with ``_next_keepalive_close_time`` and ``_keepalive_timeout``, and
``AppRunner._make_server``.
tests/web/test_slow_clients.py fails when one of them changes.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from asyncio import Future
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from aiohttp import web
from aiohttp.web_protocol import _ErrInfo

from .intake import INTAKE
from .listen import BACKLOG, address_of
from .rounds import Rounds
from .settings import Server
from .sockets import SOCKETS

__all__ = ["Connection", "Connections", "Handler", "Runner"]

_log = logging.getLogger("seckill.server")

# How long idle connections are kept at the end for a request that may be on its way.
LINGER_S: Final = 1.0
POLL_S: Final = 0.05
# More at a time is quicker, fewer are shared more evenly.
ACCEPT_MAX: Final = 4
PAUSE_S: Final = 1.0
# How long the rest of a body that was refused may take before its connection is cut.
UNREAD_S: Final = 1.0
# What waits for a later round of the event loop is small; whoever sends more is read at once.
LATER_BYTES_MAX: Final = 8_192
# Of the garbage collector, see Runner.setup.
GC_THRESHOLDS: Final = (5_000, 10, 10)
# What is still under way after ``drain_s`` gets this long to be cancelled in good order.
CANCEL_S: Final = 0.5

# A body would say nothing more; whoever can't send a head in time won't read one.
_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Connection(web.RequestHandler):
    """One connection."""

    __slots__ = ("_broken", "_connections", "_early_head", "_later", "_rounds", "_stuck")

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(connections, **options)
        self._connections = connections
        self._rounds = connections.rounds
        # What came when this round of the event loop had enough to do. None: it is due no turn.
        self._later: bytes | None = None
        self._stuck: object = None
        self._broken = False
        # Whether a part of a head came before aiohttp's handling began to wait for one.
        self._early_head = False

    @property
    def waiter(self) -> Future[None] | None:
        """What this connection waits on while it has no whole request."""
        waiter = self._waiter
        return None if waiter is None or waiter.done() else waiter

    @property
    def stuck(self) -> object:
        """A token of the present time in which the client does not read, or None."""
        return self._stuck

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request of which nothing has come, as far as aiohttp was told."""
        return self.waiter is not None and not self._later

    def data_received(self, data: bytes) -> None:
        """Part of asyncio.Protocol."""
        if not data:
            # aiohttp asks itself for what its parser has left, and goes by what it then finds.
            self.received(data)
        elif self._later is not None:
            self._later += data
            if len(self._later) > LATER_BYTES_MAX:
                self.catch_up()
        elif len(data) > LATER_BYTES_MAX or self._rounds.mine(self):
            self.received(data)
        else:
            self._later = data

    def turn(self) -> None:
        """Part of rounds.Turn: reads what has waited."""
        self.catch_up()
        self._later = None

    def catch_up(self) -> None:
        """Reads what waits, before its turn. That is still to come, so that whoever sends much has
        no more turns than others."""
        if not self._later:
            return
        data, self._later = self._later, b""
        try:
            self.received(data)
        except Exception:  # noqa: BLE001 - logged, and the client is told
            # As a transport does it. The others of this round have their turn all the same.
            _log.exception("a connection could not be read")
            self.abort()

    def eof_received(self) -> None:
        """Part of asyncio.Protocol: what came before the end was meant."""
        self.catch_up()
        super().eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Part of asyncio.Protocol. Nobody is there to hear an answer to what was not read."""
        self._later = None
        super().connection_lost(exc)

    def received(self, data: bytes) -> None:
        """Reads what has come."""
        self.parse(data)
        if (waiter := self.waiter) is not None:
            self.began(waiter)
        elif self.is_new:
            self.watch_soon()

    @property
    def is_new(self) -> bool:
        """Whether nothing whole has come before aiohttp's handling waits for it. On uvloop what a
        client sends with its connection does."""
        return self._waiter is None and not self._messages and not self._request_in_progress

    def began(self, waiter: Future[None]) -> None:
        """A head has begun that is not whole. ``waiter`` waits for it."""
        self._connections.heads.watch(self, waiter)

    def watch_soon(self) -> None:
        """The same, when nobody waits yet."""
        self._early_head = True
        # After the first step of aiohttp's handling, which was due before anything was read.
        self._loop.call_soon(self._watch_early)

    def _watch_early(self) -> None:
        if self._early_head and (waiter := self.waiter) is not None:
            self.began(waiter)

    def parse(self, data: bytes) -> None:
        """Lets aiohttp have what was read, unless it could make nothing of what was before."""
        self._early_head = False
        if self._broken:
            return
        super().data_received(data)
        # After one error aiohttp would make another of every piece that follows, and keep them all.
        messages = self._messages
        if messages and type(messages[-1][0]) is _ErrInfo:
            self._broken = True

    def _process_keepalive(self) -> None:
        """Part of aiohttp's RequestHandler: closes this connection if it is idle."""
        if self._later:
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Part of aiohttp's BaseProtocol, which is told so at the end of every body, and would go
        and parse nothing even where nobody had paused it. Its parser stops at 32 requests, or one
        before where a body came after its head was taken, and goes on only here."""
        if self._reading_paused or self._messages:
            super().resume_reading(resume_parser)

    def pause_writing(self) -> None:
        """Part of asyncio.Protocol: the client does not read."""
        super().pause_writing()
        self._stuck = object()
        self._connections.writers.watch(self, self._stuck)

    def resume_writing(self) -> None:
        """Part of asyncio.Protocol."""
        self._stuck = None
        super().resume_writing()

    def refuse(self) -> None:
        """Cuts a client that does not finish the head of its request."""
        if self._later:
            # What waits for its turn has come in time.
            waiter, data, self._later = self.waiter, self._later, b""
            self.parse(data)
            if self.waiter is not waiter:
                return
        if self.transport is not None:
            self.transport.write(_TOO_SLOW)
        self.force_close()

    def abort(self) -> None:
        """Cuts a client with all that is on its way to it."""
        transport = self.transport
        self.force_close()
        if transport is not None:
            # uvloop's transports are asyncio's by what they can do, not by their class.
            transport.abort()

    def answer_by(self, handler: Handler) -> None:
        """Lets another handler answer the next request."""
        self._request_handler = handler


class Watch:
    """Connections in a state that must be over in ``seconds``, in order, with one timer for all.

    A token names a state: ``is_same`` tells later whether the connection is still in it.
    """

    def __init__(
        self,
        seconds: float,
        is_same: Callable[[Connection, object], bool],
        cut: Callable[[Connection], None],
    ) -> None:
        self._seconds = seconds
        self._is_same = is_same
        self._cut = cut
        self._loop = asyncio.get_running_loop()
        self._watched: OrderedDict[Connection, tuple[object, float]] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def __contains__(self, connection: Connection) -> bool:
        watched = self._watched.get(connection)
        return watched is not None and self._is_same(connection, watched[0])

    def watch(self, connection: Connection, token: object) -> None:
        """From now on, or for as long as this very state has been watched already."""
        watched = self._watched.get(connection)
        if watched is not None:
            if watched[0] is token:
                return
            del self._watched[connection]
        due_s = self._loop.time() + self._seconds
        self._watched[connection] = (token, due_s)
        if self._timer is None:
            self._timer = self._loop.call_at(due_s, self._look)

    def forget(self, connection: Connection) -> None:
        """The connection has ended."""
        self._watched.pop(connection, None)

    def stop(self) -> None:
        """There is nothing left to look at."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        now_s = self._loop.time()
        self._timer = None
        while self._watched:
            connection, (token, due_s) = next(iter(self._watched.items()))
            if due_s > now_s:
                # A flood of slow clients is looked at ten times a second and no oftener.
                self._timer = self._loop.call_at(max(due_s, now_s + 0.1), self._look)
                return
            del self._watched[connection]
            if self._is_same(connection, token):
                self._cut(connection)


class Connections(web.Server):
    """All connections of one intake."""

    def __init__(
        self,
        handler: Handler,
        *,
        read_timeout_s: float,
        keepalive_s: float,
        connect: Callable[..., Connection],
        **options: Any,
    ) -> None:
        super().__init__(
            handler,
            keepalive_timeout=keepalive_s,
            lingering_time=UNREAD_S,
            access_log=None,
            # Nobody reads a compressed body, and one that is none would be an error in the log.
            auto_decompress=False,
            **options,
        )
        self._options = self._kwargs
        self._connect = connect
        self.rounds = Rounds()
        self.heads = Watch(read_timeout_s, _waits_on, Connection.refuse)
        # No answer fills the buffers of a client that reads, so this is for those that do not.
        self.writers = Watch(keepalive_s, _is_stuck, Connection.abort)

    def __call__(self) -> Connection:
        """A new connection, for the event loop."""
        return self._connect(self, loop=self._loop, **self._options)

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        """Part of web.Server."""
        super().connection_lost(handler, exc)
        if isinstance(handler, Connection):
            self.heads.forget(handler)
            self.writers.forget(handler)

    async def drain(self, seconds: float) -> None:
        """Ends every connection with an answer that says so. Returns when all have ended, or those
        left have had nothing to say for a moment, or the time is over."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        handler = self.request_handler

        async def answer_last(request: web.BaseRequest) -> web.StreamResponse:
            response = await handler(request)
            response.headers["Connection"] = "close"
            response.force_close()
            return response

        # For connections that were accepted and are not made yet, and for those that are.
        self.request_handler = answer_last
        self._connect = Connection
        for connection in self._open():
            connection.answer_by(answer_last)
        while (open_now := self._open()) and (passed_s := loop.time() - began_s) < seconds:
            if passed_s >= LINGER_S and all(map(self._is_idle, open_now)):
                return
            await asyncio.sleep(POLL_S)

    def stop(self) -> None:
        """Looks at nothing any more."""
        self.heads.stop()
        self.writers.stop()

    def _open(self) -> list[Connection]:
        return [each for each in self.connections if isinstance(each, Connection)]

    def _is_idle(self, connection: Connection) -> bool:
        return connection.is_idle and connection not in self.heads


def _waits_on(connection: Connection, waiter: object) -> bool:
    return connection.waiter is waiter


def _is_stuck(connection: Connection, token: object) -> bool:
    return connection.stuck is token


class Turns(web.BaseSite):
    """Takes a few new connections at a time.

    uvloop takes all that wait. When everybody connects in the same second, and several workers
    listen on one socket, then one of them has all connections and the others have none.
    """

    def __init__(self, runner: web.AppRunner, sock: socket.socket, server: web.Server) -> None:
        super().__init__(runner)
        self._sock = sock
        self._make = server
        self._loop = asyncio.get_running_loop()
        self._making: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        """What a client connects to."""
        return address_of(self._sock)

    async def start(self) -> None:
        """Part of web.BaseSite."""
        await super().start()
        self._listen()

    async def stop(self) -> None:
        """Part of web.BaseSite. Whoever has connected by now is still let in: closing the socket
        would cut those that no process has taken. It may go on listening in other processes."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._loop.remove_reader(self._sock)
        self._accept(BACKLOG)
        if self._pause is not None:
            self._pause.cancel()
        self._sock.close()
        await asyncio.gather(*self._making, return_exceptions=True)
        await super().stop()

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock, self._accept, ACCEPT_MAX)

    def _accept(self, most: int) -> None:
        for _ in range(most):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return  # Another worker was quicker.
            except ConnectionAbortedError:
                continue  # Its client was.
            except OSError as error:
                # No descriptors, or no memory: it would be so again at once.
                _log.error("cannot take new connections for now: %s", error)
                self._loop.remove_reader(self._sock)
                self._pause = self._loop.call_later(PAUSE_S, self._listen)
                return
            sock.setblocking(False)
            task = self._loop.create_task(self._connect(sock))
            self._making.add(task)
            task.add_done_callback(self._making.discard)

    async def _connect(self, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, sock)
        except OSError:
            sock.close()  # Its client has gone.


class Runner(web.AppRunner):
    """Serves an application on sockets that listen already, and ends it in good order."""

    def __init__(
        self, app: web.Application, sockets: Sequence[socket.socket], options: Server
    ) -> None:
        super().__init__(app, shutdown_timeout=CANCEL_S)
        self._sockets = sockets
        self._options = options

    async def setup(self) -> None:
        """Starts the application, and takes requests."""
        await super().setup()
        # What is there now stays, so the collector need not look through it again and again; and
        # what a request leaves is freed by count, so it need not look so often.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        server = self.server
        if server is not None:
            for sock in self._sockets:
                await Turns(self, sock, server).start()

    async def cleanup(self) -> None:
        """Lets nobody new in, answers what is under way, then ends the application."""
        for site in self.sites:
            await site.stop()
        connections = self.server
        if isinstance(connections, Connections):
            drain_s, sockets = self._options.drain_s, self.app.get(SOCKETS)
            told = () if sockets is None else (sockets.drain(drain_s),)
            await asyncio.gather(connections.drain(drain_s), *told)
        await super().cleanup()
        if isinstance(connections, Connections):
            connections.stop()

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        intake = self.app.get(INTAKE)
        hot_route = None if intake is None else intake.hot_route
        if self.app.middlewares or self.app.on_response_prepare:
            hot_route = None  # Somebody else wants to see each request, or each answer.
        return Connections(
            made.request_handler,
            request_factory=made.request_factory,
            read_timeout_s=self._options.read_timeout_s,
            keepalive_s=self._options.keepalive_s,
            connect=Connection if hot_route is None else hot_route.connect,
        )
