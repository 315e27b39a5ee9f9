"""A server is trusted with a sale when it has all that anybody was told, and not before."""

from __future__ import annotations

import pytest
import redis

from seckill.status import Status
from tests.lua.core import Core
from tests.lua.crew import LAPSE_MS, STEP_MS, WAIT_MS, Crew, Engine

HOUR_MS = 3_600_000


@pytest.fixture
def sale(client: redis.Redis) -> Crew:
    return Crew(client).started()


def calls_until_trusted(sale: Crew, *engines: Engine, step_ms: int = STEP_MS) -> int:
    """How often all of these answer, so many ms apart, until it is trusted; 99 for never."""
    for count in range(1, 99):
        for engine in engines:
            called = engine.call()
            if called.status is Status.DONE:
                return count
            assert called.status is Status.NEW_SERVER
            assert (called.seq, called.made, called.beat) == (0, "", 0)
        sale.wait(step_ms)
    return 99


AFTER_THE_WAIT = 1 + WAIT_MS // STEP_MS


# -- nothing is lost ----------------------------------------------------------------------------


def test_on_the_server_that_is_trusted_the_crew_is_noted(sale: Crew) -> None:
    a, b = sale.engine("a"), sale.engine("b")
    assert a.call() == (Status.DONE, 2, sale.made, 1, "")
    sale.wait(1_000)
    assert b.call() == (Status.DONE, 2, sale.made, 2, "")
    seen = {a.name: str(sale.now_ms - 1_000), b.name: str(sale.now_ms), "last_beat": "2"}
    assert sale.members() == seen
    before = sale.dump()
    sale.wait(1_000)
    assert a.call().beat == 3
    assert sale.members() == seen | {a.name: str(sale.now_ms), "last_beat": "3"}
    assert sale.dump() == before


def test_who_is_silent_is_of_the_crew_no_more(sale: Crew) -> None:
    a, b = sale.crew("ab")
    sale.wait(LAPSE_MS)
    a.call()
    assert b.name in sale.members()
    sale.wait(1)
    a.call()
    assert b.name not in sale.members()
    b.call()
    assert {a.name, b.name} < sale.members().keys()


def test_an_engine_that_is_alone_goes_on_at_once(sale: Crew) -> None:
    (a,) = sale.crew("a")
    sale.restart("second")
    assert a.order() is Status.NEW_SERVER
    called = a.call()
    assert called[:2] == (Status.DONE, 3)
    assert sale.header("server").startswith("second.")
    assert a.order() is Status.CREATED
    assert sale.members() == {a.name: str(sale.now_ms), "last_beat": str(called.beat)}


def test_when_all_of_the_crew_have_answered_it_goes_on_at_once(sale: Crew) -> None:
    a, b, c = sale.crew("abc")
    sale.restart("second")
    before = sale.dump()
    for _ in range(2):
        assert a.call()[::4] == (Status.NEW_SERVER, "1 of 3 engines have answered")
    # One that has just started is not waited for, and does not count for another.
    assert sale.engine("d").call()[::4] == (Status.NEW_SERVER, "1 of 3 engines have answered")
    assert c.call()[::4] == (Status.NEW_SERVER, "2 of 3 engines have answered")
    assert a.order() is b.order() is c.order() is Status.NEW_SERVER
    assert sale.dump() == before
    assert b.call().status is Status.DONE
    # Who asks only now, asks the one that is trusted, and learns its name.
    assert b.order() is Status.CREATED
    assert a.order() is c.order() is Status.NEW_SERVER
    assert {engine.call().status for engine in (a, b, c)} == {Status.DONE}
    assert a.order() is c.order() is b.order() is Status.CREATED
    assert not [name for name in sale.members() if name.startswith("claim")]


def test_who_is_dead_is_waited_for_only_so_long(sale: Crew) -> None:
    a, _, c = sale.crew("abc")
    sale.restart("second")
    assert calls_until_trusted(sale, a, c) == AFTER_THE_WAIT
    assert a.order() is Status.CREATED
    assert c.call().status is Status.DONE
    # Nor is it waited for a second time.
    sale.restart("third")
    assert a.call().status is Status.NEW_SERVER
    assert c.call().status is Status.DONE


