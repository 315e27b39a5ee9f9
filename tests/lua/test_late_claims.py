"""Who was cut off for longer than a roll call waits is believed when it comes, whatever others have
sold meanwhile: it says who told it, and the sale knows which servers it was on, and how far."""

from __future__ import annotations

import pytest
import redis

from seckill.status import Status
from tests.lua.crew import Crew, Engine
from tests.lua.test_roll_call import AFTER_THE_WAIT, HOUR_MS, calls_until_trusted, make_anew


@pytest.fixture
def sale(client: redis.Redis) -> Crew:
    return Crew(client).started()


LATE = (
    "behind: of what a server before this one did,"
    " events up to {} are here, events up to {} are known"
)


def comes_late(engine: Engine, way: str, kept: int) -> None:
    """It fences the sale, which has no more than ``kept`` of what told it; an order of its own
    changes nothing."""
    sale = engine.crew
    if way == "order":
        before = sale.dump()
        assert engine.order() is Status.NEW_SERVER
        assert sale.dump() == before
    assert engine.call() == (Status.FENCED, 0, "", 0, LATE.format(kept, engine.seq))


@pytest.mark.parametrize("way", ["call", "order"])
@pytest.mark.parametrize("restarts", [0, 1, 3])
def test_who_comes_after_others_have_sold_past_it_fences_it_all_the_same(
    sale: Crew, way: str, restarts: int
) -> None:
    a, b = sale.crew("ab")
    lost, kept = sale.picture(), sale.seq
    b.order()
    sale.restart("second", lost)
    assert calls_until_trusted(sale, a) == AFTER_THE_WAIT
    while sale.seq < b.seq + 5:
        assert a.order() is Status.CREATED
    for number in range(restarts):
        sale.restart(f"again{number}")
        assert a.call().status is Status.DONE
        assert a.order() is Status.CREATED
    comes_late(b, way, kept)
    assert a.order() is Status.FENCED


def test_who_comes_late_and_misses_nothing_is_welcome(sale: Crew) -> None:
    a, b, c = sale.crew("abc")
    for number in range(2):
        sale.restart(f"again{number}")
        assert calls_until_trusted(sale, a) <= AFTER_THE_WAIT
        for _ in range(9):
            assert a.order() is Status.CREATED
    assert b.order() is Status.NEW_SERVER
    for engine in (b, c):
        assert engine.call().status is Status.DONE
        assert engine.order() is Status.CREATED
    assert b.teller == c.teller == sale.header("server")


def test_a_branch_that_nobody_here_knows_of(sale: Crew) -> None:
    """One server took over and sold; then the one before it came back as it was, and others sold on
    there. Whoever was told by the lost one misses what it did."""
    a, b = sale.crew("ab")
    lost = sale.picture()
    sale.restart("second")
    assert [a.call().status, b.call().status] == [Status.NEW_SERVER, Status.DONE]
    assert b.order() is Status.CREATED
    sale.restart("third", lost)
    assert calls_until_trusted(sale, a) == AFTER_THE_WAIT
    while sale.seq < b.seq + 5:
        assert a.order() is Status.CREATED
    assert b.order() is Status.NEW_SERVER
    assert b.call().status is Status.FENCED


def test_so_many_servers_are_remembered(sale: Crew) -> None:
    a, b = sale.crew("ab")
    for number in range(40):
        sale.restart(f"again{number}")
        calls_until_trusted(sale, a, b)
        a.call()
        assert a.order() is Status.CREATED
    servers = sale.header("servers").split()
    assert len(servers) == 16
    assert servers[-1].startswith("again38.")
    assert servers[-1].endswith(f":{sale.seq - 1}")


@pytest.mark.parametrize("way", ["call", "order"])
@pytest.mark.parametrize("others", [0, 2])
def test_a_server_that_is_trusted_for_a_second_time(sale: Crew, way: str, others: int) -> None:
    """A failover, or some, and one back, and the first was never restarted: what it did before does
    not pass for what it has done since."""
    a, b = sale.crew("ab")
    lost, kept = sale.picture(), sale.seq
    b.order()
    sale.restart("second", lost)
    assert calls_until_trusted(sale, a) == AFTER_THE_WAIT
    for run_id in (*(f"other{number}" for number in range(others)), "first"):
        assert a.order() is Status.CREATED
        sale.restart(run_id)
        assert a.call().status is Status.DONE
    while sale.seq < b.seq + 5:
        assert a.order() is Status.CREATED
    comes_late(b, way, kept)


