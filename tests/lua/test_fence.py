"""A sale of which the server has lost something stands still, whatever is asked of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from seckill.scripts import NAMES
from seckill.status import Status
from tests.lua.core import CLOCK_JUMP_MS, DEFINITION_ID, HOLD_MS, NEVER_MS, PAY_MS, Core, Wish

MADE = "run:1"


def fence(
    core: Core, *, seen: str | None = None, made: str = MADE, seq: int = 0, wanted: str = ""
) -> list[Any]:
    """``seen`` is what the header has, where nothing else is said; ``wanted`` somebody's reason."""
    if seen is None:
        seen = (core.client.hget(core.keys[0], "made") or b"").decode()  # type: ignore[union-attr]
    numbers = (1, 1, 2_000_000_000_000, HOLD_MS, PAY_MS, 0, 0, 0, CLOCK_JUMP_MS)
    status, reason, new = core.run(
        "fence", seen, made, seq, DEFINITION_ID, '{"title":"x"}', *numbers, wanted
    )
    return [Status(status), reason.decode(), new]


def fenced(core: Core) -> Core:
    """The same sale, of which more is known than there is here."""
    assert fence(core, seq=99)[0] is Status.FENCED
    return core


@pytest.fixture
def sale(core: Core) -> Core:
    core.begin()
    core.set_header(made=MADE)
    return core


def test_a_sale_that_is_as_it_is_known_is_left_alone(sale: Core) -> None:
    sale.hold()
    before = sale.dump()
    for seq in (0, 2, 3):
        assert fence(sale, seq=seq) == [Status.DONE, "", 0]
    assert sale.dump() == before


@pytest.mark.parametrize(
    ("made", "seq", "reason"),
    [
        (MADE, 4, "behind: this server ends at event 3, events up to 4 are known"),
        ("run:0", 0, "made anew: this is not the sale that is known under its id"),
    ],
)
def test_a_sale_with_less_is_fenced_and_only_its_state_changes(
    sale: Core, made: str, seq: int, reason: str
) -> None:
    sale.hold()
    before = sale.dump()
    assert fence(sale, made=made, seq=seq) == [Status.FENCED, reason, 1]
    assert fence(sale, made=made, seq=seq) == [Status.FENCED, reason, 0]
    after = sale.dump()
    changed = {b"state": b"fenced", b"reason": reason.encode(), b"fenced_state": b"open"}
    assert after == before | {"sale": before["sale"] | changed}


def test_a_sale_that_is_as_it_is_known_is_fenced_for_a_reason(sale: Core) -> None:
    sale.hold()
    before = sale.dump()
    assert fence(sale, seen="run:0", seq=3, wanted="why") == [Status.DONE, "", 0]
    assert sale.dump() == before
    assert fence(sale, seq=3, wanted="why") == [Status.FENCED, "why", 1]
    # The first reason stays.
    assert fence(sale, seq=3, wanted="another") == [Status.FENCED, "why", 0]
    assert fence(sale, seq=99) == [Status.FENCED, "why", 0]
    changed = {b"state": b"fenced", b"reason": b"why", b"fenced_state": b"open"}
    assert sale.dump() == before | {"sale": before["sale"] | changed}
    assert sale.reserve(Wish("o9", "eve")) == [Status.FENCED]


@pytest.mark.parametrize(
    ("made", "seq", "word"), [(MADE, 99, "behind:"), ("run:0", 0, "made anew:")]
)
def test_what_is_wrong_is_told_before_somebodys_reason(
    sale: Core, made: str, seq: int, word: str
) -> None:
    status, reason, new = fence(sale, made=made, seq=seq, wanted="why")
    assert (status, new) == (Status.FENCED, 1)
    assert reason.startswith(word)


def test_a_sale_that_is_gone_gets_a_header_and_nothing_else(core: Core) -> None:
    reason = "lost: this server has nothing of it, events up to 7 are known"
    assert fence(core, seq=7) == [Status.FENCED, reason, 1]
    assert fence(core, seq=7) == [Status.FENCED, reason, 0]
    assert {name for name, found in core.dump().items() if found} == {"sale"}
    assert core.header("state") == "fenced"
    assert core.header("fenced_state") == ""
    # Nobody makes it anew, with all of its stock.
    assert core.create() is Status.EXISTS
    core.definition_id = "another"
    assert core.create() is Status.CONFLICT


def test_a_sale_that_was_rebuilt_meanwhile_is_left_alone(sale: Core) -> None:
    before = sale.dump()
    assert fence(sale, seen="run:0", made="run:0", seq=99) == [Status.DONE, "", 0]
    assert fence(sale, seen="", made="run:0", seq=99) == [Status.DONE, "", 0]
    assert sale.dump() == before


