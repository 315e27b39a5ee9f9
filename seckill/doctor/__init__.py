"""``seckill doctor``: what can be seen to be wrong with a sale, its server and its intake before it
begins.

    places.py     which servers               readings.py          what is read of each, once
    server.py     checks of the server        sale.py, groups.py   checks of one sale
    scripts.py    whether it runs ours        intake.py            checks of the settings
    host.py       checks of this host         user_keys.py         whether the mall's can be had

Each check is a function that answers with one finding, under a name of its own (``CHECKS``).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from seckill.doctor.admission import read_queue
from seckill.doctor.finding import CHECKS, Finding, Level, Report, red
from seckill.doctor.groups import check_groups, check_letters, count_letters, read_groups
from seckill.doctor.host import check_open_files
from seckill.doctor.intake import check_intake, read_settings
from seckill.doctor.places import Place, places_of, shown_place, shown_url
from seckill.doctor.readings import Reading, read_server
from seckill.doctor.sale import check_sale, read_sale
from seckill.doctor.scripts import check_scripts
from seckill.doctor.server import check_server
from seckill.doctor.user_keys import check_user_keys
from seckill.durability import Durability, checked_durability
from seckill.errors import RedisUnavailable
from seckill.keys import shard_keys
from seckill.redis import CONNECT_SECONDS
from seckill.sale import check_sale_id
from seckill.servers import Servers

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = [
    "CHECKS",
    "Finding",
    "Level",
    "Report",
    "check_intake",
    "check_open_files",
    "check_user_keys",
    "examine",
    "read_settings",
    "shown_url",
]

PATIENCE_S: Final = 20.0
_AWAY: Final = (TimeoutError, OSError, EOFError, RedisUnavailable)
CONNECTIONS_A_WORKER: Final = 48
"""What a worker opens: the pool of its engine, and two a sale that it serves."""


async def examine(
    sale: str,
    url: str,
    *,
    durability: Durability = "aof",
    workers: int = 1,
    groups: tuple[str, ...] = (),
) -> list[Finding]:
    """Examines a sale and its server, and of a cluster every other master, because keys of ours
    that belong to no sale are there as well. A server that is away is a finding, not an exception.

    ``workers`` is how many processes of the intake will connect, ``groups`` are consumer groups
    that must be there. Raises InvalidInput for what is no sale's id, no URL or no durability.
    """
    check_sale_id(sale, "sale")
    checked_durability(durability)
    servers = Servers(url, connections=1, timeout_s=CONNECT_SECONDS)
    try:
        places, findings = await _find(servers, url, sale)
        for place in places:
            made = await _examine_place(place, durability, workers * CONNECTIONS_A_WORKER, groups)
            findings += made
        return findings
    finally:
        await servers.aclose()


async def _find(servers: Servers, url: str, sale: str) -> tuple[list[Place], list[Finding]]:
    """The servers, and what is wrong if that of the sale is not among them."""
    from redis.exceptions import RedisError

    try:
        async with asyncio.timeout(PATIENCE_S):
            await servers.look()
        places = places_of(servers, url, sale)
        servers.address(shard_keys(sale)[0])
    except (RedisError, *_AWAY) as error:
        return places_of(servers, url, sale), [_unseen(shown_url(url), error)]
    return places, []


async def _examine_place(
    place: Place, durability: Durability, connections: int, groups: tuple[str, ...]
) -> list[Finding]:
    """The findings of one server, and of the sale if it is there."""
    from redis.exceptions import RedisError

    try:
        async with asyncio.timeout(PATIENCE_S):
            reading = await read_server(place, durability=durability, connections=connections)
            findings = check_server(reading)
            if reading.has_keys:
                findings.append(await check_scripts(place.client, place.sale))
            findings = [replace(finding, server=place.name) for finding in findings]
            if reading.has_keys and place.has_sale:
                findings += await _examine_sale(place.client, place.sale, reading, groups)
            return findings
    except (RedisError, *_AWAY) as error:
        return [replace(_unseen(shown_place(place), error), server=place.name)]


def _unseen(server: str, error: Exception) -> Finding:
    from redis.exceptions import AskError, MovedError

    if isinstance(error, AskError | MovedError):
        seen = f"{server} can't be examined: a slot is on the move to {error.host}:{error.port}"
        return red("server", seen, "look again when that is over")
    seen = f"{server} can't be examined: {str(error) or 'no answer in time'}"
    return red("server", seen, "start it, or check its address, user and password")


async def _examine_sale(
    client: Redis, sale: str, reading: Reading, groups: tuple[str, ...]
) -> list[Finding]:
    found = await read_sale(client, sale)
    findings = check_sale(found, reading, await read_queue(client, sale))
    if found.kinds[-1] == "stream":
        findings.append(check_groups(await read_groups(client, sale), sale, found.now_ms, groups))
        findings.append(check_letters(await count_letters(client, sale), sale))
    return findings
