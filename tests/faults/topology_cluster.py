"""Three masters and their replicas in a cluster, all real, made with CLUSTER commands."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import msgspec
import redis
from redis.crc import key_slot

from tests.faults.link import Link
from tests.faults.topology_node import HOST, PATIENCE_S, Node, wait_until

__all__ = ["SLOTS", "ClusterGroup", "slot_of"]

SLOTS = 16_384
MASTERS = 3
# How long a manual failover may take before it is asked for once more: the servers give up at 5 s.
MANUAL_S = 7.0
START_MS = 2_000
# Where the connections of a linked node come from, so that a link knows which node it is.
SOURCE = "127.0.0.{}"
FIRST_SOURCE = 11
# Keys that move in one step, and how long one step may take.
MOVE_KEYS = 100
MOVE_MS = 10_000
MOVE_STEPS = 10_000


def slot_of(key: str) -> int:
    """The slot of a key, or of its hash tag."""
    return key_slot(key.encode())


class _View(msgspec.Struct, frozen=True):
    """A line of CLUSTER NODES. What a node says of itself nobody knows better, and of two that
    claim a slot the higher epoch is right. ``slots`` are the first and the last of each range."""

    id: str
    flags: set[str]
    follows: str
    epoch: int
    slots: list[tuple[int, int]]

    def owns(self, slot: int) -> bool:
        return "master" in self.flags and any(first <= slot <= last for first, last in self.slots)


class ClusterGroup:
    """3 masters and 3 replicas, in folders below ``folder``; ``config`` is for all of them.

    ``nodes`` are in order of their making: node i + 3 began as the replica of node i. Any of them
    may be killed, paused and started again. With ``links`` each is reached through one (``links``,
    for clients and replicas) and by the other nodes through another (``bus_links``); only those
    ports are told to anybody.
    """

    def __init__(
        self,
        folder: Path,
        *,
        node_timeout_ms: int = 2_000,
        links: bool = False,
        config: Mapping[str, str | int] | None = None,
    ) -> None:
        self._folder = folder
        self._node_timeout_ms = node_timeout_ms
        self._config: dict[str, str | int] = {
            "cluster-enabled": "yes",
            "cluster-node-timeout": node_timeout_ms,
            **(config or {}),
        }
        self._stack = ExitStack()
        self._ids: dict[Node, str] = {}
        self._linked = links
        self._sources: dict[Node, str] = {}
        self.links: dict[Node, Link] = {}
        self.bus_links: dict[Node, Link] = {}
        self.nodes: list[Node] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each node, for clients."""
        return [(HOST, self.port_of(node)) for node in self.nodes]

    def port_of(self, node: Node) -> int:
        """Where everybody but this process reaches a node."""
        return self.links[node].port if self._linked else node.port

    def node_of(self, key: str) -> Node:
        """The master that a key belongs to. Raises LookupError while it is none that answers."""
        return self._owner(slot_of(key))

    def masters(self) -> list[Node]:
        """The masters that answer."""
        return [node for node, line in self._lines().items() if "master" in line.flags]

    def replicas_of(self, master: Node) -> list[Node]:
        """The nodes that answer and follow this one, whether that answers or not."""
        follows = self._ids[master]
        return [node for node, line in self._lines().items() if line.follows == follows]

    def failover(self, replica: Node) -> None:
        """Makes this replica the master in its master's place, and waits until it is (CLUSTER
        FAILOVER, which loses nothing and needs that master)."""
        asked_s = -math.inf

        def promoted() -> bool:
            nonlocal asked_s
            if "master" in _lines_of(replica)[self._ids[replica]].flags:
                return True
            if time.monotonic() - asked_s > MANUAL_S:
                replica.ask("CLUSTER", "FAILOVER")
                asked_s = time.monotonic()
            return False

        wait_until(promoted, f"{replica} as a master")

    def wait_for_new_master(self, key: str, old: Node) -> Node:
        """Whom the key belongs to after ``old``, once that node is ready for it."""
        found: list[Node] = []

        def promoted() -> bool:
            with contextlib.suppress(LookupError):
                found.append(self.node_of(key))
                return found[-1] is not old and _is_ok(found[-1])
            return False

        # An election that fails is repeated, by and by.
        wait_until(promoted, f"a master after {old}", patience_s=2 * PATIENCE_S)
        return found[-1]

    def wait_until_whole(self) -> None:
        """Until all nodes that answer agree on who of them owns which slots and who follows whom,
        and every replica is connected."""
        wait_until(self._is_whole, "a cluster that agrees")

    def set_node_timeout(self, node_timeout_ms: int) -> None:
        """How long a node must be silent until the others take it for dead; for all that answer."""
        for node in self.nodes:
            if node.answers:
                node.ask("CONFIG", "SET", "cluster-node-timeout", node_timeout_ms)

    def isolate(self, node: Node) -> None:
        """Parts a node from all others, in both ways: it has neither their votes nor a replica or
        master any more. Callers still reach it. Needs ``links``, and is for one node at a time."""
        others = {self._sources[other] for other in self.nodes if other is not node}
        for links in (self.links, self.bus_links):
            for other, link in links.items():
                link.shut_out(others if other is node else {self._sources[node]})

    def rejoin(self) -> None:
        """Ends ``isolate``."""
        for link in (*self.links.values(), *self.bus_links.values()):
            link.let_back()

    def migrate_slot(self, slot: int, to: Node) -> None:
        """Moves a slot with all its keys to another master, while both of them serve."""
        source = self._owner(slot)
        self.begin_migration(slot, to)
        self.move_keys(slot, source, to)
        self.end_migration(slot, source, to)

    def begin_migration(self, slot: int, to: Node) -> None:
        """From here to ``end_migration`` its owner answers ASK for keys that it does not have."""
        source = self._owner(slot)
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self._ids[source])
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self._ids[to])

    def move_keys(self, slot: int, source: Node, to: Node) -> None:
        """Moves what ``source`` holds of the slot."""
        password = self._config.get("requirepass")
        login = ["AUTH", password] if password is not None else []
        head = ["MIGRATE", HOST, to.port, "", 0, MOVE_MS, *login, "KEYS"]
        with source.client() as client:
            for _ in range(MOVE_STEPS):
                keys = client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, MOVE_KEYS)
                if not keys:
                    return
                client.execute_command(*head, *keys)
        raise AssertionError(f"slot {slot} of {source} is not empty after {MOVE_STEPS} steps")

    def end_migration(self, slot: int, source: Node, to: Node) -> None:
        """Gives the slot to its new owner; waits until every node that answers knows of it."""
        # The new owner first: if that were to die now, the old one still answers ASK.
        others = [node for node in self.masters() if node not in (source, to)]
        for node in (to, source, *others):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", self._ids[to])
        self.wait_until_whole()

    def _start(self) -> None:
        for number in range(2 * MASTERS):
            self._add(number)
        # Nodes tell each other the news the sooner, the less of this time they have.
        self.set_node_timeout(START_MS)
        masters, replicas = self.nodes[:MASTERS], self.nodes[MASTERS:]
        for number, master in enumerate(masters):
            first, last = (SLOTS * (number + side) // MASTERS for side in (0, 1))
            master.ask("CLUSTER", "ADDSLOTSRANGE", first, last - 1)
            # Two masters with one epoch would have to find out which of them gives way.
            master.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            bus = self.bus_links[node].port if self._linked else node.bus_port
            self.nodes[0].ask("CLUSTER", "MEET", HOST, self.port_of(node), bus)
        wait_until(
            lambda: all(set(_lines_of(node)) == set(self._ids.values()) for node in self.nodes),
            "nodes that know each other",
        )
        for replica, master in zip(replicas, masters, strict=True):
            replica.ask("CLUSTER", "REPLICATE", self._ids[master])
        self.wait_until_whole()
        self.set_node_timeout(self._node_timeout_ms)

    def _add(self, number: int) -> None:
        config = dict(self._config)
        if self._linked:
            config["bind-source-addr"] = SOURCE.format(FIRST_SOURCE + number)
        node = self._stack.enter_context(Node(self._folder / f"node-{number}", config))
        self.nodes.append(node)
        self._ids[node] = node.ask("CLUSTER", "MYID")
        if not self._linked:
            return
        self._sources[node] = str(config["bind-source-addr"])
        self.links[node] = self._stack.enter_context(Link(node.port))
        self.bus_links[node] = self._stack.enter_context(Link(node.bus_port))
        # All three into its config file, for a restart.
        node.ask("CONFIG", "SET", "cluster-announce-ip", HOST)
        node.ask("CONFIG", "SET", "cluster-announce-port", self.links[node].port)
        node.ask("CONFIG", "SET", "cluster-announce-bus-port", self.bus_links[node].port)
        node.ask("CONFIG", "REWRITE")

    def _owner(self, slot: int) -> Node:
        claims = [(line.epoch, node) for node, line in self._lines().items() if line.owns(slot)]
        if not claims:
            raise LookupError(f"slot {slot} belongs to none of the nodes that answer")
        return max(claims, key=lambda claim: claim[0])[1]

    def _lines(self) -> dict[Node, _View]:
        """What each node that answers says of itself."""
        lines = {}
        for node in self.nodes:
            if node.answers:
                with contextlib.suppress(redis.RedisError, OSError):
                    lines[node] = _lines_of(node)[self._ids[node]]
        return lines

    def _is_whole(self) -> bool:
        by_id = {self._ids[node]: node for node in self.nodes}
        answering = {self._ids[node] for node in self.nodes if node.answers}
        views = []
        for id_ in answering:
            lines = _lines_of(by_id[id_])
            master = by_id.get(lines[id_].follows)
            if not _is_ok(by_id[id_]) or (master and not by_id[id_].follows(self.port_of(master))):
                return False
            views.append(
                {
                    line.id: (line.slots, line.follows)
                    for line in lines.values()
                    if line.id in answering
                }
            )
        return all(view == views[0] for view in views)


def _is_ok(node: Node) -> bool:
    said: str = node.ask("CLUSTER INFO")["cluster_state"]
    return said == "ok"


def _lines_of(node: Node) -> dict[str, _View]:
    """What a node says of all that it knows, by their ids."""
    lines = node.ask("CLUSTER NODES").values()
    return {
        line["node_id"]: _View(
            id=line["node_id"],
            flags=set(line["flags"].split(",")),
            follows=line["master_id"],
            epoch=int(line["epoch"]),
            slots=[(int(slots[0]), int(slots[-1])) for slots in line["slots"]],
        )
        for line in lines
    }
