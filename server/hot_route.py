"""Orders, and questions for places in a queue, past aiohttp's request machinery, which costs more
than all that they need.

    bytes ─▶ one plain, whole order or question on an idle connection?
                │ yes                          │ no, or in doubt
                ▼                              ▼
        decided here, one transport.write      aiohttp, untouched

What came whole and is beyond doubt is read by plain_request.py, as long as all that came before on
its connection did, too: only then is it known where a request begins. After that aiohttp reads each
request before anything is looked at here, and what it is is aiohttp's business alone. Both ways use
the same parts (guard.py, exchange.py, orders.py, tickets.py, reply.py) and say the same;
tests/web/test_hot_route.py and tests/properties/test_hot_route.py compare them. A place is
answered at once, from memory, or not here.

While an order is under way its connection looks to aiohttp as one whose handler is at work: nothing
waits for a request, ``_request_in_progress`` is set. So what a client sends meanwhile is queued and
answered after it, no timer takes the connection for an idle one, and an end waits for the answer.

Only where the intake is served by itself (connection.Runner), with its own user tokens, and with
nothing that must see each request: no web origins, gate, address limit or middleware.

What of aiohttp is used here and is not documented is named in ``_USED``, and even a patch release
may change it: since 3.14.2 aiohttp reads no more of a connection when 32 requests were not taken in
its way. So the hot route is for the versions it was tried with, ``_TRIED``; with others, or when a
name is missing, everything goes aiohttp's way, and the log says so. How a new version is tried:
tests/web/test_hot_route_aiohttp.py.
"""

from __future__ import annotations

import asyncio
import logging
import re
from asyncio import Future
from collections.abc import Iterator
from time import monotonic
from typing import Any, Final, cast

import aiohttp
from aiohttp import EMPTY_PAYLOAD, HttpVersion11, StreamReader, web
from aiohttp.http import HttpRequestParser, RawRequestMessage

from seckill.order import Wish
from seckill.shard import Shard

from .caller import Caller
from .connection import Connection, Connections, Handler
from .created import CREATED, created
from .decisions import Decision, Decisions
from .exchange import BODY_BYTES_MAX, counted, decoded
from .guard import Guard, Watched
from .intake import Intake
from .orders import ORDER, decide, told, wish_of
from .plain_request import PlainRequest, plain_request
from .reply import JSON, Plain, Reply
from .tickets import PLACE_ROUTE, shown

__all__ = ["HotConnection", "HotRoute", "hot_route"]

_log = logging.getLogger("seckill.server")

# As far as a sale's id can be one; an escaped one is the router's to understand.
_ORDERS: Final = re.compile(r"/v1/sales/([0-9A-Za-z_-]{1,40})/orders").fullmatch
_PLACES: Final = re.compile(r"/v1/sales/([0-9A-Za-z_-]{1,40})/tickets/me").fullmatch
_SALES_MAX: Final = 1_000
_WATCHED: Final = Watched("reserve", "/v1/sales/{sale}/orders")
_PLACE_WATCHED: Final = Watched("place", PLACE_ROUTE)

# The first and the last aiohttp that passed all tests. Those before never end a connection on which
# nothing was ever asked.
_TRIED: Final = ((3, 14, 4), (3, 14, 5))

_USED: Final[dict[type, tuple[str, ...]]] = {
    web.RequestHandler: (
        *("_close", "_force_close", "_handler_waiter", "_keepalive_handle", "_keepalive_timeout"),
        *("_loop", "_manager", "_messages", "_next_keepalive_close_time", "_parser", "_paused"),
        *("_process_keepalive", "_reading_paused", "_request_in_progress", "_waiter"),
    ),
    RawRequestMessage: (*("chunked", "headers", "method", "path", "should_close", "version"),),
    HttpRequestParser: ("message_consumed",),
    StreamReader: ("_buffer", "is_eof", "total_bytes"),
}

_Request = tuple[Any, StreamReader]
# Of headers that change what a request is; plain_request.py knows of them itself.
_OTHERS: Final = frozenset(("content-encoding", "transfer-encoding", "expect", "upgrade"))


def hot_route(intake: Intake, guard: Guard) -> HotRoute | None:
    """The hot route of an intake, if it may have one."""
    server = intake.settings.server
    for setting, is_set in (
        ("server.hot_route", not server.hot_route),
        # These want to know more than is looked at here.
        ("server.cors_origins", bool(server.cors_origins)),
        ("the gate", intake.gate is not None),
        ("limits.address_per_s", intake.clients is not None),
    ):
        if is_set:
            _log.info("the hot route is off: %s", setting)
            return None
    if strange := _strange(aiohttp.__version__):
        _log.warning("the hot route is off: %s", strange)
        return None
    return HotRoute(intake, guard)


