"""What an acknowledged order has outlived before anybody is told of it."""

from __future__ import annotations

import re
from typing import Final

from seckill.checks import show
from seckill.errors import InvalidInput

__all__ = ["REPLICAS_MAX", "Durability", "checked_durability", "fsync_of", "replicas_of"]

Durability = str
"""``aof``: it is on the disk of its server. ``replicas:N``: N replicas have it. ``memory``: its
server has it in memory, so a crash may lose it."""

REPLICAS_MAX: Final = 9


def replicas_of(durability: Durability) -> int:
    """How many replicas must have an order before it is acknowledged. Raises InvalidInput."""
    if durability in ("aof", "memory"):
        return 0
    found = re.fullmatch(r"replicas:([1-9])", str(durability))
    if found is None:
        remedy = f'pass "aof", "memory" or "replicas:N" with N from 1 to {REPLICAS_MAX}'
        raise InvalidInput("durability", f"{show(durability)} is unknown", remedy)
    return int(found[1])


def checked_durability(durability: str) -> Durability:
    """The same, once it is known to be one. Raises InvalidInput."""
    replicas_of(durability)
    return durability


def fsync_of(durability: Durability) -> str:
    """The appendfsync of a server of our own. Raises InvalidInput: it has no replicas."""
    if replicas_of(durability):
        problem = f"{durability!r} needs a server with replicas, and an embedded one has none"
        raise InvalidInput("durability", problem, 'pass "aof" or "memory", or name a server')
    return "always" if durability == "aof" else "everysec"
