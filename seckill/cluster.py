"""Which node of a cluster has which key."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from seckill.address import Address, Node
from seckill.asking import ask_all, with_remedy
from seckill.errors import RedisUnavailable

__all__ = ["SLOTS", "SlotMap", "read_slots", "slot_of"]

SLOTS: Final = 16_384
# So many nodes are asked at most: of a large cluster a few know as much as all.
ASKED_MAX: Final = 8

# What a reply means to whoever has written the URL. The first that fits is said.
_REMEDIES: Final = (
    (
        "cluster support disabled",
        (
            "url: this server is part of no cluster; write redis:// for it, or"
            " redis+sentinel:// and the sentinels that watch it"
        ),
    ),
    (
        "unknown command .CLUSTER",
        "url: this is no node of a cluster; write redis+sentinel:// if it is a sentinel",
    ),
    (
        "NOAUTH|NOPERM|WRONGPASS|[Aa]uthentication|no permissions|invalid username",
        (
            "url: give the user and password_file=PATH of the nodes, and see that every node has"
            " that user, with the rights +cluster|slots and +cluster|nodes"
        ),
    ),
    (
        "Error |does not answer|Connection",
        (
            "url: redis+cluster:// names some nodes of the cluster as host:port (6379, unless they"
            " were given others); see that one of them runs and can be reached"
        ),
    ),
)


class SlotMap(msgspec.Struct, frozen=True):
    """The master of each slot; None where nobody is. ``nodes`` are all nodes, replicas too."""

    owners: tuple[Node | None, ...]
    nodes: frozenset[Node]

    @property
    def masters(self) -> frozenset[Node]:
        """The masters that have slots."""
        return frozenset(owner for owner in self.owners if owner is not None)

    def owner_of(self, key: str) -> Node:
        """The master of a key. Raises RedisUnavailable."""
        slot = slot_of(key)
        owner = self.owners[slot]
        if owner is None:
            raise RedisUnavailable(f"no node of the cluster has slot {slot}, of {key}")
        return owner


class _Claim(msgspec.Struct, frozen=True, order=True):
    """That a node has these slots. Of two claims the one of the newer epoch is right."""

    epoch: int
    first: int
    last: int
    node: Node


def slot_of(key: str) -> int:
    """The slot of a key, or of its hash tag."""
    from redis.crc import key_slot

    return int(key_slot(key.encode()))


async def read_slots(address: Address, known: frozenset[Node]) -> SlotMap:
    """Asks the nodes of the URL and those that are ``known`` by now. Raises RedisUnavailable.

    Nodes hear of a change one after the other. As among themselves, a claim to a slot is beaten by
    one with a newer epoch, whoever tells of it.
    """
    nodes = {*address.nodes, *known}
    asked = random.sample(sorted(nodes), min(len(nodes), ASKED_MAX))
    # In this order: an epoch that is too new at worst makes a claim win that was true just now.
    try:
        answers = await ask_all(address, asked, (("CLUSTER", "SLOTS"), ("CLUSTER", "NODES")))
    except RedisUnavailable as error:
        raise RedisUnavailable(with_remedy(str(error), _REMEDIES)) from None
    claims: list[_Claim] = []
    found: set[Node] = set()
    for node, (slots, lines) in answers.items():
        epochs = _epochs(lines)
        for first, last, *members in slots:
            places = [_place(member, node) for member in members]
            found.update(place for place in places if place)
            if places and places[0]:
                epoch = epochs.get(bytes(members[0][2]), 0)
                claims.append(_Claim(epoch, first, last, places[0]))
    owners: list[Node | None] = [None] * SLOTS
    for claim in sorted(claims):
        owners[claim.first : claim.last + 1] = [claim.node] * (claim.last + 1 - claim.first)
    return SlotMap(tuple(owners), frozenset(found))


def _place(member: Sequence[Any], asked: Node) -> Node | None:
    """Where a member is; one without a host is where the node that told of it is. None if it can't
    be told, of a node that prefers a name and has none."""
    host, port = member[0], int(member[1])
    if host == b"?":
        facts = dict(_pairs(member[3])) if len(member) > 3 else {}
        host = facts.get(b"ip")
        if not host:
            return None
    return (host.decode() if host else asked[0], port)


def _pairs(flat: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _epochs(lines: bytes) -> dict[bytes, int]:
    """The epoch of each node, by its id."""
    words = [line.split() for line in lines.splitlines()]
    return {line[0]: int(line[6]) for line in words if len(line) >= 8}
