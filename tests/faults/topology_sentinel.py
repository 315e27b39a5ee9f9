"""A master, its replicas and three sentinels that watch over them, all real."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import ExitStack
from math import inf
from pathlib import Path
from time import monotonic
from typing import Self

import redis

from tests.faults.link import Link
from tests.faults.topology_node import HOST, PATIENCE_S, Node, wait_until

__all__ = ["QUORUM", "SERVICE", "SentinelGroup"]

# What the sentinels call the master, whoever it is.
SERVICE = "sale"
REPLICAS = 2
SENTINELS = 3
QUORUM = 2
# Sentinels look at the world every 1 to 10 s; a test would mostly wait for that. Only how often
# they look is changed, not what they do. A sentinel that was starved for ``tilt-trigger`` ms would
# trust nobody for 30 s, and this machine may be slow. One that is started again looks as usual.
_PERIODS_MS = {
    "info-period": 500,
    "ping-period": 200,
    "ask-period": 200,
    "publish-period": 200,
    "tilt-trigger": 60_000,
}


class SentinelGroup:
    """1 master, 2 replicas, 3 sentinels with a quorum of 2, in folders below ``folder``.

    ``config`` is for the three servers (``requirepass`` needs a ``masterauth`` beside it). The
    first of ``nodes``, the servers, begins as the master. Any of them and of the ``sentinels`` may
    be killed, paused and started again. With ``links`` each server is reached through one, see
    link.py, and its own port is told to nobody.
    """

    def __init__(
        self,
        folder: Path,
        *,
        down_after_ms: int = 1_000,
        failover_timeout_ms: int = 10_000,
        links: bool = False,
        config: Mapping[str, str | int] | None = None,
    ) -> None:
        self._folder = folder
        self._down_after_ms = down_after_ms
        self._failover_timeout_ms = failover_timeout_ms
        self._config = dict(config or {})
        self._stack = ExitStack()
        self._linked = links
        self.links: dict[Node, Link] = {}
        self._asked_s = inf
        self.nodes: list[Node] = []
        self.sentinels: list[Node] = []

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
        """Host and port of each sentinel, for a client that asks them who the master is."""
        return [(HOST, sentinel.port) for sentinel in self.sentinels]

    def port_of(self, node: Node) -> int:
        """Where everybody but this process reaches a server."""
        return self.links[node].port if self._linked else node.port

    def master(self) -> Node | None:
        """Whom enough sentinels for a quorum call the master; None while they do not agree."""
        votes = [_named_by(sentinel) for sentinel in self.sentinels]
        for node in self.nodes:
            if votes.count(self.port_of(node)) >= QUORUM:
                return node
        return None

    def failover(self) -> None:
        """Tells a sentinel to promote a replica now, although the master is well; returns when it
        has begun to."""
        teller = next(sentinel for sentinel in self.sentinels if sentinel.answers)
        # Refused (NOGOODSLAVE, INPROG) until it knows enough of the replicas.
        wait_until(lambda: teller.ask("SENTINEL", "FAILOVER", SERVICE), "SENTINEL FAILOVER")
        self._asked_s = monotonic()

    def wait_for_new_master(self, old: Node) -> Node:
        """The master after ``old``, once the sentinels agree on it and it takes itself for one."""
        found: list[Node] = []

        def promoted() -> bool:
            node = self.master()
            if node is old and monotonic() > self._asked_s + 2 * self._failover_timeout_ms / 1000:
                # A replica that could not be reached just then ends an operator's failover, and
                # nobody repeats it: the master is well.
                self.failover()
            if node is None or node is old or node.info("replication")["role"] != "master":
                return False
            found.append(node)
            self._asked_s = inf
            return True

        # A try of the sentinels' own that fails they repeat after twice ``failover_timeout_ms``.
        wait_until(promoted, f"a master after {old}", patience_s=2 * PATIENCE_S)
        return found[-1]

    def wait_until_whole(self) -> Node:
        """The master, once every other server that answers is its replica, and connected."""
        found: list[Node] = []

        def whole() -> bool:
            master = self.master()
            if master is None:
                return False
            found.append(master)
            others = [node for node in self.nodes if node is not master and node.answers]
            return all(node.follows(self.port_of(master)) for node in others)

        wait_until(whole, "replicas that follow one master")
        return found[-1]

    def set_down_after(self, down_after_ms: int) -> None:
        """How long a server must be silent until a sentinel takes it for dead; for all of them."""
        for sentinel in self.sentinels:
            sentinel.ask("SENTINEL", "SET", SERVICE, "down-after-milliseconds", down_after_ms)

    def _start(self) -> None:
        master = self._add("node-0")
        for number in range(1, 1 + REPLICAS):
            replica = self._add(f"node-{number}")
            replica.ask("REPLICAOF", HOST, self.port_of(master))
            # Into its config file: a replica that was restarted is one again.
            replica.ask("CONFIG", "REWRITE")
        wait_until(
            lambda: all(node.follows(self.port_of(master)) for node in self.nodes[1:]),
            "replicas with a master",
        )
        for number in range(SENTINELS):
            sentinel = Node(self._folder / f"sentinel-{number}", sentinel=True)
            self.sentinels.append(self._stack.enter_context(sentinel))
            self._watch(sentinel, master)
        wait_until(
            lambda: all(_knows_all(sentinel) for sentinel in self.sentinels),
            "sentinels that know the replicas and each other",
        )

    def _add(self, name: str) -> Node:
        node = self._stack.enter_context(Node(self._folder / name, self._config))
        self.nodes.append(node)
        if self._linked:
            self.links[node] = self._stack.enter_context(Link(node.port))
            node.ask("CONFIG", "SET", "replica-announce-ip", HOST)
            node.ask("CONFIG", "SET", "replica-announce-port", self.port_of(node))
            node.ask("CONFIG", "REWRITE")
        return node

    def _watch(self, sentinel: Node, master: Node) -> None:
        """Tells a sentinel of the master; it writes all but the periods into its config file."""
        settings: dict[str, str | int] = {
            "down-after-milliseconds": self._down_after_ms,
            "failover-timeout": self._failover_timeout_ms,
        }
        if "requirepass" in self._config:
            settings["auth-pass"] = self._config["requirepass"]
        with sentinel.client() as client:
            port = self.port_of(master)
            client.execute_command("SENTINEL", "MONITOR", SERVICE, HOST, port, QUORUM)
            for name, value in settings.items():
                client.execute_command("SENTINEL", "SET", SERVICE, name, value)
            for name, period_ms in _PERIODS_MS.items():
                client.execute_command("SENTINEL", "DEBUG", name, period_ms)


def _named_by(sentinel: Node) -> int | None:
    """The port of the master that a sentinel names; None if it does not answer."""
    if not sentinel.answers:
        return None
    with contextlib.suppress(redis.RedisError, OSError):
        address = sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return int(address[1])
    return None


def _knows_all(sentinel: Node) -> bool:
    with sentinel.client() as client:
        seen = client.sentinel_master(SERVICE)
        replicas = client.sentinel_slaves(SERVICE)
    return (
        seen["num-other-sentinels"] == SENTINELS - 1
        and [replica["flags"] for replica in replicas] == ["slave"] * REPLICAS
        # Only a replica that has told of its own link may be promoted.
        and all(replica["master-link-status"] == "ok" for replica in replicas)
    )
