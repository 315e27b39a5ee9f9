"""The keys a mall publishes: they come and go while sales run, and the URL may fail."""

from __future__ import annotations

import asyncio
import importlib
import logging
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

from tests.databases import free_port
from tests.web.intake import serving
from tests.web.mall import SECRET, Asker, asking, by_hand, claims, jwk_of, part, signed

jwks = importlib.import_module("seckill.server.jwks")

ED = [ed25519.Ed25519PrivateKey.generate() for _ in range(3)]


@pytest.fixture(scope="session")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


class Mall:
    """Publishes keys, and fails as told."""

    def __init__(self) -> None:
        self.keys: list[Any] = []
        self.answer: Callable[[], web.StreamResponse] | None = None
        self.delay_s = 0.0
        # Cleared, it keeps all answers back.
        self.gate = asyncio.Event()
        self.gate.set()
        self.endless = False
        self.sent_bytes = 0
        self.fetches = 0
        self.answers = 0
        self.url = ""

    def publish(self, *names: str) -> None:
        """Ed25519 keys by their place in ED, each with that as its kid."""
        self.keys = [jwk_of(ED[int(name)], "EdDSA", kid=name) for name in names]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.fetches += 1
        await asyncio.sleep(self.delay_s)
        await self.gate.wait()
        self.answers += 1
        if self.endless:
            response = web.StreamResponse()
            await response.prepare(request)
            while self.sent_bytes < 100_000_000:
                await response.write(b" " * 65_536)
                self.sent_bytes += 65_536
            return response
        return self.answer() if self.answer else web.json_response({"keys": self.keys})


def token(name: str, **changed: Any) -> str:
    return signed(ED[int(name)], "EdDSA", kid=name, **changed)


@asynccontextmanager
async def published(mall: Mall) -> AsyncIterator[str]:
    app = web.Application()
    app.add_routes([web.get("/keys", mall.handle), web.get("/moved", mall.handle)])
    async with serving(app) as base:
        mall.url = f"{base}/keys"
        yield mall.url


@pytest.fixture
async def mall(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mall]:
    # Nothing is fetched twice unless a test lets time run faster.
    monkeypatch.setattr(jwks, "EVERY_S", 1000.0)
    monkeypatch.setattr(jwks, "PAUSE_S", 1000.0)
    mall = Mall()
    async with published(mall):
        yield mall


async def until(asker: Asker, token: str, http: int) -> None:
    """Asks until this is the answer."""
    async with asyncio.timeout(30):
        while (await asker.ask(token)).http != http:  # noqa: ASYNC110 - nobody says when
            await asyncio.sleep(0.02)


async def until_fetched(mall: Mall, times: int) -> None:
    async with asyncio.timeout(30):
        while mall.fetches < times:  # noqa: ASYNC110 - nobody says when
            await asyncio.sleep(0.01)


# -- which keys are taken -----------------------------------------------------------------------


async def test_every_kind_of_key(mall: Mall, rsa_key: rsa.RSAPrivateKey) -> None:
    curve = ec.generate_private_key(ec.SECP256R1())
    pss = rsa.generate_private_key(65537, 2048)
    mall.keys = [
        jwk_of(rsa_key, "RS256", kid="r"),
        jwk_of(pss, "RS256", kid="p", alg="PS256", use="sig"),
        jwk_of(curve, "ES256", kid="c", alg="ES256"),
        jwk_of(ED[0], "EdDSA", kid="e", x5t="whatever"),
        jwk_of(ED[1], "EdDSA"),
    ]
    async with asking(jwks_url=mall.url, secrets=[SECRET]) as asker:
        for key, algorithm, kid in (
            (rsa_key, "RS256", "r"),
            (pss, "PS256", "p"),
            (curve, "ES256", "c"),
            (ED[0], "EdDSA", "e"),
            (ED[1], "EdDSA", None),
        ):
            assert await asker.is_taken_for("buyer-7", signed(key, algorithm, kid=kid))
        assert await asker.is_taken_for("buyer-7", signed())
        # A key is for one algorithm, and one with a name is only for tokens that name it.
        assert await asker.is_refused(signed(rsa_key, "PS256", kid="r"))
        assert await asker.is_refused(signed(pss, "RS256", kid="p"))
        assert await asker.is_refused(signed(ED[0], "EdDSA", kid="r"))
        assert await asker.is_refused(signed(ED[0], "EdDSA"))
        assert await asker.is_refused(signed(ED[2], "EdDSA", kid="e"))
    assert mall.fetches == 1


