"""On a server that is not trusted with a sale no script does anything to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pytest

from seckill.fencing import name_of
from seckill.scripts import NAMES, script
from seckill.status import Status
from tests.lua.core import DEFINITION_ID, HOLD_MS, NEVER_MS, Core, Wish, header_answers

JOINED = msgspec.msgpack.encode([[NEVER_MS], ["zoe"], [1]])
ORDERED = msgspec.msgpack.encode([[NEVER_MS], ["o9"], ["zoe"], ["0"]])
UNQUEUED = msgspec.msgpack.encode(["o1"])
QUEUE = ("queue", 0, "", 1_000, 0, 1, "seed", "c0ffee", "secret", "k1,k2", 1)
RUN_ID = "run"
SERVER = name_of(RUN_ID)
"""The one that Core.create has the sale made on."""


def open_queue(core: Core, mode: str = "queue") -> None:
    core.begin((5, 0), (0, 0))
    words = (mode, 0, 0 if mode == "draw" else "", *QUEUE[3:])
    assert core.run_with_queue("queue", DEFINITION_ID, *words)[0] == Status.CREATED


def join(core: Core) -> None:
    open_queue(core)
    core.run_with_queue("join", DEFINITION_ID, JOINED)


def close_list(core: Core) -> None:
    open_queue(core, "draw")
    core.run_with_queue("admit", DEFINITION_ID, 0)


def list_tickets(core: Core) -> None:
    close_list(core)
    assert core.run_with_queue("list", DEFINITION_ID, "d1", 0) == [Status.DONE]


def overdue(core: Core) -> None:
    core.begin().hold()
    core.travel(HOLD_MS)


def unqueued(core: Core) -> None:
    core.begin().hold()
    core.client.delete(core.keys[4])


class Verb(NamedTuple):
    """What to do before, so that the call has something to do, and what to call it with."""

    prepare: Callable[[Core], object]
    args: tuple[Any, ...] = ()
    with_queue: bool = False


VERBS = {
    "add_stock": Verb(Core.begin, (DEFINITION_ID, 0, 1, "k")),
    "begin_payment": Verb(lambda core: core.begin().hold(), ("o1", "")),
    "close": Verb(Core.begin),
    "confirm": Verb(lambda core: core.begin().hold(), ("o1", "p1")),
    "expire": Verb(overdue, (10,)),
    "find": Verb(Core.begin, ("o9", NEVER_MS)),
    "lease": Verb(lambda core: core.begin((0, 0)), (DEFINITION_ID, 200)),
    "open": Verb(Core.create),
    "pause": Verb(Core.begin, ("why",)),
    "refund": Verb(lambda core: core.begin().paid(), ("o1", "r1", 1, 1)),
    "release": Verb(lambda core: core.begin().hold(), ("o1", "")),
    "requeue": Verb(unqueued, (UNQUEUED,)),
    "reserve": Verb(Core.begin, (DEFINITION_ID, ORDERED)),
    "resume": Verb(lambda core: core.begin().pause(), ()),
    "trim": Verb(Core.begin, (-1_000, "", 100)),
    "admit": Verb(join, (DEFINITION_ID, 0), with_queue=True),
    "draw": Verb(list_tickets, (DEFINITION_ID, "d1", "", 0), with_queue=True),
    "join": Verb(open_queue, (DEFINITION_ID, JOINED), with_queue=True),
    "leave": Verb(join, (DEFINITION_ID, "zoe"), with_queue=True),
    "list": Verb(close_list, (DEFINITION_ID, "d1", 0), with_queue=True),
    "name_value": Verb(list_tickets, (DEFINITION_ID, "v1"), with_queue=True),
    "queue": Verb(Core.begin, (DEFINITION_ID, *QUEUE), with_queue=True),
    "rotate": Verb(open_queue, (DEFINITION_ID, "k1,k2", "k3"), with_queue=True),
}

all_verbs = pytest.mark.parametrize("verb", VERBS)


def call(core: Core, verb: str) -> Status:
    run = core.run_with_queue if VERBS[verb].with_queue else core.run
    reply = run(verb, *VERBS[verb].args)
    match verb:
        case "reserve":
            assert len(reply[2]) == 1
            return Status(reply[2][0])
        case "join":
            (answer,) = reply[2]
            return Status(-answer) if answer < 0 else Status.CREATED
        case _:
            return Status(reply[0])


def everything(core: Core) -> dict[bytes, Any]:
    """All that the server has under this sale's hash tag, as it would write it to its disk."""
    names: Any = core.client.keys(core.keys[0].removesuffix("sale") + "*")
    return {name: core.client.dump(name) for name in names}


def test_every_verb_that_may_be_refused_is_tried() -> None:
    refused = {
        verb
        for verb in NAMES
        if any(f"{way}(caller{end}" in script(verb).source for way, end in WAYS.items())
    }
    assert refused == set(VERBS)


WAYS = {" = read_sale": ")", " = begin_on_queue": ", definition_id)"}
"""How scripts begin that change a sale. What looks at it only says so by a second word."""


def test_who_names_it_answers_it() -> None:
    named = {verb for verb in NAMES if Status.NEW_SERVER in header_answers(verb)}
    assert named == {*VERBS, "roll_call", "create"}


@all_verbs
@pytest.mark.parametrize(
    ("name", "ahead"),
    [
        *(("another", 0), (SERVER, 1), ("", 1), ("another", -1), (SERVER, 10**15)),
        # It was trusted under another name, or whoever was told something knows none.
        *((f"{RUN_ID}.1", 0), (RUN_ID, 0), (RUN_ID, 1)),
    ],
)
def test_a_server_that_is_another_or_behind_does_nothing(
    core: Core, verb: str, name: str, ahead: int
) -> None:
    VERBS[verb].prepare(core)
    seq = int(core.header("seq"))
    core.told = (name, max(0, seq + ahead))
    before = everything(core)
    assert call(core, verb) is Status.NEW_SERVER
    assert everything(core) == before
    # With what is right, or with the format alone, the same call changes something.
    core.told = (SERVER, seq) if ahead else None
    assert call(core, verb) in (Status.DONE, Status.CREATED)
    assert everything(core) != before


