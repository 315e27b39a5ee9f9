"""A draw over HTTP: what is published of it when, and that it fits together."""

from __future__ import annotations

import asyncio
import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import msgspec
import pytest

from seckill import admission as admission_module
from seckill.admission import Admission
from seckill.draw import DrawRecord, commitment_of, holder_of, ranks_of
from seckill.embedded import EmbeddedServer
from seckill.errors import RedisUnavailable
from seckill.queues import VALUE_MAX, Queues
from seckill.sale import Sale
from seckill.server import wire_admin, wire_queue
from seckill.status import Status
from tests.queued import close_list
from tests.support import make_sale, new_sale_id
from tests.web.intake import Answer, Intake
from tests.web.mall import SECRET, signed
from tests.web.test_admin import SALE
from tests.web.test_hot_route import serving

PUBLIC = "the draw of that evening"


async def draw_in(intake: Intake, ms: int, **fields: Any) -> Sale:
    """A sale whose list of tickets closes soon."""
    draw_at = datetime.now(UTC) + timedelta(milliseconds=ms)
    admission = Admission(**({"mode": "draw", "draw_at": draw_at} | fields))
    return await intake.open_sale({"a": 2}, admission=admission)


async def drawn(intake: Intake, sale: Sale, wanted: Status = Status.DONE) -> None:
    """Waits until the draw has come as far as this."""
    async with asyncio.timeout(60):
        while (status := await intake.engine.queue.draw(sale.id)) is not wanted:
            assert status in (Status.NOT_OPEN, Status.DRAWING)
            await asyncio.sleep(0.05)


async def page(intake: Intake, sale: Sale) -> Answer:
    return await intake.get(f"/v1/sales/{sale.id}/draw")


async def until_page(intake: Intake, sale: Sale, field: str) -> DrawRecord:
    """The page once it says this; it may be a second old."""
    async with asyncio.timeout(60):
        while not (answer := await page(intake, sale)).json[field]:  # noqa: ASYNC110 - it is asked
            await asyncio.sleep(0.1)
    return DrawRecord.decode(answer.body)


async def test_a_draw_from_the_commitment_to_the_seed(intake: Intake) -> None:
    sale = await draw_in(intake, 600_000, public_value=PUBLIC, weights=(("gold", 3),))
    at = f"/v1/sales/{sale.id}"
    assert (await intake.get(at)).json["admission"] == {
        "mode": "draw",
        "joins_ms": None,
        "draw_ms": sale.draw_ms,
        "token_life_ms": 120_000,
        "weights": {"gold": 3},
        "public_value": PUBLIC,
    }
    before = await page(intake, sale)
    assert before.headers["Cache-Control"].startswith("public, max-age=1")
    known = {"If-None-Match": before.headers["ETag"]}
    assert (await intake.call("GET", f"{at}/draw", headers=known)).http == 304
    assert before.json | {"commitment": ""} == {
        "format": "seckill-draw-1",
        "sale": sale.id,
        "definition_id": sale.definition_id,
        "definition": sale.definition().decode(),
        "commitment": "",
        "tickets": None,
        "digest": None,
        "closed_ms": None,
        "public_value": None,
        "seed": None,
    }
    buyers, salts = [f"b{n}" for n in range(7)], {}
    for buyer in buyers:
        place = (await intake.post(f"{at}/tickets", buyer=buyer)).json["place"]
        assert (place["phase"], place["ahead"], place["eta_ms"]) == ("joined", None, None)
        salts[buyer] = bytes.fromhex(place["salt"])
    early = await intake.get(f"{at}/draw/tickets")
    assert early.is_problem(409, "not_open")
    assert "not closed" in early.json["detail"]
    value = {"value": "03 07 12"}
    name = f"/v1/admin/sales/{sale.id}/draw:value"
    assert (await intake.post(name, value)).is_problem(409, "not_open")

    await close_list(intake.engine, sale)
    await _listed(intake, sale)
    closed = await until_page(intake, sale, "digest")
    assert (closed.commitment, closed.tickets) == (before.json["commitment"], 7)
    assert (closed.seed, closed.public_value) == (None, None)
    late = await intake.post(f"{at}/tickets", buyer="late")
    assert late.is_problem(409, "joins_closed")
    leaving = await intake.call("DELETE", f"{at}/tickets/me", headers={"Seckill-Buyer": "b0"})
    assert leaving.is_problem(409, "drawing")
    listed = await intake.get(f"{at}/draw/tickets")
    assert listed.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert hashlib.sha256(listed.body).hexdigest() == closed.digest
    lines = [line.split() for line in listed.body.decode().splitlines()[1:]]
    assert [line[2] for line in lines] == [holder_of(salts[buyer], buyer) for buyer in buyers]

    assert (await intake.post(name, value)).json == {"code": "done", "sale": sale.id} | value
    assert (await intake.post(name, value)).code == "already"
    assert (await intake.post(name, {"value": "other"})).is_problem(409, "conflict")
    await drawn(intake, sale)
    done = await until_page(intake, sale, "seed")
    assert done.public_value == "03 07 12"
    assert done.seed is not None
    assert commitment_of(bytes.fromhex(done.seed)) == before.json["commitment"]
    assert done.mix is not None
    ranks = ranks_of(done.mix, [int(line[1]) for line in lines])
    winners = {buyer for buyer, rank in zip(buyers, ranks, strict=True) if rank < 2}
    said = {}
    async with asyncio.timeout(60):
        while list(said.values()).count("called") < 2:
            for buyer in buyers:
                answer = await intake.post(f"{at}/tickets", buyer=buyer)
                said[buyer] = answer.json["place"]["phase"]
            await asyncio.sleep(0.05)
    assert {buyer for buyer, phase in said.items() if phase == "called"} == winners