async def test_members_that_are_of_no_use(mall: Mall, rsa_key: rsa.RSAPrivateKey) -> None:
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 - to be refused
    curve = ec.generate_private_key(ec.SECP384R1())
    secret = {"kty": "oct", "k": part(SECRET.encode()), "kid": "oct", "alg": "HS256"}
    private = dict(get_default_algorithms()["EdDSA"].to_jwk(ED[1], as_dict=True)) | {"kid": "1"}
    mall.keys = [
        secret,
        secret | {"kty": "RSA"},
        jwk_of(weak, "RS256", kid="weak"),
        jwk_of(curve, "ES384", kid="curve"),
        jwk_of(ED[2], "EdDSA", kid="2", use="enc"),
        jwk_of(ED[2], "EdDSA", kid="2", key_ops=["sign"]),
        jwk_of(ED[2], "EdDSA", kid="2", alg="HS256"),
        jwk_of(ED[2], "EdDSA", kid="2", alg="none"),
        jwk_of(ED[2], "EdDSA", kid="2", crv="Ed448"),
        jwk_of(ED[2], "EdDSA", kid=2),
        {"kty": "OKP", "crv": "Ed25519", "x": "!", "kid": "2"},
        {"kty": "EC", "crv": "P-256", "x": part(b"x" * 32), "y": part(b"y" * 32), "kid": "2"},
        {"kty": "RSA", "n": "AQAB", "kid": "2"},
        "key",
        private,
        jwk_of(ED[0], "EdDSA", kid="0"),
    ]
    async with asking(jwks_url=mall.url) as asker:
        assert await asker.is_taken_for("buyer-7", token("0"))
        # A private key that was published by mistake verifies like its public half.
        assert await asker.is_taken_for("buyer-7", token("1"))
        assert await asker.is_refused(token("2"))
        with warnings.catch_warnings(action="ignore"):
            assert await asker.is_refused(signed(weak, "RS256", kid="weak"))
        assert await asker.is_refused(by_hand({"alg": "HS256", "kid": "oct"}, claims()))
        assert await asker.is_refused(by_hand({"alg": "RS256", "kid": "oct"}, claims()))
        public = mall.keys[-1]["x"]
        for forged in (public, public.encode()):
            assert await asker.is_refused(by_hand({"alg": "HS256", "kid": "0"}, claims(), forged))


