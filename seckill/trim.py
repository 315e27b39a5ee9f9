"""Taking old events out of Redis, never past the slowest group: see lua/trim.lua for the rule.

The ledger is one of the groups, so nothing goes that it has not had. Whoever trims without a ledger
says through which entry the events are safe somewhere else.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from seckill.errors import InvalidInput, UnknownSale, UpgradeNeeded
from seckill.keys import shard_keys
from seckill.sale import show
from seckill.scripts import FORMAT, script
from seckill.status import Status

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["Trimmed", "trim"]

LOOK_AT: Final = 10_000
"""Entries of one step, which takes the server about a millisecond."""
STEPS_MAX: Final = 1_000

_ENTRY_ID: Final = re.compile(r"\d{1,16}-\d{1,16}").fullmatch


class Trimmed(msgspec.Struct, frozen=True):
    """What one trim has done. ``entries`` went; ``first_seq`` is the first event that is left, or
    the next one to come (0: the sale is fenced, and nothing goes). ``held_by`` names the group that
    holds back what else might go, if one does."""

    entries: int
    first_seq: int
    held_by: str


async def trim(client: Redis, sale: str, *, keep_ms: int, through: str | None = None) -> Trimmed:
    """Takes out the entries that are older than ``keep_ms`` by the server's clock, that every group
    has acknowledged, and that are not past the entry ``through`` (an entry id; None: no bound).

    Each step is one short script, so no group can be made or fall behind unseen, and the server is
    not held up. Raises InvalidInput, UnknownSale, UpgradeNeeded, and redis-py's exceptions.
    """
    if type(keep_ms) is not int or keep_ms < 0:
        raise InvalidInput("keep_ms", f"{show(keep_ms)} is no duration", "pass whole ms, 0 or more")
    if through is not None and (type(through) is not str or not _ENTRY_ID(through)):
        raise InvalidInput("through", f"{show(through)} is no entry id", "pass <ms>-<seq>")
    entries = 0
    for _ in range(STEPS_MAX):
        status, _, went, more, first, held_by = await _step(
            client, sale, FORMAT, keep_ms, through or "", LOOK_AT
        )
        if status == Status.UNKNOWN_SALE:
            raise UnknownSale(sale)
        if status == Status.UPGRADE_NEEDED:
            raise UpgradeNeeded(sale)
        if status == Status.FENCED:
            return Trimmed(entries, 0, "")
        entries += went
        if not more:
            break
    return Trimmed(entries, first, held_by.decode("utf-8", "replace"))


async def _step(client: Any, sale: str, *args: Any) -> Any:
    from redis.exceptions import NoScriptError

    code, keys = script("trim"), shard_keys(sale)
    try:
        return await client.evalsha(code.sha, len(keys), *keys, *args)
    except NoScriptError:
        return await client.eval(code.source, len(keys), *keys, *args)
