"""Web pages of named origins may call the buyers' endpoints, and nothing else is opened."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import InvalidInput
from seckill.server import create_app
from tests.web.intake import Answer, Client, serving

cors = importlib.import_module("seckill.server.cors")
settings = importlib.import_module("seckill.server.settings")

SHOP = "https://shop.example"
ORDERS = "/v1/sales/s/orders"
BUYERS = [
    ("GET", "/v1/time"),
    ("GET", "/v1/sales"),
    ("GET", "/v1/sales/s"),
    ("POST", ORDERS),
    ("GET", f"{ORDERS}/o"),
    ("POST", f"{ORDERS}/o/begin-payment"),
    ("POST", f"{ORDERS}/o/release"),
    ("POST", "/v1/sales/s/tickets"),
    ("GET", "/v1/sales/s/tickets/me"),
    ("DELETE", "/v1/sales/s/tickets/me"),
    ("GET", "/v1/sales/s/draw"),
]
OTHERS = [
    ("POST", f"{ORDERS}/o/confirm"),
    ("POST", f"{ORDERS}/o/refund"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("PUT", "/v1/admin/sales/s"),
    ("POST", "/v1/sales/s/orders:batch"),
    ("GET", "/metrics"),
    ("GET", "/v1/sales/s/draw/tickets"),
    ("POST", "/v1/admin/sales/s/draw:value"),
    ("GET", "/nothing"),
    ("DELETE", ORDERS),
    ("TRACE", ORDERS),
    ("OPTIONS", ORDERS),
    ("get", "/v1/time"),
    ("*", ORDERS),
    ("", ORDERS),
]


@pytest.fixture(params=["", "/seckill"], ids=["alone", "mounted"])
async def shop(
    redis_server: EmbeddedServer, request: pytest.FixtureRequest
) -> AsyncIterator[Client]:
    """An intake that this shop's pages may call, alone and mounted in a mall's application."""
    engine = Engine(redis_server.url, durability="memory", sweep_ms=0)
    origins = [SHOP, "http://localhost:5173"]
    server = settings.Server(cors_origins=origins)
    app = create_app(engine, settings.Settings(server=server))
    if request.param:
        mall = web.Application()
        mall.add_subapp(request.param, app)
        app = mall
    async with serving(app) as base, aiohttp.ClientSession() as session:
        yield Client(session, base + request.param)


async def preflight(shop: Client, method: str, path: str, origin: str = SHOP) -> Answer:
    headers = {"Origin": origin, "Access-Control-Request-Method": method}
    return await shop.call("OPTIONS", path, headers=headers)


def crossed(answer: Answer) -> dict[str, str]:
    return {
        name: value for name, value in answer.headers.items() if name.startswith("Access-Control-")
    }


async def test_preflight(shop: Client) -> None:
    for method, path in BUYERS:
        answer = await preflight(shop, method, path)
        assert (answer.http, answer.body) == (204, b""), path
        assert crossed(answer) == {
            "Access-Control-Allow-Origin": SHOP,
            "Access-Control-Allow-Methods": method,
            "Access-Control-Allow-Headers": (
                "Authorization, Content-Type, Idempotency-Key, Seckill-Proof, Seckill-Ticket"
            ),
            "Access-Control-Max-Age": "3600",
        }
        assert answer.headers["Vary"] == "Origin"


async def test_preflight_for_what_is_not_the_buyers(shop: Client) -> None:
    for method, path in OTHERS:
        answer = await preflight(shop, method, path)
        assert answer.http in (404, 405), (method, path)
        assert crossed(answer) == {}


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "https://shop.example.evil.example",
        "https://evilshop.example",
        "https://shop.example:8443",
        "https://shop.example/",
        "http://shop.example",
        "HTTPS://SHOP.EXAMPLE",
        "https://sub.shop.example",
        "null",
        "*",
        "",
    ],
)
async def test_other_origins(shop: Client, origin: str) -> None:
    answer = await preflight(shop, "POST", ORDERS, origin)
    assert answer.http == 405
    assert crossed(answer) == {}
    answer = await shop.call("GET", "/v1/time", headers={"Origin": origin})
    assert answer.http == 200
    assert crossed(answer) == {}
    # A cache must not give this answer to the shop's page.
    assert "Origin" in answer.headers["Vary"]


async def test_answers_and_refusals(shop: Client) -> None:
    expected = {
        "Access-Control-Allow-Origin": SHOP,
        "Access-Control-Expose-Headers": "ETag, Location, Retry-After, X-Request-Id",
    }
    statuses = set()
    for method, path in BUYERS:
        answer = await shop.call(method, path, headers={"Origin": SHOP})
        statuses.add(answer.http)
        assert crossed(answer) == expected, path
        assert "Origin" in answer.headers["Vary"]
        bare = await shop.call(method, path)
        assert crossed(bare) == {}
        assert "Origin" in bare.headers["Vary"]
    assert {200, 401, 404} <= statuses
    for method, path in OTHERS[:8]:
        answer = await shop.call(method, path, headers={"Origin": SHOP})
        assert crossed(answer) == {}, path


async def test_the_second_origin(shop: Client) -> None:
    local = {"Origin": "http://localhost:5173"}
    answer = await shop.call("GET", "/v1/time", headers=local)
    assert answer.headers["Access-Control-Allow-Origin"] == local["Origin"]


async def test_a_vary_that_is_there_already() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(headers={"Vary": "Accept-Encoding"})

    app = web.Application(middlewares=[cors.cors([SHOP])])
    app.add_routes([web.get("/v1/time", handler)])
    async with serving(app) as base, aiohttp.ClientSession() as session:
        answer = await Client(session, base).call("GET", "/v1/time")
        assert answer.headers["Vary"] == "Accept-Encoding, Origin"


def test_every_path_exists(redis_server: EmbeddedServer) -> None:
    """A path that was renamed must be renamed there as well."""
    routes = create_app(Engine(redis_server.url)).router.routes()
    known = {route.resource.canonical for route in routes if route.resource is not None}
    assert {f"/v1/{path}" for path in cors.PATHS} <= known


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "",
        "shop.example",
        "https://",
        "https://shop.example/",
        "https://shop.example/path",
        "https://Shop.example",
        "https://*.shop.example",
        "https://shop.example:443",
        "http://shop.example:80",
        "https://a@shop.example",
        "https://shop.example https://b.example",
        "ftp://shop.example",
    ],
)
def test_origins_that_are_none(origin: str) -> None:
    with pytest.raises(InvalidInput, match=r"server\.cors_origins"):
        cors.cors([SHOP, origin])
    with pytest.raises(ValueError, match=r"cors_origins\.1"):
        settings.Server(cors_origins=[SHOP, origin])


def test_origins() -> None:
    origins = (SHOP, "http://localhost:5173", "http://[::1]:8080", "https://xn--mnx76k.example")
    assert settings.Server(cors_origins=origins).cors_origins == origins
