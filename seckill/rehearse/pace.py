"""Who is called next, by the engine's own arithmetic: lua/lib/pace.lua, run by a server.

The server keeps nothing: what the arithmetic knows of the evening goes there and back with each
look. So any server will do, but the one that sells tonight has better things to do.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import msgspec

from seckill.errors import InvalidInput
from seckill.redis import CONNECT_SECONDS, our_errors
from seckill.rehearse.model import Rules
from seckill.scripts import expand

if TYPE_CHECKING:
    import redis

__all__ = ["Look", "Pacer", "own_pacer"]

AGES: Final = 10
"""As in lua/lib/pace.lua."""

# What admit.lua does around the arithmetic, without Redis: live steps are looked at, those whose
# tokens have lapsed go, and a step is made when the last one is long enough ago. A test has both
# play the same evening.
_DRIVER: Final = """
local pace, known = unpack(cmsgpack.unpack(ARGV[1]))
local now_ms, available, held, waiting, number, used, units = unpack(cmsgpack.unpack(ARGV[2]))
local uses, steps = {}, {}
for i = 1, #used, 2 do uses[used[i]] = used[i + 1] end
pace.users, pace.units = pace.users + units, pace.units + units
for _, step in ipairs(known) do
  use_tokens(pace, step, uses[step.number] or 0)
  if age_step(pace, step, now_ms) then steps[#steps + 1] = step end
end
local count, last, ahead = 0, steps[#steps], outlook(pace, steps, now_ms)
if not last or now_ms - last.at_ms >= pause_ms_of(pace) then
  count = call_count(pace, ahead, now_ms, available, waiting)
end
if count > 0 then take_step(pace, steps, ahead, now_ms, count).number = number end
pace.credit = tonumber(string.format('%.3f', pace.credit))
local reach = reach_count(pace, ahead, available + held)
return { count, ahead.live, reach, room_of(pace, ahead, available), cmsgpack.pack({ pace, steps }) }
"""


class Look(msgspec.Struct, frozen=True, gc=False):
    """What a look found: how many are called now, live tokens that nobody has used, how many more
    can be called if every held unit comes back, and how many the stock would let be called now."""

    count: int
    live: int
    reach: int
    room: int


@cache
def _script() -> tuple[str, str]:
    source = expand("lib/pace", resources.files("seckill.lua")) + _DRIVER
    return source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class Pacer:
    """The queue's arithmetic on one server. ``begin`` starts an evening, ``look`` goes on in it."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._sha = ""
        self._state = b""
        self._number = 0

    def begin(self, rules: Rules) -> None:
        """A queue of which nothing is known yet. Raises RedisUnavailable."""
        pace = {
            "life_ms": rules.token_life_ms,
            "rate_per_s": rules.rate_per_s,
            "overbook_max": rules.overbook_max,
            "each": rules.each,
            "used": [0] * AGES,
            "risk": [0] * AGES,
            "users": 0,
            "units": 0,
            "credit": 0,
            "paced_ms": 0,
            "lapsed": False,
        }
        self._state, self._number = msgspec.msgpack.encode([pace, []]), 0
        if not self._sha:
            source, sha = _script()
            self._call("SCRIPT LOAD", source)
            self._sha = sha

    def look(
        self, now_ms: int, available: int, held: int, waiting: int, uses: Mapping[int, int]
    ) -> Look:
        """One look of the queue. ``uses`` maps the number of a step to its tokens that were used
        since the last look; steps count from 1, in the order in which somebody was called."""
        used = [part for pair in uses.items() for part in pair]
        number, units = self._number + 1, sum(uses.values())
        facts = msgspec.msgpack.encode([now_ms, available, held, waiting, number, used, units])
        reply = self._call("EVALSHA", self._sha, 0, self._state, facts)
        count, live, reach, room, self._state = reply
        if count:
            self._number = number
        return Look(count, live, reach, room)

    def _call(self, *command: Any) -> Any:
        with our_errors():
            return self._client.execute_command(*command)


@contextmanager
def own_pacer(url: str | None = None) -> Iterator[Pacer]:
    """A pacer on the server at this URL, else on one of our own, which ends with it. Raises
    EmbeddedError, RedisUnavailable, InvalidInput."""
    if url is None:
        from seckill.embedded import EmbeddedServer

        with (
            tempfile.TemporaryDirectory(prefix="seckill-rehearse-") as folder,
            EmbeddedServer(folder, appendfsync="no") as server,
            own_pacer(server.url) as pacer,
        ):
            yield pacer
        return
    import redis

    try:
        client = redis.Redis.from_url(url, socket_connect_timeout=CONNECT_SECONDS)
    except ValueError as error:
        raise InvalidInput("--redis", str(error), "write redis://host:6379/0") from None
    with client:
        yield Pacer(client)
