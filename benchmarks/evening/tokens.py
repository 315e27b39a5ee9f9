"""User tokens, signed as the mall would: HS256 with the secret that it shares with the intake."""

from __future__ import annotations

from collections.abc import Mapping
from time import time
from typing import Any, Final

import jwt

__all__ = ["LIFE_S", "user_token"]

# Longer than any evening, so that a token that is refused as expired is a broken promise.
LIFE_S: Final = 12 * 3_600


def user_token(buyer: str, secret: str, claims: Mapping[str, Any]) -> str:
    """A token of this buyer. ``claims`` are further ones, such as the audience."""
    now = int(time())
    body = {"sub": buyer, "iat": now, "exp": now + LIFE_S, **claims}
    return jwt.encode(body, secret, algorithm="HS256")
