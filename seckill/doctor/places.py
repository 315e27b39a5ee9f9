"""The servers that are examined: the one that has the sale, and of a cluster every other master."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from seckill.errors import RedisUnavailable
from seckill.keys import PROBE, shard_keys
from seckill.servers import Servers

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["Place", "is_at", "places_of", "shown_place", "shown_url"]

NAMES_TRIED: Final = 100_000
"""A master with one slot of 16,384 has one of so many names nearly always."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """One server. ``address`` is host and port, or the path, ``url`` what leads to it and its like.

    ``has_sale``: it is the one that the examined sale belongs to. ``sale`` is that, or a name whose
    keys would belong here: what is tried of a server of a cluster is tried on keys of its own.
    """

    servers: Servers
    url: str
    address: str
    client: Redis
    sale: str
    has_sale: bool

    @property
    def in_cluster(self) -> bool:
        """Whether it was reached as one of a cluster."""
        return self.servers.is_cluster

    @property
    def name(self) -> str:
        """What tells it from the others of a cluster; empty where there is only one."""
        return self.address if self.in_cluster else ""

    @property
    def probe(self) -> str:
        """The key to write here."""
        return f"{PROBE}:{{{self.sale}:0}}" if self.in_cluster else PROBE


def places_of(servers: Servers, url: str, sale: str) -> list[Place]:
    """All of them, the sale's first; that is missing while nobody has its slot."""
    found = [
        Place(
            servers=servers,
            url=url,
            address=address,
            client=client,
            sale=sale if (here := is_at(servers, sale, address)) else _name_at(servers, address),
            has_sale=here,
        )
        for address, client in servers.named_masters()
    ]
    return sorted(found, key=lambda place: not place.has_sale)


def shown_url(url: str) -> str:
    """The URL without user and password."""
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0])


def shown_place(place: Place) -> str:
    """As it is shown: a server that has moved, or may, is not where the URL says."""
    return place.address if place.servers.may_move else shown_url(place.url)


def is_at(servers: Servers, sale: str, address: str) -> bool:
    """Whether the keys of this sale belong to that server."""
    try:
        return servers.address(shard_keys(sale)[0]) == address
    except RedisUnavailable:
        return False  # Nobody has them.


def _name_at(servers: Servers, address: str) -> str:
    names = (f"doctor-{number}" for number in range(NAMES_TRIED))
    return next((name for name in names if is_at(servers, name, address)), "doctor")
