"""Every Redis key is built here. The keys of a shard share one hash tag, and every script gets all
of them, in this order, so ``KEYS[n]`` means the same in each script and fragment.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = [
    "LEDGER_GROUP",
    "LEDGER_MARK",
    "NAMES",
    "PROBE",
    "QUEUE_NAMES",
    "SALES",
    "GroupKeys",
    "crew_key",
    "drawing_key",
    "group_keys",
    "queue_keys",
    "refusals_key",
    "removed_key",
    "shard_keys",
    "stream_key",
]

NAMES: Final = ("sale", "stock", "buyers", "orders", "holds", "paying", "events")
SALES: Final = "sk:sales"
"""Set of the ids of all sales on this server."""
LEDGER_GROUP: Final = "ledger"
"""The consumer group of the SQL ledger in each stream. Nobody else may read by this name."""
LEDGER_MARK: Final = "sk:ledger"
"""String: the id of the ledger that this server's sales go to, and its name for people."""
PROBE: Final = "sk:doctor"
"""What `seckill doctor` writes for ten seconds to see how long a write takes."""


def shard_keys(sale: str, shard: int = 0) -> tuple[str, ...]:
    """The keys of one shard of a sale, in the order of ``NAMES``."""
    return tuple(f"sk:{{{sale}:{shard}}}:{name}" for name in NAMES)


QUEUE_NAMES: Final = ("queue", "tickets", "steps", "left", "ranks", "gone")


def queue_keys(sale: str, shard: int = 0) -> tuple[str, ...]:
    """The keys of a sale's queue, in the order of ``QUEUE_NAMES``: KEYS[8] to KEYS[13] of the
    scripts that know it."""
    return tuple(f"sk:{{{sale}:{shard}}}:{name}" for name in QUEUE_NAMES)


def crew_key(sale: str, shard: int = 0) -> str:
    """Who takes orders of this shard, and, while a server is not trusted with it yet, how far each
    was told. KEYS[8] of ``roll_call``; no other script knows it."""
    return f"sk:{{{sale}:{shard}}}:crew"


def removed_key(sale: str, shard: int = 0) -> str:
    """What told the sale from others that was removed last under this id, for as long as an engine
    may remember it. KEYS[9] of ``roll_call``; no other script knows it."""
    return f"sk:{{{sale}:{shard}}}:removed"


def drawing_key(sale: str, shard: int = 0) -> str:
    """The lease of whoever puts a sale's tickets in order. No script knows it."""
    return f"sk:{{{sale}:{shard}}}:drawing"


def stream_key(sale: str, shard: int = 0) -> str:
    """The event stream of one shard."""
    return f"sk:{{{sale}:{shard}}}:events"


def refusals_key(sale: str, shard: int = 0) -> str:
    """Hash of status to how often an order was refused with it. No script knows it."""
    return f"sk:{{{sale}:{shard}}}:refusals"


class GroupKeys(NamedTuple):
    """What one consumer group keeps of one shard, beside its place in the stream.

    ``lease`` (string): the token of its one active consumer. ``done`` (hash): entry id to the bits
    of those of its events that are dealt with, while others are not. ``dead`` (hash):
    ``seq:subject`` to a dead letter. ``again`` (set): the subjects whose dead letters are to be
    handled again.
    """

    lease: str
    done: str
    dead: str
    again: str


def group_keys(sale: str, group: str, shard: int = 0) -> GroupKeys:
    """A group's keys of one shard. Of the scripts only ``take`` and ``tick`` know them."""
    return GroupKeys(*(f"sk:{{{sale}:{shard}}}:{group}-{name}" for name in GroupKeys._fields))
