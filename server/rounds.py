"""A few requests in each round of the event loop, the others in the next.

A round reads every connection on which something has come. Under overload those are thousands, and
what Redis has answered is looked at once a round: a lane would get one batch through where it could
get ten, and all the rest of the time would go into refusing. So what comes beyond ``ROUND`` waits
in its connection, in order, for a later round.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol

__all__ = ["ROUND", "Rounds", "Turn"]

# A lane's two batches take some four rounds from the socket and back. More at a time would only
# wait in the lane, far fewer would be rounds for nothing.
ROUND: Final = 128


class Turn(Protocol):
    """Whoever waits for a later round."""

    def turn(self) -> None:
        """Its round has come. Raises nothing: others have theirs after it."""


class Rounds:
    """The rounds of one event loop."""

    __slots__ = ("_left", "_loop", "_waiting")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._left = ROUND
        self._waiting: deque[Turn] = deque()

    def mine(self, who: Turn) -> bool:
        """Whether there is room in this round; if not, ``who`` gets its turn in a later one."""
        if self._left > 0:
            if self._left == ROUND:
                self._loop.call_soon(self._next)
            self._left -= 1
            return True
        self._waiting.append(who)
        return False

    def _next(self) -> None:
        waiting = self._waiting
        count = min(len(waiting), ROUND)
        self._left = ROUND - count
        if count:
            self._loop.call_soon(self._next)
        for _ in range(count):
            waiting.popleft().turn()
