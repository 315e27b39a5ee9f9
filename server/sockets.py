"""The sockets of buyers in one process: letting them in, keeping count, and their common end."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Coroutine
from itertools import count
from typing import Final
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from seckill.errors import InvalidInput
from seckill.sale import check_sale_id

from .caller import Caller
from .decisions import Decisions
from .exchange import BODY_BYTES_MAX, counted
from .guard import Guard
from .intake import Intake
from .operation import Operation
from .problems import BUSY, FORBIDDEN, SHUTTING_DOWN, UNAUTHENTICATED, Problem
from .socket_dialogue import SOCKET_ROUTE, need_buyer
from .socket_end import GOING_AWAY, REPLACED, End
from .socket_feed import StockFeed
from .socket_session import Session
from .wire_socket import PROTOCOL

__all__ = ["ROUTES", "SOCKETS", "Sockets"]

# A socket that was silent for so long is asked whether it is there, and after as long again cut.
# Mobile carriers forget a connection that is silent for a minute.
PING_S: Final = 25
# So long may a client take to say that it has understood the end.
CLOSE_S: Final = 1.0


class Sockets:
    """All sockets of one intake. ``rechecks`` says that who asks is known by a user token, which is
    looked at for each message; a mall's own ``identify`` is asked once and at each hello."""

    def __init__(self, intake: Intake, guard: Guard, *, rechecks: bool) -> None:
        self.intake = intake
        self.guard = guard
        self.rechecks = rechecks
        self.identify = intake.identify
        self.decisions = Decisions()
        self.feed = StockFeed(intake.engine, intake.metrics)
        self._max = intake.settings.server.max_sockets
        self._max_a_buyer = intake.settings.limits.buyer_sockets
        # With the part of the wheel that each is in.
        self._open: dict[Session, set[Session]] = {}
        self._coming = 0
        self._by_buyer: dict[str, list[Session]] = defaultdict(list)
        self._buyers: dict[Session, str] = {}
        # Each is looked at every PING_S, and not all of them at once.
        self._wheel: list[set[Session]] = [set() for _ in range(PING_S)]
        self._numbers = count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticking: asyncio.Task[None] | None = None
        self._ending = False

    @property
    def count(self) -> int:
        """Sockets that are open."""
        return len(self._open)

    # -- letting in ---------------------------------------------------------------------------

    async def accept(self, request: web.Request) -> web.StreamResponse:
        """The handshake. Raises Problem, InvalidInput: then there is no socket, and the answer is
        plain HTTP."""
        check_sale_id(request.match_info["sale"], "sale")
        self._check_origin(request)
        caller = await self._caller_of(request)
        _check_handshake(request)
        if self._ending:
            raise Problem(SHUTTING_DOWN)
        if len(self._open) + self._coming >= self._max:
            raise Problem(BUSY, f"{self._max} sockets are open here")
        socket = _Socket(Session(self, request, caller))
        self._coming += 1
        try:
            await socket.prepare(request)
        finally:
            self._coming -= 1
        return socket

    def _check_origin(self, request: web.Request) -> None:
        """A browser says which page opens a socket, and leaves it to us whether that one may."""
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None or origin in self.intake.settings.server.cors_origins:
            return
        try:
            page = urlsplit(origin)
        except ValueError:
            page = urlsplit("")
        # A proxy may pass the host on without its port.
        if request.host not in (page.netloc, page.hostname):
            raise Problem(FORBIDDEN, "pages of this origin may not open sockets here", "Origin")

    async def _caller_of(self, request: web.Request) -> Caller | None:
        """Who opens it, None if a hello is to tell."""
        is_upgrade = _is_upgrade(request)
        if self.rechecks and is_upgrade and hdrs.AUTHORIZATION not in request.headers:
            return None
        try:
            return counted(self.intake, need_buyer(await self.identify(request)))
        except Problem as problem:
            if self.rechecks or problem.kind is not UNAUTHENTICATED or not is_upgrade:
                raise
            return None

    # -- keeping count ------------------------------------------------------------------------

    def opened(self, session: Session, buyer: str) -> None:
        """A socket is open. ``buyer`` is "" until it is known."""
        part = self._wheel[next(self._numbers) % PING_S]
        part.add(session)
        self._open[session] = part
        self.intake.metrics.open_sockets += 1
        if self._ticking is None:
            self._ticking = asyncio.create_task(self._tick())
        if buyer:
            self.welcome(session, buyer)
        if self._ending:
            session.leave()

    def welcome(self, session: Session, buyer: str) -> None:
        """It is this buyer's. One too many ends the oldest: that is most likely one that the client
        has lost without our knowing."""
        if session not in self._open:
            return  # It ended while that was found out.
        self._buyers[session] = buyer
        sessions = self._by_buyer[buyer]
        sessions.append(session)
        if len(sessions) > self._max_a_buyer:
            sessions.pop(0).end(REPLACED)

    def closed(self, session: Session, end: End) -> None:
        """A socket has ended."""
        self._open.pop(session).discard(session)
        self.intake.metrics.open_sockets -= 1
        self.intake.metrics.socket_ends[end.reason] += 1
        self.feed.forget(session)
        if buyer := self._buyers.pop(session, ""):
            sessions = self._by_buyer[buyer]
            if session in sessions:
                sessions.remove(session)
            if not sessions:
                del self._by_buyer[buyer]

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Lets something be done that nobody waits for. It raises nothing."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tick(self) -> None:
        while True:
            for sessions in self._wheel:
                await asyncio.sleep(1)
                for session in list(sessions):
                    session.check()

    # -- the end ------------------------------------------------------------------------------

    async def drain(self, seconds: float) -> None:
        """Lets nobody new in, tells every client to go elsewhere when all that it asked is
        answered, and returns when they have gone or the time is over."""
        self._ending = True
        sessions = list(self._open)
        if not sessions:
            return
        for session in sessions:
            session.leave()
        await asyncio.wait([session.ended for session in sessions], timeout=seconds)
        for session in sessions:
            session.end(GOING_AWAY)
        await asyncio.wait([session.gone for session in sessions], timeout=2 * CLOSE_S)

    async def aclose(self) -> None:
        """Ends what is left."""
        await self.feed.aclose()
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.wait([self._ticking])
            self._ticking = None


