"""Whose address a request has, seen through proxies that are trusted and such that are not."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from seckill.errors import InvalidInput

address = importlib.import_module("seckill.server.address")
settings = importlib.import_module("seckill.server.settings")

TRUSTED = ("10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "unix")


class Request:
    """The two things that are looked at."""

    def __init__(self, peer: str | None, *forwarded: str) -> None:
        self.remote = peer
        self.headers = CIMultiDict([("X-Forwarded-For", value) for value in forwarded])


def of(peer: str | None, *forwarded: str, trusted: tuple[str, ...] = TRUSTED) -> str:
    return str(address.Addresses(trusted).of(Request(peer, *forwarded)))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        # Nobody in between.
        ("203.0.113.9", [], "203.0.113.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        # A proxy that is trusted, and one that is not.
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("203.0.113.1", ["203.0.113.9"], "203.0.113.1"),
        ("192.0.2.7", ["203.0.113.9"], "203.0.113.9"),
        ("192.0.2.8", ["203.0.113.9"], "192.0.2.8"),
        # What the client wrote itself stands to the left of what our proxy wrote.
        ("10.0.0.1", ["198.51.100.1, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["198.51.100.1", "203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["10.0.0.9, 203.0.113.9"], "203.0.113.9"),
        # Several proxies of ours.
        ("10.0.0.1", ["198.51.100.1, 203.0.113.9, 10.0.0.2, 10.0.0.3"], "203.0.113.9"),
        ("10.0.0.1", ["10.0.0.2,10.0.0.3"], "10.0.0.2"),
        ("10.0.0.1", ["203.0.113.9,\t10.0.0.3 "], "203.0.113.9"),
        # What is no address ends the walk: what is left of it was written by nobody we know.
        ("10.0.0.1", ["203.0.113.9, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["203.0.113.9, unix"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9, "], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["_hidden"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.09"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9/32"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9 198.51.100.1"], "10.0.0.1"),
        ("10.0.0.1", ["2" * 8000], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9" + " " * 100], "203.0.113.9"),
        ("10.0.0.1", ["秒杀"], "10.0.0.1"),
        # Ports and brackets.
        ("10.0.0.1", ["203.0.113.9:4711"], "203.0.113.9"),
        ("10.0.0.1", ["203.0.113.9:"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9:http"], "10.0.0.1"),
        ("10.0.0.1", ["[2001:db9::1]:4711"], "2001:db9::1"),
        ("10.0.0.1", ["[2001:db9::1]"], "2001:db9::1"),
        ("10.0.0.1", ["[2001:db9::1"], "10.0.0.1"),
        ("10.0.0.1", ["[2001:db9::1]x"], "10.0.0.1"),
        # One address has one text.
        ("2001:0DB9:0::0001", [], "2001:db9::1"),
        ("::ffff:203.0.113.9", [], "203.0.113.9"),
        ("::ffff:cb00:7109", [], "203.0.113.9"),
        ("fe80::1%eth0", [], "fe80::1"),
        ("::ffff:10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["::ffff:203.0.113.9, ::ffff:10.0.0.2"], "203.0.113.9"),
        ("2001:db8::5", ["2001:DB9::0009"], "2001:db9::9"),
        ("2001:db9::5", ["203.0.113.9"], "2001:db9::5"),
        # A unix socket has no address.
        ("", ["203.0.113.9"], "203.0.113.9"),
        ("", [], "unix"),
        ("", ["nonsense"], "unix"),
        # The connection has gone.
        (None, ["203.0.113.9"], ""),
    ],
)
def test_of(peer: str | None, forwarded: list[str], client: str) -> None:
    assert of(peer, *forwarded) == client


def test_nobody_is_trusted_by_default() -> None:
    assert of("10.0.0.1", "203.0.113.9", trusted=()) == "10.0.0.1"
    assert of("127.0.0.1", "203.0.113.9", trusted=()) == "127.0.0.1"
    assert of("", "203.0.113.9", trusted=()) == "unix"


def test_a_list_without_end() -> None:
    """Whoever is trusted by mistake can't keep us busy, nor pass everybody for anybody."""
    everybody = ("0.0.0.0/0",)
    hops = [f"203.0.113.{number % 250}" for number in range(2000)]
    assert of("10.0.0.1", ",".join(hops), trusted=everybody) == hops[-16]
    looked = address.Addresses(everybody)
    for number in range(10_000):
        looked.of(Request("10.0.0.1", f"203.0.{number // 250}.{number % 250}"))
    assert looked._read.cache_info().currsize <= 4096


@given(st.lists(st.text(max_size=60) | st.ip_addresses().map(str), max_size=5), st.booleans())
def test_whatever_is_sent_the_result_is_canonical(forwarded: list[str], several: bool) -> None:
    values = forwarded if several else [",".join(forwarded)]
    client = of("10.0.0.1", *values)
    assert client == str(ip_address(client))


@pytest.mark.parametrize(
    "text", ["10.0.0.1/8", "10.0.0", "", "localhost", "*", "::ffff:10.0.0.0/104", "10.0.0.0/33"]
)
def test_what_cannot_be_trusted(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"server\.trusted_proxies"):
        address.Addresses([text])
    with pytest.raises(ValueError, match=r"trusted_proxies\.0"):
        settings.Server(trusted_proxies=[text])


def test_what_can_be_trusted() -> None:
    assert settings.Server(trusted_proxies=TRUSTED).trusted_proxies == TRUSTED


@asynccontextmanager
async def asking(site: str) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """A real server that says which address it sees."""
    looked = address.Addresses(["127.0.0.1", "::1", "unix"])

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=looked.of(request))

    app = web.Application()
    app.add_routes([web.get("/", handler)])
    runner = web.AppRunner(app)
    await runner.setup()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        try:
            if site == "unix":
                await web.UnixSite(runner, path).start()
                connector: aiohttp.BaseConnector = aiohttp.UnixConnector(str(path))
                base = "http://intake/"
            else:
                server = web.TCPSite(runner, site, 0)
                await server.start()
                connector, base = aiohttp.TCPConnector(), server.name
                base = f"http://[{site}]:{runner.addresses[0][1]}/" if ":" in site else base
            async with aiohttp.ClientSession(connector=connector) as session:
                yield session, base
        finally:
            await runner.cleanup()


@pytest.mark.parametrize("site", ["127.0.0.1", "::1", "unix"])
async def test_on_real_sockets(site: str) -> None:
    async with asking(site) as (session, base):
        for headers, client in (
            ({}, site),
            ({"X-Forwarded-For": "198.51.100.1, 2001:db9::1"}, "2001:db9::1"),
        ):
            async with session.get(base, headers=headers) as response:
                assert await response.text() == client
