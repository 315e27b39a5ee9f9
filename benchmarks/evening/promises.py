"""What a buyer was promised, and what one sees when a promise is broken.

Every answer passes ``Notes.judge``; every order that an answer shows passes ``Notes.saw``. Nothing
here sends anything, so each promise is tested by itself. Times of the server are estimates
(clock.py), and a promise about time counts as broken only where the estimate can't be to blame.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from .clock import OFF_MS, Clock
from .documented import VERBS, Documented

__all__ = ["Account", "Answer", "Notes", "Rules", "Span", "Wish"]

TWO_ORDERS: Final = "two orders for one key"
TWO_CREATED: Final = "one key was accepted as new twice"
LOST: Final = "an acknowledged order is unknown"
UNPAID: Final = "a confirmed order is not confirmed"
ENDED_EARLY: Final = "an order ended before its deadline"
WENT_BACK: Final = "an order went back to an earlier version"
NOT_ASKED: Final = "an order is not what was asked for"
WRONGED: Final = "a good request was refused as a bad one"
UNDOCUMENTED: Final = "an answer that is not documented"
NO_RETRY_AFTER: Final = "not now, and no Retry-After"
SERVER_ERROR: Final = "an answer 5xx that is not 503"
OVER_LIMIT: Final = "more units than one buyer may have"
OVERSOLD: Final = "more units than there are"
TOO_SOON: Final = "an order before the opening"
PLACE_BACK: Final = "a place went backwards"
USER_TOKEN: Final = "a good user token was refused"  # noqa: S105 - what went wrong with one
TURN: Final = "a good turn was refused"
SUMS: Final = "the report does not add up"

EXAMPLES_MAX: Final = 20
_STANDING: Final = ("held", "paying")
_PAID: Final = ("confirmed", "refunded")
_MADE_UP: Final = (
    *("queue_token_invalid", "queue_token_needed", "unknown_ticket"),
    *("queue_token_other_buyer", "queue_token_other_sale"),
)
# What buyers send here is well-formed, about a sale that there is, and one key is one wish.
_BAD: Final = (400, 405, 413, 415, 422)
_BAD_CODES: Final = ("conflict", "forbidden", "not_found", "unknown_sale")

Span = tuple[str, int, float, float | None]
"""A SKU, units of it that were somebody's, and from when to when on the server's clock at least, in
milliseconds; None: to the end."""


class Answer(msgspec.Struct):
    """What came back: ``status`` 0 where nothing did. ``code`` is "" for an answer without one.
    ``sent_ms`` and ``got_ms`` are by ``Clock.local_ms``."""

    verb: str
    status: int
    code: str
    body: dict[str, Any]
    sent_ms: float
    got_ms: float
    retry_after_s: float | None = None
    etag: str = ""

    @property
    def ok(self) -> bool:
        """Whether it is a yes."""
        return 200 <= self.status < 300

    @property
    def later(self) -> bool:
        """Whether the identical request is to be repeated: "not now", or nothing came back."""
        return self.status in (0, 408, 429, 503) or self.code == "body_broken"

    @property
    def order(self) -> dict[str, Any] | None:
        """The order that came along."""
        if self.verb == "result" and self.ok:
            return self.body
        return self.body.get("order")


class Wish(msgspec.Struct, frozen=True):
    """What one key stands for. ``expires_ms`` is until when the ``token`` of the turn is good."""

    buyer: str
    key: str
    items: dict[str, int]
    token: str = ""
    expires_ms: int = 0


class Rules(msgspec.Struct, frozen=True):
    """What the sale's page promises; limits of 0 are none."""

    opens_ms: int
    hold_ms: int
    limit_per_buyer: int
    sku_limits: dict[str, int]

    @classmethod
    def of(cls, page: Mapping[str, Any]) -> Rules:
        """The rules of a page."""
        limits = {item["sku"]: item["limit_per_buyer"] for item in page["items"]}
        return cls(page["opens_ms"], page["hold_ms"], page["limit_per_buyer"], limits)


class _Note(msgspec.Struct):
    """One acknowledged order. ``spans`` are from when to when it surely had its units."""

    id: str
    wish: Wish
    spans: list[list[float]]
    state: str = "held"
    version: int = 0
    deadline_ms: int = 0
    release_sent: bool = False
    paid: bool = False


class Account(msgspec.Struct):
    """What a load process has to say in the end."""

    spans: list[Span]
    orders: list[tuple[str, str, int]]
    """Id, state and version as last seen; "confirmed" if it was ever told so."""
    confirmed: dict[str, int]
    broken: dict[str, int]
    examples: list[str]
    evenings: dict[str, int]
    begun: int = 0
    """Evenings that began; those that are not among ``evenings`` were cut off."""
    answers: int = 0
    """Answers that were looked at."""


