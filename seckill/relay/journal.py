"""What a relay writes for one sale: its lease, what was dealt with, and the dead letters.

Everything that happened since the last write goes out in one transaction, which is done only while
the lease is still ours. A write whose answer was lost may be repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from seckill import redis as servers
from seckill.dead import DEAD_MAX, Letter, letter_field
from seckill.errors import SeckillError, ServerFull
from seckill.keys import relay_keys, stream_key

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["GROUP", "Entry", "Journal", "LeaseLost"]

GROUP: Final = "webhook"
# Not more often, because each write may be a sync of the server's disk, which the sale needs.
WRITE_S: Final = 0.02
PATIENCE_S: Final = 5.0
RETRY_S: Final = 0.1
# Ends the names of the wishes that a relay has taken up. A wish for the same subject that comes
# later stands beside it under the plain name, so that it is not struck off with the answered one.
TAKEN: Final = "\n"


class LeaseLost(SeckillError):
    """Another relay has this sale now, or Redis was away for as long as the lease lasts."""


class Mark(NamedTuple):
    """What is known of an entry at one moment: a bit for each event that was dealt with. Taken with
    the note, so that an entry never goes out as complete before the letters that make it so."""

    done: int
    complete: bool


class Entry:
    """An entry of the stream whose events are not all dealt with. ``done`` has a bit for each."""

    __slots__ = ("done", "id", "size")

    def __init__(self, entry_id: bytes, size: int, done: int) -> None:
        self.id = entry_id
        self.size = size
        self.done = done

    def mark(self) -> Mark:
        """As it is now."""
        return Mark(self.done, self.done == (1 << self.size) - 1)


class Notes:
    """What is yet to be written. ``letters`` maps a field to a new text, or to None: delivered.
    ``owners`` maps the field of a new letter to its entry."""

    def __init__(self) -> None:
        self.marks: dict[bytes, Mark] = {}
        self.letters: dict[str, bytes | None] = {}
        self.owners: dict[str, bytes] = {}
        self.heard: set[str] = set()

    def then(self, later: Notes) -> Notes:
        """These and the later ones."""
        both = Notes()
        both.marks = self.marks | later.marks
        both.letters = self.letters | later.letters
        both.owners = self.owners | later.owners
        both.heard = self.heard | later.heard
        return both

    def split(self) -> tuple[Notes, Notes]:
        """What a full server takes, and what it refuses. An entry stays unacknowledged until its
        letters are written."""
        taken, refused = Notes(), Notes()
        refused.owners = self.owners
        waiting = set(self.owners.values())
        for name, mark in self.marks.items():
            part = taken if mark.complete and name not in waiting else refused
            part.marks[name] = mark
        for field, text in self.letters.items():
            (taken if text is None else refused).letters[field] = text
        taken.heard = self.heard
        return taken, refused


class Journal:
    """The lease of one sale, and the notes of who holds it. ``token`` names this relay;
    ``lease_ms`` is how long a relay that died keeps another one from taking over."""

    def __init__(self, client: Redis, sale: str, token: bytes, *, lease_ms: int) -> None:
        self._client: Any = client
        self._keys = relay_keys(sale)
        self._stream = stream_key(sale)
        self._token = token
        self._lease_ms = lease_ms
        self._valid_until = 0.0
        self._notes = Notes()
        self._noted = asyncio.Event()
        self.letters = 0
        """How many dead letters there are."""
        self._full = False
        self._wishes: set[str] = set()
        self.on_again: Callable[[set[str]], None] = lambda _: None
        """Called after a write with the subjects that somebody wants to be sent again, and for
        which ``heard`` was not called yet. Each wish is either in there or asks anew afterwards."""

    @property
    def held(self) -> bool:
        """Whether the lease is certainly ours."""
        return monotonic() < self._valid_until

    @property
    def has_room(self) -> bool:
        """Whether one more event may become a dead letter."""
        return self.letters < DEAD_MAX and not self._full

    def has_written(self, subject: str) -> bool:
        """Whether every letter of this subject is in Redis by now."""
        return not any(field.endswith(f":{subject}") for field in self._notes.letters)

    async def acquire(self) -> bytes | None:
        """Takes the lease; None, or the token of who holds it."""
        key = self._keys.lease
        asked_at = monotonic()
        async with asyncio.timeout(PATIENCE_S):
            if not await self._client.set(key, self._token, nx=True, px=self._lease_ms):
                holder: bytes = await self._client.get(key) or b"?"
                # It may be ours from before, when this relay takes the sale up anew.
                if holder != self._token or not await self._client.pexpire(key, self._lease_ms):
                    return holder
        self._valid_until = asked_at + self._lease_ms / 1000
        return None

    async def marks(self) -> dict[bytes, int]:
        """Which events of unacknowledged entries were dealt with, as bits, by entry id."""
        async with asyncio.timeout(PATIENCE_S):
            found = await self._client.hgetall(self._keys.done)
        return {entry: int(bits) for entry, bits in found.items()}

    # -- notes --------------------------------------------------------------------------------

    def done(self, entry: Entry, index: int) -> None:
        """This event was delivered, or was a letter already."""
        entry.done |= 1 << index
        self.touch(entry)

    def touch(self, entry: Entry) -> None:
        """Writes down how far this entry is; it is acknowledged when all of it is dealt with."""
        self._notes.marks[entry.id] = entry.mark()
        self._noted.set()

    def bury(self, letter: Letter, entry: Entry | None, index: int = 0) -> None:
        """Keeps an event as a letter, or changes what is known of one (without ``entry``)."""
        self._notes.letters[letter.field] = msgspec.json.encode(letter)
        if entry is not None:
            self.letters += 1
            self._notes.owners[letter.field] = entry.id
            self.done(entry, index)
        self._noted.set()

    def forget(self, seq: int, subject: str) -> None:
        """A letter was delivered, or is no longer there."""
        self.letters -= 1
        self._notes.letters[letter_field(seq, subject)] = None
        self._noted.set()

    def heard(self, subject: str) -> None:
        """What was wanted of this subject in ``on_again`` is done. A later wish still stands."""
        self._notes.heard.add(subject)
        self._noted.set()

    # -- writing ------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Writes and renews, until it is cancelled. Raises LeaseLost, or what no retry changes."""
        while True:
            try:
                async with asyncio.timeout(self._lease_ms / 3_000):
                    await self._noted.wait()
            except TimeoutError:
                pass
            await self.write()
            await asyncio.sleep(RETRY_S if self._full else WRITE_S)

    async def write(self, *, release: bool = False) -> None:
        """Writes what was noted, again and again while the lease is ours, and takes up the wishes
        that it finds. Raises LeaseLost."""
        from redis.exceptions import RedisError

        while True:
            notes, self._notes = self._notes, Notes()
            self._noted.clear()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    again = await self._write(notes, release=release)
                # What is about to be struck off the list was answered already.
                self.on_again(again - self._notes.heard)
                if release or self._full or not self._wishes:
                    return
            except (RedisError, OSError, EOFError) as error:
                # Cancelled or refused, it may have happened all the same; again does no harm.
                self._notes = notes.then(self._notes)
                if not servers.is_transient(error):
                    raise servers.refusal_of(error) from None
                if not self.held:
                    raise LeaseLost("Redis was away") from None
                await asyncio.sleep(RETRY_S)
            except BaseException:
                self._notes = notes.then(self._notes)
                raise

    async def _write(self, notes: Notes, *, release: bool) -> set[str]:
        from redis.exceptions import ResponseError

        try:
            again = await self._transact(notes, release=release)
            self._full = False
        except ResponseError as error:
            if not isinstance(servers.refusal_of(error), ServerFull):
                raise
            self._full = True
            taken, refused = notes.split()
            self._wishes = set()  # To take one up needs room. It is read again below.
            again = await self._transact(taken, release=release)
            self._notes = refused.then(self._notes)
            self._noted.set()
        return again

    async def _transact(self, notes: Notes, *, release: bool) -> set[str]:
        from redis.exceptions import WatchError

        keys = self._keys
        asked_at = monotonic()
        async with self._client.pipeline(transaction=True) as pipe:
            await pipe.watch(keys.lease)
            if await pipe.get(keys.lease) != self._token:
                raise LeaseLost("another relay has taken over")
            pipe.multi()
            for field, text in notes.letters.items():
                if text is None:
                    pipe.hdel(keys.dead, field)
                else:
                    pipe.hset(keys.dead, field, text)
            for entry, mark in notes.marks.items():
                if mark.complete:
                    pipe.xack(self._stream, GROUP, entry)
                    pipe.hdel(keys.done, entry)
                else:
                    pipe.hset(keys.done, entry, mark.done)
            if notes.heard:
                pipe.srem(keys.again, *(name + TAKEN for name in notes.heard))
            # Not one whose answer may be in these notes: if they were written twice, it would be
            # struck off unanswered.
            if wishes := self._wishes - notes.heard:
                pipe.srem(keys.again, *wishes)
                pipe.sadd(keys.again, *(name + TAKEN for name in wishes))
            pipe.smembers(keys.again)
            if release:
                pipe.delete(keys.lease)
            else:
                pipe.pexpire(keys.lease, self._lease_ms)
            try:
                replies = await pipe.execute()
            except WatchError:
                raise LeaseLost("another relay has taken over") from None
        self._valid_until = 0.0 if release else asked_at + self._lease_ms / 1000
        names = {name.decode() for name in replies[-2]}
        taken = {name.removesuffix(TAKEN) for name in names if name.endswith(TAKEN)}
        self._wishes = names - taken - {name + TAKEN for name in taken}
        return taken
