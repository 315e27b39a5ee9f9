"""User tokens: the JWTs with which the mall says who a buyer is.

PyJWT checks the signature, by the algorithm of the key and not of the token. The claims are checked
here: ``exp`` must be there, ``nbf`` is respected, ``iss`` and ``aud`` must be the configured ones,
and the buyer's id must be one that the engine takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from time import time
from typing import Any, Final, NoReturn

import msgspec

from seckill.errors import InvalidInput
from seckill.sale import check_buyer

from .caller import Caller
from .jwks import Jwks
from .problems import KEYS_UNAVAILABLE, TOKEN_EXPIRED, UNAUTHENTICATED, Problem
from .settings import Users
from .user_keys import PUBLIC, Key, from_file, from_secret, signed_with, unpadded

__all__ = ["UserTokens", "Verified", "refuse"]

TIER_CHARS_MAX: Final = 64
# No login lasts so long. A time in milliseconds is tens of thousands of years away.
AHEAD_MAX_S: Final = 10 * 365 * 86_400

# Padding and blanks are left out on purpose: one token has one spelling.
_TOKEN: Final = re.compile(r"([\w-]+)\.[\w-]+\.[\w-]+", re.ASCII).fullmatch
_CLAIMS: Final = msgspec.json.Decoder(dict[str, Any])


class _Header(msgspec.Struct):
    alg: str
    kid: str = ""
    # Names extensions that must be understood. We understand none.
    crit: msgspec.Raw = msgspec.Raw()
    # RFC 7797: whether what was signed is encoded, as that of every user token is.
    b64: bool = True


_HEADER: Final = msgspec.json.Decoder(_Header)


class Verified(msgspec.Struct, frozen=True, gc=False):
    """A buyer, and the Unix time from which the token no longer says so."""

    caller: Caller
    until_s: float


def refuse(detail: str) -> NoReturn:
    """Raises Problem: the proof that was sent proves nothing."""
    raise Problem(UNAUTHENTICATED, detail, "Authorization")


class UserTokens:
    """Verifies user tokens. ``on_withdrawal`` is called when the mall no longer publishes a key."""

    def __init__(self, users: Users, on_withdrawal: Callable[[], None]) -> None:
        """Raises InvalidInput for a key that is none."""
        self._keys = [from_secret(secret.get_secret_value()) for secret in users.secrets]
        self._keys += [from_file(path) for path in users.key_files]
        self._jwks = Jwks(users.jwks_url, on_withdrawal) if users.jwks_url else None
        self._users = users

    async def start(self) -> None:
        """Fetches the published keys, if there are any."""
        if self._jwks is not None:
            await self._jwks.start()

    async def aclose(self) -> None:
        """Ends whatever is under way."""
        if self._jwks is not None:
            await self._jwks.aclose()

    async def verify(self, token: str) -> Verified:
        """Whom this token names. Raises Problem: UNAUTHENTICATED, TOKEN_EXPIRED, and 503 when the
        mall's keys can't be had."""
        verified = self.verify_now(token)
        if verified is not None:
            return verified
        header, jwks = _header_of(token), self._jwks
        if jwks is not None and not jwks.fitting(header.alg, header.kid):
            await jwks.look_again()
            payload = _signed(token, self._fitting(header))
            if payload is not None:
                return self._meant(payload)
            if not jwks.reached and not jwks.fitting(header.alg, header.kid):
                # Nobody can tell whether that key exists, and a buyer should not have to log in
                # again for it.
                raise Problem(KEYS_UNAVAILABLE)
        return self._refuse(header)

    def verify_now(self, token: str) -> Verified | None:
        """The same with the keys that are here. None: the mall may have published another one."""
        if not self._keys and self._jwks is None:
            refuse("this intake takes no user tokens, only API keys")
        header = _header_of(token)
        payload = _signed(token, self._fitting(header))
        if payload is not None:
            return self._meant(payload)
        jwks = self._jwks
        if jwks and header.alg in PUBLIC and not jwks.fitting(header.alg, header.kid):
            return None
        return self._refuse(header)

    def _refuse(self, header: _Header) -> NoReturn:
        refuse(
            "the signature of the user token fits none of the mall's keys"
            if self._fitting(header)
            else "none of the mall's keys is for the alg and kid of the user token"
        )

    def _meant(self, payload: bytes) -> Verified:
        """Whom a payload names that was signed with one of the keys. Raises Problem."""
        try:
            claims = _CLAIMS.decode(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            refuse("the payload of the user token is not a JSON object")
        return self._checked(claims, time())

    def _fitting(self, header: _Header) -> list[Key]:
        keys = [key for key in self._keys if key.fits(header.alg, header.kid)]
        return keys + (self._jwks.fitting(header.alg, header.kid) if self._jwks else [])

    def _checked(self, claims: dict[str, Any], now_s: float) -> Verified:
        users = self._users
        expires_s = _seconds(claims, "exp", now_s)
        if expires_s is None:
            refuse("the user token has no exp")
        until_s = expires_s + users.leeway_s
        if now_s >= until_s:
            raise Problem(TOKEN_EXPIRED, field="Authorization")
        begins_s = _seconds(claims, "nbf", now_s)
        if begins_s is not None and now_s < begins_s - users.leeway_s:
            refuse("the user token does not count yet (nbf)")
        if users.issuer and claims.get("iss") != users.issuer:
            refuse("the iss of the user token is not the mall's")
        if users.audience and claims.get("aud") is None:
            refuse("the user token has no aud; this intake wants users.audience")
        if not _is_audience(claims.get("aud"), users.audience):
            refuse("the aud of the user token is not this intake's")
        return Verified(Caller(self._buyer(claims), tier=self._tier(claims)), until_s)

    def _buyer(self, claims: dict[str, Any]) -> str:
        claim = self._users.buyer_claim
        try:
            return check_buyer(_text(claims.get(claim)), claim)
        except InvalidInput as error:
            return refuse(f"the claim {claim} of the user token {error.problem}; {error.remedy}")

    def _tier(self, claims: dict[str, Any]) -> str:
        claim = self._users.tier_claim
        value = claims.get(claim) if claim else None
        if value is None:
            return ""
        tier = _text(value)
        if not isinstance(tier, str) or len(tier) > TIER_CHARS_MAX or not tier.isprintable():
            refuse(f"the claim {claim} of the user token is no tier; send a short text")
        return tier


def _header_of(token: str) -> _Header:
    """Read before it is verified, so it only says which keys are worth trying. Raises Problem."""
    found = _TOKEN(token)
    if found is None:
        refuse("this is neither a user token (a JWT) nor an API key (sk_…)")
    encoded = found[1]
    try:
        header = _HEADER.decode(unpadded(encoded))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        refuse("the header of the user token is not that of a JWT")
    if header.crit or not header.b64:
        refuse("the user token needs an extension (crit) that is unknown here")
    return header


def _signed(token: str, keys: list[Key]) -> bytes | None:
    for key in keys:
        payload = signed_with(key, token)
        if payload is not None:
            return payload
    return None


def _seconds(claims: dict[str, Any], claim: str, now_s: float) -> float | None:
    value = claims.get(claim)
    if value is None:
        return None
    # True is an int for Python, and no time.
    if type(value) not in (int, float):
        refuse(f"the claim {claim} of the user token is no number of seconds")
    if value > now_s + AHEAD_MAX_S:
        refuse(f"the claim {claim} of the user token is years ahead: in milliseconds? send seconds")
    try:
        return float(value)
    except OverflowError:
        # JSON's integers have no end, and a float has one.
        refuse(f"the claim {claim} of the user token is no time")


def _text(value: object) -> object:
    """A claim as text. Many malls number their members, and write the number."""
    return str(value) if type(value) is int else value


def _is_audience(value: object, audience: str) -> bool:
    """A token that is meant for somebody else is not for us, even if we are called nothing."""
    named = value if isinstance(value, list) else [] if value is None else [value]
    return audience in named if audience else not named
