"""The servers of a chaos run that are several, of which one after the other has the sale."""

from __future__ import annotations

import time
from pathlib import Path

from seckill.keys import shard_keys
from tests.faults.chaos_crew import wait_for
from tests.faults.chaos_node import mute
from tests.faults.chaos_schedule import Fault
from tests.faults.chaos_servers import NETWORK, SALE, Base, Servers, Single, begin_memory, switch
from tests.faults.topologies import (
    HOST,
    SERVICE,
    ClusterGroup,
    Link,
    Node,
    SentinelGroup,
    slot_of,
)

__all__ = ["Cluster", "Sentinel", "a_topology"]


def a_topology(name: str, folder: Path, *, broken: str) -> Servers:
    """The servers of a run, to be entered. Those of ``everysec`` sync once a second."""
    if name == "single":
        return Single(folder, everysec=broken == "everysec")
    return Sentinel(folder) if name == "sentinel" else Cluster(folder)


class _Group(Base):
    """Several servers, of which one after the other has the sale. A fault whose end waits for a
    failover lasts as long as that takes."""

    def __init__(self) -> None:
        super().__init__()
        # Fault to the node that it was done to.
        self._victims: dict[str, Node] = {}
        self._nodes: list[Node] = []
        self._sentinels: list[Node] = []
        self._links: dict[Node, Link] = {}
        self._network_until_s = 0.0

    def master(self) -> Node:
        """Who has the sale."""
        raise NotImplementedError

    def successor(self, old: Node) -> Node:
        """Who has it after this one, as soon as somebody has."""
        raise NotImplementedError

    def replica(self) -> Node:
        """One that follows the master."""
        raise NotImplementedError

    def promote(self, old: Node) -> None:
        """Begins a failover while all are well."""
        raise NotImplementedError

    def wait_until_whole(self) -> None:
        """Until everybody follows the right one."""
        raise NotImplementedError

    def begin_move(self, source: Node) -> None:
        """Another master is about to get the sale."""
        raise NotImplementedError

    def end_move(self, source: Node) -> None:
        """It has it."""
        raise NotImplementedError

    @property
    def inside_url(self) -> str:
        return f"redis://{HOST}:{self.master().port}/0"

    def begin(self, fault: Fault) -> None:
        name = fault.name
        if name in NETWORK:
            for link in self._links.values():
                switch(link, fault)
            self._network_until_s = time.monotonic() + fault.for_ms / 1000
            return
        if name in ("failover", "slot_move"):
            self._outlast_network()
        verb, _, whom = name.partition("_")
        if whom == "replica":
            node = self.replica()
        elif whom == "sentinel":
            node = next(sentinel for sentinel in self._sentinels if sentinel.answers)
        else:
            node = self.master()
        self._victims[name] = node
        if verb == "kill":
            node.kill()
        elif verb == "pause":
            node.pause()
        elif verb == "part":
            self._part(node)
        elif verb == "hide":
            self._links[node].partition()
        elif verb == "split":
            self._split(node)
        elif verb == "mute":
            self._mute(node)
        elif name == "failover":
            self.promote(node)
        elif name == "slot_move":
            self.begin_move(node)
        else:
            begin_memory(node, name)

    def end(self, fault: Fault) -> None:
        name = fault.name
        if name in NETWORK:
            self._end_network()
            return
        self._outlast_network()
        node = self._victims.pop(name)
        verb, _, whom = name.partition("_")
        if verb == "mute":
            node.kill()
            # What it had to say to its replicas must not reach them after its death.
            self._links[node].cut()
        if name == "failover" or (whom == "master" and verb != "hide"):
            self.successor(node)
        if verb in ("kill", "mute"):
            node.start()
        elif verb == "pause":
            node.unpause()
        elif verb in ("part", "hide", "split"):
            self._join(node)
        elif name == "maxmemory" and node.running:
            node.ask("CONFIG", "SET", "maxmemory", 0)
        elif name == "slot_move":
            self.end_move(node)
        if whom != "sentinel":
            self.wait_until_whole()

    def heal(self) -> None:
        for link in self._links.values():
            link.heal()
        for node in (*self._nodes, *self._sentinels):
            if node.paused:
                node.unpause()
            if not node.running:
                node.start()
        self._victims.clear()
        self.wait_until_whole()
        for node in self._nodes:
            node.ask("CONFIG", "SET", "maxmemory", 0)

    def _outlast_network(self) -> None:
        """Before a wait for a failover, or for replicas to find a master: both need a network,
        and while a step waits, no other one comes that would end what is wrong with it."""
        time.sleep(max(0.0, self._network_until_s - time.monotonic()))
        self._end_network()

    def _end_network(self) -> None:
        # Who is parted stays so until that is over.
        parted = [node for what, node in self._victims.items() if what.startswith(("part", "hide"))]
        for node, link in self._links.items():
            if node not in parted:
                link.heal()

    def _part(self, node: Node) -> None:
        self._links[node].partition()

    def _split(self, master: Node) -> None:
        raise NotImplementedError

    def _join(self, node: Node) -> None:
        self._links[node].heal()

    def _mute(self, master: Node) -> None:
        with master.client() as client:
            replicas = client.client_list(_type="replica")
        ports = {int(replica["addr"].rpartition(":")[2]) for replica in replicas}
        muted = mute(self._links[master], ports)
        assert muted == len(ports) > 0, f"{muted} of {len(replicas)} replicas hear nothing more"


