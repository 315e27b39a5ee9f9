"""What goes wrong, and when: a list of faults made from a seed, and nothing else.

The same seed, topology, length and choice of faults give the same list on every machine; when its
moments really come depends on how fast that machine is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

import msgspec

__all__ = ["FAULTS", "TOPOLOGIES", "Fault", "Kind", "schedule", "usual_faults"]

FIRST_MS: Final = 200
REST_MS: Final = (150, 700)
GAP_MS: Final = 200
ALONE: Final = "alone"


class Kind(msgspec.Struct, frozen=True):
    """A kind of fault. Two of one ``lane`` never overlap, and nothing does with one of the lane
    ``ALONE``. ``for_ms`` and ``amount`` are bounds; ``usual`` says whether it happens when nobody
    asks for it by name, ``stops`` whether callers may get no answer while it lasts."""

    lane: str
    for_ms: tuple[int, int] = (0, 0)
    amount: tuple[int, int] = (0, 0)
    usual: bool = True
    stops: bool = True
    means: str = ""


class Fault(msgspec.Struct, frozen=True):
    """One fault: from ``at_ms`` after the start on, for ``for_ms``."""

    name: str
    at_ms: int
    for_ms: int
    amount: int

    def __str__(self) -> str:
        amount = f" {self.amount:+d}" if self.amount else ""
        return f"{self.at_ms / 1000:7.3f} s  {self.name}{amount} for {self.for_ms / 1000:.3f} s"


_LINK: Final = {
    "delay": Kind(
        "link", (300, 1_500), (5, 120), stops=False, means="answers take so many ms longer"
    ),
    "drop": Kind("link", (300, 1_200), (1, 3), means="vanishes: 1 there, 2 back, 3 both"),
    "cut": Kind("link", stops=False, means="every connection is reset"),
    "halve": Kind("link", (200, 600), (1, 2), means="half a chunk arrives: 1 there, 2 back"),
    "part": Kind("link", (300, 1_500), means="nothing passes; it arrives when that is over"),
    "stall": Kind("link", (400, 1_800), means="the connections there are hang, new ones pass"),
}
_PEOPLE: Final = {
    "kill_load": Kind(
        "people", stops=False, means="SIGKILL for a load; another one takes its place"
    ),
    "kill_consumer": Kind("people", stops=False, means="the same for a consumer"),
    "kill_keeper": Kind("people", stops=False, means="the same for the ledger's keeper"),
}
_ANY_SERVER: Final = {
    "script_flush": Kind("server", stops=False, means="the server forgets all scripts"),
    "maxmemory": Kind(
        "server", (300, 1_200), stops=False, means="the server may use no more memory"
    ),
}
_GROUP: Final = {
    **_PEOPLE,
    **_ANY_SERVER,
    "kill_master": Kind("server", means="SIGKILL; the old one comes back after the failover"),
    "pause_master": Kind("server", means="SIGSTOP until another one is the master, then SIGCONT"),
    "failover": Kind("server", means="a failover that an operator asks for"),
    "kill_replica": Kind("server", (300, 2_000), means="SIGKILL for a replica, and its restart"),
    "pause_replica": Kind("server", (300, 2_000), means="SIGSTOP and SIGCONT for a replica"),
}
_GROUP_LINKS: Final = {name: _LINK[name] for name in ("delay", "drop", "cut", "halve")}
_PARTED: Final = {
    "part_master": Kind("server", means="nobody reaches the master until another one is"),
    "part_replica": Kind("server", (300, 2_000), means="nobody reaches one replica"),
    # After any other death the replicas lack at most what came in the last instant.
    "mute_master": Kind(
        "server",
        (600, 1_500),
        means="replicas hear nothing more of it, callers do; then SIGKILL until another one is",
    ),
}
FAULTS: Final[dict[str, dict[str, Kind]]] = {
    "single": {
        **_LINK,
        **_PEOPLE,
        **_ANY_SERVER,
        "kill_cut": Kind(
            "server", (100, 900), means="SIGKILL, the AOF cut to the last sync, restart"
        ),
        "kill": Kind("server", (100, 900), means="SIGKILL and restart"),
        "pause": Kind("server", (200, 1_500), means="SIGSTOP and SIGCONT"),
        "disk_full": Kind(
            "server", (200, 900), (1, 20_000), means="so many bytes fit, then none; restart"
        ),
        "rewrite": Kind("server", stops=False, means="the AOF is written anew"),
        "clock_forward": Kind(
            "clock",
            amount=(100, 30_000),
            stops=False,
            means="the server's clock goes so many ms on, and stays",
        ),
        "clock_back": Kind(
            "clock",
            (300, 1_500),
            (100, 5_000),
            stops=False,
            means="it goes so many ms back, and forward again",
        ),
        "clock_jump": Kind(
            ALONE,
            (500, 1_200),
            (900_000, 1_800_000),
            means="so far forward that the sale is paused, and back; then it is resumed",
        ),
        "clock_back_late": Kind(
            ALONE,
            (700, 1_500),
            (3_000, 6_000),
            usual=False,
            means="it goes back while connections hang: known to bring back a call that was over",
        ),
        # The last of its run: what the snapshot does not have is lost.
        "old_snapshot": Kind(
            "server", (400, 1_200), usual=False, means="the data is put back to that of its begin"
        ),
    },
    "sentinel": {
        **_GROUP,
        **_GROUP_LINKS,
        **_PARTED,
        "kill_sentinel": Kind(
            "sentinel", (300, 3_000), stops=False, means="SIGKILL for a sentinel, restart"
        ),
    },
    "cluster": {
        **_GROUP,
        **_GROUP_LINKS,
        **_PARTED,
        "hide_master": Kind(
            "server", (300, 2_000), means="callers and replicas do not reach it, the cluster does"
        ),
        "split_master": Kind(
            "server", means="callers reach it, the other nodes do not, until another one is"
        ),
        "slot_move": Kind(
            "server", (200, 1_500), usual=False, means="the sale's slot goes to another master"
        ),
    },
}
"""Every kind of fault of each topology."""
TOPOLOGIES: Final = tuple(FAULTS)


def usual_faults(topology: str) -> list[str]:
    """What happens when nobody chooses."""
    return [name for name, kind in FAULTS[topology].items() if kind.usual]


def schedule(
    topology: str, seed: int, seconds: float, names: Sequence[str] | None = None
) -> list[Fault]:
    """The faults of a run, by their times. ``seconds`` is how long new ones begin; each is over
    when ``for_ms`` has passed, or later on a slow machine."""
    kinds = FAULTS[topology]
    chosen = list(names) if names else usual_faults(topology)
    rng = random.Random(f"{topology} {seed} {seconds} {' '.join(chosen)}")
    free_ms: dict[str, int] = {}
    deck: list[str] = []
    faults: list[Fault] = []
    at_ms = FIRST_MS
    while at_ms < seconds * 1000:
        if not deck:
            # Each comes once before any comes again.
            deck = rng.sample(chosen, len(chosen))
        name = deck.pop()
        kind = kinds[name]
        start_ms = max(at_ms, _free_ms(free_ms, kind.lane))
        fault = Fault(name, start_ms, rng.randint(*kind.for_ms), rng.randint(*kind.amount))
        at_ms += rng.randint(*REST_MS)
        if start_ms >= seconds * 1000:
            continue
        faults.append(fault)
        free_ms[kind.lane] = start_ms + fault.for_ms + GAP_MS
        if name == "old_snapshot":
            break
    return sorted(faults, key=lambda fault: (fault.at_ms, fault.name))


def _free_ms(free_ms: dict[str, int], lane: str) -> int:
    """When nothing is going on any more that a fault of this lane must not meet."""
    if lane == ALONE:
        return max(free_ms.values(), default=0)
    return max(free_ms.get(lane, 0), free_ms.get(ALONE, 0))
