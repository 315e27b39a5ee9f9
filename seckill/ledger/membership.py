"""The ledger's consumer group in a sale's stream: joining it, leaving it, what it has in hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from seckill.errors import EventsTrimmed
from seckill.keys import LEDGER_GROUP, stream_key
from seckill.ledger.ledger import Ledger
from seckill.stream import join_group

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["count_left", "join", "sign_off"]


async def join(client: Redis, ledger: Ledger, sale: str) -> None:
    """Makes the group if it is not there. Raises EventsTrimmed if the ledger would miss events."""
    try:
        await join_group(client, sale, LEDGER_GROUP)
    except EventsTrimmed as error:
        last_seq, _ = await ledger.last(sale)
        if last_seq < error.first_seq - 1:
            raise
        # The ledger had had what was trimmed, and somebody has dropped its group since.
        await join_group(client, sale, LEDGER_GROUP, after_trim=True)


async def sign_off(client_of: Callable[[str], Any], sales: Iterable[str], consumer: str) -> None:
    """Takes this runner's name out of the groups, or each one that ever ran would stay there. With
    it would go what it has taken, of which there must be nothing."""
    for sale in sales:
        client = client_of(sale)
        for known in await client.xinfo_consumers(stream_key(sale), LEDGER_GROUP):
            if known["name"] == consumer.encode() and not known["pending"]:
                await client.xgroup_delconsumer(stream_key(sale), LEDGER_GROUP, consumer)


async def count_left(client_of: Callable[[str], Any], sales: Iterable[str]) -> int:
    """Entries that were taken and are not acknowledged, by whomever."""
    left = 0
    for sale in sales:
        for group in await client_of(sale).xinfo_groups(stream_key(sale)):
            if group["name"] == LEDGER_GROUP.encode():
                left += group["pending"]
    return left