def _strange(version: str) -> str:
    """What is not known of the aiohttp that is installed, or ""."""
    first, last = _TRIED
    numbers = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", version)
    if numbers is None or not first <= tuple(map(int, numbers.groups())) <= last:
        tried = " to ".join(".".join(map(str, each)) for each in _TRIED)
        return f"it was tried with aiohttp {tried}, and this is {version}"
    return f"this aiohttp has no {missing}" if (missing := ", ".join(_missing())) else ""


def _missing() -> Iterator[str]:
    for owner, names in _USED.items():
        yield from (f"{owner.__name__}.{name}" for name in names if not hasattr(owner, name))


def _is_plain(message: RawRequestMessage | object, payload: StreamReader) -> bool:
    """Whether this is a whole request after which the connection is kept: with a small body, or
    without one."""
    if (
        type(message) is not RawRequestMessage
        or message.version != HttpVersion11
        or message.should_close
        or message.chunked
    ):
        return False
    if message.method == "GET":
        return payload is EMPTY_PAYLOAD and message.path.endswith("/tickets/me")
    return (
        message.method == "POST"
        and type(payload) is StreamReader
        and payload.is_eof()
        and payload.total_bytes <= BODY_BYTES_MAX
    )


def _plain_of(message: Any, payload: StreamReader) -> PlainRequest | None:
    """The same request as aiohttp has read it, if every header that it has was there once."""
    headers = {name.lower(): value for name, value in message.headers.items()}
    if len(headers) != len(message.headers) or not _OTHERS.isdisjoint(headers):
        return None
    # Reading it would let aiohttp look for more in the socket, which our caller has just done.
    body = b"".join(payload._buffer) if message.method == "POST" else b""
    return PlainRequest(message.method, message.path, headers, body)