def test_who_misses_nothing_of_the_first_time_is_welcome_in_the_second(sale: Crew) -> None:
    """Also one that was told nothing yet, and one that has only seen it before."""
    a, b, seen = sale.crew("abc")
    seen.seq = 0
    for run_id in ("second", "first"):
        sale.restart(run_id)
        assert calls_until_trusted(sale, a) <= AFTER_THE_WAIT
        assert a.order() is Status.CREATED
    new = sale.engine("d")
    assert new.order() is Status.CREATED
    assert new.teller == "first"
    for engine in (b, seen, new):
        assert engine.order() is Status.NEW_SERVER
        assert engine.call().status is Status.DONE
        assert engine.order() is Status.CREATED
        assert engine.teller == sale.header("server") != "first.0"


def test_two_branches_give_one_process_two_names(sale: Crew) -> None:
    """It took over from a master that then won against it, and later took over from that again: as
    many servers were before it both times."""
    a, b = sale.crew("ab")
    kept, before = sale.picture(), sale.seq
    sale.restart("second")
    assert [b.call().status, a.call().status] == [Status.NEW_SERVER, Status.DONE]
    assert b.call().status is Status.DONE
    for _ in range(3):
        assert b.order() is Status.CREATED
    sale.wait(1)
    # The first one never was away for the others.
    sale.restart("first", kept)
    a.seq = before - 1
    a.server = a.teller = "first.0"
    assert a.order() is Status.CREATED
    sale.restart("second")
    sale.wait(HOUR_MS)
    assert calls_until_trusted(sale, a) <= AFTER_THE_WAIT
    while sale.seq < b.seq + 2:
        assert a.order() is Status.CREATED
    assert b.order() is Status.NEW_SERVER
    assert b.call().status is Status.FENCED


def test_who_was_told_nothing_new_by_a_branch_is_welcome_without_it(sale: Crew) -> None:
    """A failover on which nothing was sold, and back to who never followed."""
    (a,) = sale.crew("a")
    before = sale.picture()
    sale.restart("second")
    assert a.order() is Status.NEW_SERVER
    assert a.call().status is Status.DONE
    sale.restart("first", before)
    assert a.order() is Status.NEW_SERVER  # It knows another name than this one has.
    assert a.call().status is Status.DONE
    assert a.order() is Status.CREATED


@pytest.mark.parametrize("restarts", [False, True])
def test_a_sale_that_somebody_made_anew_on_a_wiped_server_is_fenced(
    sale: Crew, *, restarts: bool
) -> None:
    """By who knew the old one, whoever has asked before, and however much was sold since."""
    a, _ = sale.crew("ab")
    sale.client.set(sale.removed, "another:1", px=HOUR_MS)
    make_anew(sale)
    c = sale.engine("c")
    assert c.call().status is Status.DONE
    while sale.seq < a.seq + 5:
        assert c.order() is Status.CREATED
    if restarts:
        sale.restart("third")
        assert c.call().status is Status.DONE
    assert a.call()[::4] == (
        Status.FENCED,
        "made anew: this is not the sale that is known under its id",
    )
    assert c.order() is Status.FENCED


def test_what_was_told_since_a_rebuild_counts_under_the_old_name_too(sale: Crew) -> None:
    """An engine hears of the new one's name in the next roll call, and may have sold by then."""
    (a,) = sale.crew("a")
    made = f"first:{sale.now_ms + 1}"
    sale.set_header(made=made, seq=1_000_000, founded_seq=1_000_000)
    lost = sale.picture()
    assert a.order() is Status.CREATED
    assert a.made != made
    sale.restart("second", lost)
    assert a.call()[::4] == (
        Status.FENCED,
        "behind: this server ends at event 1000000, events up to 1000001 are known",
    )


def test_a_sale_of_old_that_was_rebuilt_does_not_pass_for_a_later_one(sale: Crew) -> None:
    sale.set_header(founded_seq=1_000_000, seq=1_000_000)
    before = sale.picture()
    make_anew(sale, "first")
    (a,) = sale.crew("a")
    assert a.seq < 1_000_000
    sale.restart("second", before)
    called = a.call()
    assert called.status is Status.FENCED
    assert called.why.startswith("made anew: ")
