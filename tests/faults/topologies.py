"""The servers of the fault suite: real ones, of the binary that the engine itself would start.

    Node            one server: start, stop, kill with the loss of what was not synced, pause
    SentinelGroup   a master, 2 replicas, 3 sentinels
    ClusterGroup    3 masters, 3 replicas
    Link            between any two of them, or a client and one: slow, silent, cut or parted

All are context managers, and nothing of them is left behind, however a test ends. Their methods
block, for PATIENCE_S at the longest; a test on an event loop calls them with ``asyncio.to_thread``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.faults.link import Link, Way
from tests.faults.topology_cluster import SLOTS, ClusterGroup, slot_of
from tests.faults.topology_node import HOST, PATIENCE_S, Node, NodeFailed, wait_until
from tests.faults.topology_sentinel import QUORUM, SERVICE, SentinelGroup

__all__ = [
    "HOST",
    "PATIENCE_S",
    "QUORUM",
    "SERVICE",
    "SLOTS",
    "ClusterGroup",
    "Link",
    "Node",
    "NodeFailed",
    "SentinelGroup",
    "Way",
    "living",
    "slot_of",
    "wait_until",
]


def living(groups: Iterable[int]) -> list[int]:
    """The processes of these groups; a node's group has its pid. A zombie is none: it only waits
    for init."""
    wanted = set(groups)
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue  # It has just ended.
        if int(group) in wanted and state not in "ZX":
            found.append(int(entry.name))
    return found
