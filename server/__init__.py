"""The order intake on aiohttp: HTTP and WebSocket only, it makes no Redis call of its own."""

from __future__ import annotations

from seckill.errors import MissingExtra

try:
    import aiohttp as _aiohttp  # noqa: F401 - one clear error instead of one from the depths
    import uvloop as _uvloop  # noqa: F401 - the same
except ModuleNotFoundError as error:
    raise MissingExtra("server", error.name or "aiohttp") from error

from .app import create_app
from .caller import Caller, Identify
from .gate import Entry, Gate
from .problems import FORBIDDEN, GATE_REFUSED, UNAUTHENTICATED, Problem
from .run import run
from .settings import Settings

__all__ = [
    "FORBIDDEN",
    "GATE_REFUSED",
    "UNAUTHENTICATED",
    "Caller",
    "Entry",
    "Gate",
    "Identify",
    "Problem",
    "Settings",
    "create_app",
    "run",
]
