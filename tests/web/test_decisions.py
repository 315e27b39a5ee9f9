"""What a batch decided is told to each, once, after the lane has gone on."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType

import pytest

from seckill.errors import SeckillError
from seckill.server.decisions import Decision, Decisions


class Told(Decision):
    __slots__ = ("fails", "heard")

    def __init__(self, decisions: Decisions, *, fails: bool = False) -> None:
        super().__init__(decisions)
        self.heard: list[object] = []
        self.fails = fails

    def tell(self) -> None:
        if self.fails:
            raise ValueError("nobody listens")
        try:
            self.heard.append(self.answer)
        except SeckillError as error:
            self.heard.append(error)


async def test_all_of_a_batch_are_told_in_the_next_round(
    caplog: pytest.LogCaptureFixture,
) -> None:
    decisions = Decisions()
    first, broken, last = Told(decisions), Told(decisions, fails=True), Told(decisions)
    for number, decision in enumerate((first, broken, last)):
        assert not decision.done()
        decision.set_result((1, number))
        assert decision.done()
    assert not first.heard
    with caplog.at_level(logging.ERROR):
        await asyncio.sleep(0)
    assert (first.heard, last.heard) == ([(1, 0)], [(1, 2)])
    assert "nobody listens" in caplog.text
    last.set_exception(SeckillError("told apart"))
    await asyncio.sleep(0)
    assert len(last.heard) == 2


async def test_nothing_is_decided_yet() -> None:
    with pytest.raises(asyncio.InvalidStateError):
        Told(Decisions()).answer  # noqa: B018


async def test_an_error_that_a_batch_shares_does_not_grow() -> None:
    decisions, error = Decisions(), SeckillError("the batch failed")
    batch = [Told(decisions) for _ in range(50)]
    for decision in batch:
        decision.set_exception(error)
    await asyncio.sleep(0)
    assert all(decision.heard == [error] for decision in batch)
    levels, at = 0, error.__traceback__
    while isinstance(at, TracebackType):
        levels, at = levels + 1, at.tb_next
    assert levels < 5


class Wire(asyncio.WriteTransport):
    """Writes down what it is given, and when."""

    def __init__(self, said: list[str], *, fails: bool = False) -> None:
        super().__init__()
        self._said = said
        self._fails = fails

    def write(self, data: object) -> None:
        if self._fails:
            raise RuntimeError("the handler is closed")
        self._said.append(f"sent {data!r}")


class Answered(Decision):
    """Answers as it is told."""

    __slots__ = ("_all", "_name", "_notes", "_wire")

    def __init__(self, decisions: Decisions, name: str, wire: Wire, said: list[str]) -> None:
        super().__init__(decisions)
        self._all = decisions
        self._name = name
        self._wire = wire
        self._notes = said

    def tell(self) -> None:
        self._notes.append(f"told {self._name}")
        self._all.send(self._wire, self._name.encode())


async def test_a_batchs_answers_leave_when_all_are_made(caplog: pytest.LogCaptureFixture) -> None:
    decisions, said = Decisions(), list[str]()
    whole, broken = Wire(said), Wire(said, fails=True)
    for name, wire in (("a", whole), ("b", broken), ("c", whole)):
        Answered(decisions, name, wire, said).set_result((1, 0))
    with caplog.at_level(logging.ERROR):
        await asyncio.sleep(0)
    assert said == ["told a", "told b", "told c", "sent b'a'", "sent b'c'"]
    assert "the handler is closed" in caplog.text


async def test_an_answer_of_no_batch_leaves_at_once() -> None:
    decisions, said = Decisions(), list[str]()
    decisions.send(Wire(said), b"alone")
    assert said == ["sent b'alone'"]
    # After a batch, too.
    Answered(decisions, "a", Wire(said), said).set_result((1, 0))
    await asyncio.sleep(0)
    decisions.send(Wire(said), b"again")
    assert said[-2:] == ["sent b'a'", "sent b'again'"]