@pytest.mark.parametrize(
    "answer",
    [
        lambda: web.json_response({"keys": [jwk_of(ED[1], "EdDSA", kid="1")]}, status=500),
        lambda: web.Response(status=404, text='{"keys": []}'),
        lambda: web.Response(text=""),
        lambda: web.Response(text="<html>sign in</html>"),
        lambda: web.Response(body=b"\xff"),
        lambda: web.Response(text="[" * 50_000),
        lambda: web.json_response([]),
        lambda: web.json_response({"keys": {}}),
        lambda: web.json_response({"keys": []}),
        lambda: web.json_response({"keys": [{"kty": "oct", "k": "AAAA"}]}),
        lambda: web.json_response({"keys": [jwk_of(ED[1], "EdDSA", kid="1")] * 17}),
        lambda: web.json_response({"keys": [], "more": "x" * 70_000}),
        lambda: web.Response(status=302, headers={"Location": "/moved"}),
        lambda: web.Response(body=b"\x1f\x8b", headers={"Content-Encoding": "gzip"}),
    ],
)
async def test_an_answer_that_is_no_set_changes_nothing(
    mall: Mall, monkeypatch: pytest.MonkeyPatch, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    mall.publish("0")
    async with asking(jwks_url=mall.url) as asker:
        monkeypatch.setattr(jwks, "PAUSE_S", 0.0)
        asker.access._tokens._jwks._not_before_s = 0.0
        mall.answer = answer
        assert (await asker.ask(token("1"))).is_problem(503, "keys_unavailable")
        assert mall.fetches == 2
        assert await asker.is_taken_for("buyer-7", token("0"))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "keys cannot be fetched" in record.getMessage()


# -- keys come and go -----------------------------------------------------------------------------


async def test_a_new_key_is_fetched_when_a_token_names_it(
    mall: Mall, monkeypatch: pytest.MonkeyPatch
) -> None:
    mall.publish("0")
    async with asking(jwks_url=mall.url) as asker:
        assert await asker.is_taken_for("buyer-7", token("0"))
        assert mall.fetches == 1
        # It was fetched a moment ago, so a token with another name is simply wrong.
        mall.publish("0", "1")
        assert await asker.is_refused(token("1"), why="kid")
        assert mall.fetches == 1
        asker.access._tokens._jwks._not_before_s = 0.0
        mall.delay_s = 0.1
        answers = await asyncio.gather(
            *(asker.is_taken_for(f"b{n}", token("1", sub=f"b{n}")) for n in range(20))
        )
        assert all(answers)
        # Twenty buyers waited for one fetch.
        assert mall.fetches == 2
        # What has nothing to do with the set is not worth a fetch.
        asker.access._tokens._jwks._not_before_s = 0.0
        assert await asker.is_refused(by_hand({"alg": "HS256", "kid": "2"}, claims()))
        assert await asker.is_refused(by_hand({"alg": "none", "kid": "2"}, claims()))
        assert await asker.is_refused(by_hand({"alg": "EdDSA", "kid": "1"}, claims()))
        assert mall.fetches == 2


async def test_forged_names_do_not_flood_the_mall(
    mall: Mall, monkeypatch: pytest.MonkeyPatch
) -> None:
    mall.publish("0")
    async with asking(jwks_url=mall.url) as asker:
        asker.access._tokens._jwks._not_before_s = 0.0
        for number in range(100):
            assert await asker.is_refused(by_hand({"alg": "EdDSA", "kid": f"k{number}"}, claims()))
        assert mall.fetches == 2


async def test_a_withdrawn_key_is_refused_even_if_it_was_remembered(
    mall: Mall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "EVERY_S", 0.05)
    mall.publish("0", "1")
    async with asking(jwks_url=mall.url, secrets=[SECRET]) as asker:
        old, new = token("0"), token("1", sub="buyer-8")
        assert await asker.is_taken_for("buyer-7", old)
        assert asker.access.known(f"Bearer {old}") is not None
        mall.publish("1")
        await until(asker, old, 401)
        assert await asker.is_refused(old)
        assert await asker.is_taken_for("buyer-8", new)


async def test_a_key_replaced_under_its_name(mall: Mall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "EVERY_S", 0.05)
    mall.publish("0")
    async with asking(jwks_url=mall.url) as asker:
        old = token("0")
        assert await asker.is_taken_for("buyer-7", old)
        mall.keys = [jwk_of(ED[1], "EdDSA", kid="0")]
        await until(asker, old, 401)
        assert await asker.is_taken_for("buyer-7", signed(ED[1], "EdDSA", kid="0"))


async def test_a_key_that_is_added_makes_nobody_forgotten(
    mall: Mall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "EVERY_S", 0.05)
    mall.publish("0")
    async with asking(jwks_url=mall.url) as asker:
        old = token("0")
        assert await asker.is_taken_for("buyer-7", old)
        mall.publish("0", "1")
        await until(asker, token("1"), 200)
        assert asker.access.known(f"Bearer {old}") is not None


# -- the URL fails --------------------------------------------------------------------------------


async def test_an_outage(mall: Mall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "EVERY_S", 0.05)
    monkeypatch.setattr(jwks, "PAUSE_S", 0.05)
    mall.publish("0")
    async with asking(jwks_url=mall.url, secrets=[SECRET]) as asker:
        known = token("0")
        assert await asker.is_taken_for("buyer-7", known)
        mall.answer = lambda: web.Response(status=500)
        # Nobody can tell whether the mall has that key, so the buyer is asked to come again.
        await until(asker, token("1"), 503)
        answer = await asker.ask(token("1"))
        assert answer.is_problem(503, "keys_unavailable")
        # The keys that were there stay, for new tokens as well, and so do secrets.
        assert asker.access.known(f"Bearer {known}") is not None
        assert await asker.is_taken_for("b9", token("0", sub="b9"))
        assert await asker.is_taken_for("buyer-7", signed())
        assert await asker.is_refused(by_hand({"alg": "HS256"}, claims(), "forged"))
        mall.answer = None
        mall.publish("0", "1")
        await until(asker, token("1"), 200)


async def test_a_start_without_the_mall(monkeypatch: pytest.MonkeyPatch, unused_port: int) -> None:
    monkeypatch.setattr(jwks, "PAUSE_S", 0.05)
    url = f"http://127.0.0.1:{unused_port}/keys"
    async with asking(jwks_url=url, secrets=[SECRET]) as asker:
        assert (await asker.ask(token("0"))).is_problem(503, "keys_unavailable")
        assert await asker.is_taken_for("buyer-7", signed())
        mall = Mall()
        mall.publish("0")
        app = web.Application()
        app.add_routes([web.get("/keys", mall.handle)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", unused_port).start()
        await until(asker, token("0"), 200)
        await runner.cleanup()


@pytest.fixture
def unused_port() -> int:
    return free_port()


async def test_a_huge_answer(mall: Mall) -> None:
    mall.publish("0")
    async with asking(jwks_url=mall.url) as asker:
        asker.access._tokens._jwks._not_before_s = 0.0
        mall.endless = True
        assert (await asker.ask(token("1"))).is_problem(503, "keys_unavailable")
        assert await asker.is_taken_for("buyer-7", token("0"))
    # What the two sockets hold was on its way; the rest was never sent.
    assert mall.sent_bytes < 20_000_000


async def test_a_slow_answer(mall: Mall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "FETCH_S", 1.5)
    mall.publish("0")
    async with asking(jwks_url=mall.url) as asker:
        asker.access._tokens._jwks._not_before_s = 0.0
        mall.gate.clear()
        waiting = asyncio.create_task(asker.ask(token("1")))
        await until_fetched(mall, 2)
        # Only those who need it wait for it.
        assert await asker.is_taken_for("buyer-7", token("0"))
        assert await asker.is_taken_for("b9", token("0", sub="b9"))
        assert not waiting.done()
        assert (await waiting).is_problem(503, "keys_unavailable")
        # It was given up, and not waited for.
        assert (mall.fetches, mall.answers) == (2, 1)
        mall.gate.set()


async def test_few_wait_for_a_slow_answer(mall: Mall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "FETCH_S", 1.5)
    monkeypatch.setattr(jwks, "WAITING_MAX", 3)
    mall.publish("0")
    async with asking(jwks_url=mall.url) as asker:
        asker.access._tokens._jwks._not_before_s = 0.0
        mall.gate.clear()
        answers = await asyncio.gather(*(asker.ask(token("1", sub=f"b{n}")) for n in range(10)))
        codes = sorted(answer.code for answer in answers)
        assert codes == ["busy"] * 7 + ["keys_unavailable"] * 3
        assert mall.fetches == 2
        mall.gate.set()


async def test_closing_while_a_fetch_is_under_way(
    mall: Mall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "EVERY_S", 0.05)
    mall.publish("0")
    before = asyncio.all_tasks()
    async with asking(jwks_url=mall.url) as asker:
        mall.gate.clear()
        await until_fetched(mall, 2)
        await asker.access.aclose()
        ours = {task for task in asyncio.all_tasks() - before if "Jwks" in repr(task)}
        assert not ours
        mall.gate.set()