class _Socket(web.WebSocketResponse):
    """The answer to a handshake. When the guard has counted it, aiohttp asks for the rest of it,
    and that is the session."""

    def __init__(self, session: Session) -> None:
        super().__init__(
            timeout=CLOSE_S,
            autoclose=False,
            autoping=False,
            compress=False,
            max_msg_size=BODY_BYTES_MAX,
        )
        self._session: Session | None = session

    async def write_eof(self) -> None:  # type: ignore[override]
        """Part of web.StreamResponse."""
        session, self._session = self._session, None
        if session is not None:
            await session.run(self)
        await super().write_eof()


def _is_upgrade(request: web.Request) -> bool:
    wanted = request.headers.get(hdrs.UPGRADE, "").strip().lower()
    return wanted == PROTOCOL and request.method == hdrs.METH_GET


def _check_handshake(request: web.Request) -> None:
    """Raises InvalidInput unless this asks for a socket as we speak it."""
    if not _is_upgrade(request):
        raise InvalidInput("Upgrade", f"is not {PROTOCOL}", "open a WebSocket at this path")
    if hdrs.SEC_WEBSOCKET_PROTOCOL in request.headers:
        # aiohttp would write it to the log, and clients have been seen to put a token there.
        remedy = "leave it out; a user token goes into Authorization, or into a hello"
        raise InvalidInput("Sec-WebSocket-Protocol", "is not spoken here", remedy)
    if not web.WebSocketResponse(compress=False).can_prepare(request):
        raise InvalidInput("Upgrade", "is incomplete", "send the handshake of RFC 6455")


@Operation(
    id="open_socket",
    zh="买家 WebSocket：开抢前连好，之后每个动作只是一条短消息，并可订阅库存",
    who="user",
    answer=PROTOCOL,
    asks_engine=False,
)
async def socket(request: web.Request) -> web.StreamResponse:
    """Opens a WebSocket, on which a buyer joins, asks for a place, orders, pays and releases, many
    at once, with the same answers as over HTTP. docs/socket.md describes its messages."""
    return await request.app[SOCKETS].accept(request)


SOCKETS: Final = web.AppKey("sockets", Sockets)

ROUTES: Final = (web.get(SOCKET_ROUTE, socket),)
