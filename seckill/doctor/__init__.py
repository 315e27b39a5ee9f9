"""``seckill doctor``: what can be seen to be wrong with a sale, its server and its intake before it
begins.

    readings.py   what is read of the server, once
    server.py     checks of the server        sale.py, groups.py   checks of one sale
    scripts.py    whether it runs ours        intake.py            checks of the settings
    host.py       checks of this host         user_keys.py         whether the mall's can be had

Each check is a function that answers with one finding, under a name of its own (``CHECKS``).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from seckill.doctor.admission import read_queue
from seckill.doctor.finding import CHECKS, Finding, Level, Report, red
from seckill.doctor.groups import check_groups, check_letters, count_letters, read_groups
from seckill.doctor.host import check_open_files
from seckill.doctor.intake import check_intake, read_settings
from seckill.doctor.readings import Reading, read_server, shown_url
from seckill.doctor.sale import check_sale, read_sale
from seckill.doctor.scripts import check_scripts
from seckill.doctor.server import check_server
from seckill.doctor.user_keys import check_user_keys
from seckill.durability import Durability
from seckill.errors import RedisUnavailable
from seckill.keys import shard_keys
from seckill.sale import check_sale_id
from seckill.servers import OwnClient

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
    """Examines a sale and its server. A server that is away is a finding, not an exception.

    ``workers`` is how many processes of the intake will connect, ``groups`` are consumer groups
    that must be there. Raises InvalidInput for what is
    no sale's id or no URL.
    """
    from redis.exceptions import RedisError

    check_sale_id(sale, "sale")
    here = OwnClient(url, shard_keys(sale)[0])
    try:
        async with asyncio.timeout(PATIENCE_S), here as client:
            reading = await read_server(
                client,
                url,
                durability=durability,
                connections=workers * CONNECTIONS_A_WORKER,
            )
            findings = check_server(reading)
            if not reading.info.get("loading"):
                findings.append(await check_scripts(client, sale))
                findings += await _examine_sale(client, sale, reading, groups)
            return findings
    except (TimeoutError, RedisError, OSError, EOFError, RedisUnavailable) as error:
        said = str(error) or "no answer in time"
        seen = f"{shown_url(url)} can't be examined: {said}"
        return [red("server", seen, "start it, or check its address, user and password")]


async def _examine_sale(
    client: Redis, sale: str, reading: Reading, groups: tuple[str, ...]
) -> list[Finding]:
    found = await read_sale(client, sale)
    findings = check_sale(found, reading, await read_queue(client, sale))
    if found.kinds[-1] == "stream":
        findings.append(check_groups(await read_groups(client, sale), sale, found.now_ms, groups))
        findings.append(check_letters(await count_letters(client, sale), sale))
    return findings
