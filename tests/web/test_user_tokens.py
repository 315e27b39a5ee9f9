"""User tokens: only what the mall has signed for us and for now says who a buyer is."""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from time import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.web.mall import SECRET, asking, by_hand, claims, part, pem_of, settings, signed

user_keys = importlib.import_module("seckill.server.user_keys")

GUIDE = Path(__file__).parents[2] / "docs" / "access.md"
OTHER = "another-one-that-is-long-enough-too-" * 2
HS256 = {"alg": "HS256", "typ": "JWT"}
HOUR_AGO = int(time()) - 3600
NEXT_HOUR = int(time()) + 3600


@pytest.fixture(scope="session")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def key_file(folder: Path, key: Any, name: str = "mall.pem") -> str:
    path = folder / name
    path.write_bytes(key if isinstance(key, bytes) else pem_of(key))
    return str(path)


# -- signatures -------------------------------------------------------------------------------


async def test_a_token_of_the_mall() -> None:
    async with asking(secrets=[SECRET]) as mall:
        assert await mall.is_taken_for("buyer-7", signed())
        assert await mall.is_taken_for("buyer-8", signed(sub="buyer-8"))


@pytest.mark.parametrize(
    "token",
    [
        signed(OTHER),
        signed(SECRET, "HS512"),
        by_hand(HS256, claims(), SECRET + "x"),
        by_hand({"alg": "none"}, claims()),
        by_hand({"alg": "None"}, claims()),
        by_hand({"alg": "hs256"}, claims()),
        by_hand({"alg": "HS384"}, claims()),
        by_hand({"alg": "RS256"}, claims()),
        by_hand({"alg": ""}, claims()),
        by_hand({"typ": "JWT"}, claims()),
        by_hand(HS256 | {"alg": ["HS256"]}, claims()),
        by_hand(HS256 | {"kid": 7}, claims()),
        by_hand(HS256 | {"crit": ["exp"], "exp": 1}, claims()),
        by_hand(HS256 | {"crit": ["b64"], "b64": False}, claims()),
        by_hand(HS256 | {"b64": False}, claims()),
        by_hand([], claims()),
        by_hand(b"{", claims()),
        by_hand(b"\xff", claims()),
        by_hand(b"[" * 1500, claims()),
        by_hand(HS256, []),
        by_hand(HS256, b"{"),
        by_hand(HS256, b"\xff"),
        by_hand(HS256, b"[" * 1500),
        by_hand(HS256, b'{"sub": "buyer-7", "exp": NaN}'),
        # alg none, as the attack is told: with nothing where the signature was.
        f"{part({'alg': 'none'})}.{part(claims())}.",
        f"{part({'alg': 'none'})}.{part(claims())}",
        signed().rpartition(".")[0] + ".",
        signed().rpartition(".")[0],
        signed() + "=",
        signed() + ".x",
        "..",
        "a.b.c",
        "秒.杀.场",
    ],
    # The tokens themselves differ from one second to the next.
    ids=lambda _: "token",
)
async def test_forged(token: str) -> None:
    async with asking(secrets=[SECRET]) as mall:
        assert await mall.is_refused(token)


async def test_every_tampered_part_is_found() -> None:
    token = signed()
    header, payload, signature = token.split(".")
    async with asking(secrets=[SECRET]) as mall:
        assert await mall.is_refused(f"{header}.{part(claims(sub='buyer-8'))}.{signature}")
        assert await mall.is_refused(f"{part({'alg': 'HS256'})}.{payload}.{signature}")
        for at in range(0, len(token) - 1, 7):
            if token[at] != ".":
                other = "A" if token[at] != "A" else "B"
                assert await mall.is_refused(token[:at] + other + token[at + 1 :])
        assert await mall.is_taken_for("buyer-7", token)


