"""open.lua, pause.lua, resume.lua and close.lua: the states of a sale."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from seckill.status import Status
from tests.lua.core import Core, Wish, header_answers
from tests.lua.test_fence import fenced

VERBS: dict[str, Callable[[Core], Status]] = {
    "open": lambda core: core.open(),
    "pause": lambda core: core.pause("why"),
    "resume": lambda core: core.resume(),
    "close": lambda core: core.close(),
}

# What brings a sale into each state. "-" is no sale at all, "other format" one of another release.
WAYS: dict[str, tuple[str, ...]] = {
    "created": ("create",),
    "open": ("create", "open"),
    "paused": ("create", "open", "pause"),
    "closed": ("create", "open", "hold", "close"),
    "settled": ("create", "open", "close"),
    "fenced": ("create", "open", "hold", "fence"),
}

# For each verb: state → answer, and the state after it where it changes.
ANSWERS: dict[str, dict[str, tuple[Status, str]]] = {
    "open": {
        "created": (Status.DONE, "open"),
        "open": (Status.ALREADY, "open"),
        "paused": (Status.PAUSED, "paused"),
        "closed": (Status.CLOSED, "closed"),
        "settled": (Status.CLOSED, "settled"),
        "fenced": (Status.FENCED, "fenced"),
    },
    "pause": {
        "created": (Status.NOT_OPEN, "created"),
        "open": (Status.DONE, "paused"),
        "paused": (Status.ALREADY, "paused"),
        "closed": (Status.CLOSED, "closed"),
        "settled": (Status.CLOSED, "settled"),
        "fenced": (Status.FENCED, "fenced"),
    },
    "resume": {
        "created": (Status.NOT_OPEN, "created"),
        "open": (Status.ALREADY, "open"),
        "paused": (Status.DONE, "open"),
        "closed": (Status.CLOSED, "closed"),
        "settled": (Status.CLOSED, "settled"),
        "fenced": (Status.FENCED, "fenced"),
    },
    "close": {
        "created": (Status.DONE, "settled"),
        "open": (Status.DONE, "settled"),
        "paused": (Status.DONE, "settled"),
        "closed": (Status.ALREADY, "closed"),
        "settled": (Status.ALREADY, "settled"),
        "fenced": (Status.FENCED, "fenced"),
    },
}


def bring(core: Core, state: str) -> Core:
    for step in WAYS[state]:
        fenced(core) if step == "fence" else getattr(core, step)()
    assert core.header("state") == state
    return core


@pytest.mark.parametrize(
    ("verb", "state"), [(verb, state) for verb, answers in ANSWERS.items() for state in answers]
)
def test_every_verb_in_every_state(core: Core, verb: str, state: str) -> None:
    bring(core, state)
    before = core.dump()
    status, after = ANSWERS[verb][state]
    assert VERBS[verb](core) is status
    assert core.header("state") == after
    if status is not Status.DONE:
        assert core.dump() == before


@pytest.mark.parametrize("verb", VERBS)
def test_no_sale_and_another_format(core: Core, verb: str) -> None:
    assert VERBS[verb](core) is Status.UNKNOWN_SALE
    assert set(core.dump().values()) == {None}
    core.begin().format = 2
    before = core.dump()
    assert VERBS[verb](core) is Status.UPGRADE_NEEDED
    core.format = 1
    core.set_header(format=3)
    assert VERBS[verb](core) is Status.UPGRADE_NEEDED
    core.set_header(format=1)
    assert core.dump() == before


@pytest.mark.parametrize("verb", VERBS)
def test_the_answers_are_those_of_the_header(verb: str) -> None:
    everywhere = {Status.UNKNOWN_SALE, Status.UPGRADE_NEEDED, Status.NEW_SERVER}
    answers = {status for status, _ in ANSWERS[verb].values()}
    assert answers | everywhere == header_answers(verb)


def test_each_change_is_one_event(core: Core) -> None:
    core.begin((3, 0), (0, 0))
    core.pause("nothing to see")
    core.resume()
    core.pause()
    core.resume()
    core.hold("o1")
    core.close()
    core.release("o1")
    assert [event.text for event in core.events() if event.subject == "sale"][1:] == [
        "opened|",
        "paused|nothing to see",
        "resumed|",
        "paused|",
        "resumed|",
        "closed|",
        "settled|0:3",
    ]


def test_pause_keeps_its_first_reason(core: Core) -> None:
    core.begin().pause("first")
    core.pause("second")
    assert core.header("reason") == "first"
    core.resume()
    assert core.header("reason") == ""


def test_close_clears_the_reason_of_a_pause(core: Core) -> None:
    core.begin().pause("broken")
    core.close()
    assert core.header("reason") == ""


def test_nothing_is_sold_before_open_and_after_close(core: Core) -> None:
    core.create()
    assert core.reserve(Wish("o1")) == [Status.NOT_OPEN]
    core.open()
    assert core.reserve(Wish("o1")) == [Status.CREATED]
    core.close()
    assert core.reserve(Wish("o2", "bob")) == [Status.ENDED]
    core.confirm("o1", "p1")
    assert core.header("state") == "settled"
    assert core.reserve(Wish("o2", "bob")) == [Status.ENDED]
    assert core.reserve(Wish("o1")) == [core.record("o1")]


def test_settled_names_only_what_is_left(core: Core) -> None:
    core.begin((1, 0), (2, 0), (0, 0), (4, 0))
    core.paid("o1", cart="0")
    core.paid("o2", cart="1")
    core.close()
    assert [event.text for event in core.events()[-2:]] == ["closed|", "settled|1:1,3:4"]


def test_a_sold_out_sale_settles_with_nothing(core: Core) -> None:
    core.begin((1, 0)).paid()
    core.close()
    assert core.events()[-1].text == "settled|"
