"""The public description: complete, valid, and as good as its word."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from html import unescape
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from aiohttp import ClientSession, web
from schemathesis.specs.openapi.definitions import OPENAPI_31

from seckill.admission import Admission
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.server import create_app
from seckill.server.app import ROUTES
from seckill.server.batch import BATCH_BYTES_MAX
from seckill.server.codes_zh import CODES_ZH
from seckill.server.openapi import describe, every_kind
from seckill.server.operation import Operation, operation_of
from seckill.server.problems import ANSWERS, RAISED
from seckill.server.settings import ApiKey, Limits, Settings, Users
from seckill.status import Status
from tests.queued import close_list
from tests.support import HOUR_MS, make_item, new_sale_id, travel
from tests.web.intake import Answer, Intake, serving, trusting
from tests.web.mall import SECRET, signed
from tests.web.test_admin import SALE

LUA = Path(__file__).parents[2] / "lua"
OPERATIONS: dict[tuple[str, str], Operation] = {
    (route.method, re.sub(r":\[.*?\]\+}", "}", route.path)): operation
    for route in ROUTES
    if (operation := operation_of(route.handler))
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    app = create_app(Engine("redis://127.0.0.1:1"), identify=trusting)
    made: dict[str, Any] = json.loads(json.dumps(describe(app.router.routes())))
    return made


def test_it_is_valid_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    errors = list(jsonschema_rs.Draft202012Validator(OPENAPI_31).iter_errors(document))
    assert errors == []
    for name, schema in document["components"]["schemas"].items():
        assert jsonschema_rs.Draft202012Validator(schema | document_of(document)), name
    # The definition above does not look at these.
    for path, methods in document["paths"].items():
        named = re.findall(r"{(\w+)}", path)
        for operation in methods.values():
            given = [p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"]
            assert given == named
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references <= document["components"]["schemas"].keys()
    ids = [operation["operationId"] for operation in every(document)]
    assert len(ids) == len(set(ids))


def document_of(document: dict[str, Any]) -> dict[str, Any]:
    """What a schema's references lead to."""
    return {"components": document["components"]}


def every(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for methods in document["paths"].values() for one in methods.values()]


def test_every_route_is_described(document: dict[str, Any]) -> None:
    assert [route.path for route in ROUTES if operation_of(route.handler) is None] == []
    described = {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }
    assert described == OPERATIONS.keys()
    for operation in every(document):
        assert operation["summary"]
        assert re.search("[一-鿿]", operation["x-summary-zh"])


def test_every_code_is_described(document: dict[str, Any]) -> None:
    listed = {(one["code"], one["http"]) for one in document["x-codes"]}
    assert listed == {(kind.code, kind.http) for kind in every_kind()}
    assert {kind.code for kind in ANSWERS.values()} <= {code for code, _ in listed}
    assert {kind.code for kind in RAISED.values()} <= {code for code, _ in listed}
    told: set[str] = set()
    for operation in OPERATIONS.values():
        told |= {kind.code for kind in (*operation.good, *operation.problems)}
    # No operation's own: the first two are answers to what is none, and the others are between
    # the engine or the reaper and Redis.
    assert {code for code, _ in listed} - told == {
        "new_server",
        "not_found",
        "method_not_allowed",
        "clock_jump",
    }


SCRIPTS = {
    "reserve": "reserve",
    "begin_payment": "begin_payment",
    "release": "release",
    "confirm": "confirm",
    "refund": "refund",
    "create_sale": "create",
    "open_sale": "open",
    "pause_sale": "pause",
    "resume_sale": "resume",
    "close_sale": "close",
    "change_stock": "add_stock",
    "join_queue": "join",
    "leave_queue": "leave",
    "name_public_value": "name_value",
}
# What is decided without the script, or is a number in its answer.
BESIDES = {
    "reserve": {
        Status.TOKEN_INVALID,
        Status.TOKEN_RETIRED,
        Status.TOKEN_OTHER_BUYER,
        Status.TOKEN_OTHER_SALE,
    },
    "join_queue": {Status.CREATED, Status.EXISTS},
}


@pytest.mark.parametrize(("operation", "script"), SCRIPTS.items())
def test_what_the_script_answers_is_promised(operation: str, script: str) -> None:
    """The header of each script lists its answers, and other tests hold it to that."""
    header = (LUA / f"{script}.lua").read_text(encoding="utf-8").partition("]]")[0]
    text = re.split("Answers:|is the answer:", header)[1]
    names = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)*\b", re.sub(r"\([^)]*\)", "", text)))
    # The engine keeps that one to itself.
    answers = {Status[name] for name in names} - {Status.NEW_SERVER}
    promised = next(one for one in OPERATIONS.values() if one.id == operation)
    assert answers, header
    assert set(promised.statuses) == answers | BESIDES.get(operation, set())


