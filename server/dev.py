"""Development: an intake with keys of its own, which live as long as it does, for this machine."""

from __future__ import annotations

import secrets
from hashlib import sha256
from time import time
from typing import Final, get_args

import jwt
import msgspec
from pydantic import SecretStr

from seckill.errors import InvalidInput

from .api_keys import PREFIX
from .gate import with_secret
from .listen import is_loopback
from .settings import ApiKey, Scope, Settings, Users

__all__ = ["Dev"]

BUYER: Final = "buyer-1"
TOKEN_S: Final = 24 * 3_600


class Dev(msgspec.Struct, frozen=True):
    """What one `seckill serve --dev` is entered with: an API key of every scope, and the secret of
    its user tokens. Made once, so that settings read again do not change them."""

    key: str
    secret: str

    @classmethod
    def new(cls) -> Dev:
        """Fresh ones."""
        return cls(PREFIX + secrets.token_urlsafe(32), secrets.token_urlsafe(48))

    def added_to(self, settings: Settings) -> Settings:
        """These settings, which also accept the key and the secret.

        Raises InvalidInput where others could connect: they may well read what is printed here.
        """
        if not settings.server.unix and not is_loopback(settings.server.host):
            raise InvalidInput(
                "--dev",
                f"is for this machine only, and others can reach {settings.server.host}",
                "serve on 127.0.0.1, ::1 or a unix socket, or make keys with `seckill key new`",
            )
        digest = sha256(self.key.encode()).hexdigest()
        key = ApiKey(name="dev", hash=f"sha256:{digest}", scopes=get_args(Scope))
        users = settings.users
        added = (*users.secrets, SecretStr(self.secret))
        return settings.model_copy(
            update={
                "keys": (*settings.keys, key),
                "users": users.model_copy(update={"secrets": added}),
                "gate": with_secret(settings.gate),
            }
        )

    def user_token(self, users: Users) -> str:
        """A user token of the buyer ``buyer-1``, for a day."""
        claims: dict[str, object] = {users.buyer_claim: BUYER, "exp": int(time()) + TOKEN_S}
        if users.issuer:
            claims["iss"] = users.issuer
        if users.audience:
            claims["aud"] = users.audience
        return jwt.encode(claims, self.secret, algorithm="HS256")
