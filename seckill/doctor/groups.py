"""Checks of who takes a sale's events away: an order that nobody reads is never delivered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from seckill.doctor.finding import Finding, green, red, yellow
from seckill.groups import GroupState
from seckill.groups import groups as read_groups
from seckill.keys import group_keys, stream_key

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["check_groups", "check_letters", "count_letters", "read_groups"]

WEBHOOK: Final = "webhook"

WAITING_MAX: Final = 1_000
"""What may wait for a group before the sale: events unread, and entries not acknowledged."""

AGE_YELLOW_S: Final = 5
AGE_RED_S: Final = 60
"""After so long without an acknowledgement an entry has no living reader."""

IDLE_S: Final = 30
"""A reader asks again every few seconds."""


async def count_letters(client: Redis, sale: str) -> dict[str, int | None]:
    """Dead letters by group: events that nobody took. None: their key is damaged."""
    from redis.exceptions import ResponseError

    groups: Any = await client.xinfo_groups(stream_key(sale))
    names = {WEBHOOK} | {group["name"].decode("utf-8", "replace") for group in groups}
    found: dict[str, int | None] = {}
    for name in sorted(names):
        try:
            count: Any = await client.hlen(group_keys(sale, name).dead)
            found[name] = int(count)
        except ResponseError:
            found[name] = None
    return found


def check_letters(counts: dict[str, int | None], sale: str) -> Finding:
    """Each keeps the later events of its order back."""
    damaged = [group_keys(sale, group).dead for group, count in counts.items() if count is None]
    if damaged:
        remedy = "find out who wrote there; call a person"
        return red("dead-letters", f"damaged: {', '.join(damaged)}", remedy)
    dead = {group: count for group, count in counts.items() if count}
    if dead:
        seen = ", ".join(f"{count:,} of {group}" for group, count in dead.items())
        commands = (
            f"`seckill dead list {sale}{'' if group == WEBHOOK else f' --group {group}'}`"
            for group in dead
        )
        return red(
            "dead-letters",
            f"{seen}, and later events of their orders wait behind them",
            f"look at them: {', '.join(commands)}",
        )
    return green("dead-letters", "none")


def check_groups(
    groups: list[GroupState], sale: str, now_ms: int, wanted: tuple[str, ...]
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
        idle_s = None if group.idle_ms is None else group.idle_ms / 1_000
        is_idle = not group.leased and (idle_s is None or idle_s > IDLE_S)
        unread |= is_idle and group.name in wanted
        age_s = (now_ms - group.oldest_ms) / 1_000 if group.oldest_ms else 0.0
        waiting = group.unread + group.pending
        if waiting > WAITING_MAX or age_s > AGE_RED_S:
            late.append(f"{group.name}: {waiting:,} waiting, the oldest for {age_s:,.0f} s")
        elif is_idle:
            since = "ever" if idle_s is None else f"for {idle_s:,.0f} s"
            (late if group.name in wanted else idle).append(
                f"{group.name}: no reader has asked {since}"
            )
        elif age_s > AGE_YELLOW_S:
            idle.append(f"{group.name}: {waiting:,} waiting, the oldest for {age_s:,.0f} s")
    remedy = f"look at its workers (`seckill groups list {sale}`)"
    if unread:
        # Only settings with a webhook want a group, and the relay is the reader of that.
        relay = "start `seckill relay --config …`"
        remedy = relay if len(late + idle) == 1 else f"{relay}, and {remedy}"
    if late:
        return red("groups", "; ".join(late + idle), remedy)
    if idle:
        return yellow("groups", "; ".join(idle), remedy)
    return green("groups", f"{', '.join(group.name for group in groups)}: up to date")
