"""What the servers under test have in common: what they are told, and how a reference is served."""

from __future__ import annotations

import asyncio
import signal
import sys
from importlib import resources
from typing import Any

import msgspec
import uvloop
from aiohttp import web
from pydantic import SecretStr

from benchmarks.workload import SKU
from seckill.redis import Durability
from seckill.server import exchange, problems
from seckill.server.listen import BACKLOG
from seckill.server.problems import ANSWERS, Kind
from seckill.server.settings import ApiKey, Limits, Settings, Users

__all__ = ["PRICE_FEN", "Start", "given", "reserve_one", "serve", "settings_of", "start_of"]

PRICE_FEN = 9900

# What a reference may refuse before it asks its store.
_KINDS = (
    *(problems.UNAUTHENTICATED, problems.TOKEN_EXPIRED, problems.KEY_REQUIRED),
    *(problems.INVALID_INPUT, problems.MALFORMED_JSON, problems.MEDIA_TYPE),
    *(problems.BODY_TOO_LARGE, problems.NOT_FOUND, problems.UNAVAILABLE),
)


class Start(msgspec.Struct, frozen=True):
    """``user_secret`` signs user tokens, ``backend_hash`` is the hash of the backend's API key,
    ``database_url`` is for those that have no Redis.

    Tests that compare answers ask as one buyer more often than a limited intake lets them.

    The rest is for servers in other languages: the script they call, the catalogue, and the answers
    that the intake gives, by their codes. ``statuses`` are the codes of the script's answers.
    """

    url: str
    durability: Durability
    user_secret: str
    backend_hash: str = ""
    database_url: str = ""
    limited: bool = True
    script: str = ""
    skus: tuple[str, ...] = (SKU,)
    price_fen: int = PRICE_FEN
    body_bytes_max: int = exchange.BODY_BYTES_MAX
    statuses: dict[int, str] = {}
    problems: dict[str, Kind] = {}


def start_of(url: str, durability: Durability, user_secret: str, **more: Any) -> Start:
    """What servers of any language are told."""
    return Start(
        url,
        durability,
        user_secret,
        script=reserve_one(),
        statuses={int(status): kind.code for status, kind in ANSWERS.items()},
        problems={kind.code: kind for kind in (*ANSWERS.values(), *_KINDS)},
        **more,
    )


def reserve_one() -> str:
    """The script that the references call."""
    return resources.files("benchmarks").joinpath("lua/reserve_one.lua").read_text("utf-8")


def given() -> Start:
    """What this process was told."""
    return msgspec.json.decode(sys.argv[1], type=Start)


def settings_of(start: Start) -> Settings:
    """The settings of an intake: the defaults, limits among them, and who may ask."""
    keys: tuple[ApiKey, ...] = ()
    if start.backend_hash:
        keys = (ApiKey(name="mall", hash=start.backend_hash, scopes=("backend",)),)
    limits = Limits() if start.limited else Limits(buyer_per_s=0)
    users = Users(secrets=(SecretStr(start.user_secret),))
    return Settings(users=users, keys=keys, limits=limits)


def serve(app: web.Application) -> None:
    """Serves a reference until SIGTERM, with nothing around it that aiohttp does not need."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(app))


async def _serve(app: web.Application) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=BACKLOG)
    await site.start()
    print(site.name, flush=True)
    await ended.wait()
    await runner.cleanup()
