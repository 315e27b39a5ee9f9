"""``seckill inspect``: what a sale is made of in Redis, for the person on duty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from seckill.cli.command import SaleId, on_engine
from seckill.cli.output import Output, new_table, warn
from seckill.cli.stock import stock_table
from seckill.engine import Engine
from seckill.keys import queue_keys, shard_keys
from seckill.servers import OwnClient

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["inspect"]


@on_engine
async def inspect(engine: Engine, out: Output, sale: SaleId) -> int:
    """Show a sale's snapshot, the memory of its keys and the lag of its consumer groups."""
    definition, snapshot = await engine.sale(sale), await engine.snapshot(sale)
    async with OwnClient(engine.url, shard_keys(sale)[0], timeout_s=None) as client:
        facts: dict[str, Any] = await client.info("memory")
        of_queue = () if definition.admission is None else queue_keys(sale)
        names = (*shard_keys(sale), *of_queue)
        keys = {key: await _memory_of(client, key) for key in names}
        # A fenced sale may have lost its stream as well.
        stream = shard_keys(sale)[-1]
        groups: Any = await client.xinfo_groups(stream) if await client.exists(stream) else []
    lags = [
        {
            "group": group["name"].decode(),
            "consumers": group["consumers"],
            "pending": group["pending"],
            "lag": group.get("lag"),  # None before Redis 7
        }
        for group in groups
    ]
    data = {
        "snapshot": snapshot,
        "phase": snapshot.phase,
        "server_version": engine.facts.version if engine.facts else "",
        "unverified": engine.facts.unverified if engine.facts else (),
        "memory_bytes": keys,
        "used_memory_bytes": facts["used_memory"],
        "maxmemory_bytes": facts.get("maxmemory", 0),
        "groups": lags,
    }
    memory = new_table("key", ">bytes, about")
    for key, size in keys.items():
        memory.add_row(Text(key), "unknown" if size is None else f"{size:,}")
    lag_table = new_table("consumer group", ">consumers", ">pending", ">entries behind")
    for group in lags:
        behind = "?" if group["lag"] is None else f"{group['lag']:,}"
        row = (f"{group['consumers']:,}", f"{group['pending']:,}", behind)
        lag_table.add_row(Text(group["group"]), *row)
    limit = data["maxmemory_bytes"]
    reason = f" ({snapshot.reason})" if snapshot.reason else ""
    summary = (
        f"{snapshot.sale}  {snapshot.phase}{reason}  seq {snapshot.seq:,}\n"
        f"orders {snapshot.orders:,}  buyers {snapshot.buyers:,}  "
        f"stream entries {snapshot.entries:,}  "
        f"in the deadline queues {snapshot.holds_queue:,} + {snapshot.paying_queue:,}\n"
        f"server {data['server_version']}, {facts['used_memory']:,} bytes used of "
        f"{f'{limit:,}' if limit else 'no limit'}\n"
    )
    shown = lag_table if lags else "no consumer groups: nobody reads this sale's events"
    out.answer(data, summary, stock_table(definition, snapshot), "", memory, "", shown)
    if None in keys.values():
        warn("the server does not tell what a key takes; give its user the right +memory|usage")
    return 0


async def _memory_of(client: Redis, key: str) -> int | None:
    """How many bytes a key takes, 0 if there is none; None where the server does not say. That is
    no reason to keep back all the rest, which whoever asks may need badly."""
    from redis.exceptions import NoPermissionError, ResponseError

    try:
        return int(await client.memory_usage(key) or 0)
    except ResponseError as error:
        # A user without that right, or a managed server that has taken the command away.
        if isinstance(error, NoPermissionError) or str(error).startswith("unknown "):
            return None
        raise
