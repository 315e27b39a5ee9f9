"""Whether the server lets us run our scripts at all: a user's rights may lack them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from seckill.doctor.finding import Finding, green, red
from seckill.keys import shard_keys
from seckill.scripts import FORMAT, script

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["check_scripts"]

# What a script that stumbled over a damaged sale says, and what one says that lacks a right within.
_STUMBLED: Final = ("WRONGTYPE", "user_script")
_LACKS: Final = ("ACL failure", "user executing the script", "No permissions")


async def check_scripts(client: Redis, sale: str) -> Finding:
    """Runs `inspect` on the sale, which writes nothing, in the ways the intake does: loaded, by
    its hash and by its text. A sale that is not there makes no difference."""
    from redis.exceptions import NoScriptError, ResponseError

    code, keys = script("inspect"), shard_keys(sale)
    call = (len(keys), *keys, str(FORMAT))
    refused: dict[str, str] = {}
    for name, words in (
        ("SCRIPT LOAD", (code.source,)),
        ("EVALSHA", (code.sha, *call)),
        ("EVAL", (code.source, *call)),
    ):
        try:
            await client.execute_command(name, *words)
        except NoScriptError:
            pass  # It could not be loaded, which is said already; asking by hash was allowed.
        except ResponseError as error:
            if not _was_run(error):
                refused[name] = str(error)
    if not refused:
        return green("scripts", "the server runs them")
    said = "; ".join(dict.fromkeys(refused.values()))
    return red(
        "scripts",
        f"refused: {', '.join(refused)} ({said})",
        "allow this user SCRIPT LOAD, EVALSHA and EVAL, and what the scripts call (`ACL SETUSER "
        "NAME +script|load +evalsha +eval +@read +@write`)",
    )


def _was_run(error: Exception) -> bool:
    """Whether only the sale is at fault, which other checks say better."""
    said = str(error)
    lacks = any(word in said for word in _LACKS)
    return not lacks and any(word in said for word in _STUMBLED)