class HotRoute:
    """Takes orders, and questions for places, off connections and answers them."""

    def __init__(self, intake: Intake, guard: Guard) -> None:
        self._intake = intake
        self._guard = guard
        self._asking: set[asyncio.Task[None]] = set()
        self.decisions = Decisions()
        # Paths that were asked, and whose orders live there.
        self._sales: dict[str, str] = {}

    def connect(self, connections: Connections, **options: Any) -> Connection:
        """A connection whose orders come here."""
        return HotConnection(self, connections, **options)

    def take(self, connection: HotConnection, request: PlainRequest) -> bool:
        """Whether this plain request is answered here, now or later."""
        headers = request.headers
        # Only of a buyer with a user token, who asks for nobody else.
        authorization = headers.get("authorization")
        if authorization is None or "seckill-buyer" in headers:
            return False
        caller = self._intake.known(authorization)
        if request.method == "GET":
            return caller is not None and self._take_place(connection, request, caller)
        return self._take_order(connection, request, authorization, caller)

    def _take_place(self, connection: HotConnection, request: PlainRequest, caller: Caller) -> bool:
        found, ticket = _PLACES(request.path), request.headers.get("seckill-ticket")
        if found is None or ticket is None or request.body:
            return False
        shard = self._intake.engine.at_hand(found[1])
        if shard is None:
            return False
        queue = shard.queue
        if queue is None or not queue.fresh:
            return False

        started_s = monotonic()
        connection.taken()
        self._intake.in_flight += 1
        try:
            self._guard.enter()
            counted(self._intake, caller)
            reply, request_id = shown(queue.place_of(caller.buyer, ticket), shard.sale), ""
        except Exception as error:  # noqa: BLE001 - logged, and no traceback leaves
            reply, request_id = self._guard.failed(_PLACE_WATCHED, error)
        self._intake.in_flight -= 1
        self._intake.metrics.hot_places += 1
        seconds = monotonic() - started_s
        self._guard.answered(_PLACE_WATCHED, "GET", reply, seconds, request_id)
        connection.answer(cast(Plain, reply))  # As all answers about places are.
        return True

    def _take_order(
        self,
        connection: HotConnection,
        request: PlainRequest,
        authorization: str,
        caller: Caller | None,
    ) -> bool:
        intake, path, headers, body = self._intake, request.path, request.headers, request.body
        sale, key = self._sales.get(path) or self._sale_at(path), headers.get("idempotency-key")
        if not sale or key is None or headers.get("content-type") != JSON:
            return False
        shard = intake.engine.at_hand(sale)
        if shard is None or shard.lane is None or not shard.at_hand or len(body) > BODY_BYTES_MAX:
            return False

        started_s = monotonic()
        intake.in_flight += 1
        try:
            self._guard.enter()
            # One that was never seen is verified here, if the keys for it are.
            caller = caller or intake.recognized(authorization)
        except Exception as error:  # noqa: BLE001 - logged, and no traceback leaves
            connection.taken()
            self._failed(connection, started_s, error)
            return True
        if caller is None:
            intake.in_flight -= 1
            return False

        connection.taken()
        try:
            counted(intake, caller)
            wish = wish_of(caller.buyer, key, decoded(ORDER, body))
            order = _Order(self, connection, started_s, path, wish, shard)
            order.id, said = shard.submit(
                shard.lane, order, wish.buyer, wish.key, wish.items, wish.attrs, wish.token
            )
            if said is None:
                connection.hold()
                return True
            reply = told(said, wish, shard.sale.sku_index, path)
        except Exception as error:  # noqa: BLE001 - logged, and no traceback leaves
            self._failed(connection, started_s, error)
        else:
            self._answer(connection, started_s, reply)
        return True

    def _sale_at(self, path: str) -> str:
        """The sale whose orders live at this path, "" if none do."""
        found = _ORDERS(path)
        if found is None:
            return ""
        if len(self._sales) >= _SALES_MAX:
            self._sales.clear()  # Paths of sales that there never were cost no memory.
        sale = self._sales[path] = found[1]
        return sale

    def decided(self, order: _Order) -> None:
        """The lane has an answer to an order."""
        connection, started_s, path = order.connection, order.started_s, order.path
        wish, shard = order.wish, order.shard
        try:
            answer = order.answer
            if answer[0] == CREATED:
                reply: Reply = created(shard, order.id, wish.buyer, wish.items, answer[1], path)
                self._answer(connection, started_s, reply)
                return
            outcome = shard.outcome(order.id, wish.buyer, wish.items, answer)
            if outcome is None:
                # The sale was made anew under the same id. That is worth a task.
                task = asyncio.create_task(self._ask(connection, started_s, path, wish, shard))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
                return
            reply = told(outcome, wish, shard.sale.sku_index, path)
        except Exception as error:  # noqa: BLE001 - logged, and no traceback leaves
            self._failed(connection, started_s, error)
        else:
            self._answer(connection, started_s, reply)

    async def _ask(
        self, connection: HotConnection, started_s: float, path: str, wish: Wish, shard: Shard
    ) -> None:
        """Asks once more, with all the time that takes."""
        try:
            reply = await decide(self._intake.engine, shard.sale.id, wish, path)
        except Exception as error:  # noqa: BLE001 - logged, and no traceback leaves
            self._failed(connection, started_s, error)
        else:
            self._answer(connection, started_s, reply)

    def _failed(self, connection: HotConnection, started_s: float, error: Exception) -> None:
        reply, request_id = self._guard.failed(_WATCHED, error)
        self._answer(connection, started_s, reply, request_id)

    def _answer(
        self, connection: HotConnection, started_s: float, reply: Reply, request_id: str = ""
    ) -> None:
        intake = self._intake
        intake.in_flight -= 1
        intake.metrics.hot_orders += 1
        self._guard.answered(_WATCHED, "POST", reply, monotonic() - started_s, request_id)
        connection.answer(cast(Plain, reply))  # As all answers to orders are.


class _Order(Decision):
    """An order that waits in its lane."""

    __slots__ = ("_route", "connection", "id", "path", "shard", "started_s", "wish")

    def __init__(
        self,
        route: HotRoute,
        connection: HotConnection,
        started_s: float,
        path: str,
        wish: Wish,
        shard: Shard,
    ) -> None:
        super().__init__(route.decisions)
        self._route = route
        self.connection = connection
        self.started_s = started_s
        self.path = path
        self.wish = wish
        self.shard = shard
        self.id = ""

    def tell(self) -> None:
        """Part of Decision."""
        self._route.decided(self)


