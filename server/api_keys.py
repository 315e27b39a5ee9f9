"""API keys: what the mall's own programs prove themselves with.

A key is ``sk_`` and 32 random bytes; the settings hold only its SHA-256. That a fast hash is enough
comes from the key being random: nobody can try them all. Several keys may share a name, so a key is
replaced by adding the new one, moving the programs over, and taking the old one away.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

from seckill.errors import InvalidInput

from .caller import Caller
from .settings import ApiKey

__all__ = ["PREFIX", "ApiKeys"]

PREFIX: Final = "sk_"


class ApiKeys:
    """The keys that are accepted."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        """Raises InvalidInput for a key that is there twice."""
        self._keys: dict[bytes, Caller] = {}
        for index, key in enumerate(keys):
            digest = bytes.fromhex(key.hash.removeprefix("sha256:"))
            if digest in self._keys:
                raise InvalidInput(
                    f"keys[{index}].hash",
                    f"is that of the key {self._keys[digest].name} above",
                    "write all scopes of a key into one entry",
                )
            self._keys[digest] = Caller(scopes=frozenset(key.scopes), name=key.name)

    def find(self, key: str) -> Caller | None:
        """The program that has this key, or None."""
        # A header may carry half a surrogate pair where bytes were not UTF-8; no key does.
        if not key.isascii():
            return None
        digest = hashlib.sha256(key.encode()).digest()
        found = None
        # All of them are compared to the end, so the time tells nothing about any.
        for known, caller in self._keys.items():
            if hmac.compare_digest(known, digest):
                found = caller
        return found
