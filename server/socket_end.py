"""How a buyer's socket ends: the close code that the client gets, and what metrics call it."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = [
    "BINARY",
    "BUG",
    "CLIENT",
    "ENDS",
    "GOING_AWAY",
    "LOST",
    "NOBODY",
    "REPLACED",
    "SILENT",
    "SLOW",
    "TRY_LATER",
    "End",
    "broken",
    "close_frame",
]


class End(NamedTuple):
    """``code`` is that of the close frame, 0 if the connection is cut without one; ``reason`` is
    its text, and the label of seckill_socket_ends."""

    code: int
    reason: str


CLIENT: Final = End(1000, "client")
GOING_AWAY: Final = End(1001, "going_away")
BINARY: Final = End(1003, "binary")
BUG: Final = End(1011, "internal")
TRY_LATER: Final = End(1013, "try_later")
NOBODY: Final = End(4401, "nobody")
REPLACED: Final = End(4409, "replaced")
# These get no frame: nobody reads it.
LOST: Final = End(0, "lost")
SILENT: Final = End(0, "silent")
SLOW: Final = End(0, "slow")
BROKEN: Final = "broken"

ENDS: Final = (
    *(CLIENT.reason, GOING_AWAY.reason, BINARY.reason, BUG.reason, TRY_LATER.reason),
    *(NOBODY.reason, REPLACED.reason, LOST.reason, SILENT.reason, SLOW.reason, BROKEN),
)


def broken(code: int) -> End:
    """What came is no WebSocket (1002), no UTF-8 (1007), or a message that is too large (1009)."""
    return End(code, BROKEN)


def close_frame(end: End) -> bytes:
    """The last frame."""
    text = end.reason.encode()
    return b"\x88%c%b%b" % (2 + len(text), end.code.to_bytes(2, "big"), text)
