"""What a consumer keeps of one sale: its lease, what was dealt with, and the dead letters.

Everything that happened since the last write goes out in one script, which does it only while the
lease is still ours (lua/tick.lua). A write whose answer was lost may be repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from seckill import redis as servers
from seckill.dead import DEAD_MAX, Letter, letter_field
from seckill.errors import SeckillError, UnknownSale, UpgradeNeeded
from seckill.keys import group_keys, shard_keys
from seckill.scripts import FORMAT, script
from seckill.settling import read_settled
from seckill.status import Status

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["CONSUMER", "Entry", "Journal", "LeaseLost"]

# Not more often, because each write may be a sync of the server's disk, which the sale needs.
WRITE_S: Final = 0.02
PATIENCE_S: Final = 5.0
RETRY_S: Final = 0.1
# One name, because a group has one of us: what a dead one had taken is ours at once.
CONSUMER: Final = "consumer"
# Ends the names of the wishes that a consumer has taken up. A wish for the same subject that comes
# later stands beside it under the plain name, so that it is not struck off with the answered one.
TAKEN: Final = "\n"


class LeaseLost(SeckillError):
    """Another process has this sale now, or Redis was away for as long as the lease lasts."""


class Mark(NamedTuple):
    """What is known of an entry at one moment: a bit for each event that was dealt with. Taken with
    the note, so that an entry never goes out as complete before the letters that make it so."""

    done: int
    complete: bool


class Taken(NamedTuple):
    """What was read of the stream: entries by id; and the id of the last one that is in it, empty
    where there may be more to read at once."""

    entries: list[tuple[bytes, list[bytes] | None]]
    last_id: bytes


class Entry:
    """An entry of the stream whose events are not all dealt with. ``done`` has a bit for each."""

    __slots__ = ("done", "id", "size")

    def __init__(self, entry_id: bytes, size: int, done: int) -> None:
        self.id = entry_id.decode()
        self.size = size
        self.done = done

    def mark(self) -> Mark:
        """As it is now."""
        return Mark(self.done, self.done == (1 << self.size) - 1)


class Notes:
    """What is yet to be written. ``letters`` maps a field to a new text, or to None: it is gone."""

    def __init__(self) -> None:
        self.marks: dict[str, Mark] = {}
        self.letters: dict[str, str | None] = {}
        self.heard: set[str] = set()

    def then(self, later: Notes) -> Notes:
        """These and the later ones."""
        both = Notes()
        both.marks = self.marks | later.marks
        both.letters = self.letters | later.letters
        both.heard = self.heard | later.heard
        return both

    def packed(self, wishes: set[str]) -> bytes:
        """As lua/tick.lua takes them."""
        marks, letters = self.marks.items(), self.letters.items()
        return msgspec.msgpack.encode(
            (
                [entry for entry, mark in marks if mark.complete],
                [part for entry, mark in marks if not mark.complete for part in (entry, mark.done)],
                [field for field, text in letters if text is None],
                [part for field, text in letters if text is not None for part in (field, text)],
                list(self.heard),
                # Not one whose answer may be in these notes: if they were written twice, it would
                # be struck off unanswered.
                list(wishes - self.heard),
            )
        )


class Journal:
    """One group's lease of one sale, and the notes of who holds it. ``token`` names this journal:
    the process, "#", and what tells it from others of the process. ``lease_ms`` is how long one
    that died keeps another from taking over."""

    def __init__(
        self, client: Redis, sale: str, group: str, token: bytes, *, lease_ms: int
    ) -> None:
        self._client: Any = client
        self._sale = sale
        self._group = group
        self._keys = group_keys(sale, group)
        self._token = token
        self._lease_ms = lease_ms
        self._valid_until = 0.0
        self._notes = Notes()
        self._noted = asyncio.Event()
        self.letters = 0
        """How many dead letters there are."""
        self._wishes: set[str] = set()
        self.on_again: Callable[[set[str]], None] = lambda _: None
        """Called after a write with the subjects that somebody wants to be handled again, and for
        which ``heard`` was not called yet. Each wish is either in there or asks anew afterwards."""

    @property
    def held(self) -> bool:
        """Whether the lease is certainly ours."""
        return monotonic() < self._valid_until

    @property
    def has_room(self) -> bool:
        """Whether one more event may become a dead letter."""
        return self.letters < DEAD_MAX

    def has_written(self, subject: str) -> bool:
        """Whether every letter of this subject is in Redis by now."""
        return not any(field.endswith(f":{subject}") for field in self._notes.letters)

    async def acquire(self) -> bytes | None:
        """Takes the lease; None, or the token of who holds it."""
        key = self._keys.lease
        asked_at = monotonic()
        async with asyncio.timeout(PATIENCE_S):
            if not await self._client.set(key, self._token, nx=True, px=self._lease_ms):
                holder = await self._replace(key)
                if holder is not None:
                    return holder
        self._valid_until = asked_at + self._lease_ms / 1000
        return None

    async def _replace(self, key: str) -> bytes | None:
        """Takes the lease from this process' own journal before, whose commands may still be under
        way; None, or who has it."""
        from redis.exceptions import WatchError

        async with self._client.pipeline(transaction=True) as pipe:
            await pipe.watch(key)
            holder: bytes = await pipe.get(key) or b"?"
            process = self._token.partition(b"#")[0]
            if holder.partition(b"#")[0] != process:
                return holder
            pipe.multi()
            pipe.set(key, self._token, px=self._lease_ms)
            try:
                await pipe.execute()
            except WatchError:
                return holder
        return None

    async def marks(self) -> dict[bytes, int]:
        """Which events of unacknowledged entries were dealt with, as bits, by entry id."""
        async with asyncio.timeout(PATIENCE_S):
            found = await self._client.hgetall(self._keys.done)
        return {entry: int(bits) for entry, bits in found.items()}

    async def take(self, reader: Redis, replicas: int, cursor: bytes, count: int) -> Taken:
        """What an earlier consumer left unacknowledged behind ``cursor``, or with b">" what nobody
        has read. Raises LeaseLost, UnknownSale, UpgradeNeeded, and redis-py's exceptions."""
        from redis.exceptions import NoScriptError

        code, keys = script("take"), (*shard_keys(self._sale), *self._keys)
        words = (len(keys), *keys, FORMAT, self._group, self._token, CONSUMER, count, cursor)
        try:
            reply = await read_settled(reader, replicas, keys[0], "EVALSHA", code.sha, *words)
        except NoScriptError:
            reply = await read_settled(reader, replicas, keys[0], "EVAL", code.source, *words)
        self._check(reply[0])
        return Taken(reply[1], reply[2])

    # -- notes --------------------------------------------------------------------------------

    def done(self, entry: Entry, index: int) -> None:
        """This event was handled, or was a letter already."""
        entry.done |= 1 << index
        self.touch(entry)

    def touch(self, entry: Entry) -> None:
        """Writes down how far this entry is; it is acknowledged when all of it is dealt with."""
        self._notes.marks[entry.id] = entry.mark()
        self._noted.set()

    def bury(self, letter: Letter, entry: Entry | None, index: int = 0) -> None:
        """Keeps an event as a letter, or changes what is known of one (without ``entry``)."""
        self._notes.letters[letter.field] = msgspec.json.encode(letter).decode()
        if entry is not None:
            self.letters += 1
            self.done(entry, index)
        self._noted.set()

    def forget(self, seq: int, subject: str) -> None:
        """A letter was handled, or is no longer there."""
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
            await asyncio.sleep(WRITE_S)

    async def write(self, *, release: bool = False) -> None:
        """Writes what was noted, again and again while the lease is ours, and takes up the wishes
        that it finds. Raises LeaseLost, UnknownSale, UpgradeNeeded."""
        from redis.exceptions import RedisError

        while True:
            notes, self._notes = self._notes, Notes()
            self._noted.clear()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    again = await self._tick(notes, release=release)
                # What is about to be struck off the list was answered already.
                self.on_again(again - self._notes.heard)
                if release or not self._wishes:
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

    async def _tick(self, notes: Notes, *, release: bool) -> set[str]:
        asked_at = monotonic()
        lease_ms = 0 if release else self._lease_ms
        status, members = await self._run(
            FORMAT, self._group, self._token, lease_ms, notes.packed(self._wishes)
        )
        self._check(status)
        self._valid_until = 0.0 if release else asked_at + self._lease_ms / 1000
        names = {name.decode() for name in members}
        taken = {name.removesuffix(TAKEN) for name in names if name.endswith(TAKEN)}
        self._wishes = names - taken - {name + TAKEN for name in taken}
        return taken

    def _check(self, status: int) -> None:
        match status:
            case Status.FENCED:
                raise LeaseLost("another process has taken over")
            case Status.UNKNOWN_SALE:
                raise UnknownSale(self._sale)
            case Status.UPGRADE_NEEDED:
                raise UpgradeNeeded(self._sale)

    async def _run(self, *args: Any) -> Any:
        from redis.exceptions import NoScriptError

        code, keys = script("tick"), (*shard_keys(self._sale), *self._keys)
        try:
            return await self._client.evalsha(code.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await self._client.eval(code.source, len(keys), *keys, *args)
