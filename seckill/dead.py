"""Dead letters: events that a group's consumer could not hand over, kept until somebody decides.

A letter is **dead** (its event was given up), or **parked**: a later event of the same order (or of
the sale itself), which must not overtake it. Letters stand in one hash of the sale and
group, at most ``DEAD_MAX`` of them, and hold the event as it stood in the stream. Whoever works on
them by hand only names a *subject*, an order id or ``sale``, in the set ``again``; the active
consumer, and nobody else, then hands over what is left of that subject's letters, in order. It
renames a wish it has taken up, by a newline at its end, so that the same wish made once more is
another one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from seckill import redis as servers
from seckill.keys import group_keys, shard_keys
from seckill.sale import Sale
from seckill.servers import OwnClient
from seckill.stream import Event, decode_event

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["DEAD_MAX", "DeadLetters", "Letter", "letter_field", "with_letters"]

DEAD_MAX: Final = 10_000
"""Letters of one sale and group. When they are as many, events are tried on instead of given up."""
SCAN_COUNT: Final = 500
_T = TypeVar("_T")


class Letter(msgspec.Struct, frozen=True):
    """One event that was not delivered. ``subject`` and ``value`` are its field of the stream.

    ``cause`` says in a few words why it was given up, ``attempts`` after how many. ``since_ms`` is
    Unix time on the consumer's clock.
    """

    seq: int
    at_ms: int
    subject: str
    value: str
    parked: bool
    cause: str
    attempts: int
    since_ms: int

    @property
    def field(self) -> str:
        """Where it stands in the hash."""
        return letter_field(self.seq, self.subject)

    def event(self, sale: Sale, origin_ms: int) -> Event:
        """The event itself. Raises LookupError or ValueError for a damaged one."""
        return decode_event(sale, origin_ms, self.at_ms, self.seq, self.subject, self.value)


def letter_field(seq: int, subject: str) -> str:
    """A letter's field, which says what an index of the letters needs to know."""
    return f"{seq}:{subject}"


class DeadLetters:
    """The letters of one group of a sale. Raises redis-py's exceptions; see ``with_letters``."""

    def __init__(self, client: Redis, sale: str, group: str) -> None:
        self._client: Any = client
        self._sale = sale
        self._keys = group_keys(sale, group)

    async def index(self) -> dict[str, list[int]]:
        """The seqs of the letters of each subject, in order."""
        found: dict[str, list[int]] = defaultdict(list)
        for field in await self._client.hkeys(self._keys.dead):
            seq, _, subject = field.decode().partition(":")
            found[subject].append(int(seq))
        return {subject: sorted(seqs) for subject, seqs in found.items()}

    async def read(self, subject: str, seq: int) -> Letter | None:
        """One letter, or None when it was dropped."""
        text = await self._client.hget(self._keys.dead, letter_field(seq, subject))
        return None if text is None else msgspec.json.decode(text, type=Letter)

    async def letters(self) -> list[Letter]:
        """All of them that can be read, in the order of their events."""
        return (await self.sorted_out())[0]

    async def sorted_out(self) -> tuple[list[Letter], list[str]]:
        """The letters in the order of their events, and the fields of what can't be read, which
        somebody else must have written or edited."""
        found: dict[int, Letter] = {}  # A scan may show one twice.
        damaged: set[str] = set()
        cursor = 0
        while True:
            cursor, part = await self._client.hscan(self._keys.dead, cursor, count=SCAN_COUNT)
            for field, text in part.items():
                try:
                    letter = msgspec.json.decode(text, type=Letter)
                except (ValueError, RecursionError):
                    damaged.add(field.decode(errors="replace"))
                else:
                    found[letter.seq] = letter
            if cursor == 0:
                return [found[seq] for seq in sorted(found)], sorted(damaged)

    async def retrying(self) -> set[str]:
        """The subjects whose letters are being handled again, or wait for a consumer to do it."""
        members = await self._client.smembers(self._keys.again)
        return {name.decode().removesuffix("\n") for name in members}

    async def retry(self, subjects: Collection[str]) -> None:
        """Asks the consumer to take all letters of these subjects again, in order."""
        if subjects:
            await self._client.sadd(self._keys.again, *subjects)

    async def drop(self, letters: Collection[Letter]) -> int:
        """Forgets these for good. What is parked behind them goes on. How many were still there."""
        if not letters:
            return 0
        async with self._client.pipeline(transaction=True) as pipe:
            pipe.hdel(self._keys.dead, *(letter.field for letter in letters))
            pipe.sadd(self._keys.again, *{letter.subject for letter in letters})
            dropped, _ = await pipe.execute()
        return int(dropped)

    async def events(self, sale: Sale, letters: Collection[Letter]) -> list[Event | None]:
        """The event of each letter, None for one that can't be read."""
        origin_ms = int(await self._client.hget(shard_keys(self._sale)[0], "origin_ms"))
        return [_readable(letter, sale, origin_ms) for letter in letters]


def _readable(letter: Letter, sale: Sale, origin_ms: int) -> Event | None:
    try:
        return letter.event(sale, origin_ms)
    except (LookupError, ValueError):
        return None


async def with_letters(
    url: str, sale: str, group: str, work: Callable[[DeadLetters], Awaitable[_T]]
) -> _T:
    """Runs ``work`` on a connection of its own. Raises RedisUnavailable, ServerFull."""
    with servers.our_errors():
        async with OwnClient(url, shard_keys(sale)[0]) as client:
            return await work(DeadLetters(client, sale, group))
