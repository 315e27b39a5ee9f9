"""Engines that are broken on purpose, so that the checker can be seen to notice.

    everysec    the server syncs once a second where every order was promised to be on disk
    new_key     what is sent again after a lost connection goes under another order id
    no_limit    an order has no not_after, so it may be executed after its caller has let go of it
    no_fence    no call says which server and which seq its engine knows
    no_wait     nobody waits for a replica before an order is acknowledged

Made inside the processes that call, by replacing a function of the engine or, where that would
depend on how the engine is written, the words that leave for the server. The engine itself knows
nothing of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Final

__all__ = ["BROKEN_ENV", "VARIANTS", "break_engine"]

BROKEN_ENV: Final = "SECKILL_CHAOS_BROKEN"
FAR_MS: Final = 4_000_000_000_000
# Of EVALSHA sha numkeys key … arg …: where the number of keys stands.
NUMKEYS: Final = 2
# Of roll_call's arguments: the highest seq that its engine was told.
ROLL_CALL_SEQ: Final = 3

Words = tuple[Any, ...]


def break_engine(variant: str) -> None:
    """Breaks the engine of this process; "" leaves it sound. Raises LookupError."""
    if variant:
        VARIANTS[variant]()


def _server_only() -> None:
    """Nothing to do here: the server is configured differently."""


def _resend_under_a_new_id() -> None:
    from seckill.lane import Lane

    sound = Lane._still_waiting

    def still_waiting(lane: Lane, batch: Any, error: Exception, *, sent: bool) -> Any:
        rest = sound(lane, batch, error, sent=sent)
        # not_after, the order's id, and the rest; the shard at the id's beginning stays.
        return [(row[0], row[1][:-8] + secrets.token_hex(4), *row[2:]) for row in rest]

    Lane._still_waiting = still_waiting  # type: ignore[assignment,method-assign]


def _forget_not_after() -> None:
    from seckill.lane import Lane

    Lane._not_after = lambda lane, give_up_s: FAR_MS  # type: ignore[assignment,method-assign]


def _forget_the_server() -> None:
    _rewrite(_without_fence)


def _without_fence(words: Words) -> Words:
    if words[0] not in ("EVALSHA", "EVAL"):
        return words
    caller = NUMKEYS + 1 + int(words[NUMKEYS])
    if caller >= len(words):
        return words
    # "<format> <run_id> <seq>" becomes "<format>", as a caller writes it who knows nothing.
    changed = [*words]
    changed[caller] = str(words[caller]).partition(" ")[0]
    if words[1] in _roll_call():
        changed[caller + ROLL_CALL_SEQ] = 0
    return tuple(changed)


def _roll_call() -> tuple[str, ...]:
    """The script that notices a server with less than its engines were told, by hash and text."""
    from seckill.scripts import script

    try:
        code = script("roll_call")
    except (LookupError, OSError):
        return ()
    return code.sha, code.source


def _never_wait() -> None:
    _rewrite(_without_wait)


def _without_wait(words: Words) -> Words:
    if words[0] != "WAIT":
        return words
    # Answers at once, as if so many replicas had it.
    return ("EVAL", "return tonumber(ARGV[1])", 0, words[1])


def _rewrite(change: Callable[[Words], Words]) -> None:
    """Has every command changed on its way out, whoever sends it."""
    from redis import connection

    for name in ("HiredisRespSerializer", "PythonRespSerializer"):
        serializer = getattr(connection, name)
        sound = serializer.pack

        def pack(self: Any, *words: Any, _sound: Any = sound) -> Any:
            return _sound(self, *change(words))

        serializer.pack = pack


VARIANTS: Final[dict[str, Callable[[], None]]] = {
    "everysec": _server_only,
    "new_key": _resend_under_a_new_id,
    "no_limit": _forget_not_after,
    "no_fence": _forget_the_server,
    "no_wait": _never_wait,
}
"""Every variant, and what makes it."""