class HotConnection(Connection):
    """A connection whose plain requests are offered to the hot route."""

    __slots__ = ("_began", "_early", "_held", "_parsed", "_route", "_whole")

    def __init__(self, route: HotRoute, connections: Connections, **options: Any) -> None:
        super().__init__(connections, **options)
        self._route: HotRoute | None = route
        # Whether all that came so far were plain requests, each of them whole in one read.
        self._whole = True
        # Whether aiohttp has read the request that is offered.
        self._parsed = False
        # What aiohttp's handling waits on for the next request, kept from it during an order.
        self._held: Future[None] | None = None
        # The same, when a request has come in part; aiohttp is to answer it, and wait anew.
        self._began: Future[None] | None = None
        # One that came whole before aiohttp's handling had come round after the last one.
        self._early: tuple[PlainRequest, _Request | bytes] | None = None

    def received(self, data: bytes) -> None:
        """Part of Connection."""
        if self._early is not None:
            (_, early), self._early = self._early, None
            self._leave(early)
        request = plain_request(data) if self._whole else None
        self._whole = request is not None
        waiter, messages = self._waiter, self._messages
        if (
            self._route is None
            or messages
            or self._request_in_progress
            or (waiter is not None and (waiter is self._began or waiter.done()))
        ):
            super().received(data)
        elif request is not None:
            self._parsed = False
            self._offer_soon(request, data)
        else:
            self._read_by_aiohttp(data)

    def _read_by_aiohttp(self, data: bytes) -> None:
        waiter, messages = self._waiter, self._messages
        # aiohttp would wake its handling for whatever has come.
        self._waiter = None
        try:
            self.parse(data)
        finally:
            self._waiter = waiter
        if len(messages) == 1 and _is_plain(*messages[0]):
            request = _plain_of(*messages[0])
            if request is not None:
                self._parsed = True
                self._offer_soon(request, messages.pop())
                return
        if waiter is None:
            if self.is_new:
                self.watch_soon()
        elif messages:
            waiter.set_result(None)
        else:
            self.began(waiter)

    def began(self, waiter: Future[None]) -> None:
        """Part of Connection. aiohttp is to answer it, which then waits anew."""
        self._began = waiter
        super().began(waiter)

    def _offer_soon(self, request: PlainRequest, left: _Request | bytes) -> None:
        """``left`` is what aiohttp gets of a request that the hot route does not take."""
        if self._waiter is not None:
            self._offer(request, left)
        else:
            self._early = request, left
            self._loop.call_soon(self._offer_early)

    def _offer_early(self) -> None:
        if self._early is not None:
            early, self._early = self._early, None
            self._offer(*early)

    def _offer(self, request: PlainRequest, left: _Request | bytes) -> None:
        """The hot route may have it, if nobody else is being answered; else it is aiohttp's."""
        if (
            self._route is None
            or self.waiter is None
            or self._paused
            or not self._route.take(self, request)
        ):
            self._leave(left)

    def _leave(self, left: _Request | bytes) -> None:
        if isinstance(left, bytes):
            super().received(left)
            return
        self._messages.append(left)
        if waiter := self.waiter:
            waiter.set_result(None)

    def taken(self) -> None:
        """The request that was offered is the hot route's."""
        if self._parsed and self._parser is not None:
            self._parser.message_consumed()
        if self._manager is not None:
            self._manager.requests_count += 1

    def hold(self) -> None:
        """It has no answer yet."""
        self._held, self._waiter = self._waiter, None
        self._request_in_progress = True

    def answer(self, reply: Plain) -> None:
        """Sends the answer, and lets aiohttp have what came meanwhile."""
        if self._route is None:
            # What came before the end is answered, too, and this is then not the last answer.
            self.catch_up()
        # At the end this is the last answer, unless aiohttp has more to give.
        transport, ending = self.transport, self._route is None and not self._messages
        closing = ending or self._close or self._force_close
        if transport is not None and not transport.is_closing():
            wire = reply.wire(closing=ending)
            if closing or self._route is None:
                transport.write(wire)
            else:
                self._route.decisions.send(transport, wire)
        if self._held is not None:
            self._waiter, self._held = self._held, None
            self._request_in_progress = False
            if self._handler_waiter is not None:
                self._handler_waiter.set_result(None)
        waiter = self._waiter
        if closing or transport is None:
            self.force_close()
        elif self._messages and waiter is not None and not waiter.done():
            waiter.set_result(None)
        else:
            due_s = self._loop.time() + self._keepalive_timeout
            self._next_keepalive_close_time = due_s
            if self._keepalive_handle is None:
                self._keepalive_handle = self._loop.call_at(due_s, self._process_keepalive)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Part of asyncio.Protocol. An order that is under way is decided all the same."""
        super().connection_lost(exc)
        if self._held is not None:
            self._held.cancel()

    def answer_by(self, handler: Handler) -> None:
        """Part of Connection: the end begins."""
        super().answer_by(handler)
        self._route = None