def test_an_outage_makes_nobody_dead(sale: Crew) -> None:
    a, b = sale.crew("ab")
    sale.restart("second")
    sale.wait(HOUR_MS)
    assert a.call().status is Status.NEW_SERVER
    assert b.call().status is Status.DONE


def test_who_had_left_before_is_not_waited_for(sale: Crew) -> None:
    (a,) = sale.crew("a")
    sale.wait(LAPSE_MS + 1)
    b = sale.engine("b")
    b.call()
    sale.restart("second")
    assert b.call().status is Status.DONE
    assert a.call().status is Status.DONE


def test_a_restart_during_a_roll_call_begins_it_anew(sale: Crew) -> None:
    a, b, c = sale.crew("abc")
    sale.restart("second")
    assert calls_until_trusted(sale, a, step_ms=0) == 99
    sale.wait(STEP_MS)
    assert b.call().status is Status.NEW_SERVER
    sale.restart("third")
    assert c.call()[::4] == (Status.NEW_SERVER, "1 of 3 engines have answered")
    assert b.call().status is Status.NEW_SERVER
    assert a.call().status is Status.DONE


def test_the_wait_begins_with_the_first_who_answers(sale: Crew) -> None:
    a, _ = sale.crew("ab")
    sale.restart("second")
    sale.wait(HOUR_MS)
    assert calls_until_trusted(sale, a) == AFTER_THE_WAIT


def test_a_server_that_does_not_tell_its_run_id_is_the_one_that_was_trusted(sale: Crew) -> None:
    a, _ = sale.crew("ab")
    sale.restart("")
    assert a.call().status is Status.DONE
    assert sale.header("server") == "first.0"
    a.seq += 5
    assert a.call().status is Status.FENCED


# -- something is lost --------------------------------------------------------------------------


def test_a_member_that_was_told_more_fences_it_before_any_order(sale: Crew) -> None:
    a, b = sale.crew("ab")
    lost = sale.picture()
    b.order()
    sale.restart("second", lost)
    assert a.call().status is Status.NEW_SERVER
    assert a.order() is Status.NEW_SERVER
    before = sale.dump()
    why = "behind: this server ends at event 4, events up to 5 are known"
    assert b.call() == (Status.FENCED, 0, "", 0, why)
    changed = {b"state": b"fenced", b"reason": why.encode(), b"fenced_state": b"open"}
    assert sale.dump() == before | {"sale": before["sale"] | changed}
    # It stays so, whoever asks, and after the next restart as well.
    sale.restart("third")
    assert a.call() == b.call() == sale.ledger(0) == (Status.FENCED, 0, "", 0, why)
    assert a.order() is b.order() is Status.FENCED


@pytest.mark.parametrize("way", ["call", "order"])
def test_who_comes_after_it_is_trusted_fences_it_then(sale: Crew, way: str) -> None:
    a, b = sale.crew("ab")
    lost = sale.picture()
    b.order()
    sale.restart("second", lost)
    assert calls_until_trusted(sale, a) == AFTER_THE_WAIT
    if way == "order":
        assert b.order() is Status.NEW_SERVER
    assert b.call().status is Status.FENCED
    assert a.order() is Status.FENCED


def test_an_old_snapshot_with_yesterdays_crew(sale: Crew) -> None:
    sale.crew("cd")
    yesterday = sale.picture()
    sale.wait(24 * HOUR_MS)
    a, b = sale.crew("ab")
    sale.restart("second", yesterday)
    new = sale.engine("e")
    assert new.call()[::4] == (Status.NEW_SERVER, "0 of 2 engines have answered")
    assert b.call().status is Status.FENCED
    assert new.order() is a.order() is Status.FENCED


def test_an_old_snapshot_that_nobody_was_told_more_than(sale: Crew) -> None:
    sale.crew("cd")
    sale.restart("second", sale.picture())
    assert calls_until_trusted(sale, sale.engine("a"), sale.engine("b")) == AFTER_THE_WAIT


