"""The API for people."""

from __future__ import annotations

from typing import Final

from aiohttp import web

__all__ = ["ROUTES"]

ROUTES: Final[tuple[web.RouteDef, ...]] = ()
