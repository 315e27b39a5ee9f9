"""Who sends a request: the proof in ``Authorization: Bearer …`` is a user token or an API key.

A user token that was verified is remembered until it expires, by the whole header, so a buyer's
next request costs one look into a dict. What was refused is never remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import time
from typing import Final

from aiohttp import web

from seckill.errors import InvalidInput

from .api_keys import PREFIX, ApiKeys
from .caller import Caller
from .settings import ApiKey, Users
from .user_tokens import UserTokens, Verified, refuse

__all__ = ["Access"]

CHARS_MAX: Final = 4096
# Of each of the two generations.
REMEMBERED_MAX: int = 50_000
REMEMBERED_CHARS_MAX: int = 32 * 1024 * 1024

_HEADER: Final = "Authorization"
_SCHEME: Final = "bearer"


class Access:
    """Knows the mall's buyers by their user tokens, and its programs by their keys."""

    def __init__(self, users: Users, keys: Sequence[ApiKey]) -> None:
        """Raises InvalidInput for a key that is none."""
        self._tokens = UserTokens(users, self._forget)
        self._keys = ApiKeys(keys)
        # Whoever comes moves to the young. When they are full, the old are forgotten and the young
        # grow old: memory stays bounded without a list of who came last.
        self._young: dict[str, Verified] = {}
        self._old: dict[str, Verified] = {}
        self._young_chars = 0

    async def start(self) -> None:
        """Fetches the keys that the mall publishes, and keeps them up to date."""
        await self._tokens.start()

    async def aclose(self) -> None:
        """Ends that."""
        await self._tokens.aclose()

    def known(self, authorization: str) -> Caller | None:
        """The buyer whose user token this header carries, if it was verified before and has not
        expired. None says nothing: ask ``identify``."""
        verified = self._young.get(authorization)
        if verified is None:
            verified = self._old.get(authorization)
            if verified is None:
                return None
            self._remember(authorization, verified)
        return verified.caller if time() < verified.until_s else None

    async def identify(self, request: web.Request) -> Caller:
        """Whoever sends this request. Raises Problem (UNAUTHENTICATED, TOKEN_EXPIRED, or 503 while
        the mall's keys can't be had) and InvalidInput for a header that is there twice."""
        values = request.headers.getall(_HEADER, ())
        if len(values) > 1:
            # Whoever stands before us may look at the first and we at the last.
            raise InvalidInput(_HEADER, "is there more than once", "send this header once")
        if not values:
            refuse("send the header Authorization: Bearer, with a user token or an API key")
        return self.known(values[0]) or await self._verify(values[0])

    def recognized(self, authorization: str) -> Caller | None:
        """The same of a user token that can be verified with the keys that are here. Raises Problem
        where ``identify`` would; None says nothing."""
        proof = _proof_in(authorization)
        if proof.startswith(PREFIX):
            return None
        header = _header_of(proof)
        caller = self.known(header)
        if caller is None:
            verified = self._tokens.verify_now(proof)
            caller = None if verified is None else self._remembered(header, verified)
        return caller

    async def _verify(self, authorization: str) -> Caller:
        proof = _proof_in(authorization)
        if proof.startswith(PREFIX):
            caller = self._keys.find(proof)
            return refuse("nobody has this API key") if caller is None else caller
        header = _header_of(proof)
        return self.known(header) or self._remembered(header, await self._tokens.verify(proof))

    def _remembered(self, header: str, verified: Verified) -> Caller:
        self._remember(header, verified)
        return verified.caller

    def _remember(self, header: str, verified: Verified) -> None:
        if len(self._young) >= REMEMBERED_MAX or self._young_chars > REMEMBERED_CHARS_MAX:
            self._old, self._young, self._young_chars = self._young, {}, 0
        self._young[header] = verified
        self._young_chars += len(header)

    def _forget(self) -> None:
        """A key was withdrawn, and nobody knows any more who was verified with it."""
        self._old, self._young, self._young_chars = {}, {}, 0


def _proof_in(authorization: str) -> str:
    if len(authorization) > CHARS_MAX:
        refuse(f"it is longer than {CHARS_MAX} characters")
    scheme, _, proof = authorization.partition(" ")
    if scheme.lower() != _SCHEME:
        refuse("send it as Bearer")
    return proof


def _header_of(proof: str) -> str:
    """As it is remembered: "bearer" and "BEARER" mean the same and must not be known apart."""
    return f"Bearer {proof}"
