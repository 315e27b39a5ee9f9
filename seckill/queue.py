"""What a process knows of one sale's queue, and answers from memory.

    join   a ticket, through a lane like an order's
    place  from the queue's last look and the ticket's number: no call to Redis
    order  the token is read (seckill.tokens) before the order is sent

A look is one call of admit.lua, which calls the next buyers as well. While somebody asks there is
one every 200 ms; nobody leads, and any number of processes may look at once.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from array import array
from bisect import bisect_right
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Literal

import msgspec

from seckill.calls import Calls
from seckill.draw import NO_RANK, SEED_BYTES, commitment_of, salts
from seckill.errors import EngineClosed
from seckill.eta import WINDOW_MS, eta_ms, pace_per_s
from seckill.keys import queue_keys, shard_keys
from seckill.sale import Sale
from seckill.status import Status
from seckill.tokens import Keys, Token, new_key

__all__ = ["Phase", "Place", "Queue", "View"]

LOOK_S: Final = 0.2
STALE_S: Final = 2.0
LOOKS_PER_S: Final = 200
_CLOSED: Final = "the engine is shutting down, or the sale was made anew; ask again"
_RANKS_PART: Final = 1 << 20

_log = logging.getLogger("seckill.queue")

Phase = Literal["joined", "drawing", "waiting", "unlikely", "called", "lapsed", "sold_out", "ended"]


class Place(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Where a ticket stands.

    ``phase``: joined (its list is not closed yet), drawing (closed, not in order yet), waiting,
    unlikely (the stock left will probably not reach it), called (``token`` is good until
    ``expires_ms``, and longer by each pause of the sale), lapsed, sold_out (nothing is left or
    held) or ended. ``ahead``: how many others come before it at most, ``eta_ms`` how long that
    takes if it goes on as it goes; both are None where nobody can tell. ``salt`` is what the buyer
    finds the own line in a published list of tickets with (docs/fair-draw.md), empty where tickets
    are not ranked. ``at_ms``: as of when, on the server's clock.
    """

    ticket: str
    number: int
    phase: Phase
    at_ms: int
    ahead: int | None = None
    eta_ms: int | None = None
    token: str = ""
    expires_ms: int = 0
    salt: str = ""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """A queue at one look.

    ``raw_ms`` is the server's clock, ``now_ms`` the sale's, ``turn_ms`` the queue's own, by which
    turns are timed: it stands still while nothing is sold (lua/lib/turns.lua). Positions below
    ``head`` have been called, those below ``lapsed`` have had their time; ``tail`` is one past the
    last. ``refusal`` is why nobody is called at all, None while the sale sells. ``reach`` is how
    many more may be called if every held unit comes back, ``next`` the number of the next ticket,
    ``closed`` how many tickets had been given out when the list closed, and ``ranked`` how many of
    them got a position; None before. ``live`` counts unused live tokens, ``called`` everybody who
    was ever called. ``room`` is how many more the stock would let be called at once: so many wait
    by the rate, and those behind them by who comes and who stays away.
    """

    raw_ms: int
    now_ms: int
    turn_ms: int
    refusal: Status | None
    head: int
    tail: int
    lapsed: int
    waiting: int
    available: int
    held: int
    reach: int
    next: int
    closed: int | None
    ranked: int | None
    lapses: int
    live: int
    called: int
    room: int