@pytest.mark.parametrize("first", [0, 1])
def test_an_old_snapshot_of_the_same_crew_but_one(sale: Crew, first: int) -> None:
    """All that it knows of have answered, and were told no more than it has; but it is not the crew
    that they belonged to at last."""
    a, b = sale.crew("ab")
    lost = sale.picture()
    (c,) = sale.crew("c")
    b.call()
    a.seq = b.seq = int(sale.seq) - 1
    sale.restart("second", lost)
    for engine in ((a, b), (b, a))[first]:
        assert engine.call().status is Status.NEW_SERVER
    assert a.order() is b.order() is Status.NEW_SERVER
    assert c.call().status is Status.FENCED


def test_of_a_crew_that_nobody_was_of_nobody_knows_who_is_missing(sale: Crew) -> None:
    lost = sale.picture()
    (a,) = sale.crew("a")
    sale.restart("second", lost)
    assert sale.engine("b").call().status is Status.NEW_SERVER
    assert a.call().status is Status.FENCED


def test_a_sale_without_a_crew_waits(sale: Crew) -> None:
    sale.restart("second")
    assert calls_until_trusted(sale, sale.engine("a")) == AFTER_THE_WAIT


def make_anew(sale: Crew, run_id: str = "second") -> None:
    sale.client.delete(*sale.keys, sale.key)
    sale.wait(1)
    sale.run_id = run_id
    sale.started()


@pytest.mark.parametrize("way", ["same server", "same server, restarted", "removed"])
def test_what_was_told_of_a_sale_that_was_there_before_counts_no_more(sale: Crew, way: str) -> None:
    a, b = sale.crew("ab")
    before = sale.made
    if way == "removed":
        sale.client.set(sale.removed, before, px=HOUR_MS)
    make_anew(sale, "second" if way == "removed" else "first")
    assert sale.seq < b.seq
    if way == "same server, restarted":
        c = sale.engine("c")
        assert c.call().status is Status.DONE
        sale.restart("third")
        assert c.call().status is Status.DONE
    for engine in (a, b):
        called = engine.call()
        assert (called.status, called.made, called.seq) == (Status.DONE, sale.made, sale.seq)
        assert called.made != before


def test_the_sale_that_was_there_before_is_fenced(sale: Crew) -> None:
    (a,) = sale.crew("a")
    before = sale.picture()
    make_anew(sale)
    b = sale.engine("b")
    assert b.call().status is Status.DONE
    # It has as many events as b was told of the one that took its place.
    assert b.seq <= a.seq
    sale.restart("third", before)
    called = b.call()
    assert called.status is Status.FENCED
    assert called.why.startswith("made anew: ")
    assert a.call().status is Status.FENCED


def test_who_was_told_of_no_sale_yet_is_no_proof_of_another(sale: Crew) -> None:
    sale.crew("a")
    sale.restart("second")
    assert sale.engine("b").call().status is Status.NEW_SERVER


def test_a_sale_that_is_missing_is_missed_by_who_was_told_of_it(sale: Crew) -> None:
    (a,) = sale.crew("a")
    sale.client.delete(*sale.keys, sale.key)
    for run_id in ("first", "second"):
        sale.restart(run_id)
        assert a.call() == (Status.NEW_SERVER, 0, "", 0, "the sale is not there")
        assert sale.engine("b").call()[0] is Status.UNKNOWN_SALE
    assert not sale.client.exists(*sale.keys, sale.key)


def test_a_sale_that_was_removed_is_missed_by_nobody(sale: Crew) -> None:
    (a,) = sale.crew("a")
    sale.client.delete(*sale.keys, sale.key)
    sale.client.set(sale.removed, a.made, px=HOUR_MS)
    for run_id in ("first", "second"):
        sale.restart(run_id)
        assert a.call()[0] is Status.UNKNOWN_SALE
    # Another one is.
    sale.client.set(sale.removed, "another:1", px=HOUR_MS)
    assert a.call()[0] is Status.NEW_SERVER
    a.made = ""
    assert a.call()[0] is Status.NEW_SERVER


