"""Whatever a client sends, the answer is a problem of its own making, and nothing was written."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.web.intake import Intake

LINE = {"sku": "a", "quantity": 1}
HUGE = 10**30


def body(**fields: Any) -> bytes:
    return json.dumps({"items": [LINE]} | fields).encode()


def line(**fields: Any) -> bytes:
    return body(items=[LINE | fields])


NOT_JSON = [
    b"",
    b" ",
    b"{",
    b'{"items":',
    b"\x00",
    b"\xff\xfe",
    b'{"items":[{"sku":"\xff","quantity":1}]}',
    b'{"items":[{"sku":"\xed\xa0\x80","quantity":1}]}',
    rb'{"items":[{"sku":"\ud800","quantity":1}]}',
    rb'{"items":[{"sku":"a","quantity":1}],"attrs":"\udc00"}',
    body() + b"x",
    body() + body(),
    b"\xef\xbb\xbf" + body(),
    body().decode().encode("utf-16"),
    b'{"items":[{"sku":"a","quantity":NaN}]}',
    b'{"items":[{"sku":"a","quantity":01}]}',
    b"items=a",
]

BAD_FIELDS = [
    (b"null", "body"),
    (b"[]", "body"),
    (b'"text"', "body"),
    (b"1e999", "body"),
    (b"[" * 60_000, "body"),
    (b'{"items":' + b"[" * 60_000, "items[0]"),
    (b'{"other":' + b"[" * 60_000, "other"),
    (b"{}", "items"),
    (body(items=None), "items"),
    (body(items=[]), "items"),
    (body(items={}), "items"),
    (body(items="a"), "items"),
    (body(items=[None]), "items[0]"),
    (body(items=["a"]), "items[0]"),
    (body(items=[LINE] * 1_001), "items"),
    (body(other=1), "other"),
    (body(**{"x - at `$.y`": 1}), "y"),
    (body(attrs=1), "attrs"),
    (body(attrs=None), "attrs"),
    (body(attrs="a" * 513), "attrs"),
    (body(attrs="地" * 171), "attrs"),
    (body(items=[{"sku": "a"}]), "items[0].quantity"),
    (body(items=[{"quantity": 1}]), "items[0].sku"),
    (line(price_fen=1), "items[0].price_fen"),
    (line(sku=1), "items[0].sku"),
    (line(sku=None), "items[0].sku"),
    (line(sku=""), "items[0].sku"),
    (line(sku="a" * 41), "items[0].sku"),
    *(
        (line(quantity=quantity), "items[0].quantity")
        for quantity in (0, -1, -HUGE, 10_001, HUGE, True, False, 1.0, 1.5, "1", None, [], {})
    ),
    (b'{"items":[{"sku":"a","quantity":1e0}]}', "items[0].quantity"),
    (b'{"items":[{"sku":"a","quantity":1e400}]}', "items[0].quantity"),
    (b'{"items":[{"sku":"a","quantity":' + b"9" * 5_000 + b"}]}", "items[0].quantity"),
    (body(items=[LINE, LINE | {"quantity": 0}]), "items[1].quantity"),
]


@pytest.mark.parametrize("bad", NOT_JSON, ids=range(len(NOT_JSON)))
async def test_bodies_that_are_not_json(intake: Intake, bad: bytes) -> None:
    sale = await intake.open_sale()
    answer = await intake.post(f"/v1/sales/{sale.id}/orders", bad, "b1", "k1")
    assert answer.is_problem(400, "malformed_json")
    assert answer.json["detail"]
    # Here the wrong fields may be seen first.
    answer = await intake.post(f"/v1/sales/{sale.id}/orders/{'0' * 24}/confirm", bad)
    assert answer.http == 400
    assert (await intake.engine.snapshot(sale.id)).orders == 0


@pytest.mark.parametrize(("bad", "field"), BAD_FIELDS, ids=range(len(BAD_FIELDS)))
async def test_bodies_with_a_wrong_field(intake: Intake, bad: bytes, field: str) -> None:
    sale = await intake.open_sale()
    answer = await intake.post(f"/v1/sales/{sale.id}/orders", bad, "b1", "k1")
    assert answer.is_problem(400, "invalid_input")
    assert answer.json["field"] == field
    assert answer.json["detail"]
    assert len(answer.body) < 1_000
    assert (await intake.engine.snapshot(sale.id)).orders == 0


@pytest.mark.parametrize("payment", [None, 1, "", "a b", "a|b", "a,b", "x" * 65, "付", []])
async def test_bad_payments(intake: Intake, payment: Any) -> None:
    sale = await intake.open_sale()
    order = (await intake.reserve(sale.id)).json["order"]["id"]
    path = f"/v1/sales/{sale.id}/orders/{order}/confirm"
    answer = await intake.post(path, {"payment": payment})
    assert answer.is_problem(400, "invalid_input")
    assert answer.json["field"] == "payment"
    for bad in ({}, {"payment": "p", "amount": 1}):
        assert (await intake.post(path, bad)).is_problem(400, "invalid_input")
    assert (await intake.engine.snapshot(sale.id)).stock["a"].confirmed == 0


async def test_oversized_bodies(intake: Intake) -> None:
    sale = await intake.open_sale()
    path = f"/v1/sales/{sale.id}/orders"

    async def chunks(total: int) -> Any:
        for _ in range(total // 8_192):
            yield b" " * 8_192

    headers = {
        "Seckill-Buyer": "b1",
        "Idempotency-Key": "k1",
        "Content-Type": "application/json",
    }
    for data in (b" " * 65_537, b" " * 1_000_000, chunks(80_000), chunks(3_000_000)):
        answer = await intake.call("POST", path, data=data, headers=headers)
        assert answer.is_problem(413, "body_too_large")
    # The largest that may be is taken.
    assert (await intake.post(path, body().ljust(65_536), "b1", "k1")).http == 201


@pytest.mark.parametrize(
    ("kind", "http"),
    [
        ("application/json", 201),
        ("application/json; charset=utf-8", 201),
        ("Application/JSON", 201),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("nonsense", 415),
        ("", 415),
    ],
)
async def test_media_types(intake: Intake, kind: str, http: int) -> None:
    sale = await intake.open_sale()
    answer = await intake.call(
        "POST",
        f"/v1/sales/{sale.id}/orders",
        data=body(),
        headers={"Seckill-Buyer": "b1", "Idempotency-Key": "k1", "Content-Type": kind},
    )
    assert answer.http == http
    if http == 415:
        assert answer.is_problem(415, "unsupported_media_type")
        assert answer.json["field"] == "Content-Type"


@pytest.mark.parametrize(
    "data",
    [gzip.compress(body()), gzip.compress(b" " * 50_000_000), b"no"],
    ids=["good", "bomb", "broken"],
)
async def test_compressed_bodies_are_not_unpacked(intake: Intake, data: bytes) -> None:
    sale = await intake.open_sale()
    answer = await intake.call(
        "POST",
        f"/v1/sales/{sale.id}/orders",
        data=data,
        headers={
            "Seckill-Buyer": "b1",
            "Idempotency-Key": "k1",
            "Content-Type": "application/json",
            "Content-Encoding": "gzip",
        },
    )
    assert answer.is_problem(415, "unsupported_media_type")
    assert answer.json["field"] == "Content-Encoding"


async def raw(intake: Intake, request: bytes, *, half: bool = False) -> bytes:
    """What comes back for these bytes. ``half`` closes our side after them."""
    to = urlsplit(intake.base)
    reader, writer = await asyncio.open_connection(to.hostname, to.port)
    try:
        writer.write(request)
        if half:
            writer.write_eof()
        async with asyncio.timeout(30):
            return await reader.read(65_536)
    finally:
        writer.close()
        await writer.wait_closed()


HEAD = (
    b"POST /v1/sales/s/orders HTTP/1.1\r\nHost: x\r\nSeckill-Buyer: b1\r\nIdempotency-Key: k1\r\n"
    b"Content-Type: application/json\r\n"
)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03",
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/time HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: x\r\n\r\n",
        HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n",
        HEAD + b"X: " + b"a" * 20_000 + b"\r\n\r\n",
        HEAD + b"".join(b"X-%d: a\r\n" % n for n in range(500)) + b"\r\n",
    ],
    ids=range(11),
)
async def test_broken_http(intake: Intake, request_bytes: bytes) -> None:
    answer = await raw(intake, request_bytes)
    assert answer.split(b" ")[1][:1] == b"4", answer
    assert b"Traceback" not in answer
    assert (await intake.get("/healthz")).http == 200


async def test_a_body_announced_too_large_is_not_waited_for(intake: Intake) -> None:
    answer = await raw(intake, HEAD + b"Content-Length: 10000000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in answer


async def test_clients_that_go_in_mid_request(
    intake: Intake, caplog: pytest.LogCaptureFixture
) -> None:
    for request in (
        HEAD,
        HEAD + b"Content-Length: 50\r\n\r\n{",
        HEAD + b"Content-Length: 50\r\n\r\n",
    ):
        await raw(intake, request, half=True)
    to = urlsplit(intake.base)
    _, writer = await asyncio.open_connection(to.hostname, to.port)
    writer.write(HEAD + b"Content-Length: 50\r\n\r\n{")
    await asyncio.sleep(0.05)
    writer.transport.abort()
    await asyncio.sleep(0.05)
    assert (await intake.get("/healthz")).http == 200
    assert not caplog.records, caplog.text


async def test_random_bodies(intake: Intake) -> None:
    """200 of them: noise, and good bodies with a few bytes changed, which may well be good."""
    sale = await intake.open_sale({"a": 10_000})
    path = f"/v1/sales/{sale.id}/orders"
    chance = random.Random(20)
    good = 0
    for number in range(200):
        if number % 4 == 0:
            data = chance.randbytes(chance.randrange(2_000))
        else:
            changed = bytearray(body(attrs="地址"))
            for _ in range(chance.randrange(1, 4)):
                at = chance.randrange(len(changed))
                changed[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
            data = bytes(changed)
        answer = await intake.post(path, data, "b1", f"k{number}")
        assert answer.http in (201, 400, 409, 422), (data, answer.body)
        good += answer.http == 201
    assert (await intake.engine.snapshot(sale.id)).orders == good