async def _listed(intake: Intake, sale: Sale) -> None:
    """Waits until the list has its digest; the value is missing, so the draw goes no further."""
    async with asyncio.timeout(60):
        while await intake.engine.queue.record(sale.id) is None:
            assert await intake.engine.queue.draw(sale.id) is Status.NOT_OPEN
            await asyncio.sleep(0.05)


async def test_where_nothing_is_drawn(intake: Intake) -> None:
    line = await intake.open_sale(admission=Admission(mode="queue"))
    plain = await intake.open_sale()
    silent = await draw_in(intake, 60_000)
    for sale in (line, plain):
        assert (await page(intake, sale)).is_problem(409, "no_queue")
        listed = await intake.get(f"/v1/sales/{sale.id}/draw/tickets")
        assert listed.is_problem(409, "no_queue")
    for sale in (line, plain, silent):
        named = await intake.post(f"/v1/admin/sales/{sale.id}/draw:value", {"value": "x"})
        assert named.is_problem(409, "no_queue")
        assert "public value" in named.json["detail"]
    assert (await intake.get("/v1/sales/none/draw")).is_problem(404, "unknown_sale")
    assert (await intake.get("/v1/sales/n!ne/draw")).is_problem(400, "invalid_input")
    for value in ("", "x" * (VALUE_MAX + 1), "   "):
        named = await intake.post(f"/v1/admin/sales/{silent.id}/draw:value", {"value": value})
        assert named.is_problem(400, "invalid_input")
        assert named.json["field"] == "value"


async def test_a_commitment_from_the_very_beginning(intake: Intake) -> None:
    """Also of a sale that is not open yet."""
    draw_at = datetime.now(UTC) + timedelta(minutes=5)
    name = new_sale_id()
    body = SALE | {"admission": {"mode": "draw", "joins_at": "2026-01-01T20:00:00+08:00"}}
    body["admission"]["draw_at"] = draw_at.isoformat()  # type: ignore[index]
    body |= {"opens_at": draw_at.isoformat(), "ends_at": "2098-01-01T00:00:00Z"}
    made = await intake.call(
        "PUT",
        f"/v1/admin/sales/{name}",
        data=json.dumps(body),
        headers={"Content-Type": "application/json"},
    )
    assert (made.http, made.code) == (201, "created"), made.json
    said = (await intake.get(f"/v1/sales/{name}/draw")).json
    assert len(said["commitment"]) == 64
    sale = await intake.engine.sale(name)
    assert sale.admission is not None
    assert sale.draw_ms == int(draw_at.timestamp() * 1_000)


