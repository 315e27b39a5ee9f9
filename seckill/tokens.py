"""Tickets and tokens: what a buyer carries to the queue and to the till, verified without Redis.

    ticket  key id (1 byte), number (5), signature (15): 28 characters
    token   key id (1), number (5), step (4), expires ms (6), sale (8), buyer (12), signature (18):
            72 characters

Both are base64url, of whole groups, so that each has one spelling. The key id names the key that
signed, so a sale's keys can be replaced: the first one signs, all of them verify. A ticket's
signature covers sale and buyer, which whoever shows it has proved to be. A token names both as
digests that say nothing to outsiders, so that a token of somebody else is told from a forged one.
"""

from __future__ import annotations

import hmac
import secrets
from base64 import urlsafe_b64encode
from binascii import a2b_base64
from collections.abc import Sequence
from hashlib import blake2b, sha256
from typing import Final

import msgspec

from seckill.keyed import keyed_hmac
from seckill.status import Status

__all__ = ["KEYS_MAX", "Keys", "Token", "new_key"]

KEYS_MAX: Final = 3
_TICKET_BYTES: Final = 21
_TICKET_SIGNED: Final = 6
_TOKEN_BYTES: Final = 54
_TOKEN_SIGNED: Final = 36
_SALE_BYTES: Final = 8
_BUYER_BYTES: Final = 12
# "+" and "/" are no characters of ours.
_FROM_URL: Final = bytes.maketrans(b"-_+/", b"+/**")


class Token(msgspec.Struct, frozen=True, gc=False):
    """What a good token says. ``step`` called its ticket; ``expires_ms`` is on the queue's clock
    (lua/lib/turns.lua)."""

    number: int
    step: int
    expires_ms: int


def new_key() -> str:
    """A key as text: 64 hexadecimal digits."""
    return secrets.token_hex(32)


class Keys:
    """The keys of one sale, newest first, as ``new_key`` makes them. Makes and verifies tickets and
    tokens of that sale."""

    def __init__(self, sale: str, keys: Sequence[str]) -> None:
        self.texts = tuple(keys)
        self._sale = sale
        self._sale_digest = blake2b(sale.encode(), digest_size=_SALE_BYTES).digest()
        self._signers = {_key_id(key): _Signer(key) for key in reversed(self.texts)}
        self._id = _key_id(self.texts[0])
        self._ticket_text = b"ticket\0%b\0" % sale.encode()

    def another(self) -> str:
        """A new key, with an id that none of these has: it would take that one's place."""
        while _key_id(key := new_key()) in self._signers:
            pass
        return key

    def ticket(self, buyer: str, number: int) -> str:
        """The ticket of this number."""
        head = bytes((self._id,)) + number.to_bytes(5)
        return _text(head + self._ticket_signature(self._signers[self._id], head, buyer))

    def number(self, buyer: str, ticket: str) -> int | None:
        """The number of a ticket that was made for this buyer of this sale; None for any other."""
        raw = _raw(ticket, _TICKET_BYTES)
        if raw is None or (signer := self._signers.get(raw[0])) is None:
            return None
        head = raw[:_TICKET_SIGNED]
        if not hmac.compare_digest(
            raw[_TICKET_SIGNED:], self._ticket_signature(signer, head, buyer)
        ):
            return None
        return int.from_bytes(head[1:])

    def token(self, buyer: str, number: int, step: int, expires_ms: int) -> str:
        """The token of a ticket that a step has called. The same for the same, everywhere."""
        signer = self._signers[self._id]
        parts = (
            bytes((self._id,)),
            number.to_bytes(5),
            step.to_bytes(4),
            expires_ms.to_bytes(6),
            self._sale_digest,
            _buyer_digest(signer, buyer),
        )
        body = b"".join(parts)
        return _text(body + _token_signature(signer, body))

    def read(self, buyer: str, token: str, now_ms: float) -> Token | Status:
        """A token's content, or why this buyer can't order with it at this moment: TOKEN_NEEDED,
        TOKEN_INVALID, TOKEN_RETIRED, TOKEN_OTHER_SALE, TOKEN_OTHER_BUYER or TOKEN_EXPIRED."""
        found = self.genuine(buyer, token)
        if isinstance(found, Token) and found.expires_ms <= now_ms:
            return Status.TOKEN_EXPIRED
        return found

    def genuine(self, buyer: str, token: str) -> Token | Status:
        """The same, whether its time is over or not."""
        if not token:
            return Status.TOKEN_NEEDED
        raw = _raw(token, _TOKEN_BYTES)
        if raw is None:
            return Status.TOKEN_INVALID
        body = raw[:_TOKEN_SIGNED]
        # Told from the name alone: the signature can't be looked at without the other sale's key.
        if body[16:24] != self._sale_digest:
            return Status.TOKEN_OTHER_SALE
        signer = self._signers.get(raw[0])
        if signer is None:
            return Status.TOKEN_RETIRED
        if not hmac.compare_digest(raw[_TOKEN_SIGNED:], _token_signature(signer, body)):
            return Status.TOKEN_INVALID
        if not hmac.compare_digest(body[24:], _buyer_digest(signer, buyer)):
            return Status.TOKEN_OTHER_BUYER
        return Token(
            int.from_bytes(body[1:6]), int.from_bytes(body[6:10]), int.from_bytes(body[10:16])
        )

    def _ticket_signature(self, signer: _Signer, head: bytes, buyer: str) -> bytes:
        text = b"%b%b\0%b" % (self._ticket_text, buyer.encode(), head)
        return signer.sign(text)[: _TICKET_BYTES - _TICKET_SIGNED]


class _Signer:
    """One key, set up once."""

    def __init__(self, key: str) -> None:
        self.secret = bytes.fromhex(key)
        self.sign = keyed_hmac(self.secret)


def _token_signature(signer: _Signer, body: bytes) -> bytes:
    return signer.sign(b"token\0" + body)[: _TOKEN_BYTES - _TOKEN_SIGNED]


def _buyer_digest(signer: _Signer, buyer: str) -> bytes:
    return blake2b(buyer.encode(), key=signer.secret, digest_size=_BUYER_BYTES).digest()


def _key_id(key: str) -> int:
    return sha256(key.encode()).digest()[0]


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode()


def _raw(text: str, size: int) -> bytes | None:
    """The bytes of a text of ours, None for any other."""
    if len(text) * 3 != size * 4 or not text.isascii():
        return None
    try:
        return a2b_base64(text.encode().translate(_FROM_URL), strict_mode=True)
    except ValueError:
        return None
