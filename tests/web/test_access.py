"""Who a request is from: how proof travels, API keys, and what is remembered of user tokens."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from typing import Any

import pytest

from seckill.errors import InvalidInput
from tests.web.mall import SECRET, access, asking, by_hand, claims, settings, signed

BACKEND = "sk_" + "b" * 43
ADMIN = "sk_" + "a" * 43


def entry(key: str, *scopes: str, name: str = "mall") -> Any:
    hash_ = f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    return settings.ApiKey(name=name, hash=hash_, scopes=scopes)


# -- the header -------------------------------------------------------------------------------


async def test_without_proof() -> None:
    async with asking(secrets=[SECRET]) as mall:
        answer = await mall.send()
        assert answer.is_problem(401, "unauthenticated")
        assert answer.json["field"] == "Authorization"
        assert "Bearer" in answer.json["detail"]


async def test_with_proof_in_another_form() -> None:
    token = signed()
    async with asking([entry(BACKEND, "backend")], secrets=[SECRET]) as mall:
        for value in (
            "",
            "Bearer",
            "Bearer ",
            token,
            BACKEND,
            f"Basic {token}",
            f"Token {token}",
            f"Bearer: {token}",
            f"Bearer  {token}",
            f"Bearer\t{token}",
            f'Bearer "{token}"',
            f"Bearer {token}, Bearer {token}",
            f"Bearer {token} {token}",
            f"Bearer {BACKEND} {token}",
            f"Bearer {'x' * 5000}",
            f"Bearer sk_{'x' * 5000}",
        ):
            answer = await mall.send(("Authorization", value))
            assert answer.is_problem(401, "unauthenticated"), value
        assert not mall.access._young


async def test_two_headers_are_not_one_proof() -> None:
    async with asking(secrets=[SECRET]) as mall:
        mine, his = f"Bearer {signed()}", f"Bearer {signed(sub='buyer-8')}"
        for pair in ((mine, his), (mine, mine), (mine, "")):
            answer = await mall.send(*(("Authorization", value) for value in pair))
            assert answer.is_problem(400, "invalid_input")
            assert answer.json["field"] == "Authorization"


async def test_the_scheme_ignores_case_and_is_remembered_once() -> None:
    async with asking(secrets=[SECRET]) as mall:
        token = signed()
        for scheme in ("bearer", "BEARER", "bEaReR", "Bearer"):
            answer = await mall.send(("Authorization", f"{scheme} {token}"))
            assert answer.json["buyer"] == "buyer-7"
        assert len(mall.access._young) == 1
        assert mall.access.known(f"Bearer {token}").buyer == "buyer-7"


async def test_bytes_that_are_no_text() -> None:
    async with asking([entry(BACKEND, "backend")], secrets=[SECRET]) as mall:
        for proof in ("sk_秒杀", "sk_\udcff", "\udcff.\udcff.\udcff"):
            request = f"Bearer {proof}".encode("utf-8", "surrogateescape")
            host, port = mall.base.removeprefix("http://").split(":")
            answer = await raw(host, int(port), request)
            assert answer.startswith(b"HTTP/1.1 401 "), answer


async def raw(host: str, port: int, authorization: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: "
        + authorization
        + b"\r\n\r\n"
    )
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


# -- API keys ---------------------------------------------------------------------------------


async def test_an_api_key() -> None:
    keys = [entry(BACKEND, "backend", "metrics"), entry(ADMIN, "admin", name="ops")]
    async with asking(keys, secrets=[SECRET]) as mall:
        answer = await mall.ask(BACKEND)
        expected = {"buyer": "", "tier": "", "name": "mall", "scopes": ["backend", "metrics"]}
        assert answer.json == expected
        # A key has the scopes of its own entry and no others.
        answer = await mall.ask(ADMIN)
        assert answer.json == {"buyer": "", "tier": "", "name": "ops", "scopes": ["admin"]}


async def test_a_key_wrong_by_one_byte() -> None:
    async with asking([entry(BACKEND, "backend"), entry(ADMIN, "admin")]) as mall:
        for at in range(len(BACKEND)):
            wrong = BACKEND[:at] + "c" + BACKEND[at + 1 :]
            assert await mall.is_refused(wrong)
        for wrong in (BACKEND[:-1], BACKEND + "b", "sk_", "sk_" + ADMIN, BACKEND.upper()):
            assert await mall.is_refused(wrong)
        # What the settings hold is no key.
        hash_ = entry(BACKEND, "backend").hash
        assert await mall.is_refused(hash_)
        assert await mall.is_refused("sk_" + hash_.removeprefix("sha256:"))
        assert (await mall.ask(BACKEND)).http == 200


async def test_a_key_is_no_user_token_and_is_not_remembered() -> None:
    async with asking([entry(BACKEND, "backend")]) as mall:
        assert (await mall.ask(BACKEND)).http == 200
        assert mall.access.known(f"Bearer {BACKEND}") is None
        assert not mall.access._young


async def test_rotation_of_a_key() -> None:
    new = "sk_" + secrets.token_urlsafe(32)
    async with asking([entry(BACKEND, "backend"), entry(new, "backend")]) as mall:
        for key in (BACKEND, new):
            assert (await mall.ask(key)).json["name"] == "mall"
    async with asking([entry(new, "backend")]) as mall:
        assert await mall.is_refused(BACKEND)
        assert (await mall.ask(new)).http == 200


def test_a_key_that_is_there_twice() -> None:
    keys = [entry(BACKEND, "backend"), entry(ADMIN, "admin"), entry(BACKEND, "admin", name="ops")]
    with pytest.raises(InvalidInput, match=r"keys\[2\].hash") as refusal:
        access.Access(settings.Users(), keys)
    assert "mall" in refusal.value.problem


@pytest.mark.parametrize(
    "wrong",
    [
        {"hash": "sha256:" + "0" * 63},
        {"hash": BACKEND},
        {"scopes": ()},
        {"scopes": ("everything",)},
        {"name": "a b"},
    ],
)
def test_entries_that_are_none(wrong: dict[str, Any]) -> None:
    right = {"name": "mall", "hash": "sha256:" + "0" * 64, "scopes": ("backend",)}
    settings.ApiKey(**right)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        settings.ApiKey(**right | wrong)


# -- what is remembered -----------------------------------------------------------------------


def remembered(mall: Any, tokens: list[str]) -> list[bool]:
    # Looking at one moves it to the young, so this looks at all of them only once.
    old, young = mall.access._old, mall.access._young
    return [f"Bearer {token}" in old or f"Bearer {token}" in young for token in tokens]


async def test_a_flood_of_valid_tokens_does_not_grow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "REMEMBERED_MAX", 50)
    tokens = [signed(sub=f"buyer-{number}") for number in range(400)]
    async with asking(secrets=[SECRET]) as mall:
        most = 0
        for number, token in enumerate(tokens):
            assert await mall.is_taken_for(f"buyer-{number}", token)
            # One buyer comes all the time and is never forgotten.
            assert mall.access.known(f"Bearer {tokens[0]}").buyer == "buyer-0"
            most = max(most, len(mall.access._young) + len(mall.access._old))
        assert 50 < most <= 100
        assert all(remembered(mall, tokens[-49:]))
        assert sum(remembered(mall, tokens)) <= 100
        # Who was forgotten is verified once more.
        assert not remembered(mall, tokens[1:2])[0]
        assert await mall.is_taken_for("buyer-1", tokens[1])


async def test_long_tokens_do_not_grow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "REMEMBERED_CHARS_MAX", 100_000)
    async with asking(secrets=[SECRET]) as mall:
        for number in range(200):
            token = signed(sub=f"buyer-{number}", note="x" * 2500)
            assert await mall.is_taken_for(f"buyer-{number}", token)
            kept = [*mall.access._young, *mall.access._old]
            assert sum(map(len, kept)) <= 2 * (100_000 + 4096)
        assert len(kept) > 20


async def test_what_was_refused_is_not_remembered() -> None:
    async with asking(secrets=[SECRET]) as mall:
        for number in range(50):
            assert await mall.is_refused(by_hand({"alg": "HS256"}, claims(), f"forged {number}"))
            assert await mall.is_refused(signed(exp=1 + number), "token_expired")
        assert not mall.access._young
        assert not mall.access._old


async def test_another_buyers_token_is_not_mine() -> None:
    """The whole header is the key, so tokens that begin alike are told apart."""
    async with asking(secrets=[SECRET]) as mall:
        tokens = [signed(sub=f"buyer-{number}") for number in range(20)]
        for _ in range(2):
            for number, token in enumerate(tokens):
                assert await mall.is_taken_for(f"buyer-{number}", token)
        assert mall.access.known(f"Bearer {tokens[0][:-1]}") is None
        assert mall.access.known("") is None
