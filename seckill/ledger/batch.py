"""What a runner reads at once, and how a batch that can't be written is taken apart."""

from __future__ import annotations

from typing import Any

import msgspec

from seckill.ledger.rows import Known, Raw, raw_of

__all__ = ["Batch", "batch_of", "halves"]


class Batch(msgspec.Struct):
    """What was read: by sale, the ids of its entries and their events."""

    entries: dict[str, list[bytes]]
    raws: dict[str, list[Raw]]


def batch_of(found: dict[str, Any]) -> Batch | None:
    """Entries as the server sent them; of one that was deleted meanwhile nothing is left."""
    entries: dict[str, list[bytes]] = {}
    raws: dict[str, list[Raw]] = {}
    for name, parts in found.items():
        for part in parts:
            if part:
                entries.setdefault(name, []).append(part[0])
                raws.setdefault(name, []).extend(raw_of(part[0], part[1] or ()))
    return Batch(entries, raws) if entries else None


def halves(todo: list[tuple[Known, list[Raw]]]) -> list[list[tuple[Known, list[Raw]]]]:
    """Two smaller batches: half of the sales each, or of one sale's events."""
    if len(todo) > 1:
        middle = len(todo) // 2
        return [todo[:middle], todo[middle:]]
    known, raws = todo[0]
    middle = len(raws) // 2
    return [[(known, raws[:middle])], [(known, raws[middle:])]]
