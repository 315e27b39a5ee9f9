"""HMAC-SHA-256 (RFC 2104) with one key for many short messages. The library's own sets the key up
anew for each, which costs more than the message."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from seckill.errors import InvalidInput

__all__ = ["KEY_BYTES", "keyed_hmac"]

KEY_BYTES = 32


def keyed_hmac(key: bytes) -> Callable[[bytes], bytes]:
    """A function from a message to its 32 bytes. Raises InvalidInput for a key that has not 32."""
    if len(key) != KEY_BYTES:
        raise InvalidInput("key", f"has {len(key)} bytes", f"pass {KEY_BYTES} random bytes")
    block = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block)).copy
    outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block)).copy

    def keyed(message: bytes) -> bytes:
        first, second = inner(), outer()
        first.update(message)
        second.update(first.digest())
        return second.digest()

    return keyed
