"""The order intake on aiohttp: HTTP and WebSocket only, it makes no Redis call of its own."""

from __future__ import annotations

from seckill.errors import MissingExtra

try:
    import aiohttp as _aiohttp  # noqa: F401 - one clear error instead of one from the depths
    import uvloop as _uvloop  # noqa: F401 - the same
except ModuleNotFoundError as error:
    raise MissingExtra("server", error.name or "aiohttp") from error

from .app import create_app
from .run import run

__all__ = ["create_app", "run"]