@all_verbs
def test_who_was_told_nothing_yet_need_not_know_its_name(core: Core, verb: str) -> None:
    VERBS[verb].prepare(core)
    core.set_header(server=f"{RUN_ID}.3")
    core.told = (RUN_ID, 0)
    assert call(core, verb) in (Status.DONE, Status.CREATED)


@all_verbs
def test_a_server_that_does_not_tell_its_run_id_is_judged_by_its_seq(core: Core, verb: str) -> None:
    VERBS[verb].prepare(core)
    core.told = ("", int(core.header("seq")))
    assert call(core, verb) in (Status.DONE, Status.CREATED)


@all_verbs
def test_a_sale_that_is_gone_is_unknown_only_to_who_was_told_nothing(core: Core, verb: str) -> None:
    for run_id in ("", "another"):
        core.told = (run_id, 0)
        assert call(core, verb) is Status.UNKNOWN_SALE
        core.told = (run_id, 1)
        assert call(core, verb) is Status.NEW_SERVER
    assert everything(core) == {}


@all_verbs
def test_what_is_fenced_or_of_another_format_says_so(core: Core, verb: str) -> None:
    VERBS[verb].prepare(core)
    core.told = ("another", 99)
    core.format = 2
    assert call(core, verb) is Status.UPGRADE_NEEDED
    core.format = 1
    core.set_header(state="fenced")
    assert call(core, verb) is Status.FENCED


@all_verbs
def test_words_of_another_release_are_of_another_format(core: Core, verb: str) -> None:
    VERBS[verb].prepare(core)
    before = everything(core)
    source, keys = script(verb).source, core.keys
    if VERBS[verb].with_queue:
        keys = (*keys, *core.queue_keys)
    for words in ("", "x", " 1", "1 run 5 another 6", "1 run x", "one", "1\nrun"):
        reply: Any = core.client.eval(source, len(keys), *keys, words, *VERBS[verb].args)
        status = {"reserve": lambda: reply[2][0], "join": lambda: -reply[2][0]}  # noqa: B023
        assert status.get(verb, lambda: reply[0])() == Status.UPGRADE_NEEDED  # noqa: B023
    assert everything(core) == before


def test_nothing_is_said_of_orders_that_are_known(core: Core) -> None:
    core.begin().hold("o1")
    core.elsewhere()
    wishes = [Wish("o1"), Wish("o1", cart="1"), Wish("o2", cart="9"), Wish("o3")]
    assert core.reserve_raw(*wishes) == [0, 0, [Status.NEW_SERVER] * 4, 0]
    core.definition_id = "another"
    assert core.reserve(*wishes) == [Status.NEW_SERVER] * 4


def test_who_is_answered_learns_how_far_the_sale_is(core: Core) -> None:
    core.begin((5, 0))
    core.told = (SERVER, 2)
    assert core.reserve_raw(Wish("o1"), Wish("o2", cart="9"))[3] == 3
    assert core.reserve_raw(Wish("o1"))[3] == 3
    core.told = (SERVER, 3)
    assert core.reserve_raw(Wish("o2", cart="0:5"))[2:] == [[Status.INSUFFICIENT], 3]
    core.set_header(state="fenced")
    assert core.reserve_raw(Wish("o2"))[2:] == [[Status.FENCED], 0]


def test_who_joins_learns_how_far_the_sale_is(core: Core) -> None:
    open_queue(core)
    seq = int(core.header("seq"))
    assert core.run_with_queue("join", DEFINITION_ID, JOINED)[2:] == [[0], seq]
    assert core.run_with_queue("join", "another", JOINED)[2:] == [[-Status.STALE_DEFINITION], seq]
    core.elsewhere()
    refused = [0, 0, [-Status.NEW_SERVER], 0]
    assert core.run_with_queue("join", DEFINITION_ID, JOINED) == refused


@pytest.mark.parametrize("is_there", [True, False])
def test_it_can_be_looked_at(core: Core, is_there: bool) -> None:
    expected = Status.UNKNOWN_SALE
    if is_there:
        core.begin()
        expected = Status.DONE
    core.told = ("another", 99)
    assert core.run("inspect")[0] == expected


# -- note ---------------------------------------------------------------------------------------


def test_a_note_is_a_write_that_means_nothing(core: Core) -> None:
    core.begin().hold()
    before = core.dump()
    core.told = ("another", 99)
    for _ in range(2):
        offset = core.client.info("persistence")["rdb_changes_since_last_save"]  # type: ignore[index]
        assert core.run("note") == [Status.DONE]
        assert core.client.info("persistence")["rdb_changes_since_last_save"] > offset  # type: ignore[index]
    assert core.dump() == before | {"sale": before["sale"] | {b"noted": b"1"}}


def test_a_note_makes_no_sale(core: Core) -> None:
    assert core.run("note") == [Status.UNKNOWN_SALE]
    core.format = 2
    assert core.run("note") == [Status.UPGRADE_NEEDED]
    assert everything(core) == {}


def test_a_note_works_at_maxmemory(core: Core) -> None:
    core.begin()
    used = core.client.info("memory")["used_memory"]  # type: ignore[index]
    core.client.config_set("maxmemory", max(1, used // 2))
    try:
        assert core.run("note") == [Status.DONE]
    finally:
        core.client.config_set("maxmemory", 0)
