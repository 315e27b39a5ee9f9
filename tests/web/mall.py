"""What the tests of access share: a mall that signs user tokens, and an application on a real
socket that says whom it takes a caller for.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import time
from typing import Any

import aiohttp
import jwt
from aiohttp import web
from aiohttp.typedefs import Handler
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import get_default_algorithms

from tests.web.intake import Answer, serving

access = importlib.import_module("seckill.server.access")
problems = importlib.import_module("seckill.server.problems")
settings = importlib.import_module("seckill.server.settings")

__all__ = [
    "SECRET",
    "Asker",
    "asking",
    "by_hand",
    "claims",
    "jwk_of",
    "part",
    "pem_of",
    "problems_answered",
    "signed",
]

# Long enough for HS512 as well, with which it must not be used.
SECRET = "shared-by-the-mall-and-the-intake-" * 2


def claims(**changed: Any) -> dict[str, Any]:
    """What a token says; a claim that is None is left out."""
    said = {"sub": "buyer-7", "exp": int(time()) + 600} | changed
    return {name: value for name, value in said.items() if value is not None}


def signed(
    key: Any = SECRET, algorithm: str = "HS256", *, kid: str | None = None, **changed: Any
) -> str:
    """A user token as the mall makes it, with PyJWT."""
    headers = None if kid is None else {"kid": kid}
    return jwt.encode(claims(**changed), key, algorithm, headers)


def part(value: Any) -> str:
    """One part of a token; bytes are taken as they are."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def by_hand(header: Any, payload: Any, secret: str | bytes = SECRET) -> str:
    """A token that no library would make, signed with HMAC-SHA-256 whatever its header says."""
    body = f"{part(header)}.{part(payload)}"
    data = secret if isinstance(secret, bytes) else secret.encode()
    return f"{body}.{part(hmac.digest(data, body.encode(), hashlib.sha256))}"


def pem_of(key: Any) -> bytes:
    """The public PEM of a private key."""
    return bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def jwk_of(key: Any, algorithm: str, **fields: Any) -> dict[str, Any]:
    """The public JWK of a private key."""
    return dict(get_default_algorithms()[algorithm].to_jwk(key.public_key(), as_dict=True)) | fields


@web.middleware
async def problems_answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Exception as error:  # noqa: BLE001 - as the intake's own middleware does
        return problems.answer_to(error, "request-1")


class Asker:
    """Asks an application whom it takes us for."""

    def __init__(self, session: aiohttp.ClientSession, base: str, knows: Any) -> None:
        self.session = session
        self.base = base
        self.access = knows

    async def send(self, *headers: tuple[str, str]) -> Answer:
        async with self.session.get(self.base, headers=headers) as response:
            return Answer(response, await response.read())

    async def ask(self, proof: str) -> Answer:
        return await self.send(("Authorization", f"Bearer {proof}"))

    async def is_taken_for(self, buyer: str, proof: str, tier: str = "") -> bool:
        answer = await self.ask(proof)
        assert answer.http == 200, answer.body
        return bool(answer.json == {"buyer": buyer, "scopes": [], "tier": tier, "name": ""})

    async def is_refused(self, proof: str, code: str = "unauthenticated", why: str = "") -> bool:
        answer = await self.ask(proof)
        assert answer.is_problem(401, code)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.json["field"] == "Authorization"
        assert why in answer.json.get("detail", ""), answer.json
        # A log or a screen may show the answer, so it must not tell the proof.
        assert proof not in answer.body.decode()
        assert self.access.known(f"Bearer {proof}") is None
        return True


@asynccontextmanager
async def asking(keys: Sequence[Any] = (), **users: Any) -> AsyncIterator[Asker]:
    """An application whose only handler answers the caller as JSON."""
    knows = access.Access(settings.Users(**users), keys)

    async def who(request: web.Request) -> web.Response:
        caller = await knows.identify(request)
        said = {"buyer": caller.buyer, "tier": caller.tier, "name": caller.name}
        return web.json_response(said | {"scopes": sorted(caller.scopes)})

    app = web.Application(middlewares=[problems_answered])
    app.add_routes([web.get("/", who)])
    await knows.start()
    try:
        async with serving(app) as base, aiohttp.ClientSession() as session:
            yield Asker(session, base, knows)
    finally:
        await knows.aclose()
