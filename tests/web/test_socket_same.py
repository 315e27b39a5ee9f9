"""What is asked on a socket is answered as over HTTP: the same status, the same body."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from seckill.admission import Admission
from seckill.embedded import EmbeddedServer
from seckill.sale import Sale
from seckill.server.gate import Entry
from seckill.server.problems import GATE_REFUSED, Problem
from tests.support import make_item
from tests.web.intake import Answer
from tests.web.socket_site import ITEMS, Site, Talk, site_on, token

# What differs from one sale to the other, and from one moment to the next.
_OWN = re.compile(
    r'"(id|sale|deadline_ms|ticket|token|at_ms|now_ms|eta_ms|expires_ms|salt)":("[^"]*"|\d+)'
)
NO_ORDER = "00" + "f" * 22


def plain(body: Any) -> str:
    """A body without that."""
    return _OWN.sub(r'"\1":0', json.dumps(body, ensure_ascii=False, separators=(",", ":")))


class Both:
    """One sale that is asked over HTTP and its twin that is asked on a socket."""

    def __init__(self, site: Site, over_http: Sale, on_socket: Sale, buyer: str) -> None:
        self.site = site
        self.sale = over_http.id
        self.twin = on_socket.id
        self.proof = token(buyer)
        self.talk: Talk

    async def http(self, op: str, /, **fields: Any) -> Answer:
        """The request that a message stands for."""
        at, headers = f"/v1/sales/{self.sale}", {"Authorization": f"Bearer {self.proof}"}
        for field, header in (
            ("key", "Idempotency-Key"),
            ("proof", "Seckill-Proof"),
            ("ticket", "Seckill-Ticket"),
        ):
            if field in fields:
                headers[header] = fields.pop(field)
        order = fields.pop("order", "")
        ways = {
            "buy": ("POST", f"{at}/orders"),
            "begin-payment": ("POST", f"{at}/orders/{order}/begin-payment"),
            "release": ("POST", f"{at}/orders/{order}/release"),
            "result": ("GET", f"{at}/orders/{order}"),
            "join": ("POST", f"{at}/tickets"),
            "place": ("GET", f"{at}/tickets/me"),
            "leave": ("DELETE", f"{at}/tickets/me"),
            "time": ("GET", "/v1/time"),
        }
        body = None
        if op == "buy":
            headers["Content-Type"], body = "application/json", json.dumps(fields)
        return await self.site.call(*ways[op], body, **headers)

    async def ask(
        self, op: str, /, *, twins: dict[str, str] | None = None, **fields: Any
    ) -> tuple[Answer, dict[str, Any]]:
        """Asks both, and both must say the same. ``twins`` has fields that differ on the socket."""
        over_http = await self.http(op, **fields)
        on_socket = await self.talk.ask(op, **(fields | (twins or {})))
        assert on_socket["status"] == over_http.http, (over_http.json, on_socket)
        if over_http.json.get("code") == "idempotency_key_required":
            # The words differ: one names the header, the other the message's field.
            assert on_socket["body"]["code"] == over_http.json["code"]
        else:
            assert plain(on_socket["body"]) == plain(over_http.json)
        retry_after = int(over_http.headers.get("Retry-After", "0"))
        assert on_socket.get("retry_after_s", 0) == retry_after
        return over_http, on_socket

    async def code(self, op: str, /, **options: Any) -> str:
        over_http, _ = await self.ask(op, **options)
        return over_http.code


@asynccontextmanager
async def both(
    url: str, *, buyer: str = "ann", options: dict[str, Any] | None = None, **fields: Any
) -> AsyncIterator[Both]:
    async with site_on(url, **(options or {})) as site:
        sales = [await site.open_sale(**fields) for _ in range(2)]
        asked = Both(site, *sales, buyer)
        async with site.talk(asked.twin, buyer) as asked.talk:
            yield asked


async def test_orders(redis_server: EmbeddedServer) -> None:
    items = (make_item("a", total=3, limit_per_buyer=2), make_item("b", total=1))
    async with both(redis_server.url, items=items) as asked:
        assert await asked.code("buy", key="k1", items=ITEMS) == "created"
        http, socket = await asked.ask("buy", key="k1", items=ITEMS, attrs="")
        assert http.code == "exists"
        order = http.json["order"]["id"]
        twins = {"order": socket["body"]["order"]["id"]}
        assert await asked.code("buy", key="k1", items=ITEMS, attrs="x") == "conflict"
        nine = [{"sku": "a", "quantity": 9}]
        assert await asked.code("buy", key="k2", items=nine) == "sku_limit"
        assert await asked.code("buy", key="k2", items=nine + ITEMS) == "sku_limit"
        two = [{"sku": "b", "quantity": 2}]
        assert await asked.code("buy", key="k3", items=two) == "insufficient"
        strange = [{"sku": "no", "quantity": 1}]
        assert await asked.code("buy", key="k4", items=strange + ITEMS) == "unknown_sku"
        for verb in ("result", "begin-payment", "begin-payment", "result", "release", "release"):
            await asked.ask(verb, order=order, twins=twins)
        assert await asked.code("begin-payment", order=order, twins=twins) == "released"
        for verb in ("result", "begin-payment", "release"):
            assert await asked.code(verb, order=NO_ORDER) == "unknown_order"
            assert await asked.code(verb, order="none") == "invalid_input"
        await asked.ask("time")
        for verb in ("join", "leave"):
            assert await asked.code(verb) == "no_queue"
        assert await asked.code("place", ticket="x") == "no_queue"


@pytest.mark.parametrize(
    "fields",
    [
        {"items": ITEMS},
        {"items": []},
        {"items": [], "key": "k"},
        {"items": "a", "key": "k"},
        {"items": [{"sku": "a", "quantity": 0}], "key": "k"},
        {"items": [{"sku": "a"}], "key": "k"},
        {"items": [{"sku": "a", "quantity": 1, "price": 1}], "key": "k"},
        {"items": ITEMS, "key": "k", "more": 1},
        {"items": ITEMS, "key": "k", "attrs": "x" * 513},
        {"items": ITEMS, "key": "k", "attrs": "五" * 200},
        {"items": ITEMS, "key": "k", "token": "x" * 201},
        {"items": ITEMS, "key": "k", "token": "x"},
        {"items": ITEMS, "key": "k" * 65},
        {"items": ITEMS, "key": "a b"},
        {"items": ITEMS, "key": ""},
        {"key": "k"},
        {},
    ],
    ids=str,
)
async def test_orders_that_are_none(redis_server: EmbeddedServer, fields: dict[str, Any]) -> None:
    async with both(redis_server.url) as asked:
        await asked.ask("buy", **fields)


async def test_a_sale_that_is_not_there(redis_server: EmbeddedServer) -> None:
    async with site_on(redis_server.url) as site:
        asked = Both(site, await site.open_sale(), await site.open_sale(), "ann")
        asked.sale = asked.twin = "none"
        async with site.talk("none") as asked.talk:
            assert await asked.code("buy", key="k", items=ITEMS) == "unknown_sale"
            assert await asked.code("buy", key="a b", items=ITEMS) == "invalid_input"
            for verb in ("result", "release", "begin-payment"):
                assert await asked.code(verb, order=NO_ORDER) == "unknown_sale"
            for verb in ("join", "leave"):
                assert await asked.code(verb) == "unknown_sale"
            assert await asked.code("place", ticket="x") == "unknown_sale"
            assert await asked.talk.code("watch") == (404, "unknown_sale")


async def test_a_queue(redis_server: EmbeddedServer) -> None:
    async with both(redis_server.url, admission=Admission(mode="queue")) as asked:
        assert await asked.code("place") == "unknown_ticket"
        assert await asked.code("leave") == "unknown_ticket"
        assert await asked.code("buy", key="k", items=ITEMS) == "queue_token_needed"
        # As a place has it that is not called.
        assert await asked.code("buy", key="k", items=ITEMS, token=None) == "queue_token_needed"
        assert await asked.code("buy", key="k", items=ITEMS, token="x") == "queue_token_invalid"  # noqa: S106
        # Until both are called, their places may differ.
        http, socket = await asked.http("join"), await asked.talk.ask("join")
        assert (http.http, http.code) == (socket["status"], socket["body"]["code"])
        tickets = http.json["place"]["ticket"], socket["body"]["place"]["ticket"]
        for sale, ticket in zip((asked.sale, asked.twin), tickets, strict=True):
            await called(asked.site, sale, ticket)
        assert await asked.code("join") == "exists"
        http, socket = await asked.ask("place", ticket=tickets[0], twins={"ticket": tickets[1]})
        turns = http.json["token"], socket["body"]["token"]
        assert await asked.code("place", ticket="x") == "unknown_ticket"
        over_http, _ = await asked.ask(
            "buy", key="k", items=ITEMS, token=turns[0], twins={"token": turns[1]}
        )
        assert over_http.code == "created"
        assert await asked.code("leave") == "done"


async def called(site: Site, sale: str, ticket: str) -> None:
    """Waits for the turn of this ticket."""
    phase = ""
    async with asyncio.timeout(60):
        while phase != "called":
            await asyncio.sleep(0.05)
            place = (await site.engine.queue.place(sale, "ann", ticket)).place
            phase = "" if place is None else place.phase


async def test_sold_out_from_memory(redis_server: EmbeddedServer) -> None:
    async with both(redis_server.url, buyer="late", stock={"a": 1}) as asked:
        for sale in (asked.sale, asked.twin):
            await asked.site.engine.reserve(sale, "first", "k", {"a": 1})
        for number in range(30):
            assert await asked.code("buy", key=f"k{number}", items=ITEMS) == "sold_out"


async def test_limits(redis_server: EmbeddedServer) -> None:
    limits = {"buyer_per_s": 0.01, "buyer_burst": 4}
    options = {"tables": {"limits": limits}}
    async with both(redis_server.url, options=options) as asked:
        assert await asked.talk.code("buy", key="k", items=ITEMS) == (201, "created")
        assert (await asked.http("buy", key="k", items=ITEMS)).http == 201
        # One limit for both ways, and the handshake has counted, too.
        assert (await asked.talk.ask("result", order=NO_ORDER))["status"] == 404
        for op, fields in (
            ("buy", {"key": "k", "items": ITEMS}),
            ("buy", {"key": "k", "items": []}),
            ("result", {"order": "x"}),
            ("join", {}),
        ):
            assert await asked.code(op, **fields) == "rate_limited"
        await asked.ask("time")


async def test_limits_by_address(redis_server: EmbeddedServer) -> None:
    limits = {"buyer_per_s": 0, "address_per_s": 0.01, "address_burst": 3}
    options = {"tables": {"limits": limits}}
    async with both(redis_server.url, options=options) as asked:
        assert await asked.talk.code("buy", key="k", items=ITEMS) == (201, "created")
        assert (await asked.http("time")).http == 200
        for op, fields in (("buy", {"key": "k", "items": ITEMS}), ("time", {})):
            assert await asked.code(op, **fields) == "rate_limited"


class Doorman:
    """Lets in who knows the word."""

    async def admit(self, entry: Entry) -> Problem | None:
        assert entry.buyer == "ann"
        assert entry.address == "127.0.0.1"
        if entry.proof == "broken":
            raise RuntimeError("the doorman has left")
        return None if entry.proof == "word" else Problem(GATE_REFUSED, f"{entry.key}, go home")


async def test_a_malls_gate(redis_server: EmbeddedServer) -> None:
    async with both(redis_server.url, options={"gate": Doorman()}) as asked:
        assert await asked.code("buy", key="k", items=ITEMS) == "gate_refused"
        assert await asked.code("buy", key="k", items=ITEMS, proof="broken") == "gate_unavailable"
        assert await asked.code("buy", key="k", items=ITEMS, proof="word") == "created"
        assert await asked.code("join") == "gate_refused"
        assert await asked.code("join", proof="word") == "no_queue"


async def test_the_proof_of_work(redis_server: EmbeddedServer) -> None:
    gate = {"work_bits": 4, "secrets": ["g" * 40]}
    async with both(redis_server.url, options={"tables": {"gate": gate}}) as asked:
        assert await asked.code("buy", key="k", items=ITEMS) == "proof_required"
        assert await asked.code("buy", key="k", items=ITEMS, proof="x") == "proof_required"


# -- anything -------------------------------------------------------------------------------------

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**64) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
lines = st.lists(
    st.fixed_dictionaries(
        {"sku": st.sampled_from(["a", "b", "no", "", "五"]), "quantity": st.integers(0, 10_001)}
    )
    | anything,
    max_size=4,
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "items": lines | anything,
        "attrs": st.text(max_size=20) | anything,
        "token": st.text(max_size=20) | anything,
        "price": anything,
    },
)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(bodies)
def test_any_body(same: tuple[asyncio.Runner, Both, Any], body: dict[str, Any]) -> None:
    runner, asked, numbers = same
    # JSON has no NaN, and both would say so at another place.
    text = json.dumps(body)
    hypothesis.assume("NaN" not in text and "Infinity" not in text)
    runner.run(_timed(asked.ask("buy", key=f"k{next(numbers)}", **body)))


async def _timed(asking: Any) -> None:
    async with asyncio.timeout(60):
        await asking


@pytest.fixture(scope="module")
def same(redis_server: EmbeddedServer) -> Any:
    with asyncio.Runner() as runner:
        opening = both(redis_server.url, stock={"a": 10**6, "b": 10**6})
        asked = runner.run(opening.__aenter__())
        try:
            yield runner, asked, count()
        finally:
            runner.run(opening.__aexit__(None, None, None))
