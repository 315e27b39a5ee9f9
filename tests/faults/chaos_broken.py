"""Engines that are broken on purpose, so that the checker can be seen to notice.

    everysec    the server syncs once a second where every order was promised to be on disk
    new_key     what is sent again after a lost connection goes under another order id
    no_limit    an order has no not_after, so it may be executed after its caller has let go of it
    no_fence    no engine knows which server it talks to, nor what it was told of a sale
    no_wait     nobody waits for a replica before an order is acknowledged

Made inside the processes that call, by replacing a function of the engine or, where any of several
might do it, the words that leave for the server. The engine itself knows nothing of it. Whatever is
to be replaced and is not there any more ends the process: a variant that breaks nothing would look
like one that nobody has noticed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

__all__ = ["BROKEN_ENV", "VARIANTS", "break_engine"]

BROKEN_ENV: Final = "SECKILL_CHAOS_BROKEN"
FAR_MS: Final = 4_000_000_000_000

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

    _replace(Lane, "_still_waiting", still_waiting)


def _forget_not_after() -> None:
    from seckill import lane

    sound = lane._pack

    def pack(columns: Any) -> bytes:
        # Only as it leaves: the engine still knows when it gives up, and says so.
        not_after, *rest = columns
        return sound([(FAR_MS,) * len(not_after), *rest])

    _replace(lane, "_pack", pack)


def _forget_the_server() -> None:
    from seckill.fencing import Greeting, Told

    async def ask(greeting: Greeting, connection: Any) -> None:
        """Nobody is asked, so ``run_id`` stays empty, as that of a server that does not tell."""

    def note(told: Told, seq: int, run_id: str) -> None:
        """What an engine was told of is what it claims in a roll call, too."""

    _replace(Greeting, "_ask", ask)
    _replace(Told, "note", note)


def _never_wait() -> None:
    _rewrite(_without_wait)


def _without_wait(words: Words) -> Words:
    if words[0] != "WAIT":
        return words
    # Answers at once, as if so many replicas had it.
    return ("EVAL", "return tonumber(ARGV[1])", 0, words[1])


def _replace(owner: type | ModuleType, name: str, function: Callable[..., Any]) -> None:
    """Raises AttributeError for a function that is not there."""
    if not hasattr(owner, name):
        raise AttributeError(f"{owner.__name__} has no {name} that could be broken")
    setattr(owner, name, function)


def _rewrite(change: Callable[[Words], Words]) -> None:
    """Has every command changed on its way out, whoever sends it."""
    from redis.asyncio.connection import AbstractConnection

    sound = AbstractConnection.pack_command

    def pack(connection: AbstractConnection, *words: Any) -> Any:
        return sound(connection, *change(words))

    _replace(AbstractConnection, "pack_command", pack)


VARIANTS: Final[dict[str, Callable[[], None]]] = {
    "everysec": _server_only,
    "new_key": _resend_under_a_new_id,
    "no_limit": _forget_not_after,
    "no_fence": _forget_the_server,
    "no_wait": _never_wait,
}
"""Every variant, and what makes it."""
