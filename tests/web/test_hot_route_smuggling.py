"""Requests that one reader may take for one and another for two, or that carry a second one hidden
in them: what must come out of each, with the hot route and without it.

A proxy before the intake may see another end of a request than the intake does. Then what somebody
hid behind it is taken for the beginning of another client's request. So a request whose end could
be argued about is refused, nothing of it is done, and its connection ends with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count
from typing import NamedTuple

import pytest
import pytest_asyncio

from seckill.embedded import EmbeddedServer
from seckill.order import order_id
from seckill.sale import Sale
from tests.web.hot import BODY, TIME, Site, order, serving, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

N = len(BODY)
CHUNKED = f"{N:x}\r\n{BODY}\r\n0\r\n\r\n"
TE = "Transfer-Encoding: chunked\r\n"


class Example(NamedTuple):
    """What is sent in one piece; the answers; which of the two orders are then there, the ``outer``
    and the ``inner``; whether the connection goes on, in step."""

    raw: str
    answers: list[int]
    orders: str = ""
    goes_on: bool = True


REFUSED = ([400], "", False)


def _order(sale: str, key: str, framing: str, body: str, more: str = "") -> str:
    whole = order(sale, key=key, body=body, more=more)
    return whole.replace(f"Content-Length: {len(body)}\r\n", framing)


def framings(sale: str, outer: str, inner: str) -> dict[str, Example]:
    """Where a request ends."""
    second = order(sale, key=inner)
    hidden = "0\r\n\r\n" + second
    length = f"Content-Length: {len(hidden)}\r\n"

    def framed(framing: str, body: str) -> str:
        return _order(sale, outer, framing, body)

    both = {
        f"Transfer-Encoding {value!r} and a length": framed(
            f"Transfer-Encoding:{value}\r\n{length}", hidden
        )
        for value in (
            *(" xchunked", " chunked, identity", " identity", " identity, chunked", " Chunked"),
            *(" gzip, chunked", "\tchunked", " chunked;q=1", " \x0bchunked", " chunked, chunked"),
        )
    }
    lengths = {
        f"Content-Length {value!r}": framed(f"Content-Length: {value}\r\n", BODY + second)
        for value in (
            *(f"{N}\r\nContent-Length: {N}", f"{N}\r\nContent-Length: 0"),
            *(f"0\r\nContent-Length: {N}", f"{N}\r\ncontent-length: {N + 5}", f"{N}, {N}"),
            *(f"+{N}", f"-{N}", hex(N), f"{N}_0", f"{N}.0", f"{N}e0", f"{N} {N}", f"{N}\0", ""),
            *("9" * 30, "３６", f"\r\n {N}"),
        )
    }
    chunks = {
        f"a chunk that begins {size!r}": framed(TE, f"{size}{BODY}\r\n0\r\n\r\n")
        for size in (
            *(f"{N:x}\n", f"{N:x};a\n", f"-{N:x}\r\n", f"0x{N:x}\r\n", f"1{N:016x}\r\n", "\r\n"),
        )
    }
    refused = {
        "CL.TE": framed(length + TE, hidden),
        "TE.CL": framed(f"{TE}Content-Length: {N}\r\n", CHUNKED + second),
        "a blank before the colon": framed(f"{length}Transfer-Encoding : chunked\r\n", hidden),
        "two Transfer-Encodings": framed(TE + TE, CHUNKED + second),
        "another Transfer-Encoding after it": framed(TE + "Transfer-Encoding: x\r\n", CHUNKED),
        "an unknown Transfer-Encoding": framed("Transfer-Encoding: xchunked\r\n", CHUNKED),
        "a chunk that is longer than it says": framed(TE, CHUNKED.replace(f"{N:x}", f"{N - 1:x}")),
        **both,
        **lengths,
        **chunks,
    }
    return {
        **{name: Example(raw, *REFUSED) for name, raw in refused.items()},
        "no framing, so what follows is the next": Example(framed("", second), [400, 201], "inner"),
        "a length with a zero before it": Example(
            framed(f"Content-Length: 0{N}\r\n", BODY + second), [201, 201], "outer inner"
        ),
        "a length with blanks around it": Example(
            framed(f"Content-Length: \t{N} \r\n", BODY + second), [201, 201], "outer inner"
        ),
        "chunked": Example(framed(TE, CHUNKED + second), [201, 201], "outer inner"),
        "chunked in odd case": Example(framed(TE.upper(), CHUNKED), [201], "outer"),
        "a trailer that names another key": Example(
            framed(TE, CHUNKED[:-2] + f"Idempotency-Key: {inner}\r\n\r\n"), [201], "outer"
        ),
    }


def heads(sale: str, outer: str, inner: str) -> dict[str, Example]:
    """Where a line ends, and what is one."""
    whole = order(sale, key=outer)
    head, _, body = whole.partition("\r\n\r\n")
    as_key = f"Idempotency-Key: {inner}"
    lines = {
        "a folded line": "X-A: b\r\n c\r\n",
        "a folded line, by a tab": "X-A: b\r\n\tc\r\n",
        "a folded key": f"X-A: b\r\n {as_key}\r\n",
        "a bare LF within a head": f"X-A: b\n{as_key}\r\n",
        "a bare CR within a head": f"X-A: b\r{as_key}\r\n",
        "NUL in a value": "X-A: b\0c\r\n",
        "NUL in a name": "X\0A: b\r\n",
        "a blank in a name": "X A: b\r\n",
        "no colon": "X-A\r\n",
        "no name": ": b\r\n",
        "a second Content-Type": "Content-Type: text/plain\r\n",
        "a second Host": "Host: y\r\n",
    }
    refused = {
        **{name: order(sale, key=outer, more=line) for name, line in lines.items()},
        "LF everywhere": f"{head}\r\n\r\n".replace("\r\n", "\n") + body,
        "LF after the first line": whole.replace("\r\n", "\n", 1),
        "a head that ends in LF LF": f"{head}\n\n{body}",
        "a head that ends in CR LF LF": f"{head}\r\n\n{body}",
        "a folded line first": whole.replace("Host: x", " folded: y\r\nHost: x", 1),
        "no Host": whole.replace("Host: x\r\n", "", 1),
        "a blank before the method": " " + whole,
        "tabs in the first line": whole.replace(" ", "\t", 2),
        "a blank after the version": whole.replace("HTTP/1.1", "HTTP/1.1 ", 1),
        "HTTP/1.10": whole.replace("HTTP/1.1", "HTTP/1.10", 1),
        "post": whole.replace("POST", "post", 1),
    }
    return {
        **{name: Example(raw, *REFUSED) for name, raw in refused.items()},
        "empty lines before it": Example("\r\n\r\n" + whole, [201], "outer"),
        "two keys": Example(order(sale, key=outer, more=as_key + "\r\n"), [400]),
        "two buyers": Example(
            order(sale, key=outer, more=f"Authorization: Bearer {token('bob')}\r\n"), [400]
        ),
        "another method in a header": Example(
            order(sale, key=outer, more="X-HTTP-Method-Override: GET\r\n"), [201], "outer"
        ),
        "names in odd case": Example(
            whole.replace("Idempotency-Key", "iDEMPOTENCY-kEY").replace("Content-L", "cONTENT-l"),
            *([201], "outer"),
        ),
    }


def tails(sale: str, outer: str, inner: str) -> dict[str, Example]:
    """What follows a request, or is inside it."""
    first, second, time = order(sale, key=outer), order(sale, key=inner), TIME.decode()
    length = f"Content-Length: {len(second)}\r\n\r\n{second}"
    expecting = order(sale, key=outer, more="Expect: 100-continue\r\n")
    closing = order(sale, key=outer, more="Connection: close\r\n")
    return {
        "an order and a question": Example(first + time, [201, 200], "outer"),
        "a question and an order": Example(time + first, [200, 201], "outer"),
        "two orders": Example(first + second, [201, 201], "outer inner"),
        "the same order three times": Example(first * 3, [201, 200, 200], "outer"),
        # aiohttp forgets what it has read in the same piece, and so nothing of it is done.
        "an order and noise": Example(first + "GARBAGE\r\n\r\n", *REFUSED),
        "an order within an order": Example(order(sale, key=outer, body=second), [400]),
        "an order within a question": Example(TIME.decode()[:-2] + length, [200]),
        "an order within a question for a place": Example(
            f"GET /v1/sales/{sale}/tickets/me HTTP/1.1\r\nHost: x\r\nSeckill-Ticket: x\r\n"
            f"Authorization: Bearer {token('ann')}\r\n{length}",
            [409],
        ),
        "an order that expects to be asked for": Example(
            expecting + second, [201, 201], "outer inner"
        ),
        "an expectation that nobody knows": Example(
            order(sale, key=outer, more="Expect: x\r\n"), [417]
        ),
        "the last order": Example(closing, [201], "outer", goes_on=False),
        "the last order, and another one": Example(closing + second, *REFUSED),
        "HTTP/1.0": Example(first.replace("HTTP/1.1", "HTTP/1.0"), [201], "outer", goes_on=False),
    }


def examples(sale: str, outer: str, inner: str) -> dict[str, Example]:
    """All of them, for two orders of ann's with these keys."""
    found = (make(sale, outer, inner) for make in (framings, heads, tails))
    return {name: example for each in found for name, example in each.items()}


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=[True, False])
async def shop(
    request: pytest.FixtureRequest, redis_server: EmbeddedServer
) -> AsyncIterator[tuple[Site, Sale]]:
    server = {"hot_route": request.param, "read_timeout_s": 60.0}
    async with serving(redis_server.url, server=server) as site:
        await site.known("ann", "bob")
        yield site, await site.open_sale(units=10_000)


_NUMBERS = count(100_000)


@pytest.mark.parametrize("name", examples("s", "o", "i"))
async def test_what_comes_out(shop: tuple[Site, Sale], name: str) -> None:
    site, sale = shop
    outer, inner = f"o{next(_NUMBERS)}", f"i{next(_NUMBERS)}"
    example = examples(sale.id, outer, inner)[name]
    client = await site.connect()
    client.send(example.raw)
    answers = [(await client.answer()).http for _ in example.answers]
    assert answers == example.answers
    if example.goes_on:
        # Whatever had been smuggled would be answered first.
        assert '"now_ms"' in (await client.ask(TIME)).body
        client.writer.close()
    else:
        await client.ended()
    keys = {"outer": outer, "inner": inner}
    there = [which for which, key in keys.items() if await _is_there(site, sale, key)]
    assert there == example.orders.split()
    assert not await _is_there(site, sale, outer, "bob")


async def _is_there(site: Site, sale: Sale, key: str, buyer: str = "ann") -> bool:
    found = await site.engine.order(sale.id, order_id(sale.id, buyer, key))
    return found is not None