class Notes:
    """Everything one load process was told. ``on_broken`` hears of each broken promise. Once it is
    ``closed`` nobody asks any more; ``in_flight`` counts who is still to be answered."""

    def __init__(
        self, clock: Clock, known: Documented, on_broken: Callable[[str, str], None] | None = None
    ) -> None:
        self.clock = clock
        self.evenings: Counter[str] = Counter()
        self.begun = self.answers = 0
        self.in_flight = 0
        self.closed = False
        self.broken: Counter[str] = Counter()
        self.examples: list[str] = []
        self._known = known
        self._on_broken = on_broken
        self._orders: dict[str, _Note] = {}
        self._ids: dict[tuple[str, str], str] = {}
        self._created: set[tuple[str, str]] = set()
        self._of_buyer: dict[str, list[_Note]] = {}

    def broke(self, what: str, detail: str) -> None:
        """A promise is broken."""
        self.broken[what] += 1
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(f"{what}: {detail}")
        if self._on_broken is not None:
            self._on_broken(what, detail)

    def judge(self, answer: Answer) -> None:
        """Looks at any answer by itself."""
        if answer.status == 0:
            return
        self.answers += 1
        shown = f"{answer.verb} was answered {answer.status} {answer.code}".rstrip()
        if answer.status == 401:
            self.broke(USER_TOKEN, shown)
        elif answer.status >= 500 and answer.status != 503:
            self.broke(SERVER_ERROR, shown)
        elif (answer.status, answer.code) not in self._known[VERBS[answer.verb]]:
            self.broke(UNDOCUMENTED, shown)
        elif (answer.status in _BAD and not answer.later) or answer.code in _BAD_CODES:
            self.broke(WRONGED, shown)
        elif answer.status in (429, 503) and answer.retry_after_s is None:
            self.broke(NO_RETRY_AFTER, shown)

    # -- orders -------------------------------------------------------------------------------

    def bought(self, wish: Wish, answer: Answer, rules: Rules) -> None:
        """The answer to an order, whatever it is."""
        name = (wish.buyer, wish.key)
        known = self._ids.get(name)
        if not answer.ok:
            self._judge_turn(wish, answer)
            return
        order = answer.order
        if order is None or not {"id", "buyer", "items", "state", "version"} <= order.keys():
            self.broke(UNDOCUMENTED, f"order {wish.key} was accepted without an order")
            return
        if known is not None and known != order["id"]:
            self.broke(TWO_ORDERS, f"key {wish.key} of {wish.buyer}: {known} and {order['id']}")
        if answer.code == "created":
            if name in self._created:
                self.broke(TWO_CREATED, f"key {wish.key} of {wish.buyer}: {order['id']}")
            self._created.add(name)
        if order["id"] not in self._orders:
            self._note(wish, order, answer, rules)
        self.saw(order, answer)

    def refused_again(self, wish: Wish, answer: Answer) -> None:
        """A blind retry of an accepted order, sent after it had been acknowledged."""
        if not answer.ok and not answer.later:
            self.broke(LOST, f"a retry of key {wish.key} was answered {answer.code}")

    def releasing(self, order_id: str) -> None:
        """The order is about to be given up: from now on its units may be anybody's."""
        note = self._orders[order_id]
        note.release_sent = True
        now_ms = self.clock.now_ms() - self.clock.error_ms - OFF_MS
        note.spans[-1][1] = min(note.spans[-1][1], now_ms)

    def moved(self, order_id: str, answer: Answer) -> None:
        """The answer to a verb on an acknowledged order."""
        if answer.status == 404:
            self.broke(LOST, f"order {order_id}: {answer.verb} was answered {answer.code}")
        if answer.order is not None:
            if answer.order.get("id") != order_id:
                self.broke(NOT_ASKED, f"{answer.verb} of {order_id} showed another order")
                return
            self.saw(answer.order, answer)
        if answer.verb == "confirm" and answer.ok:
            self._confirmed(self._orders[order_id], answer)

    def saw(self, order: Mapping[str, Any], answer: Answer) -> None:
        """An order as it was shown at some moment between sending and answer."""
        note = self._orders.get(order["id"])
        if note is None:
            return
        if order["buyer"] != note.wish.buyer or _cart(order) != note.wish.items:
            self.broke(NOT_ASKED, f"order {note.id} is of {order['buyer']}: {_cart(order)}")
        state, version = order["state"], order["version"]
        if version < note.version:
            # Two questions may have been under way at once; only the one asked later counts.
            return
        note.version, note.state = version, state
        if state in _STANDING and order.get("deadline_ms"):
            note.deadline_ms = order["deadline_ms"]
            if not note.release_sent:
                note.spans[-1][1] = note.deadline_ms
        elif state in ("expired", "released") and not note.paid:
            self._ended(note, answer)
        if note.paid and state not in _PAID:
            self.broke(UNPAID, f"order {note.id} is {state}")

    def looked(self, order_id: str, answer: Answer, version_before: int) -> None:
        """A look at an order, asked when ``version_before`` had been seen."""
        self.moved(order_id, answer)
        order = answer.order
        if order is not None and order["version"] < version_before:
            self.broke(WENT_BACK, f"order {order_id}: {version_before}, then {order['version']}")

    def version(self, order_id: str) -> int:
        """The newest version that was seen of this order."""
        return self._orders[order_id].version

    def _note(self, wish: Wish, order: Mapping[str, Any], answer: Answer, rules: Rules) -> None:
        since_ms, until_ms = self._latest(answer), 0.0
        if order["state"] == "held" and order.get("deadline_ms"):
            # So the order itself tells, on the sale's clock, when it was accepted.
            until_ms = order["deadline_ms"]
            since_ms = until_ms - rules.hold_ms
        note = _Note(order["id"], wish, [[since_ms, until_ms]])
        self._orders[note.id] = note
        self._ids.setdefault((wish.buyer, wish.key), note.id)
        self._of_buyer.setdefault(wish.buyer, []).append(note)
        if since_ms < rules.opens_ms:
            self.broke(TOO_SOON, f"order {note.id}, {rules.opens_ms - since_ms:.0f} ms before it")
        self._check_limits(wish.buyer, since_ms, rules)

    def _check_limits(self, buyer: str, at_ms: float, rules: Rules) -> None:
        units: Counter[str] = Counter()
        for note in self._of_buyer[buyer]:
            if any(since <= at_ms < until for since, until in note.spans):
                units.update(note.wish.items)
        for sku, count in units.items():
            if 0 < rules.sku_limits.get(sku, 0) < count:
                self.broke(OVER_LIMIT, f"{buyer} has {count} of {sku}")
        if 0 < rules.limit_per_buyer < units.total():
            self.broke(OVER_LIMIT, f"{buyer} has {units.total()} units")

    def _ended(self, note: _Note, answer: Answer) -> None:
        if not note.release_sent and self._latest(answer) < note.deadline_ms:
            left_ms = note.deadline_ms - self._latest(answer)
            self.broke(ENDED_EARLY, f"order {note.id} ({note.state}), {left_ms:.0f} ms before")

    def _confirmed(self, note: _Note, answer: Answer) -> None:
        if not note.paid:
            note.paid = True
            if answer.code == "confirmed_late" or note.spans[-1][1] < self.clock.at(answer.sent_ms):
                # It may have lost its units at the deadline, and got others now.
                note.spans.append([self._latest(answer), float("inf")])
            else:
                note.spans[-1][1] = float("inf")

    def _judge_turn(self, wish: Wish, answer: Answer) -> None:
        if not wish.token:
            return
        early = answer.code == "queue_token_expired" and self._latest(answer) < wish.expires_ms
        if early or answer.code in _MADE_UP:
            self.broke(TURN, f"an order of {wish.buyer} was answered {answer.code}")

    def _latest(self, answer: Answer) -> float:
        """The latest time of the sale at which this can have been decided."""
        return self.clock.at(answer.got_ms) + self.clock.error_ms + OFF_MS

    # -- in the end ---------------------------------------------------------------------------

    def account(self) -> Account:
        """All of it, to be added up with that of the other processes."""
        spans: list[Span] = []
        orders: list[tuple[str, str, int]] = []
        confirmed: Counter[str] = Counter()
        for note in self._orders.values():
            orders.append((note.id, "confirmed" if note.paid else note.state, note.version))
            if note.paid:
                confirmed.update(note.wish.items)
            for since, until in note.spans:
                if since < until:
                    last = None if until == float("inf") else until
                    spans += [(sku, n, since, last) for sku, n in note.wish.items.items()]
        return Account(
            spans,
            orders,
            dict(confirmed),
            dict(self.broken),
            self.examples,
            dict(self.evenings),
            self.begun,
            self.answers,
        )


def _cart(order: Mapping[str, Any]) -> dict[str, int]:
    return {line["sku"]: line["quantity"] for line in order["items"]}
