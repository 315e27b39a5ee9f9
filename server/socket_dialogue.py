"""What is asked and answered on one socket: who asks, may it be asked now, whose turn is it.

Messages about one order, or with one idempotency key, form a line and are decided one after the
other, as are those about the buyer's ticket. All others run side by side; each answer leaves when
it is there. An order needs no task: it is submitted to its lane, and answered when that has
decided it (decisions.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import hdrs, web
from multidict import CIMultiDict

from seckill.order import Wish, order_id
from seckill.sale import check_buyer, check_key
from seckill.shard import Shard

from .caller import Caller
from .created import CREATED, created
from .decisions import Decision, Decisions
from .exchange import counted, reply
from .guard import Watched
from .intake import network_of, too_often
from .limits import Limiter
from .orders import told, wish_of
from .problems import FORBIDDEN, RATE_LIMITED, UNAUTHENTICATED, Problem, Reply
from .socket_end import NOBODY, TRY_LATER
from .socket_verbs import (
    ASKED,
    GARBLED,
    Asking,
    Garbled,
    garbled,
    key_in,
    place_at_hand,
)
from .wire import encode
from .wire_socket import (
    MESSAGE,
    OPS,
    Answer,
    Buy,
    Hello,
    HelloDocument,
    Join,
    Leave,
    Message,
    Order,
    Place,
    Time,
    Watch,
    WatchDocument,
    frame,
)

if TYPE_CHECKING:
    from .socket_session import Session
    from .sockets import Sockets

__all__ = ["SOCKET_ROUTE", "Dialogue", "need_buyer"]

SOCKET_ROUTE: Final = "/v1/sales/{sale}/socket"
# Under way at once on one socket; one more is refused.
VERBS_MAX: Final = 32

_GET: Final = "GET"
_TICKET: Final = "ticket"
_FEED: Final = "feed"
# The names of handlers, by which answers are counted wherever they were asked for.
_NAMES: Final = {"buy": "reserve", "begin-payment": "begin_payment", "result": "show"}
_WATCHED: Final = {op: Watched(_NAMES.get(op, op), f"{SOCKET_ROUTE} {op}") for op in OPS.values()}
_WATCHED[GARBLED] = Watched(GARBLED, f"{SOCKET_ROUTE} {GARBLED}")


_Asked = Message | Garbled
_Waiting = tuple[Message, Caller, float]


class Dialogue:
    """What is said on one socket."""

    __slots__ = (
        *("_address", "_authorization", "_caller", "_intake", "_lines", "_network", "_request"),
        *("_sale", "_session", "_silent", "_sockets", "_under_way"),
    )

    def __init__(
        self, sockets: Sockets, session: Session, request: web.Request, caller: Caller | None
    ) -> None:
        self._sockets = sockets
        self._session = session
        self._intake = sockets.intake
        self._request = request
        self._sale = session.sale
        self._address = sockets.intake.addresses.of(request)
        self._network = network_of(self._address)
        self._caller = caller
        self._authorization = _header(request.headers.get(hdrs.AUTHORIZATION, ""))
        self._lines: dict[str, deque[_Waiting] | None] = {}
        self._under_way = 0
        self._silent: Callable[[], None] | None = None

    @property
    def buyer(self) -> str:
        """Who asks, "" while that is not known."""
        return "" if self._caller is None else self._caller.buyer

    def when_silent(self, then: Callable[[], None]) -> None:
        """Calls this as soon as nothing waits for an answer."""
        self._silent = then
        if not self._under_way:
            then()

    def ask(self, text: str) -> None:
        """One message. Whatever comes of it, it gets one answer."""
        started_s = monotonic()
        self._intake.in_flight += 1
        self._under_way += 1
        verb: _Asked
        try:
            verb = MESSAGE.decode(text)
        except (ValueError, RecursionError):
            verb = garbled(text)
        try:
            self._sockets.guard.enter()
            if self._intake.clients is not None:
                self._take_client(self._intake.clients)
            if type(verb) is Hello:
                self._prove(verb, started_s, verb.token)
                return
            if self._caller is None:
                raise Problem(
                    UNAUTHENTICATED, 'send {"op": "hello", "token": …} first', "Authorization"
                )
            caller = self._caller
            if self._sockets.rechecks:
                known = self._intake.known(self._authorization)
                if known is None:
                    self._prove(verb, started_s, "")
                    return
                caller = known
            self._run(verb, caller, started_s)
        except Exception as error:  # noqa: BLE001 - logged, and no traceback leaves
            self._refuse(verb, started_s, error)

    def _take_client(self, clients: Limiter) -> None:
        """Raises Problem when this address asks too often."""
        if wait_s := clients.take(self._network, monotonic()):
            raise too_often(wait_s)

    # -- who asks -----------------------------------------------------------------------------

    def _prove(self, verb: _Asked, started_s: float, token: str) -> None:
        """What can't be told from memory. No further message is taken meanwhile, so that they are
        decided in the order in which they came."""
        self._session.hold()
        self._sockets.spawn(self._proved(verb, started_s, token))

    async def _proved(self, verb: _Asked, started_s: float, token: str) -> None:
        try:
            if type(verb) is Hello:
                self._answer(verb, started_s, await self._log_in(token))
            else:
                caller = await self._sockets.identify(self._asks_with(self._authorization))
                self._run(verb, caller, started_s)
        except Exception as error:  # noqa: BLE001 - logged, and no traceback leaves
            self._refuse(verb, started_s, error)
        finally:
            self._session.go_on()

    async def _log_in(self, token: str) -> Reply:
        """A hello: the first says who asks, others renew that. Raises Problem."""
        authorization = f"Bearer {token}"
        caller = need_buyer(await self._sockets.identify(self._asks_with(authorization)))
        counted(self._intake, caller)
        if self._caller is None:
            self._session.known()
            self._sockets.welcome(self._session, caller.buyer)
        elif caller.buyer != self._caller.buyer:
            raise Problem(FORBIDDEN, "this socket is another buyer's; open one of its own")
        self._caller, self._authorization = caller, authorization
        return reply(HelloDocument("done", caller.buyer))

    def _asks_with(self, authorization: str) -> web.Request:
        """The handshake as it would be with this header."""
        headers = CIMultiDict(self._request.headers)
        headers[hdrs.AUTHORIZATION] = authorization
        return self._request.clone(headers=headers)

    # -- whose turn it is ---------------------------------------------------------------------

    def _run(self, verb: _Asked, caller: Caller, started_s: float) -> None:
        """A message of a known buyer, who is counted. Raises Problem."""
        if type(verb) is not Time:
            counted(self._intake, caller)
        if type(verb) is Garbled:
            raise verb.problem
        if self._under_way > VERBS_MAX:
            raise Problem(RATE_LIMITED, f"{VERBS_MAX} messages are under way on this socket")
        # While there is no line, an order needs none to know that it is the first of its own.
        line = self._line_of(verb, caller) if self._lines or type(verb) is not Buy else ""
        if line not in self._lines:
            self._start(verb, caller, started_s, line)
            return
        waiting = self._lines[line]
        if waiting is None:
            waiting = self._lines[line] = deque()
        waiting.append((verb, caller, started_s))

    def _line_of(self, verb: Message, caller: Caller) -> str:
        """What the message is about, "" if it need not wait for another. Raises Problem."""
        if isinstance(verb, Buy):
            return self._order_of(verb, caller)
        if isinstance(verb, Order):
            return verb.order
        if isinstance(verb, Watch):
            return _FEED
        return _TICKET if isinstance(verb, (Join, Place, Leave)) else ""

    def _order_of(self, verb: Buy, caller: Caller) -> str:
        return order_id(self._sale, caller.buyer, check_key(key_in(verb), "key"))

    def _start(self, verb: Message, caller: Caller, started_s: float, line: str) -> None:
        """A message whose turn it is."""
        try:
            if type(verb) is Buy:
                if self._submit(verb, caller, started_s, line):
                    return
                line = line or self._order_of(verb, caller)
            asking = Asking(self._intake, self._sale, caller, self._address)
            if type(verb) is Place and (answer := place_at_hand(asking, verb)) is not None:
                self._answer(verb, started_s, answer)
                self._go_on(line)
                return
            if type(verb) is Watch:
                asked: Awaitable[Reply] = self._watch(verb)
            else:
                asked = ASKED[type(verb)](asking, verb)
        except Exception as error:  # noqa: BLE001 - logged, and no traceback leaves
            self._fail(verb, started_s, error)
            self._go_on(line)
        else:
            if line:
                self._lines.setdefault(line)
            self._sockets.spawn(self._await(verb, started_s, line, asked))

    async def _await(
        self, verb: Message, started_s: float, line: str, asked: Awaitable[Reply]
    ) -> None:
        try:
            answer = await asked
        except Exception as error:  # noqa: BLE001 - logged, and no traceback leaves
            self._fail(verb, started_s, error)
        else:
            self._answer(verb, started_s, answer)
        self._go_on(line)

    def _go_on(self, line: str) -> None:
        """The first of a line is answered."""
        waiting = self._lines.get(line)
        if waiting:
            self._start(*waiting.popleft(), line)
        else:
            self._lines.pop(line, None)

    # -- orders -------------------------------------------------------------------------------

    def _submit(self, verb: Buy, caller: Caller, started_s: float, line: str) -> bool:
        """Whether the order could be submitted at once. Raises Problem."""
        key, shard = key_in(verb), self._intake.engine.at_hand(self._sale)
        if (
            shard is None
            or shard.lane is None
            or not shard.at_hand
            or self._intake.gate is not None
        ):
            return False
        wish = wish_of(caller.buyer, key, verb)
        order = _Order(self, self._sockets.decisions, verb, caller, started_s, wish, shard)
        order.id, said = shard.submit(
            shard.lane, order, wish.buyer, wish.key, wish.items, wish.attrs, wish.token
        )
        if said is None:
            self._lines.setdefault(order.id)
        else:
            self._answer(verb, started_s, told(said, wish, shard.sale.sku_index, ""))
            self._go_on(line)
        return True

    def decided(self, order: _Order) -> None:
        """The lane has an answer to an order."""
        verb, started_s, wish, shard = order.verb, order.started_s, order.wish, order.shard
        try:
            said = order.answer
            if said[0] == CREATED:
                answer: Reply = created(shard, order.id, wish.buyer, wish.items, said[1], "")
                self._answer(verb, started_s, answer)
                self._go_on(order.id)
                return
            outcome = shard.outcome(order.id, wish.buyer, wish.items, said)
            if outcome is None:
                # The sale was made anew under the same id. That is worth a task.
                asking = Asking(self._intake, self._sale, order.caller, self._address)
                asked = ASKED[Buy](asking, verb)
                self._sockets.spawn(self._await(verb, started_s, order.id, asked))
                return
            answer = told(outcome, wish, shard.sale.sku_index, "")
        except Exception as error:  # noqa: BLE001 - logged, and no traceback leaves
            self._fail(verb, started_s, error)
        else:
            self._answer(verb, started_s, answer)
        self._go_on(order.id)

    # -- answers ------------------------------------------------------------------------------

    async def _watch(self, verb: Watch) -> Reply:
        """Begins or ends the stock feed. Raises UnknownSale."""
        feed = self._sockets.feed
        if verb.on:
            await self._intake.engine.sale(self._sale)
            # The answer goes first.
            asyncio.get_running_loop().call_soon(feed.watch, self._session)
        else:
            feed.forget(self._session)
        return reply(WatchDocument("done", verb.on))

    def _refuse(self, verb: _Asked, started_s: float, error: Exception) -> None:
        """The same, and ends a socket of which nobody knows whose it is."""
        answer = self._fail(verb, started_s, error)
        if self._caller is None:
            self._session.end(TRY_LATER if answer.status >= 429 else NOBODY)

    def _fail(self, verb: _Asked, started_s: float, error: Exception) -> Reply:
        """Answers with what was raised."""
        watched = _WATCHED[verb.op if type(verb) is Garbled else OPS[type(verb)]]
        answer, request_id = self._sockets.guard.failed(watched, error)
        self._answer(verb, started_s, answer, request_id)
        return answer

    def _answer(self, verb: _Asked, started_s: float, answer: Reply, request_id: str = "") -> None:
        intake, sockets = self._intake, self._sockets
        op = verb.op if type(verb) is Garbled else OPS[type(verb)]
        intake.in_flight -= 1
        self._under_way -= 1
        seconds = monotonic() - started_s
        sockets.guard.answered(_WATCHED[op], _GET, answer, seconds, request_id)
        intake.metrics.socket_answered(op, answer.code)
        if not self._session.ending:
            self._session.send(_frame(verb.id, answer))
        if self._silent is not None and not self._under_way:
            self._silent()


class _Order(Decision):
    """An order that waits in its lane."""

    __slots__ = ("_dialogue", "caller", "id", "shard", "started_s", "verb", "wish")

    def __init__(
        self,
        dialogue: Dialogue,
        decisions: Decisions,
        verb: Buy,
        caller: Caller,
        started_s: float,
        wish: Wish,
        shard: Shard,
    ) -> None:
        super().__init__(decisions)
        self._dialogue = dialogue
        self.verb = verb
        self.caller = caller
        self.started_s = started_s
        self.wish = wish
        self.shard = shard
        self.id = ""

    def tell(self) -> None:
        """Part of Decision."""
        self._dialogue.decided(self)


def need_buyer(caller: Caller) -> Caller:
    """The same caller. Raises Problem unless it is a buyer."""
    if not caller.buyer:
        raise Problem(FORBIDDEN, "a socket is for buyers; it takes a user token")
    check_buyer(caller.buyer, "buyer")
    return caller


def _frame(name: int | str | None, answer: Reply) -> bytes:
    body = msgspec.Raw(answer.body)  # type: ignore[arg-type]
    if answer.status < 429 and answer.is_bare:
        return frame(encode(Answer(name, answer.status, body)))
    headers = answer.headers
    wait_s, request_id = headers.get(hdrs.RETRY_AFTER, "0"), headers.get("X-Request-Id", "")
    return frame(encode(Answer(name, answer.status, body, int(wait_s), request_id)))


def _header(authorization: str) -> str:
    """The header as Access remembers it, whose scheme may have come in any case."""
    _, _, proof = authorization.partition(" ")
    return f"Bearer {proof}"