# -- every documented status occurs -----------------------------------------------------------

Case = Callable[[Intake], Awaitable[Answer]]

ORDER = {"items": [{"sku": "a", "quantity": 1}]}
TOO_LARGE = b" " * (BATCH_BYTES_MAX + 1)
NO_ORDER = "00" + "f" * 22


class Asked:
    """Asks for one operation in every way that leads to another HTTP status."""

    def __init__(self, intake: Intake) -> None:
        self.intake = intake
        self.seen: dict[str, set[str]] = {}

    async def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        media: str = "application/json",
        **headers: str,
    ) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            sent["Content-Type"] = media
            body = BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
        answer = await self.intake.call(method, path, data=body, headers=sent)
        route = re.sub(r"(/sales/)[^/:]+", r"\1{sale}", path)
        route = re.sub(r"(/orders/)[^/]+", r"\1{order}", route)
        self.seen.setdefault(f"{method} {route}", set()).add(str(answer.http))
        return answer


async def test_every_documented_status_occurs(intake: Intake, document: dict[str, Any]) -> None:
    """Except for those that need a slow client, somebody else or an accident."""
    elsewhere = {"101", "401", "403", "408", "429", "500", "503"}
    ask = Asked(intake)
    for path in ("/healthz", "/readyz", "/metrics", "/v1/time"):
        await ask("GET", path)
    for path in ("/v1/sales", "/openapi.json", "/docs"):
        etag = (await ask("GET", path)).headers["ETag"]
        await ask("GET", path, If_None_Match=etag)
    await orders(ask)
    await merchants(ask)
    await queues(ask)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            documented = set(operation["responses"]) - elsewhere
            assert ask.seen[f"{method.upper()} {path}"] == documented, path


async def orders(ask: Asked) -> None:
    sale = await ask.intake.open_sale(items=(make_item("a", total=10, limit_per_buyer=3),))
    at = f"/v1/sales/{sale.id}"
    etag = (await ask("GET", at)).headers["ETag"]
    await ask("GET", at, If_None_Match=etag)
    await ask("GET", "/v1/sales/none")
    await ask("GET", "/v1/sales/n!ne")
    buyer = {"Seckill_Buyer": "b1"}
    await ask("GET", "/v1/sales/n!ne/socket")
    for names in (buyer, {}, {"Seckill_Buyer": "b 1"}):
        await ask("GET", f"{at}/challenge", **names)

    async def bodies(path: str, good: Any, **headers: str) -> Answer:
        for body in (b"{", b"{}"):
            await ask("POST", path, body, **headers)
        await ask("POST", path, good, media="text/plain", **headers)
        await ask("POST", path, TOO_LARGE, **headers)
        return await ask("POST", path, good, **headers)

    await bodies(f"{at}/orders:batch", {"orders": [ORDER | {"buyer": "b9", "key": "k"}]})
    keyed = buyer | {"Idempotency_Key": "k1"}
    order = (await bodies(f"{at}/orders", ORDER, **keyed)).json["order"]["id"]
    await ask("POST", f"{at}/orders", ORDER, **keyed)
    await ask("POST", "/v1/sales/none/orders", ORDER, **keyed)
    other = buyer | {"Idempotency_Key": "k2"}
    await ask("POST", f"{at}/orders", {"items": [{"sku": "no", "quantity": 1}]}, **other)
    await ask("POST", f"{at}/orders", {"items": [{"sku": "a", "quantity": 9}]}, **other)
    verbs = {"begin-payment": None, "release": None, "confirm": {"payment": "p1"}}
    refund = {"refund": "r1", "return_units": True, "return_limit": True}
    await ask("POST", f"{at}/orders/{order}/refund", refund)
    for verb, body in (verbs | {"refund": refund}).items():
        for there in (f"{at}/orders/{NO_ORDER}", "/v1/sales/none/orders/x"):
            await ask("POST", f"{there}/{verb}", body)
        await ask("POST", f"{at}/orders/{order}/{verb}", body)
        if body is not None:
            await bodies(f"{at}/orders/{order}/{verb}", body)
        if verb == "release":
            order = (await ask("POST", f"{at}/orders", ORDER, **other)).json["order"]["id"]
    for verb, body in verbs.items():
        await ask("POST", f"{at}/orders/{order}/{verb}", body and {"payment": "p2"})
    for there in (order, NO_ORDER, "x"):
        await ask("GET", f"{at}/orders/{there}")


