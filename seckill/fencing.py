"""What an engine knows of a sale that its server must not have lost.

    Told       the highest seq of one sale that anybody here was told of
    Greeting   which server a connection leads to, asked once when it is made

Both travel with every script call, as the caller's words. A server that is not the one the sale was
last sold on, or that lacks some of what was told, answers NEW_SERVER and does nothing; then
roll_call.py asks all engines what they were told before anything is sold there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from seckill.errors import UpgradeNeeded
from seckill.keys import SALES, shard_keys
from seckill.scripts import FORMAT
from seckill.status import Status

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

    from seckill.calls import Calls
    from seckill.sale import Sale

__all__ = [
    "CLOCK_JUMP_MS",
    "LEFT",
    "LOST",
    "Greeting",
    "NewServer",
    "Told",
    "fence_sale",
    "name_of",
    "run_id_of",
]

CLOCK_JUMP_MS: Final = 600_000
"""How far a sale's clock may step forward while units are held, see lua/lib/sale.lua."""
LOST: Final = "the sale is stopped until what Redis has lost is back; ask again"
"""To whoever may have been answered otherwise, had the answer come."""
LEFT: Final = "another server was found to be trusted before this one answered"
_UNTIL: Final = re.compile(r"(\S+):(\d+)")
_RUN_ID: Final = re.compile(rb"^run_id:([0-9a-f]{40})\r?$", re.MULTILINE)


def name_of(run_id: str) -> str:
    """The name of the first server that a sale is trusted to, see lua/lib/sale.lua."""
    return f"{run_id}.0" if run_id else ""


def run_id_of(server: str) -> str:
    """The run_id in the name of a server, see lua/lib/sale.lua."""
    return server.partition(".")[0]


class Told:
    """The highest seq of a sale that this engine was told of, with what was answered to anybody;
    the name of the server that told it, and of the last one that was seen to be trusted, as in
    lua/lib/sale.lua; and what tells the sale from others under its id."""

    __slots__ = ("made", "seq", "server", "teller")

    def __init__(self) -> None:
        self.seq = 0
        self.teller = ""
        self.server = ""
        self.made = ""

    def called(self, run_id: str) -> str:
        """The name under which that server is trusted; its run_id if that is not known."""
        return self.server if run_id_of(self.server) == run_id else run_id

    def note(self, seq: int, server: str) -> None:
        """Somebody is about to be told of what happened up to this event."""
        if seq > self.seq:
            self.seq = seq
            self.teller = server
        elif seq == self.seq and self.teller in ("", run_id_of(server)):
            self.teller = server

    def trust(self, server: str) -> None:
        """This server is trusted. Who told stays who it was; only by now its name may be known."""
        self.server = server
        if self.teller == run_id_of(server):
            self.teller = server

    def has_left(self, trusted: str, run_id: str) -> bool:
        """Whether another server was found to be trusted since ``trusted`` was: what this one has
        answered meanwhile may be a dead one's last."""
        return self.server != trusted and run_id_of(self.server) not in ("", run_id)

    def is_missed_by(self, server: str, seq: int, servers: str) -> bool:
        """Whether a server that is trusted, and ends at ``seq``, lacks some of it. ``servers`` are
        those before it, as in lua/lib/sale.lua."""
        if server and self.teller not in ("", server):
            until = {name: int(kept) for name, kept in _UNTIL.findall(servers)}
            seq = min(seq, until.get(self.teller, max(until.values(), default=0)))
        return self.seq > seq

    def forget(self, made: str = "") -> None:
        """What was told was of another sale that had the same id; this one is it now."""
        self.seq = 0
        self.made = made


async def fence_sale(
    calls: Calls,
    sale: Sale,
    origin_ms: int,
    *,
    made: str,
    seq: int,
    seen_made: str = "",
    wanted: str = "",
) -> tuple[Status, str, bool]:
    """Fences a sale of which its server has not all that is known (lua/fence.lua): FENCED or DONE,
    the reason, and whether it was this call. ``made`` and ``seq`` are what is known of it,
    ``seen_made`` what its server was just seen to have, empty for no such sale there; ``wanted`` is
    a reason to fence it all the same. Raises UpgradeNeeded, and what Calls.run raises."""
    client = calls.client_of(SALES)
    # First, as when a sale is created. Whoever is on duty must see it, also where the list of sales
    # was lost as well.
    await calls.attempt(lambda: client.sadd(SALES, sale.id))
    status, reason, is_new = await calls.run(
        "fence",
        shard_keys(sale.id),
        seen_made,
        made,
        seq,
        sale.definition_id,
        sale.definition(),
        origin_ms,
        sale.opens_ms,
        sale.ends_ms,
        sale.hold_ms,
        sale.pay_ms,
        sale.limit_per_order,
        sale.limit_per_buyer,
        sale.max_lapsed,
        CLOCK_JUMP_MS,
        wanted,
    )
    if status == Status.UPGRADE_NEEDED:
        raise UpgradeNeeded(sale.id)
    return Status(status), reason.decode(), bool(is_new)


class NewServer(Exception):
    """A script did nothing, because its server is not known to have all that was told."""

    def __init__(self) -> None:
        super().__init__(
            "this server is not the one that the sale was sold on, and is not adopted yet; nothing"
            " was done"
        )


class Greeting:
    """Which server the other end of a connection is: its run_id, empty where it does not tell."""

    def __init__(self) -> None:
        self.run_id = ""

    def meet(self, connection: AbstractConnection) -> None:
        """Has the server asked whenever this connection is made. It keeps no hold on us."""
        connection.register_connect_callback(self._ask)

    def words(self, told: Told) -> str:
        """How a caller of a script introduces itself, see lua/lib/sale.lua."""
        server = told.called(self.run_id)
        words = f"{FORMAT} {server} {told.seq}"
        return words if not server or told.teller in ("", server) else f"{words} {told.teller}"

    async def _ask(self, connection: AbstractConnection) -> None:
        from redis.exceptions import ResponseError

        await connection.send_packed_command(
            connection.pack_command("INFO", "server"), check_health=False
        )
        try:
            found = _RUN_ID.search(await connection.read_response())
        except ResponseError:
            found = None  # A managed server may refuse it.
        self.run_id = found[1].decode() if found else ""
