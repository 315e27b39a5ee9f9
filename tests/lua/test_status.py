"""seckill/status.py mirrors lua/lib/status.lua, and answers every question about every status."""

from __future__ import annotations

import re

import pytest

from seckill import status as module
from seckill.scripts import NAMES
from seckill.status import Status
from seckill.tokens import Keys, new_key
from tests.lua.core import LUA, header_answers


def test_names_and_numbers_are_the_same_in_lua() -> None:
    text = (LUA / "lib/status.lua").read_text("utf-8").partition("local STATUS = {")[2]
    pairs = re.findall(r"([A-Z_]+) = (\d+)", text.partition("}")[0])
    assert {name: int(number) for name, number in pairs} == dict(Status.__members__)
    assert len(pairs) == len(Status)


def test_every_status_has_an_answer_to_every_question() -> None:
    assert set(module._TRANSIENT) == set(Status)
    assert set(module._MEANING) == set(Status)
    for status in Status:
        assert isinstance(status.transient, bool)
        assert status.meaning


def test_meanings_tell_the_statuses_apart() -> None:
    assert len({status.meaning for status in Status}) == len(Status)


def test_ok_is_what_needs_no_retry() -> None:
    assert {status for status in Status if status.ok} == {
        Status.CREATED,
        Status.EXISTS,
        Status.DONE,
        Status.ALREADY,
        Status.CONFIRMED_LATE,
    }
    assert not any(status.transient for status in Status if status.ok)


def answers_to_tokens() -> set[object]:
    """Each way in which a token can be wrong, tried: these refusals never reach a script."""
    old = new_key()
    keys = Keys("sale", [old])
    later = Keys("sale", [keys.another()])
    good = keys.token("ann", 7, 1, expires_ms=1_000)
    return {
        keys.read("ann", "", 0),
        keys.read("ann", "?" * len(good), 0),
        keys.read("bob", good, 0),
        Keys("other", [old]).read("ann", good, 0),
        later.read("ann", good, 0),
    }


@pytest.mark.parametrize("status", Status, ids=lambda status: status.name)
def test_every_status_is_some_scripts_answer_or_that_to_a_token(status: Status) -> None:
    found = any(status in header_answers(verb) for verb in NAMES)
    assert found or status in answers_to_tokens()