async def merchants(ask: Asked) -> None:
    sale = new_sale_id()
    at = f"/v1/admin/sales/{sale}"
    for body in (SALE, SALE, SALE | {"title": "x"}, b"{", {}, TOO_LARGE):
        await ask("PUT", at, body)
    await ask("PUT", at, SALE, media="text/plain")
    bodies: dict[str, Any] = {":open": None, ":pause": {}, ":resume": None, ":close": None}
    await ask("POST", f"{at}:pause", {})
    await ask("POST", f"{at}:resume")
    stock = {"sku": "MUG", "units": 1}
    for verb, body in (bodies | {"/stock": stock}).items():
        for there in (at, "/v1/admin/sales/none", "/v1/admin/sales/n!ne"):
            await ask("POST", f"{there}{verb}", body, Idempotency_Key="k")
        if body is not None:
            for broken in (b"{", TOO_LARGE):
                await ask("POST", f"{at}{verb}", broken, Idempotency_Key="k")
            await ask("POST", f"{at}{verb}", body, media="text/plain", Idempotency_Key="k")
    await ask("POST", f"{at}:open")
    await ask("POST", f"{at}/stock", stock | {"sku": "x"}, Idempotency_Key="k")
    open_sale = await ask.intake.open_sale()
    await travel(ask.intake.engine, open_sale.id, HOUR_MS)
    there = f"/v1/admin/sales/{open_sale.id}/stock"
    await ask("POST", there, {"sku": "a", "units": 1}, Idempotency_Key="k")
    for one in (sale, "none", "n!ne"):
        await ask("GET", f"/v1/admin/sales/{one}/report")


async def queues(ask: Asked) -> None:
    draw_at = datetime.now(UTC) + timedelta(minutes=10)
    admission = Admission(mode="draw", draw_at=draw_at, public_value="the draw of that evening")
    plain = await ask.intake.open_sale()
    line = await ask.intake.open_sale(admission=Admission(mode="queue"))
    drawn = await ask.intake.open_sale(admission=admission)
    buyer = {"Seckill_Buyer": "b1"}

    async def everywhere(method: str, path: str, **headers: str) -> None:
        for sale in (plain.id, "none", "n!ne"):
            await ask(method, f"/v1/sales/{sale}/{path}", **headers)

    await everywhere("POST", "tickets", **buyer)
    for _ in range(2):
        answer = await ask("POST", f"/v1/sales/{line.id}/tickets", **buyer)
    for body in ({"tier": ""}, b"{", TOO_LARGE):
        await ask("POST", f"/v1/sales/{line.id}/tickets", body, **buyer)
    await ask("POST", f"/v1/sales/{line.id}/tickets", {}, media="text/plain", **buyer)
    ticket = {"Seckill_Ticket": answer.json["place"]["ticket"]}
    await everywhere("GET", "tickets/me", **buyer, **ticket)
    await ask("GET", f"/v1/sales/{line.id}/tickets/me", **buyer, **ticket)
    await everywhere("DELETE", "tickets/me", **buyer)
    await ask("DELETE", f"/v1/sales/{line.id}/tickets/me", **buyer)

    await everywhere("GET", "draw")
    etag = (await ask("GET", f"/v1/sales/{drawn.id}/draw")).headers["ETag"]
    await ask("GET", f"/v1/sales/{drawn.id}/draw", If_None_Match=etag)
    await everywhere("GET", "draw/tickets")
    await close_list(ask.intake.engine, drawn)
    async with asyncio.timeout(60):
        while await ask.intake.engine.queue.record(drawn.id) is None:
            await ask.intake.engine.queue.draw(drawn.id)
            await asyncio.sleep(0.05)
    await ask("GET", f"/v1/sales/{drawn.id}/draw/tickets")
    at, value = f"/v1/admin/sales/{drawn.id}/draw:value", {"value": "7"}
    for body in (value, value, {"value": "8"}, b"{", {}, TOO_LARGE):
        await ask("POST", at, body)
    await ask("POST", at, value, media="text/plain")
    await ask("POST", "/v1/admin/sales/none/draw:value", value)


# -- who may do it ----------------------------------------------------------------------------

SCOPES: tuple[Any, ...] = ("backend", "admin", "metrics")
KEYS = {scope: f"sk_{scope}_{'0' * 40}" for scope in SCOPES}


