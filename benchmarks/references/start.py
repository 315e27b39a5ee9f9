"""What the servers under test have in common: what they are told, and how a reference is served."""

from __future__ import annotations

import asyncio
import signal
import sys

import msgspec
import uvloop
from aiohttp import web
from pydantic import SecretStr

from seckill.redis import Durability
from seckill.server.listen import BACKLOG
from seckill.server.settings import ApiKey, Settings, Users

__all__ = ["Start", "given", "serve", "settings_of"]


class Start(msgspec.Struct, frozen=True):
    """``user_secret`` signs user tokens, ``backend_hash`` is the hash of the backend's API key."""

    url: str
    durability: Durability
    user_secret: str
    backend_hash: str


def given() -> Start:
    """What this process was told."""
    return msgspec.json.decode(sys.argv[1], type=Start)


def settings_of(start: Start) -> Settings:
    """The settings of an intake: the defaults, so limits are on, and who may ask."""
    return Settings(
        users=Users(secrets=(SecretStr(start.user_secret),)),
        keys=(ApiKey(name="mall", hash=start.backend_hash, scopes=("backend",)),),
    )


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
