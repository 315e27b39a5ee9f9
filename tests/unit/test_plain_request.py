"""What plain_request takes for one whole request, both of aiohttp's parsers take for the same."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from aiohttp import HttpVersion11
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy
from hypothesis import event, given, settings
from hypothesis import strategies as st

from seckill.server.plain_request import HEAD_BYTES_MAX, plain_request

BODY = b'{"items":[{"sku":"tea","quantity":1}]}'
HEAD = (
    b"POST /v1/sales/tonight/orders HTTP/1.1\r\n"
    b"Host: 127.0.0.1:8000\r\n"
    b"Authorization: Bearer abc.def.ghi\r\n"
    b"Content-Type: application/json\r\n"
    b"Idempotency-Key: key-1\r\n"
    b"Content-Length: 38\r\n"
)
ORDER = HEAD + b"\r\n" + BODY
PLACE = b"GET /v1/sales/tonight/tickets/me HTTP/1.1\r\nHost: x\r\nSeckill-Ticket: AB\r\n\r\n"
PARSERS = (HttpRequestParser, HttpRequestParserPy)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def by_aiohttp(parser_of: type, loop: asyncio.AbstractEventLoop, data: bytes) -> list[tuple]:  # type: ignore[type-arg]
    """Method, path, headers and body of each request that aiohttp finds, as the intake's
    connections have it parse; what it can't tell is an empty tuple."""
    options = {
        "max_line_size": 8190,
        "max_field_size": 8190,
    }
    parser = parser_of(BaseProtocol(loop), loop, 2**16, **options)
    try:
        messages, upgraded, tail = parser.feed_data(data)
    except BadHttpMessage:
        return [()]
    found: list[tuple] = []  # type: ignore[type-arg]
    for message, payload in messages:
        whole = payload.is_eof() and message.version == HttpVersion11 and not message.should_close
        if upgraded or tail or not whole or message.chunked or message.compression:
            found.append(())
            continue
        headers = [(name.lower(), value) for name, value in message.headers.items()]
        body = b"".join(getattr(payload, "_buffer", ()))
        found.append((message.method, message.path, headers, body))
    return found


def agree(loop: asyncio.AbstractEventLoop, data: bytes) -> bool:
    """Whether it was plain. If so, aiohttp must say the same."""
    plain = plain_request(data)
    if plain is not None:
        said = (plain.method, plain.path, list(plain.headers.items()), plain.body)
        for parser_of in PARSERS:
            assert by_aiohttp(parser_of, loop, data) == [said], parser_of
    return plain is not None


@pytest.mark.parametrize(
    "data",
    [
        ORDER,
        PLACE,
        ORDER.replace(b"Host", b"hOST"),
        ORDER.replace(b": ", b":"),
        ORDER.replace(b"key-1", b" key-1   "),
        ORDER.replace(b"\r\n\r\n", b"\r\nConnection: Keep-Alive\r\n\r\n"),
        PLACE.replace(b"\r\n\r\n", b"\r\nX-Empty:\r\n\r\n"),
        HEAD.replace(b"38", b"0") + b"\r\n",
    ],
)
def test_plain(loop: asyncio.AbstractEventLoop, data: bytes) -> None:
    assert agree(loop, data)


def with_line(line: bytes) -> bytes:
    return HEAD + line + b"\r\n\r\n" + BODY


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n" + ORDER,
        ORDER[:-1],
        ORDER + b" ",
        ORDER + ORDER,
        ORDER + PLACE,
        PLACE + PLACE,
        PLACE + b"x",
        HEAD,
        with_line(b"Transfer-Encoding: chunked"),
        with_line(b"transfer-encoding:identity"),
        with_line(b"Content-Length: 38"),
        with_line(b"content-length: 5"),
        with_line(b"Idempotency-Key: key-2"),
        with_line(b"Expect: 100-continue"),
        with_line(b"Upgrade: websocket"),
        with_line(b"Connection: close"),
        with_line(b"Connection: keep-alive, Upgrade"),
        with_line(b"Connection: keep-alive\r\nTE: trailers"),
        with_line(b"Content-Encoding: gzip"),
        with_line(b" folded"),
        with_line(b"X: 1\r\n folded"),
        with_line(b"X : 1"),
        with_line(b": 1"),
        with_line(b"X"),
        with_line(b"X: a\nTransfer-Encoding: chunked"),
        with_line(b"X: a\rTransfer-Encoding: chunked"),
        with_line(b"X: a\0"),
        with_line(b"X: \t"),
        with_line("X: 茶".encode()),
        with_line(b"X\xe9: 1"),
        with_line(b"X: " + b"a" * HEAD_BYTES_MAX),
        ORDER.replace(b"38", b"038"),
        ORDER.replace(b"38", b"+38"),
        ORDER.replace(b"38", b"0x26"),
        ORDER.replace(b"38", b"3 8"),
        ORDER.replace(b"38", b""),
        ORDER.replace(b"Content-Length: 38\r\n", b""),
        ORDER.replace(b"Host: 127.0.0.1:8000\r\n", b""),
        ORDER.replace(b"HTTP/1.1", b"HTTP/1.0"),
        ORDER.replace(b"HTTP/1.1", b"http/1.1"),
        ORDER.replace(b" HTTP/1.1", b""),
        ORDER.replace(b" HTTP/1.1", b"  HTTP/1.1"),
        ORDER.replace(b" HTTP/1.1", b" HTTP/1.1 "),
        ORDER.replace(b"\r\n", b"\n"),
        ORDER.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\n"),
    ],
)
def test_not_plain(data: bytes) -> None:
    assert plain_request(data) is None


def test_a_request_in_parts_is_not_plain() -> None:
    for data in (ORDER, PLACE):
        for at in range(len(data)):
            assert plain_request(data[:at]) is None


MARKS = st.sampled_from([
    *(b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b",", b"\0", b"\x80", b"0", b"38", b"/", b""),
    *(b"\r\n\r\n", b"Connection: keep-alive\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"Content-Length: 38\r\n", b"HTTP/1.1", b"?a=b", b"%2F", b"#", b"http://h/", b"POST"),
    *(b"X-Y: z\r\n", b"{", b'"', b"@", b"//", b"CONNECT", b"HEAD", b"Host: y\r\n"),
])  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(
    base=st.sampled_from([ORDER, PLACE, ORDER + PLACE]),
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), MARKS), max_size=4),
    case=st.booleans(),
)
def test_whatever_is_plain_is_the_same_to_aiohttp(
    loop: asyncio.AbstractEventLoop, base: bytes, edits: list[tuple[int, int, bytes]], case: bool
) -> None:
    for at, cut, put in edits:
        at %= len(base) + 1
        base = base[:at] + put + base[at + cut :]
    event("plain" if agree(loop, base.lower() if case and not edits else base) else "not plain")