@pytest.mark.parametrize("kind", ["RS256", "EdDSA", "ES256"])
async def test_public_key_files(kind: str, rsa_key: rsa.RSAPrivateKey, tmp_path: Path) -> None:
    make: dict[str, Any] = {
        "RS256": lambda: rsa.generate_private_key(65537, 2048),
        "EdDSA": ed25519.Ed25519PrivateKey.generate,
        "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    }
    key, other = make[kind](), make[kind]()
    async with asking(key_files=[key_file(tmp_path, key)], secrets=[SECRET]) as mall:
        assert await mall.is_taken_for("buyer-7", signed(key, kind))
        assert await mall.is_taken_for("buyer-7", signed(key, kind, kid="whatever"))
        assert await mall.is_taken_for("buyer-7", signed())
        assert await mall.is_refused(signed(other, kind), why="fits none")


async def test_a_public_key_is_no_secret(rsa_key: rsa.RSAPrivateKey, tmp_path: Path) -> None:
    """Everybody may read it, so whatever was signed with it proves nothing."""
    pem = pem_of(rsa_key)
    der = rsa_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for secrets in ([], [SECRET]):
        async with asking(key_files=[key_file(tmp_path, rsa_key)], secrets=secrets) as mall:
            for algorithm in ("HS256", "RS256", "HS512", "none"):
                for secret in (pem, pem.strip(), der, b""):
                    forged = by_hand({"alg": algorithm}, claims(), secret)
                    assert await mall.is_refused(forged)
            assert await mall.is_taken_for("buyer-7", signed(rsa_key, "RS256"))
            # A file's key is for one algorithm only.
            assert await mall.is_refused(signed(rsa_key, "PS256"), why="alg")
            assert await mall.is_refused(signed(rsa_key, "RS512"), why="alg")


def test_a_signature_has_one_spelling() -> None:
    """The last character of base64 has bits to spare."""
    shared, whole = user_keys.from_secret(SECRET), signed()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    taken = [last for last in alphabet if user_keys.signed_with(shared, whole[:-1] + last)]
    assert taken == [whole[-1]]


def test_a_key_has_one_algorithm(rsa_key: rsa.RSAPrivateKey) -> None:
    """Even if a token is tried with a key that it does not fit."""
    public = user_keys.Key("RS256", rsa_key.public_key())
    assert user_keys.signed_with(public, signed(rsa_key, "RS256")) is not None
    assert user_keys.signed_with(public, signed(rsa_key, "PS256")) is None
    assert user_keys.signed_with(public, by_hand(HS256, claims(), pem_of(rsa_key))) is None
    shared = user_keys.from_secret(SECRET)
    assert user_keys.signed_with(shared, signed()) is not None
    # Which keys are tried is said by the header, and by nothing else.
    assert shared.fits("HS256", "any")
    assert not any(shared.fits(other, "") for other in ("none", "hs256", "RS256", ""))


async def test_extensions_that_must_be_understood() -> None:
    async with asking(secrets=[SECRET]) as mall:
        for crit in (["exp"], ["b64"], [], "exp", None):
            forged = by_hand(HS256 | {"crit": crit, "exp": 1, "b64": True}, claims())
            assert await mall.is_refused(forged, why="crit")


async def test_rotation_of_a_secret() -> None:
    """First the intake learns the new one, then the mall signs with it, then the old one goes."""
    old, new = signed(), signed(OTHER, sub="buyer-8")
    async with asking(secrets=[SECRET]) as mall:
        assert await mall.is_taken_for("buyer-7", old)
        assert await mall.is_refused(new)
    for both in ([OTHER, SECRET], [SECRET, OTHER]):
        async with asking(secrets=both) as mall:
            assert await mall.is_taken_for("buyer-7", old)
            assert await mall.is_taken_for("buyer-8", new)
            # That it was signed with the second key must not hide what else is wrong.
            for secret in both:
                assert await mall.is_refused(signed(secret, exp=HOUR_AGO), "token_expired")
    async with asking(secrets=[OTHER]) as mall:
        assert await mall.is_refused(old, why="fits none")
        assert await mall.is_taken_for("buyer-8", new)


async def test_without_any_key() -> None:
    async with asking() as mall:
        assert await mall.is_refused(signed(), why="takes no user tokens")
        assert await mall.is_refused(by_hand({"alg": "none"}, claims()))


# -- claims -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"exp": None}, "no exp"),
        ({"exp": "soon"}, "exp"),
        ({"exp": str(NEXT_HOUR)}, "exp"),
        ({"exp": True}, "exp"),
        ({"exp": [NEXT_HOUR]}, "exp"),
        ({"exp": NEXT_HOUR * 1000}, "claim exp of the user token is years ahead: in milliseconds?"),
        ({"exp": 10**400}, "in milliseconds?"),
        ({"exp": 1e300}, "in milliseconds?"),
        ({"exp": -(10**400)}, "exp of the user token is no time"),
        ({"nbf": 10**400}, "nbf of the user token is years ahead: in milliseconds?"),
        ({"nbf": -(10**400)}, "nbf of the user token is no time"),
        ({"nbf": NEXT_HOUR}, "nbf"),
        ({"nbf": "now"}, "nbf"),
        ({"sub": None}, "claim sub"),
        ({"sub": ""}, "claim sub"),
        ({"sub": "a b"}, "claim sub"),
        ({"sub": "a,b"}, "claim sub"),
        ({"sub": "a|b"}, "claim sub"),
        ({"sub": "a\nb"}, "claim sub"),
        ({"sub": "a\x00"}, "claim sub"),
        ({"sub": "买家"}, "claim sub"),
        ({"sub": "x" * 65}, "claim sub"),
        ({"sub": ["buyer-7"]}, "claim sub"),
        ({"sub": {"id": "buyer-7"}}, "claim sub"),
        ({"sub": True}, "claim sub"),
        ({"sub": 1.5}, "claim sub"),
        ({"aud": "seckill"}, "aud"),
        ({"aud": ["seckill"]}, "aud"),
    ],
)
async def test_claims_that_are_refused(changed: dict[str, Any], why: str) -> None:
    token = by_hand(HS256, claims(**changed))
    async with asking(secrets=[SECRET]) as mall:
        assert await mall.is_refused(token, why=why)


