"""What is to be delivered, in order, and what the deliveries of all sales share."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

import msgspec

from seckill.relay.endpoint import Endpoint, Post
from seckill.relay.journal import Entry
from seckill.relay.pace import Pace, Turns

__all__ = ["Job", "Line", "Office", "Tally"]


class Tally(msgspec.Struct):
    """What a relay has done so far. ``left``: events that are neither delivered nor kept as dead
    letters; ``elsewhere``: sales that another relay had."""

    delivered: int = 0
    failed: int = 0
    dead: int = 0
    left: int = 0
    elsewhere: tuple[str, ...] = ()


class Office(msgspec.Struct, frozen=True):
    """What the deliveries of all sales share."""

    endpoint: Endpoint
    post: Post
    turns: Turns
    pace: Pace
    tally: Tally


class Job:
    """One event to deliver: as it stands in the stream, and where it must be ticked off. It is from
    an ``entry`` of the stream, or, without one, a letter that is sent again."""

    __slots__ = ("at_ms", "entry", "index", "seq", "value")

    def __init__(self, seq: int, at_ms: int, value: str, entry: Entry | None, index: int) -> None:
        self.seq = seq
        self.at_ms = at_ms
        self.value = value
        self.entry = entry
        self.index = index


class Line:
    """What is to be delivered of one subject (an order, or the sale itself), in order: first its
    letters, by seq, then what came from the stream. While there are letters nothing goes out,
    unless somebody wants them ``retrying``."""

    __slots__ = ("letters", "name", "queue", "retrying", "sending", "task")

    def __init__(self, name: str, letters: Iterable[int] = ()) -> None:
        self.name = name
        self.letters = deque(letters)
        self.queue: deque[Job] = deque()
        self.retrying = False
        self.sending = False
        self.task: asyncio.Task[None] | None = None
