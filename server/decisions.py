"""Orders that wait in a lane without a future each: what one batch has decided is told in one go,
in the next round of the event loop, so that the lane sends its next batch first. The answers leave
one right after the other when all of them are made: so whoever reads them on this machine, a load
or a proxy, is woken once and not by each."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod

from seckill.lane import Answer

__all__ = ["Decision", "Decisions"]

_log = logging.getLogger("seckill.server")


class Decisions:
    """What was decided and is not told yet. It belongs to one event loop."""

    __slots__ = ("_answers", "_made")

    def __init__(self) -> None:
        self._made: list[Decision] = []
        # What is to be sent when all are told; None while nothing is told.
        self._answers: list[tuple[asyncio.WriteTransport, bytes]] | None = None

    def add(self, decision: Decision) -> None:
        """It is told soon."""
        if not self._made:
            asyncio.get_running_loop().call_soon(self._tell)
        self._made.append(decision)

    def send(self, transport: asyncio.WriteTransport, answer: bytes) -> None:
        """Writes an answer, with the others of its batch if it is one of a batch."""
        if self._answers is None:
            transport.write(answer)
        else:
            self._answers.append((transport, answer))

    def _tell(self) -> None:
        made, self._made = self._made, []
        answers = self._answers = []
        for decision in made:
            try:
                decision.tell()
            except Exception:  # noqa: BLE001 - logged, and the others are to hear of theirs
                _log.exception("an answer could not be told")
        self._answers = None
        for transport, answer in answers:
            try:
                transport.write(answer)
            except Exception:  # noqa: BLE001 - logged, and the others are to be sent
                _log.exception("an answer could not be sent")


class Decision(ABC):
    """A seckill.lane.Waiter: one order that is decided once."""

    __slots__ = ("_decisions", "_said")

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions
        self._said: Answer | Exception | None = None

    @abstractmethod
    def tell(self) -> None:
        """Called when it is decided, once."""

    @property
    def answer(self) -> Answer:
        """What was decided. Raises what went wrong instead."""
        said = self._said
        if isinstance(said, Exception):
            # All of a batch that failed share it, and each would add to what it has.
            raise said.with_traceback(None)
        if said is None:
            raise asyncio.InvalidStateError("it is not decided yet")
        return said

    def done(self) -> bool:
        """Whether it is decided."""
        return self._said is not None

    def set_result(self, answer: Answer, /) -> None:
        """It is decided."""
        self._said = answer
        self._decisions.add(self)

    def set_exception(self, error: Exception, /) -> None:
        """Nobody can say how it was decided, or that it never will be."""
        self._said = error
        self._decisions.add(self)