async def test_expired() -> None:
    async with asking(secrets=[SECRET]) as mall:
        for exp in (HOUR_AGO, HOUR_AGO + 0.5, 0, -1, -1e300):
            assert await mall.is_refused(by_hand(HS256, claims(exp=exp)), "token_expired")
            # Whether a forged token has expired is nobody's business.
            assert await mall.is_refused(by_hand(HS256, claims(exp=exp), OTHER))


async def test_leeway() -> None:
    async with asking(secrets=[SECRET], leeway_s=30) as mall:
        assert await mall.is_taken_for("buyer-7", signed(exp=int(time()) - 20))
        assert await mall.is_refused(signed(exp=int(time()) - 31), "token_expired")
        assert await mall.is_taken_for("buyer-7", signed(nbf=int(time()) + 20))
        assert await mall.is_refused(signed(nbf=int(time()) + 40), why="nbf")


async def test_issuer_and_audience() -> None:
    expected = {"issuer": "https://mall.example", "audience": "seckill"}
    right = {"iss": "https://mall.example", "aud": "seckill"}
    async with asking(secrets=[SECRET], **expected) as mall:
        assert await mall.is_taken_for("buyer-7", signed(**right))
        assert await mall.is_taken_for("buyer-7", signed(**(right | {"aud": ["x", "seckill"]})))
        for iss in (None, "", "https://mall.example/", "https://evil.example"):
            assert await mall.is_refused(signed(**(right | {"iss": iss})), why="iss")
        assert await mall.is_refused(by_hand(HS256, claims(**right) | {"iss": ["x"]}))
        none = by_hand(HS256, claims(**(right | {"aud": None})))
        assert await mall.is_refused(none, why="has no aud; this intake wants users.audience")
        for aud in (None, "", "Seckill", "xseckill", [], ["x"], ["seckill-admin"], {"seckill": 1}):
            assert await mall.is_refused(by_hand(HS256, claims(**(right | {"aud": aud}))))


async def test_claims_of_ones_own() -> None:
    async with asking(secrets=[SECRET], buyer_claim="uid", tier_claim="level") as mall:
        assert await mall.is_taken_for("m-1", signed(uid="m-1", sub=None), "")
        assert await mall.is_taken_for("m-2", signed(uid="m-2", level="金卡"), "金卡")
        # A mall that numbers its members and tiers.
        assert await mall.is_taken_for("81", by_hand(HS256, claims(sub=5, uid=81, level=3)), "3")
        assert await mall.is_refused(signed(), why="claim uid")
        for level in (["gold"], True, 1.5, "x" * 65, "a\nb"):
            assert await mall.is_refused(signed(uid="m-1", level=level), why="claim level")


async def test_a_long_token_is_refused_before_any_work() -> None:
    long = signed(note="x" * 4096)
    async with asking(secrets=[SECRET]) as mall:
        assert await mall.is_refused(long, why="longer than 4096")
        assert await mall.is_taken_for("buyer-7", signed(note="x" * 2000))


