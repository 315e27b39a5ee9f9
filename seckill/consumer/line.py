"""What is to be handled, in order, and what the deliveries of all sales share."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from seckill.consumer.journal import Entry
from seckill.consumer.pace import Pace, Turns
from seckill.sale import Sale
from seckill.stream import Event

__all__ = ["Answer", "Attempt", "Job", "Line", "Office", "Tally"]


class Answer(msgspec.Struct, frozen=True):
    """What became of one attempt. ``cause`` is a few words for logs and dead letters. ``gone``: the
    event is never wanted. ``answered``: it was refused by something that is alive."""

    delivered: bool
    cause: str = ""
    retry_after_s: float = 0.0
    gone: bool = False
    answered: bool = True


Attempt = Callable[[Sale, Event], Awaitable[Answer]]
"""One attempt to hand over one event. What it raises ends the delivery of that sale, which is then
taken up anew; so a refusal is an answer and no exception."""


class Tally(msgspec.Struct):
    """What a consumer has done so far. ``left``: events that are neither handled nor kept as dead
    letters; ``elsewhere``: sales that another process had."""

    delivered: int = 0
    failed: int = 0
    dead: int = 0
    left: int = 0
    elsewhere: tuple[str, ...] = ()


class Office(msgspec.Struct, frozen=True):
    """What the deliveries of all sales share. ``give_up_s`` is for an event, from its first
    failure on. ``starts`` lets a few sales begin at a time: hundreds at once would wait for each
    other's connections until all of them had waited too long. ``replicas`` is how many must have
    an event before it is handled."""

    group: str
    attempt: Attempt
    turns: Turns
    pace: Pace
    starts: asyncio.Semaphore
    give_up_s: float
    tally: Tally
    replicas: int


class Job:
    """One event to handle: as it stands in the stream, and where it must be ticked off. It is from
    an ``entry`` of the stream, or, without one, a letter that is handled again."""

    __slots__ = ("at_ms", "entry", "index", "seq", "value")

    def __init__(self, seq: int, at_ms: int, value: str, entry: Entry | None, index: int) -> None:
        self.seq = seq
        self.at_ms = at_ms
        self.value = value
        self.entry = entry
        self.index = index


class Line:
    """What is to be handled of one subject (an order, or the sale itself), in order: first its
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
