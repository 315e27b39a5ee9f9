"""Orders, and questions for places in a queue, past aiohttp's request machinery, which costs more
than all that they need.

    bytes ─▶ aiohttp's parser ─▶ one plain, whole order or question on an idle connection?
                                    │ yes                          │ no, or in doubt
                                    ▼                              ▼
                    decided here, one transport.write      aiohttp, untouched

aiohttp has read the request before anything is looked at here, so what a request is and where it
ends is its business alone. Both ways use the same parts (guard.py, exchange.py, orders.py,
tickets.py, reply.py) and say the same; tests/web/test_hot_route.py compares them. A place is
answered at once, from memory, or not here.

While an order is under way its connection looks to aiohttp as one whose handler is at work: nothing
waits for a request, ``_request_in_progress`` is set. So what a client sends meanwhile is queued and
answered after it, no timer takes the connection for an idle one, and an end waits for the answer.

Only where the intake is served by itself (connection.Runner), with its own user tokens, and with
nothing that must see each request: no web origins, gate, address limit or middleware.

What of aiohttp is used here and is not documented is named in ``_USED``. Without it everything goes
aiohttp's way, and the log says so.
"""

from __future__ import annotations

import asyncio
import logging
import re
from asyncio import Future
from collections.abc import Iterator
from functools import partial
from time import monotonic
from typing import Any, Final, cast

from aiohttp import EMPTY_PAYLOAD, HttpVersion11, StreamReader, hdrs, web
from aiohttp.http import HttpRequestParser, RawRequestMessage
from multidict import istr

from seckill.lane import Answer
from seckill.order import Outcome, Wish
from seckill.shard import Shard

from .caller import Caller
from .connection import Connection, Connections, Handler
from .exchange import BODY_BYTES_MAX, counted, decoded
from .guard import Guard, Watched
from .intake import Intake
from .orders import ORDER, decide, told, wish_of
from .reply import JSON, Plain, Reply
from .tickets import PLACE_ROUTE, shown

__all__ = ["HotConnection", "HotRoute", "hot_route"]

_log = logging.getLogger("seckill.server")

# As far as a sale's id can be one; an escaped one is the router's to understand.
_ORDERS: Final = re.compile(r"/v1/sales/([0-9A-Za-z_-]{1,40})/orders").fullmatch
_PLACES: Final = re.compile(r"/v1/sales/([0-9A-Za-z_-]{1,40})/tickets/me").fullmatch
_WATCHED: Final = Watched("reserve", "/v1/sales/{sale}/orders")
_PLACE_WATCHED: Final = Watched("place", PLACE_ROUTE)

_KEY: Final = istr("Idempotency-Key")
_BUYER: Final = istr("Seckill-Buyer")
_TICKET: Final = istr("Seckill-Ticket")

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


def hot_route(intake: Intake, guard: Guard) -> HotRoute | None:
    """The hot route of an intake, if it may have one."""
    server = intake.settings.server
    if not server.hot_route or server.cors_origins:
        return None
    if intake.gate is not None or intake.clients is not None:
        return None  # They want to know more than is looked at here.
    if missing := ", ".join(_missing()):
        _log.warning("the hot route is off: this aiohttp has no %s", missing)
        return None
    return HotRoute(intake, guard)


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


