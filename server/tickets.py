"""A buyer's way to the till: a ticket, its place, and the token of its turn."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from seckill.engine import Engine
from seckill.queue import Place
from seckill.sale import Sale
from seckill.status import Status

from .caller import Caller
from .exchange import INTAKE, buyer_in, buyer_of, caller_of, read, reply, ticket_of
from .gate import pass_gate
from .intake import Intake
from .operation import Operation
from .problems import (
    ANSWERS,
    FORBIDDEN,
    GATE_REFUSED,
    GATE_UNAVAILABLE,
    OVERLOADED,
    PROOF_REQUIRED,
    STORAGE_FULL,
    Problem,
    answer_to,
    refusal,
)
from .reply import Reply
from .wire_queue import (
    JoinedDocument,
    JoinRequest,
    LeftDocument,
    PlaceDocument,
    place_document,
)

__all__ = ["PLACE_ROUTE", "ROUTES", "joined_by", "left_by", "looked_up", "shown"]

PLACE_ROUTE: Final = "/v1/sales/{sale}/tickets/me"

_JOIN: Final = msgspec.json.Decoder(JoinRequest)
_NEVER: Final = (Status.NO_QUEUE, Status.UNKNOWN_SALE, Status.UPGRADE_NEEDED, Status.FENCED)


@Operation(
    id="join_queue",
    zh="排队取号；重复取号返回同一张号票",
    who="user",
    names_buyer=True,
    body=JoinRequest,
    bodiless=True,
    answer=JoinedDocument,
    statuses=(
        *(Status.CREATED, Status.EXISTS, Status.ENDED, Status.NOT_OPEN, Status.JOINS_CLOSED),
        *(Status.TOO_LATE, Status.STALE_DEFINITION, *_NEVER),
    ),
    kinds=(OVERLOADED, STORAGE_FULL, PROOF_REQUIRED, GATE_REFUSED, GATE_UNAVAILABLE),
)
async def join(request: web.Request) -> web.Response:
    """Gives the buyer a ticket of the sale's queue. Joining again finds it. A buyer whose turn is
    over may join again, at the end, but not in a draw."""
    intake = request.app[INTAKE]
    caller = await caller_of(request)
    buyer, sale = buyer_in(request, caller), request.match_info["sale"]
    tier = await _tier_of(request, caller)
    await pass_gate(intake, request, caller, sale)
    return await joined_by(intake, sale, buyer, tier)


async def _tier_of(request: web.Request, caller: Caller) -> str:
    """The member tier of whoever joins, "" for none. Raises Problem when a buyer names one."""
    named = (await read(request, _JOIN)).tier if request.body_exists else None
    if named is None:
        return caller.tier
    if caller.buyer:
        raise Problem(
            FORBIDDEN, "only the mall's backend names a tier; yours is in the user token", "tier"
        )
    return named


async def joined_by(intake: Intake, sale: str, buyer: str, tier: str) -> Reply:
    """Lets a buyer join whom the gate has let in."""
    joined = await intake.engine.queue.join(sale, buyer, tier=tier)
    if joined.status is Status.NOT_OPEN:
        raise Problem(ANSWERS[joined.status], "nobody can join before admission.joins_ms")
    if joined.place is None:
        return refusal(Status.UNKNOWN_TICKET if joined.ok else joined.status)
    if joined.status is Status.CREATED:
        intake.metrics.etas.told(sale, joined.place)
    kind = ANSWERS[joined.status]
    document = place_document(joined.place, await intake.engine.sale(sale))
    return reply(JoinedDocument(kind.code, document), kind.http, kind.code)


@Operation(
    id="show_place",
    zh="查询号位：前面人数、预计等待；轮到时给出购买凭证",
    who="user",
    names_buyer=True,
    ticketed=True,
    answer=PlaceDocument,
    statuses=(Status.UNKNOWN_TICKET, Status.STALE_DEFINITION, *_NEVER),
    kinds=(STORAGE_FULL,),
)
async def place(request: web.Request) -> web.Response:
    """Shows where a ticket stands, with the token once it is called. Ask again after
    ``poll_after_ms``, not sooner: every question counts for the buyer's limit."""
    buyer, ticket = await buyer_of(request), ticket_of(request)
    sale, engine = request.match_info["sale"], request.app[INTAKE].engine
    return await looked_up(engine, sale, buyer, ticket)


async def looked_up(engine: Engine, sale: str, buyer: str, ticket: str) -> Reply:
    """Asks the engine where a ticket stands."""
    found = await engine.queue.place(sale, buyer, ticket)
    if not found.ok and found.status is not Status.UNKNOWN_TICKET:
        return refusal(found.status)
    return shown(found.place, await engine.sale(sale))


def shown(place: Place | None, sale: Sale) -> Reply:
    """What a buyer is told of a place, None for a ticket that is not the buyer's."""
    return _unknown() if place is None else reply(place_document(place, sale))


def _unknown() -> Reply:
    """For a ticket that says nothing here. Which of the reasons it is can't always be told."""
    detail = (
        "it was given up, its key was retired, or it is of another buyer or sale; join again: a "
        "place that is still yours is kept"
    )
    return answer_to(Problem(ANSWERS[Status.UNKNOWN_TICKET], detail), "")


@Operation(
    id="leave_queue",
    zh="放弃号票，后面的人前进一位",
    who="user",
    names_buyer=True,
    answer=LeftDocument,
    statuses=(
        *(Status.DONE, Status.UNKNOWN_TICKET, Status.DRAWING, Status.STALE_DEFINITION),
        *_NEVER,
    ),
    kinds=(STORAGE_FULL,),
)
async def leave(request: web.Request) -> web.Response:
    """Gives the buyer's ticket up, and the token with it: who waits behind moves on."""
    buyer, sale = await buyer_of(request), request.match_info["sale"]
    return await left_by(request.app[INTAKE].engine, sale, buyer)


async def left_by(engine: Engine, sale: str, buyer: str) -> Reply:
    """Gives a buyer's ticket up."""
    left = await engine.queue.leave(sale, buyer)
    if not left.ok:
        return refusal(left.status)
    kind = ANSWERS[left.status]
    return reply(LeftDocument(kind.code, sale), kind.http, kind.code)


ROUTES: Final = (
    web.get(PLACE_ROUTE, place),
    web.post("/v1/sales/{sale}/tickets", join),
    web.delete(PLACE_ROUTE, leave),
)
