"""The consumer groups of a sale: how far each is behind, whether anyone reads for it, and how one
that is no longer wanted is dropped.

A group that nobody reads any more keeps every event of its sale in Redis: nothing is trimmed past
the slowest one (``seckill.trim``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from seckill.errors import InvalidInput, UnknownSale
from seckill.keys import LEDGER_GROUP, group_keys, stream_key
from seckill.stream import first_seq

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from seckill.engine import Engine

__all__ = ["ACTIVE_MS", "Dropped", "GroupState", "drop_group", "groups", "groups_of"]

ACTIVE_MS: Final = 30_000
"""A consumer that has asked within this time is at work; each asks again every few seconds."""


class GroupState(msgspec.Struct, frozen=True):
    """One group. ``unread`` counts the events that none of its consumers has taken yet, ``pending``
    the stream entries (of up to 32 events) that were taken and not acknowledged. ``oldest_ms`` is
    when the oldest event of both happened, on the sale's clock, and ``age_ms`` how long ago; 0 and
    0 when there is none. ``idle_ms`` is since when no consumer has asked, None if there never was
    one; ``leased``: a ``Consumer`` holds its lease. ``letters`` counts dead letters, None when
    their key is damaged."""

    name: str
    unread: int
    pending: int
    oldest_ms: int
    age_ms: int
    consumers: int
    idle_ms: int | None
    letters: int | None
    leased: bool

    @property
    def active(self) -> bool:
        """Whether somebody reads for it."""
        return self.leased or (self.idle_ms is not None and self.idle_ms < ACTIVE_MS)


class Dropped(msgspec.Struct, frozen=True):
    """What is forgotten with a group: see ``GroupState``."""

    unread: int
    pending: int
    letters: int


async def groups(client: Redis, sale: str) -> list[GroupState]:
    """The groups of a sale, by name.

    Raises UnknownSale, and redis-py's exceptions.
    """
    key = stream_key(sale)
    commands: Any = client
    if not await commands.exists(key):
        raise UnknownSale(sale)
    seconds, micros = await commands.time()
    now_ms = int(seconds) * 1_000 + int(micros) // 1_000
    found: Any = await commands.xinfo_groups(key)
    # From the stream alone, so that doctor can look at a sale whose header is gone.
    newest = await commands.execute_command("XREVRANGE", key, "+", "-", "COUNT", 1)
    first = await first_seq(client, sale)
    last = _seq(newest[0][0]) if newest else first - 1
    states = [await _state(client, sale, group, first, last, now_ms) for group in found]
    return sorted(states, key=lambda state: state.name)


async def groups_of(engine: Engine, sale: str) -> list[GroupState]:
    """The same, by an engine that is started. Raises what its calls raise, and UnknownSale."""
    found: list[GroupState] = await engine._calls.attempt(
        lambda: groups(engine._calls.client_of(stream_key(sale)), sale)
    )
    return found


async def drop_group(client: Redis, sale: str, group: str, *, force: bool = False) -> Dropped:
    """Forgets a group for good: its place in the stream, its half-done entries, its dead letters.

    Raises InvalidInput for one that does not exist, or that somebody reads, or the ledger's,
    unless ``force``;
    UnknownSale, and redis-py's exceptions.
    """
    known = {state.name: state for state in await groups(client, sale)}
    state = known.get(group)
    if state is None:
        names = ", ".join(known) or "none"
        raise InvalidInput("GROUP", f"sale {sale!r} has no group {group!r}", f"there are: {names}")
    if group == LEDGER_GROUP and not force:
        raise InvalidInput(
            "GROUP",
            "is the ledger's, which would begin anew at the first event that is left",
            "drop it only for good, with --force",
        )
    if state.active and not force:
        raise InvalidInput(
            "GROUP",
            f"{group!r} is being read",
            "stop its consumers, or they begin anew at the first event; --force drops it anyway",
        )
    async with client.pipeline(transaction=True) as pipe:
        pipe.execute_command("XGROUP DESTROY", stream_key(sale), group)
        pipe.execute_command("DEL", *group_keys(sale, group))
        await pipe.execute()
    return Dropped(state.unread, state.pending, state.letters or 0)


def _seq(entry_id: bytes) -> int:
    """The seq of an entry's last event."""
    return int(entry_id.partition(b"-")[2])


async def _state(
    client: Any, sale: str, group: dict[str, Any], first: int, last: int, now_ms: int
) -> GroupState:
    key, name, place = stream_key(sale), group["name"], group["last-delivered-id"]
    keys = group_keys(sale, name.decode("utf-8", "replace"))
    async with client.pipeline(transaction=False) as pipe:
        pipe.xpending(key, name)
        pipe.execute_command("XRANGE", key, b"(" + place, "+", "COUNT", 1)
        pipe.xinfo_consumers(key, name)
        pipe.exists(keys.lease)
        pipe.hlen(keys.dead)
        pending, coming, consumers, leased, letters = await pipe.execute(raise_on_error=False)
    for reply in (pending, coming, consumers, leased):
        if isinstance(reply, Exception):
            raise reply
    waiting = [pending["min"]] if pending["pending"] else []
    waiting += [coming[0][0]] if coming else []
    oldest_ms = min((int(entry.partition(b"-")[0]) for entry in waiting), default=0)
    return GroupState(
        name=name.decode("utf-8", "replace"),
        unread=max(0, last - max(_seq(place), first - 1)),
        pending=int(pending["pending"]),
        oldest_ms=oldest_ms,
        age_ms=max(0, now_ms - oldest_ms) if oldest_ms else 0,
        consumers=len(consumers),
        idle_ms=min((int(one["idle"]) for one in consumers), default=None),
        letters=None if isinstance(letters, Exception) else int(letters),
        leased=bool(leased),
    )
