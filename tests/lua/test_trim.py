"""Old events go, and never one that a group still needs."""

from __future__ import annotations

import random
import time
from typing import Any, NamedTuple

import pytest
import redis

from seckill.status import Status
from tests.lua.core import Core, Wish

MINUTE_MS = 60_000


class Trimmed(NamedTuple):
    """The answer of trim."""

    status: Status
    went: int
    more: int
    first_seq: int
    held_by: str


def trim(core: Core, keep_ms: int = 0, through: str = "", look_at: int = 1_000) -> Trimmed:
    status, _, went, more, first_seq, held_by = core.run("trim", keep_ms, through, look_at)
    return Trimmed(Status(status), went, more, first_seq, held_by.decode())


def ids(core: Core) -> list[str]:
    entries: Any = core.client.xrange(core.keys[6])
    return [entry_id.decode() for entry_id, _ in entries]


def seqs(core: Core) -> list[int]:
    return [int(entry.partition("-")[2]) for entry in ids(core)]


def read(core: Core, group: str, count: int, *, ack: bool = True) -> None:
    core.client.xreadgroup(group, "c", {core.keys[6]: ">"}, count=count, noack=ack)


def join(core: Core, group: str) -> None:
    core.client.xgroup_create(core.keys[6], group, id="0")


@pytest.fixture
def old(core: Core) -> Core:
    """Ten entries of a minute ago: created, opened, and eight orders."""
    core.begin((100, 0))
    for number in range(8):
        core.hold(f"o{number}")
    core.rewind(MINUTE_MS)
    return core


def test_without_groups_age_alone_decides(old: Core) -> None:
    assert trim(old, 2 * MINUTE_MS) == (Status.DONE, 0, 0, 1, "")
    assert old.client.hget(old.keys[0], "trimmed_seq") is None
    old.hold("young")
    before = old.server_ms()
    assert trim(old, 30_000) == (Status.DONE, 10, 0, 11, "")
    assert seqs(old) == [11]
    assert (old.header("trimmed_seq"), old.header("trimmed_entries")) == ("10", "10")
    assert int(old.header("last_ms")) >= before - MINUTE_MS
    # All of it may go; the next event is counted on all the same.
    time.sleep(0.002)
    assert trim(old, 0) == (Status.DONE, 1, 0, 12, "")
    old.hold("next")
    assert seqs(old) == [12]


@pytest.mark.parametrize("past", [0, 4, 9])
def test_nothing_goes_past_what_is_safe(old: Core, past: int) -> None:
    through = ids(old)[past]
    assert trim(old, 0, through) == (Status.DONE, past + 1, 0, past + 2, "")
    assert trim(old, 0, through).went == 0
    assert trim(old, 0, "0-0") == (Status.DONE, 0, 0, past + 2, "")


def test_the_slowest_group_decides(old: Core) -> None:
    for group in ("ledger", "mall"):
        join(old, group)
    assert trim(old) == (Status.DONE, 0, 0, 1, "ledger")
    read(old, "ledger", 8)
    read(old, "mall", 3)
    assert trim(old) == (Status.DONE, 3, 0, 4, "mall")
    # Read, but not acknowledged: these must stay.
    read(old, "mall", 4, ack=False)
    assert trim(old) == (Status.DONE, 0, 0, 4, "mall")
    fifth = ids(old)[1]
    old.client.xack(old.keys[6], "mall", fifth)
    assert trim(old).went == 0
    old.client.xack(old.keys[6], "mall", ids(old)[0])
    assert trim(old) == (Status.DONE, 2, 0, 6, "mall")
    old.client.xgroup_destroy(old.keys[6], "mall")
    assert trim(old) == (Status.DONE, 3, 0, 9, "ledger")
    assert old.header("trimmed_entries") == "8"


def test_the_first_event_of_an_entry_of_many(core: Core) -> None:
    core.begin((100, 0))
    core.reserve(*[Wish(f"o{n}", f"b{n}") for n in range(40)])  # Entries of 32 and 8.
    time.sleep(0.002)
    assert trim(core, 0, ids(core)[1]) == (Status.DONE, 2, 0, 3, "")
    assert trim(core, 0, ids(core)[0]) == (Status.DONE, 1, 0, 35, "")
    assert core.header("trimmed_seq") == "34"


def test_a_step_is_bounded_and_the_steps_add_up(core: Core) -> None:
    core.begin((50_000, 0))
    for part in range(30):
        core.reserve(*[Wish(f"o{part}-{n}", f"b{n}") for n in range(640)])
    whole = ids(core)
    time.sleep(0.002)
    through, went, steps = whole[-7], 0, 0
    while (step := trim(core, 0, through, look_at=200)).more:
        assert 0 < step.went <= 200
        went, steps = went + step.went, steps + 1
    assert steps >= 2
    assert went + step.went == len(whole) - 6
    assert ids(core) == whole[-6:]


@pytest.mark.parametrize("seed", range(8))
def test_whatever_groups_do_nothing_they_need_goes(core: Core, seed: int) -> None:
    """Against a naive count of what each group has not acknowledged."""
    dice = random.Random(seed)
    core.begin((1_000, 0))
    needed: dict[str, list[str]] = {}
    for turn in range(60):
        core.hold(f"o{turn}", f"b{turn}")
        here = ids(core)
        for group in needed.values():
            group.append(here[-1])
        match dice.randrange(6):
            case 0 if len(needed) < 4:
                join(core, f"g{turn}")
                needed[f"g{turn}"] = list(here)
            case 1 | 2 if needed:
                read(core, dice.choice(list(needed)), dice.randrange(1, 9), ack=False)
            case 3 | 4 if needed:
                name = dice.choice(list(needed))
                taken: Any = core.client.xpending_range(core.keys[6], name, "-", "+", 100)
                for one in dice.sample(taken, len(taken) // 2):
                    core.client.xack(core.keys[6], name, one["message_id"])
                    needed[name].remove(one["message_id"].decode())
            case 5:
                bound = dice.choice(here)
                time.sleep(0.002)  # What happened in this very millisecond stays.
                trim(core, 0, bound)
                first = min(
                    [here.index(group[0]) for group in needed.values() if group]
                    + [here.index(bound) + 1]
                )
                assert ids(core) == here[first:]


def test_it_goes_on_when_the_server_is_full(old: Core) -> None:
    old.client.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.OutOfMemoryError):
            old.client.set("more", "x")
        assert trim(old).went == 10
    finally:
        old.client.config_set("maxmemory", 0)


def test_refusals(core: Core) -> None:
    assert trim(core).status is Status.UNKNOWN_SALE
    core.begin()
    core.rewind(MINUTE_MS)
    core.set_header(state="fenced")
    assert trim(core) == (Status.FENCED, 0, 0, 0, "")
    core.set_header(state="open", format=99)
    assert trim(core).status is Status.UPGRADE_NEEDED
    assert seqs(core) == [1, 2]