async def test_a_token_runs_out_while_it_is_remembered() -> None:
    async with asking(secrets=[SECRET], leeway_s=0) as mall:
        for life_s in (2, 30):
            # On a machine that stood still, its end comes before it was remembered: then once more.
            exp = time() + life_s
            token = by_hand(HS256, claims(exp=exp))
            taken = await mall.is_taken_for("buyer-7", token)
            known = mall.access.known(f"Bearer {token}")
            if time() < exp:
                break
        assert taken
        assert known.buyer == "buyer-7"
        await asyncio.sleep(exp - time() + 0.1)
        assert mall.access.known(f"Bearer {token}") is None
        assert await mall.is_refused(token, "token_expired")


# -- settings ---------------------------------------------------------------------------------


def refusal_of(**users: Any) -> str:
    with pytest.raises(ValueError, match="users") as refusal:
        settings.Users(**users)
    return str(refusal.value)


def test_secrets_that_are_none(rsa_key: rsa.RSAPrivateKey) -> None:
    for secret in ("", "x" * 31, "hunter2"):
        said = refusal_of(secrets=[SECRET, secret])
        assert "secrets.1" in said
        assert f"{len(secret)} bytes" in said
        assert "hunter2" not in said
    pem = pem_of(rsa_key).decode()
    said = refusal_of(secrets=[pem])
    assert "key file" in said
    assert pem.splitlines()[2] not in said
    # 16 characters of three bytes each.
    settings.Users(secrets=["秒" * 11])


def test_key_files_that_are_none(rsa_key: rsa.RSAPrivateKey, tmp_path: Path) -> None:
    private = rsa_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 - to be refused
    curve = ec.generate_private_key(ec.SECP384R1())
    for content, why in (
        (b"", "is not the PEM file"),
        (b"\xff" * 100, "is not the PEM file"),
        (pem_of(rsa_key)[:200], "is not the PEM file"),
        (private, "holds a private key"),
        (weak, "another kind or size"),
        (curve, "another kind or size"),
    ):
        path = key_file(tmp_path, content)
        assert why in refusal_of(key_files=[path])
    for path in (str(tmp_path), str(tmp_path / "none.pem"), "a\x00b", ""):
        assert "cannot be read" in refusal_of(key_files=[path])


@pytest.mark.parametrize(
    "url",
    [
        "http://mall.example/keys",
        "http://10.0.0.1/keys",
        "http://localhost.mall.example/keys",
        "ftp://mall.example/keys",
        "file:///etc/passwd",
        "mall.example/keys",
        "https:///keys",
        "https://[::1/keys",
        "nonsense",
    ],
)
def test_urls_that_keys_must_not_come_from(url: str) -> None:
    assert "https" in refusal_of(jwks_url=url)


def test_urls_that_keys_may_come_from() -> None:
    for url in (
        "https://mall.example/keys",
        "http://127.0.0.1:8000/keys",
        "http://[::1]:8000/keys",
        "http://localhost/keys",
        "",
    ):
        assert settings.Users(jwks_url=url).jwks_url == url


# -- the guide --------------------------------------------------------------------------------


def examples(language: str) -> list[str]:
    text = GUIDE.read_text(encoding="utf-8")
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", text)


@pytest.mark.parametrize(
    ("language", "suffix", "command"), [("php", ".php", "php"), ("java", ".java", "java")]
)
async def test_how_a_mall_signs(language: str, suffix: str, command: str, tmp_path: Path) -> None:
    if shutil.which(command) is None:
        pytest.skip(f"there is no {command} here")
    (source,) = examples(language)
    program = tmp_path / f"UserToken{suffix}"
    program.write_text(source, encoding="utf-8")
    token = await asyncio.to_thread(
        lambda: subprocess.run(
            [command, program],
            env=os.environ | {"USER_TOKEN_SECRET": SECRET},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.strip()
    )
    async with asking(secrets=[SECRET], audience="seckill") as mall:
        assert await mall.is_taken_for("buyer-7", token)
    said = jwt.decode(token, SECRET, ["HS256"], audience="seckill")
    assert said["exp"] == pytest.approx(time() + 7200, abs=60)
    header = token.partition(".")[0]
    assert json.loads(base64.urlsafe_b64decode(header + "==")) == HS256


def test_settings_of_the_guide(rsa_key: rsa.RSAPrivateKey, tmp_path: Path) -> None:
    written = examples("ini")
    assert len(written) >= 3
    for text in written:
        here = text.replace("/etc/seckill/mall.pem", key_file(tmp_path, rsa_key))
        tables = tomllib.loads(here)
        if "secrets" in tables.get("users", {}):
            # load.py puts the text of the file in its place.
            tables["users"]["secrets"] = [SECRET for _ in tables["users"]["secrets"]]
        settings.Settings(**tables)
