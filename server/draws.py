"""Draws that buyers can check: what is published of one, and what the merchant hands in."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Final

import msgspec
from aiohttp import web

from seckill.errors import SeckillError
from seckill.status import Status

from .exchange import INTAKE, need, read, reply
from .operation import Operation
from .pages import page_reply
from .problems import ANSWERS, STORAGE_FULL, Problem, refusal
from .wire_queue import DrawDocument, PublicValueDocument, PublicValueRequest

__all__ = ["ROUTES"]

MAX_AGE_S: Final = 1
_LINES: Final = "text/plain; charset=utf-8"
_VALUE: Final = msgspec.json.Decoder(PublicValueRequest)
_ON_DRAW: Final = (Status.NO_QUEUE, Status.UNKNOWN_SALE, Status.UPGRADE_NEEDED, Status.FENCED)
_WHY: Final = {
    Status.NO_QUEUE: "its definition names no public value: nothing to hand in, it draws itself",
    Status.CONFLICT: "another value was handed in before, and it can't change",
    Status.NOT_OPEN: "the list of tickets must be closed first, and its digest published",
}

_log = logging.getLogger("seckill.server")


@Operation(
    id="show_draw",
    zh="抽签公示：承诺值与规则，截止后的名单摘要，抽签后的种子",
    answer=DrawDocument,
    statuses=(Status.STALE_DEFINITION, *_ON_DRAW),
    kinds=(STORAGE_FULL,),
    cached=True,
)
async def draw(request: web.Request) -> web.Response:
    """Shows what is published of a draw or a shuffle by now: its rules and the commitment to its
    seed from the beginning, the digest of the tickets when their list is closed, the seed at last.
    Once it has a digest, this is the draw.json that `seckill verify-draw draw.json tickets.txt`
    takes."""
    page = await request.app[INTAKE].pages.draw(request.match_info["sale"])
    return page_reply(request, page, MAX_AGE_S)


@Operation(
    id="list_draw_tickets",
    zh="抽签名单（tickets.txt），供商家公示",
    who="admin",
    answer=_LINES,
    statuses=(Status.NOT_OPEN, Status.STALE_DEFINITION, *_ON_DRAW),
    kinds=(STORAGE_FULL,),
)
async def draw_tickets(request: web.Request) -> web.StreamResponse:
    """Gives out the closed list of a draw's tickets (tickets.txt), for the merchant to publish. Its
    buyers are salted digests."""
    await need(request, "admin")
    queue, sale = request.app[INTAKE].engine.queue, request.match_info["sale"]
    found = await queue.commitment(sale)
    if isinstance(found, Status):
        return refusal(found)
    lines = queue.tickets(sale)
    first = await anext(lines, None)
    if first is None:
        raise Problem(ANSWERS[Status.NOT_OPEN], "the list of tickets is not closed yet")
    response = web.StreamResponse(headers={"Content-Type": _LINES, "Cache-Control": "no-store"})
    await response.prepare(request)
    await _send(request, response, first, lines)
    return response


async def _send(
    request: web.Request, response: web.StreamResponse, first: bytes, lines: AsyncIterator[bytes]
) -> None:
    try:
        await response.write(first)
        async for part in lines:
            await response.write(part)
        await response.write_eof()
    except SeckillError as error:
        # A list that ends in good order must be all of it, so this one is cut off.
        _log.warning("a list of tickets broke off: %s", error)
        if request.transport is not None:
            request.transport.abort()
    except ConnectionError:
        pass  # The client has gone.


@Operation(
    id="name_public_value",
    zh="提交抽签所依据的公开值；提交后不可更改",
    who="admin",
    body=PublicValueRequest,
    answer=PublicValueDocument,
    statuses=(
        *(Status.DONE, Status.ALREADY, Status.CONFLICT, Status.NOT_OPEN, Status.STALE_DEFINITION),
        *_ON_DRAW,
    ),
    kinds=(STORAGE_FULL,),
)
async def name_value(request: web.Request) -> web.Response:
    """Hands in the public value that a draw's definition names, as soon as it is known. The draw
    waits for it, and it can't be changed."""
    await need(request, "admin")
    intake, sale = request.app[INTAKE], request.match_info["sale"]
    value = (await read(request, _VALUE)).value
    named = await intake.engine.queue.name_value(sale, value)
    if named.status in _WHY:
        raise Problem(ANSWERS[named.status], _WHY[named.status])
    if not named.ok:
        return refusal(named.status)
    intake.pages.changed()
    kind = ANSWERS[named.status]
    return reply(PublicValueDocument(kind.code, sale, value), kind.http, kind.code)


ROUTES: Final = (
    web.get("/v1/sales/{sale}/draw", draw),
    web.get("/v1/sales/{sale}/draw/tickets", draw_tickets),
    web.post("/v1/admin/sales/{sale}/draw:value", name_value),
)
