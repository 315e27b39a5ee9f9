"""What a handler promises, written down above it: who may call it, what it takes, how it answers.
openapi.py makes the public description of it, and nothing else describes the API a second time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal, TypeVar

import msgspec
from aiohttp import web

from seckill.status import Status

from . import problems
from .problems import ANSWERS, Kind

__all__ = ["Operation", "Who", "operation_of"]

Who = Literal["anyone", "user", "backend", "admin", "metrics"]
"""user: a buyer with a user token, or the backend's key in a buyer's name."""

# Whatever is asked may end like this.
_ALWAYS: Final = (problems.INTERNAL, problems.BUSY, problems.SHUTTING_DOWN)
_ENGINE: Final = (problems.UNAVAILABLE, problems.OUTCOME_UNKNOWN)
_SECURED: Final = (
    problems.UNAUTHENTICATED,
    problems.TOKEN_EXPIRED,
    problems.FORBIDDEN,
    problems.KEYS_UNAVAILABLE,
)
_BODY: Final = (
    problems.MALFORMED_JSON,
    problems.INVALID_INPUT,
    problems.BODY_BROKEN,
    problems.BODY_SLOW,
    problems.BODY_TOO_LARGE,
    problems.MEDIA_TYPE,
)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_H = TypeVar("_H", bound=_Handler)


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path. As a decorator it is written to the handler.

    ``answer`` is the struct, or the media type of something that is not ours to describe.
    ``statuses`` are what the engine may answer: those that are ok come with ``answer``, all others
    and ``kinds`` as problems; without one that is ok it is plainly 200. ``asks_engine`` is false
    where Redis is not needed. ``query`` describes parameters by name. ``cached`` says that an
    entity tag comes along, ``bodiless`` that the body may be left out, ``keyed`` that
    Idempotency-Key is needed, ``ticketed`` that Seckill-Ticket is looked at, ``names_buyer`` that
    it is always about some buyer.
    """

    id: str
    zh: str
    answer: type[msgspec.Struct] | str
    who: Who = "anyone"
    body: type[msgspec.Struct] | None = None
    bodiless: bool = False
    keyed: bool = False
    ticketed: bool = False
    names_buyer: bool = False
    cached: bool = False
    asks_engine: bool = True
    query: Mapping[str, str] = {}
    statuses: tuple[Status, ...] = ()
    kinds: tuple[Kind, ...] = ()

    def __call__(self, handler: _H) -> _H:
        """As a decorator: writes the promise to the handler."""
        handler.operation = self  # type: ignore[attr-defined]
        return handler

    @property
    def good(self) -> list[Kind]:
        """The codes of a yes; empty when it has none."""
        return [ANSWERS[status] for status in self.statuses if status.ok]

    @property
    def problems(self) -> list[Kind]:
        """Every kind of no, each once."""
        found = [*_ALWAYS, *(_ENGINE if self.asks_engine else ()), *self.kinds]
        if self.who != "anyone":
            found += _SECURED
            # A buyer is counted wherever he turns up.
            found.append(problems.RATE_LIMITED)
        if self.who == "user":
            found.append(problems.INVALID_INPUT)
            if self.keyed or self.names_buyer:
                found.append(problems.BUYER_REQUIRED)
        if self.keyed:
            found += [problems.KEY_REQUIRED, problems.INVALID_INPUT]
        if self.body is not None:
            found += _BODY
        if self.statuses:
            # A sale or an order is named, and the name may be none.
            found.append(problems.INVALID_INPUT)
            found += [ANSWERS[status] for status in self.statuses if not status.ok]
        return list(dict.fromkeys(found))


def operation_of(handler: object) -> Operation | None:
    """What a handler promises, or None."""
    found = getattr(handler, "operation", None)
    return found if isinstance(found, Operation) else None
