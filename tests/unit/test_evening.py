"""Each promise of an evening, kept and broken, as the load processes judge it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from benchmarks.evening import promises
from benchmarks.evening.audit import (
    added,
    compared,
    most_at_once,
    oversold,
    still_there,
)
from benchmarks.evening.clock import OFF_MS, Clock
from benchmarks.evening.crowd import present
from benchmarks.evening.documented import VERBS, documented
from benchmarks.evening.line import Line
from benchmarks.evening.options import described
from benchmarks.evening.promises import Account, Answer, Notes, Rules, Wish
from seckill.engine import Engine
from seckill.server import create_app
from seckill.server.openapi import describe

RULES = Rules(opens_ms=1_000_000, hold_ms=1_000_000, limit_per_buyer=2, sku_limits={"mug": 1})
WISH = Wish("ann", "k1", {"mug": 1})
LATER_MS = 2_000_000
DEADLINE_MS = 3_000_000


@pytest.fixture(scope="module")
def known() -> dict[str, set[tuple[int, str]]]:
    """What our own intake documents."""
    app: web.Application = create_app(Engine("redis://127.0.0.1:1"))
    return documented(describe(app.router.routes()))


class _Steady(Clock):
    """A clock that shows what the test says, and is off by 2 ms at most."""

    def __init__(self) -> None:
        super().__init__()
        self.learn(0, 0, 2)
        self._ahead_ms = 0.0

    now = float(LATER_MS)

    def now_ms(self) -> float:
        return self.now


@pytest.fixture
def notes(known: dict[str, set[tuple[int, str]]]) -> Notes:
    return Notes(_Steady(), known)


def order_of(**fields: Any) -> dict[str, Any]:
    usual = {
        "id": "o1",
        "buyer": "ann",
        "items": [{"sku": "mug", "quantity": 1}],
        "state": "held",
        "version": 1,
        "deadline_ms": DEADLINE_MS,
    }
    return usual | fields


def said(
    verb: str, status: int, code: str = "", body: Any = None, at_ms: float = LATER_MS, **more: Any
) -> Answer:
    return Answer(verb, status, code, body or {}, at_ms - 5, at_ms, **more)


def accepted(code: str = "created", at_ms: float = LATER_MS, **fields: Any) -> Answer:
    body = {"code": code, "order": order_of(**fields)}
    return said("buy", 201 if code == "created" else 200, code, body, at_ms)


def shown(at_ms: float = LATER_MS, **fields: Any) -> Answer:
    return said("result", 200, "", order_of(**fields), at_ms)


def test_the_description_names_every_verb(known: dict[str, set[tuple[int, str]]]) -> None:
    assert (201, "created") in known["reserve"]
    assert (409, "sold_out") in known["reserve"]
    assert (409, "sold_out") not in known["confirm"]
    assert (304, "") in known["show_sale"]
    assert (200, "") in known["show_order"]
    with pytest.raises(ValueError, match="describes no"):
        documented({"paths": {}})
    assert set(VERBS.values()) <= known.keys()


def test_an_evening_without_a_broken_promise(notes: Notes) -> None:
    for answer in (accepted(), accepted("exists")):
        notes.judge(answer)
        notes.bought(WISH, answer, RULES)
    refused = said("buy", 409, "sku_limit")
    notes.judge(refused)
    notes.bought(Wish("ann", "k2", {"mug": 1}), refused, RULES)
    begun = said("begin", 200, "done", {"order": order_of(state="paying", version=2)})
    notes.moved("o1", begun)
    paid = said("confirm", 200, "done", {"order": order_of(state="confirmed", version=3)})
    notes.moved("o1", paid)
    notes.looked("o1", shown(state="confirmed", version=3, deadline_ms=None), 3)
    notes.refused_again(WISH, accepted("exists", state="confirmed", version=3))
    account = notes.account()
    assert (notes.broken, account.confirmed) == ({}, {"mug": 1})
    assert account.orders == [("o1", "confirmed", 3)]
    [(sku, units, _, until)] = account.spans
    assert (sku, units, until) == ("mug", 1, None)


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (said("buy", 500, "internal"), "an answer 5xx that is not 503"),
        (said("buy", 502, ""), "an answer 5xx that is not 503"),
        (said("buy", 503, "busy"), "not now, and no Retry-After"),
        (said("buy", 429, "rate_limited"), "not now, and no Retry-After"),
        (said("buy", 409, "tired"), "an answer that is not documented"),
        (said("buy", 200, "sold_out"), "an answer that is not documented"),
        (said("begin", 409, "sold_out"), "an answer that is not documented"),
        (said("buy", 401, "token_expired"), "a good user token was refused"),
        (said("buy", 400, "malformed_json"), "a good request was refused as a bad one"),
        (said("buy", 409, "conflict"), "a good request was refused as a bad one"),
        (said("confirm", 403, "forbidden"), "a good request was refused as a bad one"),
        (said("buy", 409, "sold_out"), None),
        (said("buy", 503, "busy", retry_after_s=1), None),
        (said("page", 304), None),
        (said("buy", 0), None),
    ],
)
def test_an_answer_by_itself(notes: Notes, answer: Answer, what: str | None) -> None:
    notes.judge(answer)
    assert list(notes.broken) == ([] if what is None else [what])


def test_one_key_is_one_order(notes: Notes) -> None:
    notes.bought(WISH, accepted(), RULES)
    notes.bought(WISH, accepted("exists", id="o2"), RULES)
    assert "two orders for one key" in notes.broken


def test_a_key_is_new_once(notes: Notes) -> None:
    notes.bought(WISH, accepted(), RULES)
    notes.bought(WISH, accepted(), RULES)
    assert notes.broken == {"one key was accepted as new twice": 1}


def test_an_accepted_key_stays_accepted(notes: Notes) -> None:
    notes.bought(WISH, accepted(), RULES)
    notes.refused_again(WISH, said("buy", 503, "busy", retry_after_s=1))
    assert notes.broken == {}
    notes.refused_again(WISH, said("buy", 409, "sold_out"))
    assert notes.broken == {"an acknowledged order is unknown": 1}


def test_an_acknowledged_order_is_known(notes: Notes) -> None:
    notes.bought(WISH, accepted(), RULES)
    notes.moved("o1", said("begin", 404, "unknown_order"))
    assert notes.broken == {"an acknowledged order is unknown": 1}


def test_a_buyers_limit(notes: Notes) -> None:
    notes.bought(WISH, accepted(), RULES)
    notes.releasing("o1")
    notes.bought(Wish("ann", "k2", {"mug": 1}), accepted(id="o2"), RULES)
    assert notes.broken == {}, "what was given up counts no more"
    notes.bought(Wish("ann", "k3", {"mug": 1}), accepted(id="o3"), RULES)
    assert notes.broken == {"more units than one buyer may have": 1}


def test_a_buyers_limit_over_all_skus(notes: Notes) -> None:
    for number, sku in enumerate(("tea", "cup", "pot")):
        assert notes.broken == {}
        items = [{"sku": sku, "quantity": 1}]
        wish = Wish("ann", f"k{number}", {sku: 1})
        notes.bought(wish, accepted(id=f"o{number}", items=items), RULES)
    assert notes.broken == {"more units than one buyer may have": 1}


@pytest.mark.parametrize("verb", ["begin", "release", "confirm"])
def test_an_answer_is_about_the_order_that_was_asked_for(notes: Notes, verb: str) -> None:
    notes.bought(WISH, accepted(), RULES)
    notes.moved("o1", said(verb, 200, "done", {"order": order_of(id="o2", version=2)}))
    assert notes.broken == {"an order is not what was asked for": 1}
    notes.looked("o1", shown(id="o2", version=2), 1)
    assert notes.broken == {"an order is not what was asked for": 2}


def test_an_answer_to_a_retry_does_not_change(notes: Notes) -> None:
    notes.bought(WISH, accepted(), RULES)
    notes.bought(WISH, accepted("exists", items=[{"sku": "tea", "quantity": 1}]), RULES)
    assert notes.broken == {"an order is not what was asked for": 1}


def test_nothing_is_sold_before_the_opening(notes: Notes) -> None:
    opens_ms, hold_ms = RULES.opens_ms, RULES.hold_ms
    in_time = accepted(deadline_ms=opens_ms + hold_ms)
    notes.bought(WISH, in_time, RULES)
    assert notes.broken == {}
    bob = Wish("bob", "k1", {"mug": 1})
    notes.bought(bob, accepted(id="o2", buyer="bob", deadline_ms=opens_ms + hold_ms - 1), RULES)
    assert notes.broken == {"an order before the opening": 1}


@pytest.mark.parametrize("state", ["expired", "released"])
def test_an_order_lasts_until_its_deadline(notes: Notes, state: str) -> None:
    notes.bought(WISH, accepted(), RULES)
    late = shown(DEADLINE_MS + 1, state=state, version=2, deadline_ms=None)
    notes.looked("o1", late, 1)
    assert notes.broken == {}
    notes.bought(Wish("bob", "k1", {"mug": 1}), accepted(id="o2", buyer="bob"), RULES)
    early = shown(id="o2", buyer="bob", state=state, version=2, deadline_ms=None)
    notes.looked("o2", early, 1)
    assert notes.broken == {"an order ended before its deadline": 1}


def test_a_confirmed_order_stays_so(notes: Notes) -> None:
    notes.bought(WISH, accepted(), RULES)
    paid = order_of(state="confirmed", version=2, deadline_ms=None)
    notes.moved("o1", said("confirm", 200, "done", {"order": paid}))
    notes.looked("o1", shown(state="expired", version=3), 2)
    assert notes.broken == {"a confirmed order is not confirmed": 1}


def test_an_order_does_not_go_back(notes: Notes) -> None:
    notes.bought(WISH, accepted(), RULES)
    notes.looked("o1", shown(state="paying", version=2), 1)
    notes.looked("o1", shown(), 1)
    assert notes.broken == {}, "two questions at once may cross"
    notes.looked("o1", shown(), 2)
    assert notes.broken == {"an order went back to an earlier version": 1}


@pytest.mark.parametrize(
    "wrong", [{"buyer": "eve"}, {"items": [{"sku": "mug", "quantity": 2}]}, {"items": []}]
)
def test_an_order_is_what_was_asked_for(notes: Notes, wrong: dict[str, Any]) -> None:
    notes.bought(WISH, accepted(**wrong), RULES)
    assert "an order is not what was asked for" in notes.broken


def test_an_order_is_shown(notes: Notes) -> None:
    notes.bought(WISH, said("buy", 201, "created", {"code": "created"}), RULES)
    assert notes.broken == {"an answer that is not documented": 1}


def test_a_turn_is_good(notes: Notes) -> None:
    wish = Wish("ann", "k1", {"mug": 1}, "t", expires_ms=LATER_MS + 10_000)
    late_ms = wish.expires_ms - 500
    notes.bought(wish, said("buy", 403, "queue_token_expired", at_ms=late_ms), RULES)
    assert notes.broken == {}, "the clock may be behind by so much"
    notes.bought(wish, said("buy", 403, "queue_token_expired"), RULES)
    notes.bought(wish, said("buy", 403, "queue_token_invalid"), RULES)
    assert notes.broken == {"a good turn was refused": 2}


def place(**fields: Any) -> dict[str, Any]:
    usual = {"ticket": "t", "number": 7, "phase": "waiting", "ahead": 5, "at_ms": 100}
    return usual | {"expires_ms": None} | fields


@pytest.mark.parametrize(
    ("then", "good"),
    [
        (place(ahead=5, at_ms=101), True),
        (place(ahead=4, at_ms=101), True),
        (place(ahead=6, at_ms=101), False),
        # Another worker, which has looked earlier.
        (place(ahead=6, at_ms=99), True),
        (place(number=8, at_ms=101), False),
        (place(ticket="u", number=20, ahead=9, at_ms=101), True),
        (place(phase="called", ahead=0, expires_ms=500, at_ms=101), True),
    ],
)
def test_a_place_gets_better(notes: Notes, then: dict[str, Any], *, good: bool) -> None:
    line = Line(notes, "ann", "queue")
    line.told(place())
    line.told(then)
    assert notes.broken == ({} if good else {"a place went backwards": 1})


@pytest.mark.parametrize(
    ("then", "good"),
    [
        (place(phase="called", ahead=0, expires_ms=500, at_ms=101), True),
        (place(phase="lapsed", at_ms=600), True),
        (place(phase="called", ahead=0, expires_ms=600, at_ms=101), False),
        (place(at_ms=101), False),
    ],
)
def test_a_turn_stays(notes: Notes, then: dict[str, Any], *, good: bool) -> None:
    line = Line(notes, "ann", "shuffle")
    line.told(place(phase="called", ahead=0, expires_ms=500))
    line.told(then)
    assert notes.broken == ({} if good else {"a place went backwards": 1})


def test_most_at_once() -> None:
    spans = [("a", 1, 0.0, 10.0), ("a", 2, 5.0, None), ("a", 1, 10.0, 20.0), ("b", 1, 0.0, 1.0)]
    assert most_at_once(spans) == {"a": 3, "b": 1}
    assert oversold(spans, {"a": 3, "b": 1}) == []
    [(what, detail)] = oversold(spans, {"a": 2, "b": 1})
    assert what == "more units than there are"
    assert "3 of a" in detail


def test_units_that_came_back_are_sold_again(notes: Notes) -> None:
    """Held to its deadline, given up, and paid late: never two at one moment."""
    notes.bought(WISH, accepted(), RULES)
    late_ms = DEADLINE_MS + 50_000
    paid = order_of(state="confirmed", version=3, deadline_ms=None)
    notes.moved("o1", said("confirm", 200, "confirmed_late", {"order": paid}, late_ms))
    bob = Wish("bob", "k1", {"mug": 1})
    between = {"deadline_ms": DEADLINE_MS + 40_000}
    hold_ms = between["deadline_ms"] - DEADLINE_MS
    rules = msgspec.structs.replace(RULES, hold_ms=hold_ms)
    notes.bought(bob, accepted(id="o2", buyer="bob", **between), rules)
    spans = notes.account().spans
    assert len(spans) == 3
    assert most_at_once(spans) == {"mug": 1}
    assert notes.broken == {}


@pytest.mark.parametrize(("early_ms", "good"), [(OFF_MS, True), (OFF_MS + 10, False)])
def test_what_is_given_up_is_anybodys(
    known: dict[str, set[tuple[int, str]]], early_ms: float, *, good: bool
) -> None:
    """From when that was sent, or as much earlier as the clock may be off."""
    clock = _Steady()
    clock.now = LATER_MS + 5_000.0
    notes = Notes(clock, known)
    notes.bought(WISH, accepted(), RULES)
    notes.releasing("o1")
    deadline_ms = clock.now - early_ms + RULES.hold_ms
    bob = accepted(id="o2", buyer="bob", deadline_ms=deadline_ms)
    notes.bought(Wish("bob", "k1", {"mug": 1}), bob, RULES)
    assert (oversold(notes.account().spans, {"mug": 1}) == []) is good


def report_of(**fields: int) -> dict[str, Any]:
    item = {"sku": "mug", "available": 1, "held": 2, "confirmed": 3, "total": 6} | fields
    return {"items": [item], "orders": 9}


def test_the_report_adds_up() -> None:
    assert compared(report_of(), {"mug": 3}, 9) == []
    for report, confirmed, orders in (
        (report_of(held=1), 3, 9),
        (report_of(available=-1, held=4), 3, 9),
        (report_of(available=4, held=-1), 3, 9),
        (report_of(), 4, 9),
        (report_of(), 3, 10),
    ):
        [(what, _)] = compared(report, {"mug": confirmed}, orders)
        assert what == "the report does not add up"


@pytest.mark.parametrize(
    ("known", "status", "order", "what"),
    [
        (("o1", "held", 1), 200, order_of(state="expired", version=2), None),
        (("o1", "held", 1), 404, None, "an acknowledged order is unknown"),
        (("o1", "held", 3), 200, order_of(), "an order went back to an earlier version"),
        (("o1", "held", 1), 200, order_of(id="o2"), "an order is not what was asked for"),
        (("o1", "confirmed", 1), 200, order_of(), "a confirmed order is not confirmed"),
        (("o1", "confirmed", 3), 200, order_of(state="refunded", version=4), None),
    ],
)
def test_a_last_look(
    known: tuple[str, str, int], status: int, order: dict[str, Any] | None, what: str | None
) -> None:
    assert [found for found, _ in still_there(known, status, order)] == ([what] if what else [])


def test_accounts_are_added() -> None:
    one = Account(
        [("a", 1, 0.0, None)], [("o1", "held", 1)], {"a": 1}, {"x": 2}, ["e"], {"y": 1}, 3
    )
    both = added([one, one])
    assert both.spans == one.spans * 2
    assert both.orders == one.orders * 2
    assert (both.confirmed, both.broken, both.evenings) == ({"a": 2}, {"x": 4}, {"y": 2})
    assert (both.examples, both.begun) == (["e", "e"], 6)


def test_a_clock_believes_the_fastest_answer() -> None:
    clock = Clock()
    assert not clock.known
    clock.learn(1_000, 100, 300)
    assert (clock.at(300), clock.error_ms) == (1_100, 101)
    clock.learn(1_305, 390, 400)
    assert (clock.at(400), clock.error_ms) == (1_310, 6)
    clock.learn(9_999, 500, 600)
    assert clock.at(600) == 1_510


def test_a_crowd_comes_before_the_opening_and_after_it() -> None:
    users, rush, tail_s, come_per_s = 1_000, 0.8, 10.0, 200.0

    def there(opening_s: float, after_s: float) -> int:
        return present(users, rush, tail_s, come_per_s, opening_s, after_s)

    assert there(21.5, 10) == 400
    assert there(21.5, 21) == 800
    assert 800 < there(21.5, 25) < 1_000
    assert there(21.5, 200) == 1_000
    # Open already: they come as fast as they may.
    assert there(-60, 2) == 400
    assert there(-60, 4) == 800
    assert there(-60, 0) == 1
    counts = [there(10, second) for second in range(100)]
    assert counts == sorted(counts)


def test_the_guide_has_every_option_and_every_promise() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "load-testing.md").read_text(encoding="utf-8")
    for option, variable, default, text in described():
        shown = f"`{default}` " if default else ""
        assert f"| `{option}` | `{variable}` | {shown}| {text} |\n" in guide
    promised = {
        value
        for name, value in vars(promises).items()
        if name.isupper() and isinstance(value, str) and " " in value
    }
    here = Path(__file__).read_text(encoding="utf-8")
    assert [what for what in promised if f'"{what}"' not in here] == [], "each is seen broken here"
    told = set(re.findall(r"^\| `([a-z0-9 ,A-Z-]+)` \|", guide, re.MULTILINE))
    assert promised <= told
    assert {what for what in told if " " in what} == promised