class HotRoute:
    """Takes orders, and questions for places, off connections and answers them."""

    def __init__(self, intake: Intake, guard: Guard) -> None:
        self._intake = intake
        self._guard = guard
        self._asking: set[asyncio.Task[None]] = set()

    def connect(self, connections: Connections, **options: Any) -> Connection:
        """A connection whose orders come here."""
        return HotConnection(self, connections, **options)

    def take(
        self, connection: HotConnection, message: RawRequestMessage, payload: StreamReader
    ) -> bool:
        """Whether this plain request is answered here, now or later."""
        headers = message.headers
        if (
            hdrs.CONTENT_ENCODING in headers
            or hdrs.TRANSFER_ENCODING in headers
            or hdrs.EXPECT in headers
            or hdrs.UPGRADE in headers
            or _BUYER in headers
        ):
            return False
        if message.method == "GET":
            return self._take_place(connection, message)
        return self._take_order(connection, message, payload)

    def _take_place(self, connection: HotConnection, message: RawRequestMessage) -> bool:
        found = _PLACES(message.path)
        if found is None:
            return False
        tickets, buyer = message.headers.getall(_TICKET, ()), self._buyer(message)
        shard = self._intake.engine.at_hand(found[1])
        if len(tickets) != 1 or buyer is None or shard is None:
            return False
        queue = shard.queue
        if queue is None or not queue.fresh:
            return False

        started_s = monotonic()
        connection.taken()
        self._intake.in_flight += 1
        try:
            self._guard.enter()
            counted(self._intake, buyer)
            reply, request_id = shown(queue.place_of(buyer.buyer, tickets[0]), shard.sale), ""
        except Exception as error:  # noqa: BLE001 - logged, and no traceback leaves
            reply, request_id = self._guard.failed(_PLACE_WATCHED, error)
        self._intake.in_flight -= 1
        self._intake.metrics.hot_places += 1
        seconds = monotonic() - started_s
        self._guard.answered(_PLACE_WATCHED, "GET", reply, seconds, request_id)
        connection.answer(cast(Plain, reply))  # As all answers about places are.
        return True

    def _buyer(self, message: RawRequestMessage) -> Caller | None:
        """Who asks, if it is a buyer whose user token was verified before."""
        proofs = message.headers.getall(hdrs.AUTHORIZATION, ())
        caller = self._intake.known(proofs[0]) if len(proofs) == 1 else None
        return caller if caller is not None and caller.buyer else None

    def _take_order(
        self, connection: HotConnection, message: RawRequestMessage, payload: StreamReader
    ) -> bool:
        intake, path, headers = self._intake, message.path, message.headers
        found = _ORDERS(path)
        if found is None or headers.get(hdrs.CONTENT_TYPE) != JSON:
            return False
        keys, caller = headers.getall(_KEY, ()), self._buyer(message)
        shard = intake.engine.at_hand(found[1])
        if len(keys) != 1 or caller is None or shard is None:
            return False
        if shard.lane is None or not shard.at_hand:
            return False

        started_s = monotonic()
        connection.taken()
        # Reading it would let aiohttp look for more in the socket, which our caller has just done.
        body = b"".join(payload._buffer)
        intake.in_flight += 1
        try:
            self._guard.enter()
            counted(intake, caller)
            wish = wish_of(caller.buyer, keys[0], decoded(ORDER, body))
            order, waiting = shard.submit(
                shard.lane, wish.buyer, wish.key, wish.items, wish.attrs, wish.token
            )
            if isinstance(waiting, Outcome):
                reply = told(waiting, wish, shard.sale.sku_index, path)
            else:
                connection.hold()
                waiting.add_done_callback(
                    partial(self._decided, connection, started_s, path, wish, shard, order)
                )
                return True
        except Exception as error:  # noqa: BLE001 - logged, and no traceback leaves
            self._failed(connection, started_s, error)
        else:
            self._answer(connection, started_s, reply)
        return True

    def _decided(
        self,
        connection: HotConnection,
        started_s: float,
        path: str,
        wish: Wish,
        shard: Shard,
        order: str,
        waiting: Future[Answer],
    ) -> None:
        try:
            outcome = shard.outcome(order, wish.buyer, wish.items, waiting.result())
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


class HotConnection(Connection):
    """A connection whose plain requests are offered to the hot route."""

    __slots__ = ("_began", "_early", "_held", "_route")

    def __init__(self, route: HotRoute, connections: Connections, **options: Any) -> None:
        super().__init__(connections, **options)
        self._route: HotRoute | None = route
        # What aiohttp's handling waits on for the next request, kept from it during an order.
        self._held: Future[None] | None = None
        # The same, when a request has come in part; aiohttp is to answer it, and wait anew.
        self._began: Future[None] | None = None
        # One that came whole before aiohttp's handling had come round after the last one.
        self._early: _Request | None = None

    def data_received(self, data: bytes) -> None:
        """Part of asyncio.Protocol."""
        if self._early is not None:
            early, self._early = self._early, None
            self._leave(early)
        waiter, messages = self._waiter, self._messages
        if (
            self._route is None
            or messages
            or self._request_in_progress
            or (waiter is not None and (waiter is self._began or waiter.done()))
        ):
            super().data_received(data)
            return
        # aiohttp would wake its handling for whatever has come.
        self._waiter = None
        try:
            self.parse(data)
        finally:
            self._waiter = waiter
        if len(messages) == 1 and _is_plain(*messages[0]):
            if waiter is not None:
                self._offer(messages.pop())
            else:
                self._early = messages.pop()
                self._loop.call_soon(self._offer_early)
        elif waiter is not None:
            if messages:
                waiter.set_result(None)
            else:
                self._began = waiter
                self._connections.heads.watch(self, waiter)

    def _offer_early(self) -> None:
        if self._early is not None:
            early, self._early = self._early, None
            self._offer(early)

    def _offer(self, request: _Request) -> None:
        """The hot route may have it, if nobody else is being answered; else it is aiohttp's."""
        if (
            self._route is None
            or self.waiter is None
            or self._paused
            or not self._route.take(self, *request)
        ):
            self._leave(request)

    def _leave(self, request: _Request) -> None:
        self._messages.append(request)
        if waiter := self.waiter:
            waiter.set_result(None)

    def taken(self) -> None:
        """The request that was offered is the hot route's."""
        if self._parser is not None:
            self._parser.message_consumed()
        if self._manager is not None:
            self._manager.requests_count += 1

    def hold(self) -> None:
        """It has no answer yet."""
        self._held, self._waiter = self._waiter, None
        self._request_in_progress = True

    def answer(self, reply: Plain) -> None:
        """Sends the answer, and lets aiohttp have what came meanwhile."""
        transport, ending = self.transport, self._route is None
        if transport is not None and not transport.is_closing():
            transport.write(reply.wire(closing=ending))
        if self._held is not None:
            self._waiter, self._held = self._held, None
            self._request_in_progress = False
            if self._handler_waiter is not None:
                self._handler_waiter.set_result(None)
        waiter = self._waiter
        if ending or self._close or self._force_close or transport is None:
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
