"""The buyers' evening of locust: it finds nothing at our intake, and finds what is planted."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from pydantic import SecretStr

from seckill.admission import Admission
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.server import create_app
from seckill.server.settings import ApiKey, Settings, Users
from tests.children import child
from tests.support import make_item, make_sale
from tests.web.intake import serving

ROOT = Path(__file__).parents[2]
KEY = f"sk_{'k' * 40}"
SECRET = "s" * 48
USERS = 40
STOCK = 8

Answered = Callable[[web.Request], Awaitable[web.StreamResponse]]
Tamper = Callable[[web.Request, web.Response], None]


def another_order(request: web.Request, response: web.Response) -> None:
    """Tells who repeats an order of another one, and who has paid that it isn't so."""
    body = json.loads(response.body or b"{}")  # type: ignore[arg-type]
    if body.get("code") == "exists":
        body["order"]["id"] = body["order"]["id"][::-1]
    if body.get("state") == "confirmed":
        body["state"] = "paying"
    response.body = json.dumps(body).encode()


def one_more(request: web.Request, response: web.Response) -> None:
    """Sells to whoever comes too late."""
    body = json.loads(response.body or b"{}")  # type: ignore[arg-type]
    if request.path.endswith("/orders") and body.get("code") == "sold_out":
        key = request.headers["Idempotency-Key"]
        proof = request.headers["Authorization"].removeprefix("Bearer ")
        order = {
            "id": sha256(key.encode()).hexdigest()[:24],
            "buyer": jwt.decode(proof, SECRET, algorithms=["HS256"])["sub"],
            "items": [{"sku": "mug", "quantity": 1}],
            "state": "held",
            "version": 1,
            "deadline_ms": 4_000_000_000_000,
        }
        response.set_status(201)
        response.content_type = "application/json"
        response.body = json.dumps({"code": "created", "order": order}).encode()


def planted(tamper: Tamper) -> Any:
    """A middleware that answers what the intake has not said."""

    @web.middleware
    async def answer(request: web.Request, handler: Answered) -> web.StreamResponse:
        response = await handler(request)
        if "/orders" in request.path and isinstance(response, web.Response):
            changed = web.Response(
                body=response.body, status=response.status, headers=response.headers
            )
            tamper(request, changed)
            return changed
        return response

    return answer


def nothing(request: web.Request, response: web.Response) -> None:
    """Is as honest as the intake."""


async def evening(
    url: str, tamper: Tamper, summary: Path, **sale_fields: Any
) -> tuple[int, str, dict[str, Any]]:
    """Locust against an intake that was tampered with: its exit code, what it printed, how the
    evening ended."""
    digest = f"sha256:{sha256(KEY.encode()).hexdigest()}"
    key = ApiKey(name="mall", hash=digest, scopes=("backend", "admin"))
    settings = Settings(users=Users(secrets=(SecretStr(SECRET),)), keys=(key,))
    item = make_item("mug", total=STOCK, limit_per_buyer=1)
    sale = make_sale(items=(item,), **sale_fields)
    async with Engine(url, durability="memory", timeout_ms=30_000) as engine:
        assert (await engine.create(sale)).ok
        assert (await engine.open(sale.id)).ok
        app = create_app(engine, settings)
        app.middlewares.append(planted(tamper))
        async with serving(app) as base:
            environment = {
                **os.environ,
                "EVENING_SALE": sale.id,
                "EVENING_SUMMARY": str(summary),
                "EVENING_USER_SECRET": SECRET,
                "EVENING_API_KEY": KEY,
                "EVENING_THINK_S": "0.1",
                "EVENING_PAY_S": "0.1",
                "EVENING_RETURNS": "0",
                "EVENING_ABANDON": "0",
                "EVENING_GIVE_UP": "0",
                "EVENING_TAIL_S": "0.5",
                "EVENING_DOUBLE": "1",
            }
            async with (
                child(
                    *(sys.executable, "-m", "locust", "-f", ROOT / "benchmarks/locustfile.py"),
                    *("--headless", "--only-summary", "--users", USERS, "--run-time", "5s"),
                    *("--host", base),
                    cwd=ROOT,
                    env=environment,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                ) as locust,
                asyncio.timeout(120),
            ):
                said, _ = await locust.communicate()
    assert locust.returncode is not None
    return locust.returncode, said.decode(), ended(summary)


def ended(summary: Path) -> dict[str, Any]:
    """How the evening ended; nothing, if it has not even begun."""
    return dict(json.loads(summary.read_bytes())) if summary.exists() else {}


@pytest.mark.slow
async def test_other_answers_to_one_key_are_seen(
    redis_server: EmbeddedServer, tmp_path: Path
) -> None:
    code, said, summary = await evening(redis_server.url, another_order, tmp_path / "summary")
    assert (code, bool(summary)) == (1, True), said
    assert {
        "two orders for one key",
        "a confirmed order is not confirmed",
    } <= summary["broken"].keys()
    assert "broken promise: two orders for one key" in said
    assert "broken promise: a confirmed order is not confirmed" in said


@pytest.mark.slow
async def test_selling_too_many_is_seen(redis_server: EmbeddedServer, tmp_path: Path) -> None:
    code, said, summary = await evening(redis_server.url, one_more, tmp_path / "summary")
    assert (code, bool(summary)) == (1, True), said
    assert {
        "more units than there are",
        "an acknowledged order is unknown",
    } <= summary["broken"].keys()
    assert "broken promise: more units than there are" in said


@pytest.mark.slow
async def test_a_queue_keeps_every_promise(redis_server: EmbeddedServer, tmp_path: Path) -> None:
    queue = Admission(mode="queue", rate_per_s=20, token_life_ms=60_000)
    honest = await evening(redis_server.url, nothing, tmp_path / "summary", admission=queue)
    code, said, summary = honest
    assert (code, summary.get("broken")) == (0, {}), said
    assert summary["orders"] > 0


@pytest.mark.slow
def test_our_intake_keeps_every_promise(tmp_path: Path) -> None:
    summary = tmp_path / "summary"
    options = ("--users", "200", "--seconds", "6", "--processes", "2", "--workers", "2")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.locust_run", *options, "--summary", str(summary)],
        cwd=ROOT,
        env={**os.environ, "EVENING_SOCKETS": "0.3"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = ended(summary)
    assert (found["broken"], found["silent_processes"], found["processes"]) == ({}, 0, 2)
    assert found["orders"] > 0
    assert "no violation" in done.stdout