class Queue:
    """One sale's queue. It belongs to one event loop."""

    def __init__(self, sale: Sale, calls: Calls) -> None:
        if sale.admission is None:
            raise ValueError("an open sale has no queue")
        self.sale = sale
        self.admission = sale.admission
        self.keys = (*shard_keys(sale.id), *queue_keys(sale.id))
        self.calls = calls
        self.view = _NOTHING
        # Nothing is ever signed or verified with this one: the first look brings the sale's own.
        self.tokens = Keys(sale.id, (new_key(),))
        # No salt is ever told before the first look, which brings the sale's own.
        self._salt_of: Callable[[str], bytes] = salts(bytes(SEED_BYTES))
        self._steps: list[tuple[int, int, int, int]] = []
        self._firsts: list[int] = []
        self._ranks = array("I")
        self._pace = 0.0
        # Since when people have waited without a break, None while nobody does.
        self._busy_ms: int | None = sale.opens_ms
        self._ahead_ms = 0.0
        self._looked_s = -STALE_S
        self._learned_s = 0.0
        self._closed = False
        self._looking: asyncio.Task[Status] | None = None
        self._failing = False
        self._looks_left, self._looks_since_s = 0, 0.0

    @property
    def fresh(self) -> bool:
        """Whether enough is known, and not too long ago, to answer from memory."""
        now_s = monotonic()
        if now_s - self._looked_s >= LOOK_S and not self._closed:
            _ = self._renew()
        return now_s - self._looked_s < STALE_S

    @property
    def turn_ms(self) -> float:
        """The queue's own clock, estimated to the early side."""
        if self.view.refusal is not None:
            return self.view.turn_ms
        return monotonic() * 1000 + self._ahead_ms

    @property
    def pace_per_s(self) -> float:
        """How many are called in a second, as the last looks have it."""
        return self._pace

    async def ready(self) -> Status:
        """Waits until enough is known: DONE, or why it never will be. Raises OutcomeUnknown,
        RedisUnavailable, ServerFull, EngineClosed."""
        if self.fresh:
            return Status.DONE
        if self._closed:
            raise EngineClosed(_CLOSED)
        return await self._await(self._renew())

    async def keep(self) -> bool:
        """Looks, for nobody in particular. Whether that went well; a failure is in the log once."""
        task = self._renew()
        await asyncio.wait({task})
        return not task.cancelled() and not task.exception() and task.result() is Status.DONE

    # -- from memory --------------------------------------------------------------------------

    def place_of(self, buyer: str, ticket: str) -> Place | None:
        """The same by the ticket; None as well for one that is not this buyer's."""
        number = self.tokens.number(buyer, ticket)
        return None if number is None else self.place(buyer, number, ticket)

    def place(self, buyer: str, number: int, ticket: str = "") -> Place | None:
        """Where a ticket stands, by its number; None for one that was given up before the draw.
        Only while ``fresh``."""
        view = self.view
        ticket = ticket or self.tokens.ticket(buyer, number)
        salt = self._salt_of(buyer).hex() if self.admission.is_drawn else ""

        def place(phase: Phase, **more: Any) -> Place:
            return Place(
                ticket=ticket, number=number, phase=phase, at_ms=view.raw_ms, salt=salt, **more
            )

        if self.admission.is_drawn and view.closed is None:
            return place("ended" if view.refusal is Status.ENDED else "joined")
        if self.admission.is_drawn and view.ranked is None:
            return place("drawing")
        position = self._position(number)
        if position is None:
            return None
        if position < view.head:
            step = self._step_of(position)
            over_ms = 0 if step is None else step[3] + self.admission.token_life_ms
            if step is None or over_ms <= self.turn_ms:
                return place("lapsed")
            if view.refusal is Status.ENDED:
                return place("ended")
            token = self.tokens.token(buyer, number, step[0], over_ms)
            expires_ms = over_ms - view.turn_ms + view.raw_ms
            return place("called", ahead=0, eta_ms=0, token=token, expires_ms=expires_ms)
        if view.refusal is Status.ENDED:
            return place("ended")
        ahead = position - view.head
        if view.available + view.held == 0:
            return place("sold_out", ahead=ahead)
        eta = None
        if ahead < view.room and view.refusal in (None, Status.NOT_OPEN):
            # Further back others must stay away or give units up first, and nobody knows when; nor
            # how long a pause takes.
            eta = eta_ms(ahead, self._pace, self.sale.opens_ms, view.now_ms)
        return place("unlikely" if ahead >= view.reach else "waiting", ahead=ahead, eta_ms=eta)

    def judge(self, buyer: str, token: str) -> Token | Status:
        """The token an order may go with, or what it is refused with. With one whose ``expires_ms``
        is over, the order is only looked up. Only while ``fresh``."""
        found = self.tokens.genuine(buyer, token)
        if isinstance(found, Token):
            # An order that the token made may be asked for as long as it can still be held. Longer
            # than that, a refusal costs Redis nothing.
            late_ms = self.turn_ms - found.expires_ms
            return found if late_ms < self.sale.hold_ms else Status.TOKEN_EXPIRED
        if found is Status.TOKEN_NEEDED and self._may_look():
            return Token(0, 0, 0)
        return found

    def _may_look(self) -> bool:
        # Whoever lost the token may still repeat an order blindly; a storm without tokens costs
        # Redis no more than this.
        now_s = monotonic()
        if now_s - self._looks_since_s >= 1:
            self._looks_since_s, self._looks_left = now_s, LOOKS_PER_S
        self._looks_left -= 1
        return self._looks_left >= 0

    def _position(self, number: int) -> int | None:
        closed, ranked = self.view.closed, self.view.ranked
        if closed is None or ranked is None:
            return number
        if number >= closed:
            return ranked + number - closed
        rank = self._ranks[number] if number < len(self._ranks) else NO_RANK
        return None if rank == NO_RANK else rank

    def _step_of(self, position: int) -> tuple[int, int, int, int] | None:
        """The live step that called a position: number, from, to, at ms."""
        place = bisect_right(self._firsts, position) - 1
        if place < 0 or position >= self._steps[place][2]:
            return None
        return self._steps[place]

    def called_ms(self, number: int) -> int | None:
        """When a ticket was called, on the server's clock; 0 if that is not known any more, None
        while it was not."""
        position = self._position(number)
        if position is None or position >= self.view.head:
            return None
        step = self._step_of(position)
        return 0 if step is None else step[3] - self.view.turn_ms + self.view.raw_ms

    # -- looks --------------------------------------------------------------------------------

    async def look(self) -> Status:
        """Calls the next buyers and learns where the queue stands. Opens a queue that is not there.
        DONE, UNKNOWN_SALE, UPGRADE_NEEDED, FENCED or STALE_DEFINITION. Raises what ``ready``
        raises."""
        began_s = monotonic()
        reply = await self._admit()
        if reply[0] == Status.NO_QUEUE:
            await self.open()
            reply = await self._admit()
        status = Status(reply[0])
        if status is not Status.DONE:
            return status
        keys = reply[19].decode().split(",")
        if not set(keys) & set(self.tokens.texts):
            # The first look, or one at another queue: the sale was lost, or made anew as it was.
            self._steps, self._ranks, self.view = [], array("I"), _NOTHING
            self._looked_s = -STALE_S
            await self._read_secret()
            reply = await self._admit()
            if reply[0] != Status.DONE:
                return Status(reply[0])
        if list(self.tokens.texts) != keys:
            self.tokens = Keys(self.sale.id, keys)
        view = _read_view(reply)
        if view.closed and view.ranked is not None and not self._ranks:
            self._ranks = await self._read_ranks()
        self._learn(view, reply[20], began_s)
        self._looked_s = began_s
        return status

    async def _admit(self) -> list[Any]:
        known = self._steps[-1][0] if self._steps else 0
        reply: list[Any] = await self.calls.run("admit", self.keys, self.sale.definition_id, known)
        return reply

    async def open(self) -> None:
        """Opens the queue, once for all: its keys, and a commitment to its seed."""
        admission = self.admission
        seed = secrets.token_bytes(SEED_BYTES)
        await self.calls.run(
            "queue",
            self.keys,
            self.sale.definition_id,
            admission.mode,
            0 if admission.joins_at is None else int(admission.joins_at.timestamp() * 1000),
            self.sale.draw_ms,
            admission.token_life_ms,
            0 if admission.mode == "draw" else admission.rate_per_s,
            1 if admission.mode == "draw" else admission.overbook_max,
            seed.hex(),
            commitment_of(seed),
            secrets.token_hex(32),
            new_key(),
            self.sale.units_a_buyer if admission.mode == "draw" else 1,
        )

    async def aclose(self) -> None:
        """Ends a look that is under way."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})

    async def _await(self, task: asyncio.Task[Status]) -> Status:
        # A look that ends because the queue is closed must not cancel those who wait for it.
        await asyncio.wait({task})
        if task.cancelled():
            raise EngineClosed(_CLOSED)
        return task.result()

    def _renew(self) -> asyncio.Task[Status]:
        """The look that is under way, or a new one."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self.look())
            self._looking.add_done_callback(self._looked)
        return self._looking

    def _looked(self, task: asyncio.Task[Status]) -> None:
        """A look that nobody waits for must not fail unseen, nor fill the log."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._failing:
            _log.warning("the queue of sale %s can't be seen: %s", self.sale.id, error)
        self._failing = error is not None

    def _learn(self, view: View, news: list[int], began_s: float) -> None:
        if began_s < self._learned_s:
            return  # A look that was overtaken by a later one.
        self._learned_s = began_s
        last = self._steps[-1][0] if self._steps else 0
        for at in range(0, len(news), 4):
            if news[at] > last:
                self._steps.append(tuple(news[at : at + 4]))  # type: ignore[arg-type]
        now_ms, life_ms = view.turn_ms, self.admission.token_life_ms
        while self._steps and self._steps[0][3] + max(life_ms, WINDOW_MS) <= now_ms:
            del self._steps[0]
        self._firsts = [step[1] for step in self._steps]
        self._ahead_ms = now_ms - monotonic() * 1000
        called_at = [step[3] for step in self._steps]
        if view.waiting == 0:
            self._busy_ms = None
        elif self._busy_ms is None:
            self._busy_ms = now_ms
        # A shuffled queue begins with its draw, and so with its first step.
        drawn_ms = called_at[0] - 1 if called_at and view.ranked else 0
        began_ms = max(now_ms if self._busy_ms is None else self._busy_ms, drawn_ms)
        calls = ((step[3], step[2] - step[1]) for step in self._steps)
        self._pace = pace_per_s(calls, began_ms, now_ms, self.admission.rate_per_s)
        self.view = view

    async def _read_secret(self) -> None:
        found = await self.calls.attempt(
            lambda: self.calls.client_of(self.keys[7]).hget(self.keys[7], "secret")
        )
        self._salt_of = salts(bytes.fromhex((found or b"").decode()))

    async def _read_ranks(self) -> array[int]:
        client, raw = self.calls.client_of(self.keys[11]), b""
        while True:
            # A part at a time: Redis has other things to do in such a second.
            first = len(raw)
            part: bytes = await self.calls.attempt(
                lambda first=first: client.getrange(  # type: ignore[misc]
                    self.keys[11], first, first + _RANKS_PART - 1
                )
            )
            raw += part
            if len(part) < _RANKS_PART:
                return array("I", raw)


_NOTHING: Final = View(
    raw_ms=0,
    now_ms=0,
    turn_ms=0,
    refusal=None,
    head=0,
    tail=0,
    lapsed=0,
    waiting=0,
    available=0,
    held=0,
    reach=0,
    next=0,
    closed=None,
    ranked=None,
    lapses=0,
    live=0,
    called=0,
    room=0,
)


def _read_view(reply: list[Any]) -> View:
    raw_ms, now_ms, turn_ms, refusal, head, tail, lapsed, waiting, available, held = reply[1:11]
    reach, upcoming, closed, ranked, lapses, live, called, room = reply[11:19]
    return View(
        raw_ms=raw_ms,
        now_ms=now_ms,
        turn_ms=turn_ms,
        refusal=Status(refusal) if refusal else None,
        head=head,
        tail=tail,
        lapsed=lapsed,
        waiting=waiting,
        available=available,
        held=held,
        reach=reach,
        next=upcoming,
        closed=None if closed < 0 else closed,
        ranked=None if ranked < 0 else ranked,
        lapses=lapses,
        live=live,
        called=called,
        room=room,
    )
