"""Checks of who takes a sale's events away: an order that nobody reads is never delivered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from seckill.doctor.finding import Finding, green, red, yellow
from seckill.keys import relay_keys, stream_key

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["GroupReading", "check_groups", "check_letters", "count_letters", "read_groups"]

WAITING_MAX: Final = 1_000
"""Entries that may wait for a group before the sale."""

AGE_YELLOW_S: Final = 5
AGE_RED_S: Final = 60
"""After so long without an acknowledgement an entry has no living reader."""

IDLE_S: Final = 30
"""A reader asks again every second."""


class GroupReading(msgspec.Struct, frozen=True):
    """A consumer group. ``waiting`` counts entries not acknowledged, delivered or not (None when
    the server can't tell: before Redis 7); ``oldest_ms`` is the time of the first of them, 0 if
    none. ``idle_s`` is since when no consumer asked, None if there is none."""

    name: str
    waiting: int | None
    oldest_ms: int
    idle_s: float | None


async def read_groups(client: Redis, sale: str) -> list[GroupReading]:
    """The consumer groups of a sale's stream, which must exist."""
    key = stream_key(sale)
    groups: Any = await client.xinfo_groups(key)
    return [await _read_group(client, key, group) for group in groups]


async def _read_group(client: Redis, key: str, group: dict[str, Any]) -> GroupReading:
    name, delivered = group["name"], group["last-delivered-id"].decode()
    pending: Any = await client.xpending(key, name)
    coming: Any = await client.execute_command("XRANGE", key, f"({delivered}", "+", "COUNT", 1)
    consumers: Any = await client.xinfo_consumers(key, name)
    first = [pending["min"]] if pending["pending"] else []
    first += [coming[0][0]] if coming else []
    lag = group.get("lag", 0 if not coming else None)
    return GroupReading(
        name.decode("utf-8", "replace"),
        None if lag is None else lag + pending["pending"],
        min((int(entry.partition(b"-")[0]) for entry in first), default=0),
        min((one["idle"] / 1_000 for one in consumers), default=None),
    )


async def count_letters(client: Redis, sale: str) -> int | None:
    """Dead letters of the relay: events that the mall never took. None: their key is damaged."""
    from redis.exceptions import ResponseError

    try:
        count: Any = await client.hlen(relay_keys(sale).dead)
    except ResponseError:
        return None
    return int(count)


def check_letters(count: int | None, sale: str) -> Finding:
    """Each keeps the later events of its order back."""
    if count is None:
        key = relay_keys(sale).dead
        return red("dead-letters", f"{key} is damaged", "find out who wrote there; call a person")
    if count:
        seen = f"{count:,}, and later events of their orders wait behind them"
        return red("dead-letters", seen, f"look at them: `seckill dead list {sale}`")
    return green("dead-letters", "none")


def check_groups(
    groups: list[GroupReading], sale: str, now_ms: int, wanted: tuple[str, ...]
) -> Finding:
    """The worst that can be said of any group. Those that are ``wanted`` must have a reader."""
    names = {group.name for group in groups}
    gone = [f"{name}: nobody has ever read" for name in wanted if name not in names]
    if not groups and not gone:
        return yellow(
            "groups",
            "none: nobody reads this sale's events",
            "start your worker (docs/events.md) or the relay",
        )
    late, idle, unread = gone, list[str](), bool(gone)
    for group in groups:
        is_idle = group.idle_s is None or group.idle_s > IDLE_S
        unread |= is_idle and group.name in wanted
        age_s = (now_ms - group.oldest_ms) / 1_000 if group.oldest_ms else 0.0
        if (group.waiting or 0) > WAITING_MAX or age_s > AGE_RED_S:
            late.append(f"{group.name}: {_count(group)} waiting, the oldest for {age_s:,.0f} s")
        elif is_idle:
            since = "ever" if group.idle_s is None else f"for {group.idle_s:,.0f} s"
            (late if group.name in wanted else idle).append(
                f"{group.name}: no reader has asked {since}"
            )
        elif age_s > AGE_YELLOW_S:
            idle.append(f"{group.name}: {_count(group)} waiting, the oldest for {age_s:,.0f} s")
    remedy = f"look at its workers (`seckill inspect {sale}`)"
    if unread:
        # Only settings with a webhook want a group, and the relay is the reader of that.
        relay = "start `seckill relay --config …`"
        remedy = relay if len(late + idle) == 1 else f"{relay}, and {remedy}"
    if late:
        return red("groups", "; ".join(late + idle), remedy)
    if idle:
        return yellow("groups", "; ".join(idle), remedy)
    return green("groups", f"{', '.join(group.name for group in groups)}: up to date")


def _count(group: GroupReading) -> str:
    return "some" if group.waiting is None else f"{group.waiting:,}"