# -- the ledger ---------------------------------------------------------------------------------


def test_the_ledger_is_waited_for_where_nobody_else_can_know(sale: Crew) -> None:
    sale.crew("ab")
    sale.restart("second")
    a = sale.engine("c")
    for _ in range(20):
        called = a.call(needs_ledger=True)
        why = "0 of 2 engines have answered, and the ledger has not"
        assert called == (Status.NEW_SERVER, 0, "", 0, why)
        sale.wait(STEP_MS)
    # That the sale has one need be said only once.
    assert a.call().status is Status.NEW_SERVER
    assert sale.ledger(2).status is Status.DONE
    assert a.call().status is Status.DONE


def test_an_engine_that_was_told_something_speaks_for_it_after_the_wait(sale: Crew) -> None:
    a, b = sale.crew("ab")
    sale.restart("second")
    assert a.call(needs_ledger=True).status is Status.NEW_SERVER
    called = b.call()
    assert called[::4] == (
        Status.NEW_SERVER,
        "2 of 2 engines have answered, and the ledger has not",
    )
    sale.wait(STEP_MS)
    # Once it has spoken, anybody may be the one who calls when the wait is over.
    assert calls_until_trusted(sale, sale.engine("e")) == AFTER_THE_WAIT - 1


def test_with_the_ledger_it_goes_on_at_once(sale: Crew) -> None:
    a, b = sale.crew("ab")
    sale.restart("second")
    assert a.call(needs_ledger=True).status is Status.NEW_SERVER
    assert sale.ledger(4).status is Status.NEW_SERVER
    assert b.call(needs_ledger=True).status is Status.DONE
    assert {a.name, b.name, "last_beat"} == sale.members().keys()


@pytest.mark.parametrize("trusted", [False, True])
def test_a_ledger_that_has_more_fences_it(sale: Crew, trusted: bool) -> None:
    a, b = sale.crew("ab")
    sale.restart("first" if trusted else "second")
    assert a.call().status is (Status.DONE if trusted else Status.NEW_SERVER)
    assert sale.ledger(5).status is Status.FENCED
    assert a.order() is b.order() is Status.FENCED


def test_who_speaks_for_the_ledger_is_not_of_the_crew(sale: Crew) -> None:
    sale.crew("ab")
    before = sale.members()
    assert sale.ledger(4) == (Status.DONE, 4, sale.made, 2, "")
    assert sale.members() == before


# -- clocks -------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_makes_the_wait_no_longer(sale: Crew) -> None:
    a, _ = sale.crew("ab")
    sale.restart("second")
    assert a.call().status is Status.NEW_SERVER
    sale.wait(-HOUR_MS)
    assert calls_until_trusted(sale, a) == AFTER_THE_WAIT


def test_a_clock_that_is_set_forward_does_not_end_the_wait(sale: Crew) -> None:
    a, _ = sale.crew("ab")
    sale.restart("second")
    assert a.call().status is Status.NEW_SERVER
    sale.wait(HOUR_MS)
    assert calls_until_trusted(sale, a) == AFTER_THE_WAIT - 1


def test_after_the_clock_was_set_back_the_dead_do_not_drive_out_the_living(sale: Crew) -> None:
    a, b = sale.crew("ab")
    sale.wait(-HOUR_MS)
    a.call()
    assert {a.name, b.name} < sale.members().keys()
    for _ in range(6):
        sale.wait(1_000)
        a.call()
    assert b.name not in sale.members()
    sale.restart("second")
    assert a.call().status is Status.DONE


def test_a_new_server_whose_clock_is_behind(sale: Crew) -> None:
    a, b = sale.crew("ab")
    sale.restart("second")
    sale.wait(-HOUR_MS)
    assert a.call().status is Status.NEW_SERVER
    assert b.call().status is Status.DONE
    assert a.call().status is Status.DONE
    assert {a.name, b.name} < sale.members().keys()


# -- after a rebuild, and what else may be -------------------------------------------------------