@pytest.mark.parametrize(
    ("admission", "field"),
    [
        ("queue", "admission"),
        ({}, "admission.mode"),
        ({"mode": "lottery"}, "admission.mode"),
        ({"mode": "queue", "rate": 1}, "admission.rate"),
        ({"mode": "queue", "rate_per_s": "9"}, "admission.rate_per_s"),
        ({"mode": "queue", "joins_at": "tonight"}, "admission.joins_at"),
        ({"mode": "queue", "joins_at": "2026-01-01T20:00:00"}, "admission.joins_at"),
        ({"mode": "draw", "weights": {"gold": 0}}, "admission.weights.gold"),
        ({"mode": "draw", "weights": [["gold", 2]]}, "admission.weights"),
    ],
)
async def test_what_is_wrong_with_an_admission(intake: Intake, admission: Any, field: str) -> None:
    answer = await intake.call(
        "PUT",
        f"/v1/admin/sales/{new_sale_id()}",
        data=json.dumps(SALE | {"admission": admission}),
        headers={"Content-Type": "application/json"},
    )
    assert answer.is_problem(400, "invalid_input")
    assert answer.json["field"] == field


async def test_no_admission_may_be_said_aloud(intake: Intake) -> None:
    name = new_sale_id()
    for body, code in ((SALE | {"admission": None}, "created"), (SALE, "exists")):
        answer = await intake.call(
            "PUT",
            f"/v1/admin/sales/{name}",
            data=json.dumps(body),
            headers={"Content-Type": "application/json"},
        )
        assert answer.code == code


async def test_a_tier_weighs(redis_server: EmbeddedServer) -> None:
    """The tier of the buyer's user token, and nobody else's word."""

    draw_at = datetime.now(UTC) + timedelta(minutes=10)
    admission = Admission(mode="draw", draw_at=draw_at, weights=(("gold", 3),))
    users = {"secrets": [SECRET], "tier_claim": "tier"}
    async with serving(redis_server.url, users=users) as site:
        sale = make_sale(admission=admission)
        assert (await site.engine.create(sale)).ok
        assert (await site.engine.open(sale.id)).ok
        client = await site.connect()
        for buyer, tier in (("ann", "gold"), ("bob", "lead")):
            proof = signed(sub=buyer, tier=tier)
            answer = await client.ask(
                f"POST /v1/sales/{sale.id}/tickets HTTP/1.1\r\nHost: x\r\n"
                f"Authorization: Bearer {proof}\r\nContent-Length: 0\r\n\r\n"
            )
            assert answer.http == 201
        await close_list(site.engine, sale)
        lines: list[bytes] = []
        async with asyncio.timeout(60):
            while not lines:
                await site.engine.queue.look(sale.id)
                lines = [part async for part in site.engine.queue.tickets(sale.id)]
                await asyncio.sleep(0.05)
    assert [line.split()[:2] for line in b"".join(lines).splitlines()[1:]] == [
        [b"0", b"3"],
        [b"1", b"1"],
    ]


async def test_a_list_that_breaks_off_has_no_good_end(
    intake: Intake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def some(self: Queues, sale: str) -> Any:
        yield b"one\n"
        raise RedisUnavailable("gone")

    sale = await draw_in(intake, 60_000)
    assert isinstance(await intake.engine.queue.commitment(sale.id), str)
    monkeypatch.setattr(Queues, "tickets", some)
    with pytest.raises(aiohttp.ClientError):
        await intake.get(f"/v1/sales/{sale.id}/draw/tickets")
    assert "broke off" in caplog.text
    assert (await page(intake, sale)).http == 200


def test_the_description_has_the_bounds_of_the_model() -> None:
    assert wire_admin.RATE_MAX == admission_module.RATE_MAX
    assert wire_admin.LIFE_MS_MIN == admission_module._LIFE_MS_MIN
    assert wire_admin.LIFE_MS_MAX == admission_module._LIFE_MS_MAX
    assert wire_admin.VALUE_MAX == admission_module._VALUE_MAX
    fields = wire_admin.AdmissionRequest.__struct_fields__
    assert fields == Admission.__struct_fields__
    made = wire_admin.AdmissionRequest(mode="queue")
    for name in fields:
        said, meant = getattr(made, name), getattr(Admission(mode="queue"), name)
        assert (tuple(said.items()) if name == "weights" else said) == meant
    # What is published before the list closes is a record that lacks something, and no more.
    document = msgspec.structs.fields(wire_queue.DrawDocument)
    assert [one.name for one in document] == list(DrawRecord.__struct_fields__)