def test_another_format_is_refused(sale: Core) -> None:
    before = sale.dump()
    sale.format += 1
    assert fence(sale, seq=99)[0] is Status.UPGRADE_NEEDED
    assert sale.dump() == before


@pytest.mark.parametrize("gone", [False, True])
def test_every_verb_is_refused_and_changes_nothing(sale: Core, gone: bool) -> None:
    order = sale.paid()
    held = sale.hold("o2", "bob")
    if gone:
        sale.client.delete(*sale.keys)
    assert fence(sale, seq=99)[0] is Status.FENCED
    before = sale.dump()
    assert sale.reserve(Wish("o9", "eve", "0")) == [Status.FENCED]
    known = sale.reserve(Wish(order, "ann", "0"), Wish(order, "ann", "1"), Wish("o9", "eve", "0"))
    if gone:
        assert known == 3 * [Status.FENCED]
    else:
        # Whoever has an order is told so first, as always.
        assert known == [sale.record(order), Status.CONFLICT, Status.FENCED]
    replies = (
        sale.begin_payment(held),
        sale.confirm(held, "p9"),
        sale.release(held),
        sale.refund(order),
        sale.expire(),
    )
    assert {reply.status for reply in replies} == {Status.FENCED}
    assert {sale.open(), sale.pause(), sale.resume(), sale.close()} == {Status.FENCED}
    assert sale.add_stock(0, 1)[0] is Status.FENCED
    assert sale.run("lease", DEFINITION_ID, 200)[0] == Status.FENCED
    assert sale.run("trim", 0, "", 100)[0] == Status.FENCED
    assert sale.run("find", "o1", NEVER_MS)[0] == Status.FENCED
    assert sale.run("requeue", msgspec.msgpack.encode([held]))[0] == Status.FENCED
    assert sale.dump() == before


QUEUE_VERBS = {
    "queue": ("queue", 0, "", 1_000, 0, 1, "seed", "commitment", "secret", "keys", 1),
    "join": (msgspec.msgpack.encode([[2**52], ["ann"], [1]]),),
    "leave": ("ann",),
    "admit": (0,),
    "list": ("digest", 1),
    "name_value": ("value",),
    "draw": ("digest", "", 1),
    "rotate": ("keys", "new"),
}


@pytest.mark.parametrize("verb", QUEUE_VERBS)
def test_every_verb_of_the_queue_is_refused_and_changes_nothing(sale: Core, verb: str) -> None:
    assert sale.run_with_queue("queue", DEFINITION_ID, *QUEUE_VERBS["queue"])[0] == Status.CREATED
    fence(sale, seq=99)
    before = sale.dump(), sale.client.hgetall(sale.queue_keys[0])
    reply = sale.run_with_queue(verb, DEFINITION_ID, *QUEUE_VERBS[verb])
    assert reply[2] == [-Status.FENCED] if verb == "join" else reply[0] == Status.FENCED
    assert (sale.dump(), sale.client.hgetall(sale.queue_keys[0])) == before
    assert sale.client.exists(*sale.queue_keys) == 1


def test_every_verb_was_tried() -> None:
    others = {name for name in NAMES if name.startswith("rebuild")} | {"create", "fence", "inspect"}
    # A roll call has its own file, a note means nothing. A take and a tick hand on what happened
    # before; tests/integration/test_relay.py has their lease.
    others |= {"note", "roll_call"}
    tried = {"reserve", "begin_payment", "confirm", "release", "refund", "expire", "open", "pause"}
    tried |= {"resume", "close", "add_stock", "lease", "trim", "requeue", "find", *QUEUE_VERBS}
    assert set(NAMES) - others - {"take", "tick"} == tried


def test_it_can_be_looked_at(sale: Core) -> None:
    sale.hold()
    fence(sale, seq=99)
    assert sale.run("inspect")[0] == Status.DONE
    sale.client.delete(*sale.keys)
    fence(sale, seq=99)
    status, _, header, stock, orders, *_ = sale.run("inspect")
    assert (status, stock, orders) == (Status.DONE, [], 0)
    assert b"fenced" in header


def test_it_works_at_maxmemory(sale: Core) -> None:
    used = sale.client.info("memory")["used_memory"]  # type: ignore[index]
    sale.client.config_set("maxmemory", max(1, used // 2))
    try:
        assert fence(sale, seq=99)[0] is Status.FENCED
    finally:
        sale.client.config_set("maxmemory", 0)