def test_claims_are_dropped_with_the_sale_that_they_were_for(sale: Crew) -> None:
    a, b = sale.crew("ab")
    sale.restart("second")
    assert a.call().status is Status.NEW_SERVER
    # Fenced by the ledger meanwhile, and rebuilt on this server.
    sale.set_header(state="fenced")
    assert b.call().status is Status.FENCED
    made = f"second:{sale.now_ms + 1}"
    sale.set_header(state="open", server="second", made=made, seq=1_000_000, founded_seq=1_000_000)
    assert a.call()[:3] == (Status.DONE, 1_000_000, made)
    assert {a.name, b.name, "last_beat"} == sale.members().keys()
    assert b.call().status is Status.DONE
    assert a.order() is b.order() is Status.CREATED


def test_beats_go_on_after_a_loss(sale: Crew) -> None:
    """Else who was told a high one before would seem to know of calls that this server lost."""
    a, _ = sale.crew("ab")
    lost = sale.picture()
    for _ in range(5):
        a.call()
    sale.restart("second", lost)
    assert calls_until_trusted(sale, a) == AFTER_THE_WAIT
    sale.restart("third")
    assert a.call().status is Status.DONE


def test_another_format_is_refused(sale: Crew) -> None:
    (a,) = sale.crew("a")
    sale.restart("second")
    before = sale.dump(), sale.members()
    sale.format = 2
    assert a.call() == (Status.UPGRADE_NEEDED, 0, "", 0, "")
    sale.format = 1
    sale.set_header(format=2)
    assert a.call() == (Status.UPGRADE_NEEDED, 0, "", 0, "")
    sale.set_header(format=1)
    assert (sale.dump(), sale.members()) == before


def test_a_damaged_crew_is_learned_of_before_anything_is_written(sale: Crew) -> None:
    (a,) = sale.crew("a")
    sale.client.delete(sale.key)
    sale.client.set(sale.key, "x")
    sale.restart("second")
    a.seq += 9
    before = sale.dump()
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        a.call()
    assert sale.dump() == before


def test_it_works_at_maxmemory(sale: Crew) -> None:
    a, b = sale.crew("ab")
    lost = sale.picture()
    used = sale.client.info("memory")["used_memory"]  # type: ignore[index]
    sale.client.config_set("maxmemory", max(1, used // 2))
    try:
        assert a.call().status is Status.DONE
        sale.run_id = "second"
        assert a.call().status is Status.NEW_SERVER
        assert b.call().status is Status.DONE
        a.seq = sale.seq + 1
        assert a.call().status is Status.FENCED
    finally:
        sale.client.config_set("maxmemory", 0)
    assert lost != sale.picture()


def test_what_an_engine_has_seen_of_the_clock_is_kept(sale: Crew) -> None:
    [a, b] = sale.crew("ab")
    a.passed_ms = sale.now_ms
    before = sale.dump()
    assert a.call().status is b.call().status is Status.DONE
    # The clock shows as much itself.
    assert sale.dump() == before
    a.passed_ms = sale.now_ms + 60_000
    assert a.call().status is b.call().status is Status.DONE
    assert sale.header("passed_ms") == str(a.passed_ms)
    # By whom a new server is trusted as well, and by whom it is not yet.
    a.passed_ms += 1
    b.passed_ms = a.passed_ms + 60_000
    sale.restart("second")
    assert a.call().status is Status.NEW_SERVER
    assert sale.header("passed_ms") == str(a.passed_ms)
    assert b.call().status is Status.DONE
    assert sale.header("passed_ms") == str(b.passed_ms)


def test_a_crew_of_many(sale: Crew) -> None:
    engines = [Engine(sale, f"{number:016x}") for number in range(300)]
    for engine in engines:
        assert engine.call().status is Status.DONE
    sale.restart("second")
    for engine in engines[:-1]:
        assert engine.call().status is Status.NEW_SERVER
    assert engines[-1].call().status is Status.DONE
    assert len(sale.members()) == 301


def test_the_helper_moves_no_clock_but_its_own(core: Core, sale: Crew) -> None:
    sale.jump(1)
    assert core.create() is Status.CREATED
    assert int(core.header("last_ms")) > 1
