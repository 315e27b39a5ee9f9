"""Who is the master, by what the sentinels say and what it says of itself."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from seckill.address import Address, Node, spoken
from seckill.asking import ask_all, ask_node, with_remedy
from seckill.errors import RedisUnavailable

__all__ = ["find_master"]

# What a reply means to whoever has written the URL. The first that fits is said.
_REMEDIES: Final = (
    (
        "No such master",
        (
            "url: these sentinels watch no master {name!r}; end it with the name after `sentinel"
            " monitor` in their configuration, as in redis+sentinel://host:26379/NAME"
        ),
    ),
    (
        "unknown command .SENTINEL",
        (
            "url: this is a server and no sentinel; write the sentinels' ports (26379, unless they"
            " were given others), or redis:// for one server, redis+cluster:// for a cluster"
        ),
    ),
    (
        "NOAUTH|NOPERM|WRONGPASS|[Aa]uthentication|no permissions|invalid username",
        (
            "url: give it the sentinels' own user, sentinel_username=…&sentinel_password_file=PATH;"
            " the servers' is never sent to them"
        ),
    ),
    (
        "Error |does not answer|Connection",
        (
            "url: redis+sentinel:// names the sentinels and their ports (26379, unless they were"
            " given others), not the servers; see that one of them runs and can be reached"
        ),
    ),
)


async def find_master(address: Address) -> Node:
    """The master that the sentinels name, if it takes itself for one. Raises RedisUnavailable.

    Each failover has an epoch, which a majority of the sentinels has agreed to; so the newest one
    is right against any number of sentinels that have not heard of it yet. Among equals most win.
    """
    name = address.master_name
    # The address last: should it change in between, it comes with an epoch that is too old and
    # loses. An old address with a new epoch would win.
    commands = (("SENTINEL", "MASTER", name), ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name))
    try:
        answers = await ask_all(address, address.nodes, commands, sentinels=True)
    except RedisUnavailable as error:
        raise RedisUnavailable(with_remedy(str(error), _REMEDIES, name=name)) from None
    votes = Counter(_read(*replies) for replies in answers.values())
    _, master = max(votes, key=lambda vote: (vote[0], votes[vote]))
    [[role, *_]] = await ask_node(address, master, [("ROLE",)])
    if role != b"master":
        raise RedisUnavailable(f"{spoken(master)} is to be the master, and is not one yet")
    return master


def _read(master: list[Any], found: list[bytes]) -> tuple[int, Node]:
    """The epoch and the address that one sentinel told."""
    facts = dict(zip(master[::2], master[1::2], strict=True))
    host, port = found
    return int(facts[b"config-epoch"]), (host.decode(), int(port))