async def test_nobody_may_do_more_than_is_described(
    redis_server: EmbeddedServer, document: dict[str, Any]
) -> None:
    keys = tuple(
        ApiKey(name=scope, hash=f"sha256:{sha256(key.encode()).hexdigest()}", scopes=(scope,))
        for scope, key in KEYS.items()
    )
    users = Users(secrets=(SECRET,))  # type: ignore[arg-type]
    settings = Settings(keys=keys, users=users, limits=Limits(buyer_per_s=0))
    proofs = {"user": signed(), **KEYS}
    engine = Engine(redis_server.url, durability="memory", sweep_ms=0)
    async with engine, serving(create_app(engine, settings)) as base, ClientSession() as session:
        for path, methods in document["paths"].items():
            url = base + path.replace("{sale}", "none").replace("{order}", NO_ORDER)
            for method, operation in methods.items():
                for proof in (None, "wrong", expired := signed(exp=1), *proofs.values()):
                    headers = {"Authorization": f"Bearer {proof}"} if proof else {}
                    async with session.request(method, url, headers=headers) as response:
                        seen = response.status
                        code = json.loads(await response.read()).get("code") if seen > 400 else ""
                    allowed = {
                        proofs["user"] if "user" in one else KEYS[scope]
                        for one in operation["security"]
                        for scope in one.get("key", ["user"])
                    }
                    if not operation["security"] or proof in allowed:
                        assert seen not in (401, 403), (method, path, proof)
                    elif proof in proofs.values():
                        assert (seen, code) == (403, "forbidden"), (method, path, proof)
                    else:
                        assert seen == 401, (method, path, proof)
                        assert "WWW-Authenticate" in response.headers
                        assert (code == "token_expired") == (proof == expired)


# -- where it stands --------------------------------------------------------------------------


async def test_it_is_served(intake: Intake, document: dict[str, Any]) -> None:
    answer = await intake.get("/openapi.json")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json == document


async def test_mounted_it_names_the_prefix(intake: Intake, document: dict[str, Any]) -> None:
    mall = web.Application()
    mall.add_subapp("/seckill", create_app(intake.engine, identify=trusting))
    async with serving(mall) as base, ClientSession() as session:
        async with session.get(f"{base}/seckill/openapi.json") as response:
            found = await response.json()
        async with session.get(f"{base}/seckill/docs") as response:
            page = await response.text()
    assert found.pop("servers") == [{"url": "/seckill"}]
    assert found == document
    assert 'href="/seckill/openapi.json"' in page


class Reader(HTMLParser):
    """Reads a page as a strict reader would."""

    VOID = frozenset({"meta", "wbr"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert value is not None
            if name == "id":
                self.ids.append(value)
            elif name == "href":
                self.links.append(value)
            assert not name.startswith("on")
            assert name not in ("src", "srcset")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


async def test_the_page_for_people(intake: Intake, document: dict[str, Any]) -> None:
    answer = await intake.get("/docs")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    text = answer.body.decode()
    page = Reader(text)
    # Nothing from elsewhere, no script, and every link leads somewhere.
    assert "script" not in page.tags
    assert "url(" not in text
    assert "@import" not in text
    assert len(page.ids) == len(set(page.ids))
    assert {link for link in page.links if not link.startswith("#")} == {"/openapi.json"}
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    for operation in every(document):
        assert operation["operationId"] in page.ids
        assert operation["x-summary-zh"] in text
    for name in document["components"]["schemas"]:
        assert f"schema-{name}" in page.ids
    assert {f"code-{kind.code}" for kind in every_kind()} <= set(page.ids)


def test_every_code_has_a_chinese_meaning() -> None:
    assert CODES_ZH.keys() == {kind.code for kind in every_kind()}


async def test_the_examples_of_the_page_are_taken(intake: Intake) -> None:
    """Each command of the page, as somebody who copies it would run it."""
    sale = await intake.open_sale({"MUG": 100})
    order = (await intake.reserve(sale.id, "b1", "k", MUG=1)).json["order"]["id"]
    page = (await intake.get("/docs")).body.decode()
    commands = re.findall(r"<pre><code>(.*?)</code></pre>", page, re.DOTALL)
    assert len(commands) == len(OPERATIONS)
    for command in map(unescape, commands):
        words = shlex.split(command)
        method = words[words.index("-X") + 1] if "-X" in words else "GET"
        path = words[1].removeprefix("$INTAKE")
        promise = OPERATIONS[method, re.sub(r"\$(\w+)", lambda m: f"{{{m[1].lower()}}}", path)]
        if promise.id == "open_socket":
            continue  # curl opens none.
        path = path.replace("$ORDER", order)
        path = path.replace("$SALE", new_sale_id() if method == "PUT" else sale.id)
        headers = dict(words[n + 1].split(": ", 1) for n, word in enumerate(words) if word == "-H")
        # Taken for the backend here, which names a buyer where a user token would.
        headers |= {"Seckill-Buyer": "b1"} if promise.who == "user" else {}
        body = words[words.index("-d") + 1].encode() if "-d" in words else None
        answer = await intake.call(method, path, headers=headers, data=body)
        # A verb finds the order or the sale where an earlier one left it.
        assert answer.http in (200, 201, 409), (command, answer.body)
