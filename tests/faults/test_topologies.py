"""Sentinels and clusters of real servers do what the fault suite takes for granted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.faults.topologies import (
    HOST,
    ClusterGroup,
    Node,
    SentinelGroup,
    living,
    slot_of,
    wait_until,
)

# So long that nobody is taken for dead who is only slow; and for the time that somebody is dead.
CALM_MS = 10_000
QUICK_MS = 1_000


@pytest.mark.once
def test_a_group_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "node-1").mkdir()
    group = SentinelGroup(tmp_path)
    with pytest.raises(FileExistsError, match="node-1"), group:
        pass
    wait_until(lambda: not living([group.nodes[0].pid]), "the end of the first")


@pytest.mark.slow
def test_sentinels_replace_a_dead_master(tmp_path: Path) -> None:
    with SentinelGroup(tmp_path, down_after_ms=CALM_MS) as group:
        old = group.master()
        assert old is group.nodes[0]
        with old.client() as client:
            client.set("k", "v")
            assert client.wait(2, 60_000) == 2
        group.set_down_after(QUICK_MS)
        old.kill()
        new = group.wait_for_new_master(old)
        # Nobody else is to be taken for dead.
        group.set_down_after(CALM_MS)
        assert new in group.nodes[1:]
        assert new.ask("GET", "k") == "v"
        new.ask("SET", "k", "w")
        old.start()
        assert group.wait_until_whole() is new
        assert old.ask("GET", "k") == "w"
        with pytest.raises(redis.exceptions.ReadOnlyError):
            old.ask("SET", "k", "x")
        groups = [node.pid for node in (*group.nodes, *group.sentinels)]
        # Each with its watcher; one may just have forked for a replica's sync.
        assert len(living(groups)) >= 2 * len(groups)
    wait_until(lambda: not living(groups), "the end of all")


@pytest.mark.slow
def test_a_parted_master_takes_nothing_and_is_replaced(tmp_path: Path) -> None:
    config: dict[str, str | int] = {
        "requirepass": "secret",
        "masterauth": "secret",
        "min-replicas-to-write": 1,
        "min-replicas-max-lag": 2,
    }
    with SentinelGroup(tmp_path, down_after_ms=CALM_MS, links=True, config=config) as group:
        first = group.nodes[0]
        group.failover()
        old = group.wait_for_new_master(first)
        assert group.wait_until_whole() is old

        group.set_down_after(QUICK_MS)
        group.links[old].partition()
        new = group.wait_for_new_master(old)
        group.set_down_after(CALM_MS)

        def refuses() -> bool:
            # Asked past its link: it is alive, and still believes that it is the master.
            try:
                old.ask("SET", "k", "old")
            except redis.ResponseError as error:
                return str(error).startswith("NOREPLICAS ")
            return False

        wait_until(refuses, "a master that misses its replicas")
        assert old.info("replication")["role"] == "master"
        wait_until(lambda: new.ask("SET", "k", "new"), "a new master with a replica")
        group.links[old].heal()
        assert group.wait_until_whole() is new
        assert old.ask("GET", "k") == "new"


def told(node: Node) -> set[tuple[int, int]]:
    """The ports, for clients and for the bus, that a node tells of all of them."""
    places = [line.split()[1].split(",")[0] for line in node.ask("CLUSTER", "NODES").splitlines()]
    pairs = [place.rpartition(":")[2].split("@") for place in places]
    return {(int(port), int(bus)) for port, bus in pairs}


@pytest.mark.slow
def test_a_node_of_a_cluster_is_parted_from_the_others_and_not_from_callers(tmp_path: Path) -> None:
    with ClusterGroup(tmp_path, node_timeout_ms=CALM_MS, links=True) as group:
        links = {(group.links[node].port, group.bus_links[node].port) for node in group.nodes}
        assert all(told(node) == links for node in group.nodes)
        old = group.node_of("k")
        (replica,) = group.replicas_of(old)
        old.ask("SET", "k", "both")
        wait_until(lambda: replica.ask("DBSIZE") == 1, "a replica that has it")
        with redis.Redis(HOST, group.port_of(old), decode_responses=True) as caller:
            group.isolate(old)
            caller.set("k", "of the old")
            assert caller.wait(1, 300) == 0
            group.set_node_timeout(QUICK_MS)
            assert group.wait_for_new_master("k", old) is replica
            group.set_node_timeout(CALM_MS)
            # It is there for its callers, and knows no better.
            assert caller.info("replication")["role"] == "master"
        assert replica.ask("GET", "k") == "both"
        group.rejoin()
        group.wait_until_whole()
        assert group.replicas_of(replica) == [old]
        with old.client() as client:
            pipe = client.pipeline(transaction=False)
            assert pipe.readonly().get("k").execute()[-1] == "both"
        # What it announces outlasts a restart.
        old.kill()
        old.start()
        group.wait_until_whole()
        assert all(told(node) == links for node in group.nodes)
        with pytest.raises(redis.exceptions.MovedError) as moved:
            old.ask("SET", "k", "w")
        assert moved.value.port == group.port_of(replica)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterGroup]:
    with ClusterGroup(tmp_path_factory.mktemp("cluster"), node_timeout_ms=CALM_MS) as group:
        yield group


@pytest.mark.slow
def test_a_cluster_has_three_masters_with_a_replica_each(cluster: ClusterGroup) -> None:
    cluster.wait_until_whole()
    masters = cluster.masters()
    assert len(masters) == 3
    replicas = [replica for master in masters for replica in cluster.replicas_of(master)]
    assert set(masters) | set(replicas) == set(cluster.nodes)
    assert len(replicas) == 3
    owner = cluster.node_of("k")
    stranger = next(master for master in masters if master is not owner)
    with pytest.raises(redis.exceptions.MovedError) as moved:
        stranger.ask("GET", "k")
    assert (moved.value.port, moved.value.slot_id) == (owner.port, slot_of("k"))


@pytest.mark.slow
def test_a_replica_takes_over_when_it_is_told_to(cluster: ClusterGroup) -> None:
    cluster.wait_until_whole()
    old = cluster.node_of("k")
    old.ask("SET", "k", "v")
    (replica,) = cluster.replicas_of(old)
    cluster.failover(replica)
    cluster.wait_until_whole()
    assert cluster.node_of("k") is replica
    assert cluster.replicas_of(replica) == [old]
    assert replica.ask("GET", "k") == "v"
    with pytest.raises(redis.exceptions.MovedError) as moved:
        old.ask("SET", "k", "w")
    assert moved.value.port == replica.port


@pytest.mark.slow
def test_a_slot_moves_while_both_sides_serve(cluster: ClusterGroup) -> None:
    cluster.wait_until_whole()
    source = cluster.node_of("k")
    target = next(master for master in cluster.masters() if master is not source)
    slot = slot_of("k")
    source.ask("SET", "k", "v")
    cluster.begin_migration(slot, target)
    assert source.ask("GET", "k") == "v"
    with pytest.raises(redis.exceptions.AskError) as asked:
        source.ask("GET", "{k}other")
    assert (asked.value.port, asked.value.slot_id) == (target.port, slot)
    with pytest.raises(redis.exceptions.TryAgainError):
        source.ask("MGET", "k", "{k}other")
    with pytest.raises(redis.exceptions.MovedError):
        target.ask("GET", "k")

    cluster.move_keys(slot, source, target)
    with pytest.raises(redis.exceptions.AskError):
        source.ask("GET", "k")
    with target.client() as client:
        with pytest.raises(redis.exceptions.MovedError):
            client.get("k")
        pipe = client.pipeline(transaction=False)
        assert pipe.execute_command("ASKING").get("k").execute()[-1] == "v"

    cluster.end_migration(slot, source, target)
    assert cluster.node_of("k") is target
    assert target.ask("GET", "k") == "v"
    with pytest.raises(redis.exceptions.MovedError):
        source.ask("GET", "k")


@pytest.mark.slow
def test_a_slot_with_many_keys_moves_back_and_forth(cluster: ClusterGroup) -> None:
    cluster.wait_until_whole()
    source = cluster.node_of("many")
    target = next(master for master in cluster.masters() if master is not source)
    with source.client() as client:
        for number in range(250):
            client.set(f"{{many}}{number}", number)
    for to in (target, source):
        cluster.migrate_slot(slot_of("many"), to)
        assert cluster.node_of("many") is to
        assert to.ask("CLUSTER", "COUNTKEYSINSLOT", slot_of("many")) == 250


@pytest.mark.slow
def test_a_replica_takes_over_from_a_dead_master(cluster: ClusterGroup) -> None:
    cluster.wait_until_whole()
    old = cluster.node_of("k")
    with old.client() as client:
        client.set("k", "v")
        assert client.wait(1, 60_000) == 1
    (replica,) = cluster.replicas_of(old)
    cluster.set_node_timeout(QUICK_MS)
    old.kill()
    assert cluster.wait_for_new_master("k", old) is replica
    cluster.set_node_timeout(CALM_MS)
    # A slow machine may just have taken another master for dead, and all are down while one is.
    wait_until(lambda: replica.ask("GET", "k") == "v", "what its master had")
    wait_until(lambda: replica.ask("SET", "k", "w"), "a master that takes orders")
    old.start()
    cluster.wait_until_whole()
    assert cluster.replicas_of(replica) == [old]
    with old.client() as client:
        pipe = client.pipeline(transaction=False)
        assert pipe.readonly().get("k").execute()[-1] == "w"
