"""Placeholder of the lead, so that the tree can be imported: its owner replaces the whole file."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from .caller import Caller
from .problems import UNAUTHENTICATED, Problem
from .settings import ApiKey, Users

__all__ = ["Access"]


class Access:
    """Knows nobody."""

    def __init__(self, users: Users, keys: Sequence[ApiKey]) -> None: ...

    async def start(self) -> None:
        """Nothing."""

    async def aclose(self) -> None:
        """Nothing."""

    def known(self, authorization: str) -> Caller | None:
        """Nobody."""
        return None

    async def identify(self, request: web.Request) -> Caller:
        """Nobody."""
        raise Problem(UNAUTHENTICATED)
