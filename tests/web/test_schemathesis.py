"""Schemathesis reads the public description and tries everything against a live intake: no 5xx but
an intended 503, and no answer that the description does not promise.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from threading import Thread
from typing import Any
from zlib import crc32

import pytest
import schemathesis
import uvloop
from hypothesis import HealthCheck, settings
from schemathesis.core.parameters import ParameterLocation

from seckill.admission import Admission
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.server import create_app
from seckill.server.openapi import describe
from seckill.server.settings import ApiKey, Limits, Settings, Users
from tests.support import make_sale
from tests.web.intake import serving
from tests.web.mall import SECRET, signed

pytestmark = pytest.mark.slow

KEY = f"sk_{secrets.token_urlsafe(32)}"
SETTINGS = Settings(
    keys=(
        ApiKey(
            name="all",
            hash=f"sha256:{sha256(KEY.encode()).hexdigest()}",
            scopes=("backend", "admin", "metrics"),
        ),
    ),
    users=Users(secrets=(SECRET,)),  # type: ignore[arg-type]
    limits=Limits(buyer_per_s=0),
)
SALE = "schemathesis"
DRAW = "schemathesis-draw"


def described() -> dict[str, Any]:
    app = create_app(Engine("redis://127.0.0.1:1"), SETTINGS)
    found: dict[str, Any] = json.loads(json.dumps(describe(app.router.routes())))
    return found


schema = schemathesis.openapi.from_dict(described())
# Rules that no schema can express (a sale ends after it opens) are a 400 or 422, too.
schema.config.checks.positive_data_acceptance.expected_statuses += ["400", "422"]
# What breaks the schema by its size may be too large to be read at all.
schema.config.checks.negative_data_rejection.expected_statuses += ["413"]


class Live:
    """An intake on a thread of its own, with one sale and one order that are there."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.base = ""
        self.order = ""
        self._loop = uvloop.new_event_loop()
        self._ended = asyncio.Event()
        self._thread = Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def __enter__(self) -> Live:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(20)
        self._loop.close()

    async def _serve(self) -> None:
        engine = Engine(self.url, durability="memory", sweep_ms=0)
        async with engine, serving(create_app(engine, SETTINGS)) as base:
            sale = make_sale({"MUG": 1_000_000}, id=SALE)
            await engine.create(sale)
            await engine.open(sale.id)
            order = (await engine.reserve(sale.id, "buyer-7", "k", {"MUG": 1})).order
            assert order is not None
            draw_at = datetime.now(UTC) + timedelta(hours=1)
            admission = Admission(mode="draw", draw_at=draw_at, public_value="anything")
            window = {"opens_at": draw_at, "ends_at": draw_at + timedelta(hours=1)}
            await engine.create(make_sale({"MUG": 5}, id=DRAW, **window, admission=admission))
            await engine.open(DRAW)
            self.order, self.base = order.id, base
            await self._ended.wait()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    path: Path = tmp_path_factory.mktemp("redis")
    with EmbeddedServer(path, appendfsync="no") as server, Live(server.url) as live:
        while not live.base:
            assert live._thread.is_alive()
            live._thread.join(0.01)
        yield live


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_promised_is_kept(case: schemathesis.Case, live: Live) -> None:
    negative = case.meta.is_negative_at if case.meta else lambda _: False
    if case.path_parameters and not negative(ParameterLocation.PATH):
        # Made-up names lead nowhere, so every other case is about what is there.
        tickets = "Queue" in case.operation.definition.raw["tags"]
        known = {"sale": DRAW if tickets else SALE, "order": live.order}
        if crc32(repr(case.body).encode()) % 2 and case.method != "PUT":
            case.path_parameters |= {n: known[n] for n in case.path_parameters if n in known}
    elif ":" in str(case.path_parameters):
        return  # After a colon comes a verb, so this is another path.
    operation = case.operation.definition.raw
    for_buyers = {"user": []} in operation["security"] and "Seckill-Buyer" not in case.headers
    proof = signed(sub="buyer-7") if for_buyers else KEY
    checks = []
    if operation["operationId"] == "reserve_batch" and negative(ParameterLocation.BODY):
        # A broken order is refused alone, in a batch that is not.
        checks.append(schemathesis.checks.negative_data_rejection)
    case.call_and_validate(
        base_url=live.base,
        headers={"Authorization": f"Bearer {proof}"},
        excluded_checks=checks,
    )
