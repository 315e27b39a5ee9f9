"""Every Redis key is built here. The keys of a shard share one hash tag, and every script gets all
of them, in this order, so ``KEYS[n]`` means the same in each script and fragment.
"""

from __future__ import annotations

from typing import Final

__all__ = ["NAMES", "SALES", "shard_keys", "stream_key"]

NAMES: Final = ("sale", "stock", "buyers", "orders", "holds", "paying", "events")
SALES: Final = "sk:sales"
"""Set of the ids of all sales on this server."""


def shard_keys(sale: str, shard: int = 0) -> tuple[str, ...]:
    """The keys of one shard of a sale, in the order of ``NAMES``."""
    return tuple(f"sk:{{{sale}:{shard}}}:{name}" for name in NAMES)


def stream_key(sale: str, shard: int = 0) -> str:
    """The event stream of one shard."""
    return f"sk:{{{sale}:{shard}}}:events"