# What a master keeps over its death is nothing to rely on: a replica takes its place.
_GROUP_CONFIG: dict[str, str | int] = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "min-replicas-to-write": 1,
}


class Sentinel(_Group):
    """1 master and 2 replicas, all of which must have an order before it is acknowledged."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.durability = "replicas:2"
        self._group = SentinelGroup(folder, links=True, config=_GROUP_CONFIG)

    def _start(self) -> None:
        self._stack.enter_context(self._group)
        self._nodes, self._sentinels = self._group.nodes, self._group.sentinels
        self._links = self._group.links
        hosts = ",".join(f"{host}:{port}" for host, port in self._group.addresses)
        self.url = f"redis+sentinel://{hosts}/{SERVICE}"

    def master(self) -> Node:
        found: list[Node] = []

        def named() -> bool:
            node = self._group.master()
            found.extend([node] if node else [])
            return node is not None

        wait_for("a master that the sentinels agree on", named)
        return found[-1]

    def successor(self, old: Node) -> Node:
        return self._group.wait_for_new_master(old)

    def replica(self) -> Node:
        master = self.master()
        return next(node for node in self._group.nodes if node is not master and node.answers)

    def promote(self, old: Node) -> None:
        self._group.failover()

    def wait_until_whole(self) -> None:
        self._group.wait_until_whole()


class Cluster(_Group):
    """3 masters with a replica each, which must have an order before it is acknowledged."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.durability = "replicas:1"
        self._group = ClusterGroup(folder, links=True, config=_GROUP_CONFIG)
        self._target: Node

    def _start(self) -> None:
        self._stack.enter_context(self._group)
        self._nodes, self._links = self._group.nodes, self._group.links
        hosts = ",".join(f"{host}:{port}" for host, port in self._group.addresses)
        self.url = f"redis+cluster://{hosts}"

    @property
    def _key(self) -> str:
        return shard_keys(SALE)[0]

    def master(self) -> Node:
        found: list[Node] = []

        def owned() -> bool:
            try:
                found.append(self._group.node_of(self._key))
            except LookupError:
                return False
            return True

        wait_for("a master of the sale's slot", owned)
        return found[-1]

    def successor(self, old: Node) -> Node:
        return self._group.wait_for_new_master(self._key, old)

    def replica(self) -> Node:
        return self._group.replicas_of(self.master())[0]

    def promote(self, old: Node) -> None:
        self._group.failover(self.replica())

    def wait_until_whole(self) -> None:
        self._group.wait_until_whole()

    def begin_move(self, source: Node) -> None:
        # After a loss in the network a node may have no replica, and then it takes no part in this.
        self.wait_until_whole()
        masters = self._group.masters()
        self._target = masters[(masters.index(source) + 1) % len(masters)]
        self._group.begin_migration(slot_of(self._key), self._target)

    def heal(self) -> None:
        self._group.rejoin()
        super().heal()

    def _part(self, node: Node) -> None:
        super()._part(node)
        self._group.isolate(node)

    def _split(self, master: Node) -> None:
        self._group.isolate(master)

    def _join(self, node: Node) -> None:
        self._group.rejoin()
        super()._join(node)

    def end_move(self, source: Node) -> None:
        slot = slot_of(self._key)
        self.wait_until_whole()
        self._group.move_keys(slot, source, self._target)
        self._group.end_migration(slot, source, self._target)
