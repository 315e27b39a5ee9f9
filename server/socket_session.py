"""One buyer's socket: its life, what is read from it and written to it. What is asked and answered
is socket_dialogue.py's.

A message is taken where aiohttp has just parsed it, without a task and a wake-up for each, which
cost more than the rest of an order. What of aiohttp is used for that and is not documented:
``WebSocketResponse._reader`` with ``_buffer``, ``read`` and ``exception``, and
``RequestHandler._payload_parser``. Where one of them is missing, messages are received as aiohttp's
documentation has it; tests/web/test_socket_aiohttp.py fails when that becomes the case.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from aiohttp import WSMsgType, web
from aiohttp.http import WebSocketError, WebSocketReader

from .caller import Caller
from .socket_dialogue import Dialogue
from .socket_end import (
    BINARY,
    BUG,
    CLIENT,
    GOING_AWAY,
    LOST,
    NOBODY,
    SILENT,
    SLOW,
    End,
    broken,
    close_frame,
)

if TYPE_CHECKING:
    from .sockets import Sockets

__all__ = ["Session"]

# Messages taken from one socket before others have a turn.
TURN_MAX: Final = 16
# What waits to be sent. Above the first no further message is taken, above the second no stock fed.
SEND_BYTES_MAX: Final = 64 * 1024
FEED_BYTES_MAX: Final = 8 * 1024
# How long a client may leave it at that.
STUCK_S: Final = 20.0
POLL_S: Final = 0.05
# Of a close frame that could not be sent.
_ABNORMAL: Final = 1006

_PING: Final = b"\x89\x00"


class Session:
    """One open socket. It belongs to one event loop. ``heard``: something came since the last
    ``check``."""

    __slots__ = (
        *("_again", "_buffer", "_dialogue", "_full", "_held", "_next", "_pinged", "_queue"),
        *(
            "_request",
            "_sockets",
            "_timer",
            "_transport",
            "ended",
            "ending",
            "gone",
            "heard",
            "sale",
        ),
    )

    def __init__(self, sockets: Sockets, request: web.Request, caller: Caller | None) -> None:
        """``caller`` is None until a hello says who it is."""
        loop = asyncio.get_running_loop()
        # The first says how it ends, the second that it has.
        self.ended: Future[End] = loop.create_future()
        self.gone: Future[None] = loop.create_future()
        self.ending = False
        self.heard = True
        self.sale = request.match_info["sale"]
        self._sockets = sockets
        self._request = request
        # How many reasons there are to take no message now.
        self._held = 0
        self._full = self._again = self._pinged = False
        self._timer: asyncio.TimerHandle | None = None
        self._queue: Any = None
        self._buffer: deque[Any] = deque()
        self._next: Callable[[], Any] = self._buffer.popleft
        self._transport: asyncio.Transport
        self._dialogue = Dialogue(sockets, self, request, caller)

    # -- its life -----------------------------------------------------------------------------

    async def run(self, socket: web.WebSocketResponse) -> None:
        """From the handshake to the end."""
        transport = self._request.transport
        if transport is None:
            return
        self._transport = transport
        receiving: asyncio.Task[None] | None = None
        end = BUG
        self._sockets.opened(self, self._dialogue.buyer)
        try:
            if not self._dialogue.buyer:
                wait_s = self._sockets.intake.read_timeout_s
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(wait_s, self.end, NOBODY)
            if self._tap(socket):
                self._turn()
            else:
                receiving = asyncio.create_task(self._receive(socket))
            end = await self.ended
        finally:
            self.ending = True
            self.known()
            self._sockets.closed(self, end)
            if receiving is not None:
                receiving.cancel()
                await asyncio.wait([receiving])
        try:
            await self._close(socket, end)
        finally:
            self.gone.set_result(None)

    async def _close(self, socket: web.WebSocketResponse, end: End) -> None:
        transport = self._transport
        if end is CLIENT:
            if not transport.is_closing():
                transport.write(close_frame(end))
                transport.close()
        elif not end.code:
            transport.abort()
        # For a connection that is gone by now, this only tells aiohttp so.
        code = end.code or _ABNORMAL
        await socket.close(code=code, message=end.reason.encode(), drain=False)
        if transport.get_write_buffer_size():
            transport.abort()  # Whoever does not read won't read the end either.

    def known(self) -> None:
        """It is known who asks, so nothing need be waited for."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self, end: End) -> None:
        """Ends it now."""
        self.ending = True
        if not self.ended.done():
            self.ended.set_result(end)

    def leave(self) -> None:
        """Takes no further message, and ends when all that was taken is answered."""
        self._held += 1
        self._dialogue.when_silent(partial(self.end, GOING_AWAY))

    def check(self) -> None:
        """Asks a client that was silent since the last time whether it is there. Whoever does not
        even answer that is cut."""
        if self.heard:
            self.heard = self._pinged = False
        elif self._pinged:
            self.end(SILENT)
        else:
            self._pinged = True
            self.send(_PING)

    # -- writing ------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Writes a whole frame. While the client does not take what is sent, no further message is
        taken from it."""
        transport = self._transport
        if self.ending or transport.is_closing():
            return
        transport.write(data)
        if transport.get_write_buffer_size() > SEND_BYTES_MAX and not self._full:
            self._full = True
            self.hold()
            self._sockets.spawn(self._empty())

    async def _empty(self) -> None:
        """Waits until the client has taken enough, and cuts it if that lasts too long."""
        try:
            async with asyncio.timeout(STUCK_S):
                # This returns when aiohttp is told that there is room again.
                await self._request.writer.drain()
                # Which is at once where somebody has set other limits.
                while self._transport.get_write_buffer_size() > SEND_BYTES_MAX:  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            self.end(SLOW)
        except ConnectionError:
            self.end(LOST)
        self._full = False
        self.go_on()

    def feed(self, data: bytes) -> bool:
        """Sends a frame of the stock feed, unless it would have to wait behind others."""
        if self._transport.get_write_buffer_size() > FEED_BYTES_MAX:
            return False
        self.send(data)
        return True

    # -- reading ------------------------------------------------------------------------------

    def hold(self) -> None:
        """Takes no message until ``go_on`` was called as often."""
        self._held += 1

    def go_on(self) -> None:
        """Takes messages again."""
        self._held -= 1
        if not self._again:
            self._turn()

    def hear(self) -> None:
        """Something has come."""
        self.heard = True
        if not self._again:
            self._turn()

    def _tap(self, socket: web.WebSocketResponse) -> bool:
        """Gets told as soon as aiohttp has parsed something. False if this aiohttp can't."""
        queue, protocol = socket._reader, self._request.protocol
        parser = getattr(protocol, "_payload_parser", None)
        if parser is None or not all(hasattr(queue, name) for name in ("_buffer", "exception")):
            return False
        self._queue = queue
        self._buffer = queue._buffer  # type: ignore[union-attr]
        self._next = partial(_read, queue)
        protocol._payload_parser = _Tap(parser, self)
        return True

    async def _receive(self, socket: web.WebSocketResponse) -> None:
        """The same as aiohttp's documentation has it."""
        while not self.ending:
            self._buffer.append(await socket.receive())
            self.hear()
            while len(self._buffer) >= TURN_MAX:  # noqa: ASYNC110 - not worth an event
                await asyncio.sleep(POLL_S)

    def _turn(self) -> None:
        """Takes messages, for as long as it is this socket's turn."""
        self._again = False
        buffer = self._buffer
        for _ in range(TURN_MAX):
            if self._held or self.ending:
                return
            if not buffer:
                if self._queue is not None and (error := self._queue.exception()) is not None:
                    self._break(error)
                return
            self._take(self._next())
        if buffer:
            self._again = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _take(self, message: Any) -> None:
        kind = message.type
        if kind is WSMsgType.TEXT:
            self._dialogue.ask(message.data)
        elif kind is WSMsgType.PING:
            self.send(b"\x8a%c%b" % (len(message.data), bytes(message.data)))
        elif kind is WSMsgType.CLOSE:
            self.end(CLIENT)
        elif kind is WSMsgType.BINARY:
            self.end(BINARY)
        elif kind is WSMsgType.ERROR:
            self._break(message.data)
        elif kind is not WSMsgType.PONG:
            self.end(LOST)

    def _break(self, error: object) -> None:
        """The client has sent what is no WebSocket, or too much at once; or it has gone."""
        self.end(broken(int(error.code)) if isinstance(error, WebSocketError) else LOST)


class _Tap:
    """What aiohttp's connection takes for the parser of a socket."""

    __slots__ = ("_parser", "_session")

    def __init__(self, parser: WebSocketReader, session: Session) -> None:
        self._parser = parser
        self._session = session

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Part of aiohttp's parser."""
        found = self._parser.feed_data(data)
        self._session.hear()
        return found

    def feed_eof(self) -> None:
        """Part of aiohttp's parser."""
        self._parser.feed_eof()
        self._session.end(LOST)


def _read(queue: Any) -> Any:
    """The next message of a queue that has one."""
    try:
        queue.read().send(None)
    except StopIteration as found:
        return found.value
    raise RuntimeError("aiohttp's queue had a message and waits for one")
