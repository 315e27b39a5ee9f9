"""Who sends a request. access.py finds it out; a mall that mounts the intake may do so itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

__all__ = ["Caller", "Identify"]


class Caller(msgspec.Struct, frozen=True, gc=False):
    """A buyer, or one of the mall's programs.

    ``buyer`` is the id a user token names and "" for a program; ``scopes`` are what a program's key
    may do (backend, admin, metrics); ``tier`` is the buyer's member tier or ""; ``name`` is what
    logs may call a program.
    """

    buyer: str = ""
    scopes: frozenset[str] = frozenset()
    tier: str = ""
    name: str = ""


Identify = Callable[[web.Request], Awaitable[Caller]]
"""Says who sends a request. Raises Problem(UNAUTHENTICATED) when it can't."""
