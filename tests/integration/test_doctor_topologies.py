"""``seckill doctor`` where there are several servers: what ``replicas:N`` asks for, whoever is the
master behind sentinels, and every master of a cluster. Real ones, set up as docs/redis.md says.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from seckill.doctor import CHECKS, Finding, Level, examine, server
from seckill.engine import Engine
from seckill.keys import shard_keys
from seckill.sale import Sale
from tests.cli.conftest import run_seckill
from tests.faults.topologies import SERVICE, ClusterGroup, Node, SentinelGroup, wait_until
from tests.support import make_sale

pytestmark = pytest.mark.slow

# So long that nobody is taken for dead who is only slow.
CALM_MS = 60_000
# As the guide has them. On a busy machine any command may be kept waiting, and is called slow.
CONFIG: dict[str, str | int] = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "min-replicas-to-write": 1,
    "min-replicas-max-lag": 10,
    "slowlog-log-slower-than": -1,
}
RED, YELLOW, GREEN = Level.RED, Level.YELLOW, Level.GREEN


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRIP_RED_MS", "TRIP_YELLOW_MS", "WRITE_RED_MS", "WRITE_YELLOW_MS"):
        monkeypatch.setattr(server, name, 10_000)


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelGroup]:
    folder = tmp_path_factory.mktemp("doctor-sentinels")
    with SentinelGroup(folder, down_after_ms=CALM_MS, config=CONFIG) as group:
        yield group


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterGroup]:
    folder = tmp_path_factory.mktemp("doctor-cluster")
    with ClusterGroup(folder, node_timeout_ms=CALM_MS, config=CONFIG) as group:
        yield group


def url_of(group: SentinelGroup | ClusterGroup) -> str:
    hosts = ",".join(f"{host}:{port}" for host, port in group.addresses)
    if isinstance(group, SentinelGroup):
        return f"redis+sentinel://{hosts}/{SERVICE}"
    return f"redis+cluster://{hosts}"


def address(node: Node) -> str:
    return f"127.0.0.1:{node.port}"


def begin(url: str, durability: str, sale: Sale | None = None) -> Sale:
    """An open sale; an engine that finds another server under it adopts that."""
    made = sale or make_sale({"a": 100})

    async def run() -> None:
        async with Engine(url, durability=durability, sweep_ms=0, timeout_ms=60_000) as engine:
            if sale is None:
                await engine.create(made)
                await engine.open(made.id)
            assert (await engine.reserve(made.id, "ann", f"k{sale is None}", {"a": 1})).ok

    asyncio.run(run())
    return made


def look(url: str, sale: str, durability: str) -> dict[tuple[str, str], Finding]:
    found = asyncio.run(examine(sale, url, durability=durability))
    findings = {(one.server, one.check): one for one in found}
    assert len(findings) == len(found)
    return findings


def turned(findings: dict[tuple[str, str], Finding]) -> dict[tuple[str, str], Level]:
    """What is not green. Nobody reads the events here, and the machine's kernel is as it is."""
    beside = ("groups", "kernel", "disk-space")
    return {
        place: one.level
        for place, one in findings.items()
        if one.level is not GREEN and one.check not in beside
    }


def test_what_the_guide_says_of_sentinels_is_green(sentinels: SentinelGroup) -> None:
    master = sentinels.wait_until_whole()
    url = url_of(sentinels)
    sale = begin(url, "replicas:2")
    findings = look(url, sale.id, "replicas:2")
    assert turned(findings) == {}
    assert findings["", "replicas"].seen == "2 in step, and every order waits for 2"
    # It is the master's address, not the sentinels'.
    assert findings["", "server"].seen.endswith(f" at {address(master)}")
    # The same servers asked for more, and for a promise that they do not make.
    assert turned(look(url, sale.id, "replicas:3")) == {("", "replicas"): RED}
    findings = look(url, sale.id, "aof")
    assert turned(findings) == {("", "persistence"): RED}
    assert "CONFIG SET appendfsync always" in findings["", "persistence"].remedy
    assert "or choose durability replicas:N" in findings["", "persistence"].remedy


def test_replicas_that_are_missing_or_not_asked_for(sentinels: SentinelGroup) -> None:
    master = sentinels.wait_until_whole()
    url = url_of(sentinels)
    sale = begin(url, "replicas:2")
    gone = next(node for node in sentinels.nodes if node is not master)
    gone.kill()
    try:
        wait_until(lambda: master.info("replication")["connected_slaves"] == 1, "one that is gone")
        findings = look(url, sale.id, "replicas:2")
        assert turned(findings) == {("", "replicas"): RED}
        assert findings["", "replicas"].seen == "1 in step, and every order waits for 2"
        assert turned(look(url, sale.id, "replicas:1")) == {}
    finally:
        gone.start()
        sentinels.wait_until_whole()


@pytest.mark.parametrize(
    ("name", "value", "check"),
    [("min-replicas-to-write", "0", "replicas"), ("appendonly", "no", "persistence")],
)
def test_a_setting_that_an_engine_refuses(
    sentinels: SentinelGroup, name: str, value: str, check: str
) -> None:
    master = sentinels.wait_until_whole()
    url = url_of(sentinels)
    sale = begin(url, "replicas:2")
    master.ask("CONFIG", "SET", name, value)
    try:
        findings = look(url, sale.id, "replicas:2")
        assert turned(findings) == {("", check): RED}
        assert f"CONFIG SET {name}" in findings["", check].remedy
    finally:
        master.ask("CONFIG", "SET", name, CONFIG[name])
    assert turned(look(url, sale.id, "replicas:2")) == {}


def test_home_after_a_failover(sentinels: SentinelGroup) -> None:
    old = sentinels.wait_until_whole()
    url = url_of(sentinels)
    sale = begin(url, "replicas:2")
    sentinels.failover()
    sentinels.wait_for_new_master(old)
    new = sentinels.wait_until_whole()
    assert new is not old
    # Nobody has talked to it since: whether it has everything nobody has asked. A replica that has
    # just come to the new master may be a moment behind it.
    only_home = {("", "home"): RED}
    wait_until(lambda: turned(look(url, sale.id, "replicas:2")) == only_home, "replicas in step")
    findings = look(url, sale.id, "replicas:2")
    assert "promoted, and no engine has adopted it" in findings["", "home"].seen

    def adopted() -> bool:
        begin(url, "replicas:2", sale)
        return turned(look(url, sale.id, "replicas:2")) == {}

    # Who is dead is waited for in the roll call.
    wait_until(adopted, "an engine that adopts it")
    findings = look(url, sale.id, "replicas:2")
    assert findings["", "home"].seen == "the server that it was sold on last"


def test_every_master_of_a_cluster(cluster: ClusterGroup) -> None:
    cluster.wait_until_whole()
    url = url_of(cluster)
    sales = [begin(url, "replicas:1") for _ in range(3)]
    masters = {address(node) for node in cluster.masters()}
    for sale in sales:
        home = address(cluster.node_of(shard_keys(sale.id)[0]))
        findings = look(url, sale.id, "replicas:1")
        assert turned(findings) == {}
        assert {name for name, _ in findings} == masters | {""}
        # The sale's own comes first.
        assert next(iter(findings))[0] == home
        for name in masters:
            tail = "which has the sale" if name == home else "for other sales"
            assert findings[name, "server"].seen.endswith(f" at {name}, {tail}")
            for check in ("role", "scripts", "persistence", "memory", "fsync"):
                assert findings[name, check].level is GREEN
            assert findings[name, "replicas"].seen == "1 in step, and every order waits for 1"
        told = {check for name, check in findings if not name}
        assert told == set(CHECKS["sale"])
    # Each master is planned for with the sales that it has, and only those.
    every = cluster.node_of("sk:sales").ask("SMEMBERS", "sk:sales")
    homes = Counter(address(cluster.node_of(shard_keys(sale)[0])) for sale in every)
    for name in masters:
        assert findings[name, "memory"].seen.endswith(f" in {homes[name]} sales")


def test_the_report_has_a_part_for_each_master(cluster: ClusterGroup, tmp_path: Path) -> None:
    cluster.wait_until_whole()
    url = url_of(cluster)
    sale = begin(url, "replicas:1")
    args = ("doctor", sale.id, "--redis", url, "--durability", "replicas:1")
    done = run_seckill(*args, cwd=tmp_path)
    parts = re.findall(r"(?m)^ +(server|sale|intake)(?: +(\S+))? *$", done.out)
    home = address(cluster.node_of(shard_keys(sale.id)[0]))
    assert parts[0] == ("server", home)
    assert {name for group, name in parts if group == "server"} == {
        address(node) for node in cluster.masters()
    }
    assert [group for group, _ in parts] == ["server"] * 3 + ["sale", "intake"]
    found = run_seckill(*args, "--json", cwd=tmp_path).data["findings"]
    assert {one["server"] for one in found if one["check"] == "role"} == {
        name for group, name in parts if group == "server"
    }


def test_a_fault_of_another_master_is_its_own(cluster: ClusterGroup) -> None:
    cluster.wait_until_whole()
    url = url_of(cluster)
    sale = begin(url, "replicas:1")
    home = cluster.node_of(shard_keys(sale.id)[0])
    other = next(node for node in cluster.masters() if node is not home)
    other.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        assert turned(look(url, sale.id, "replicas:1")) == {(address(other), "eviction"): RED}
    finally:
        other.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    # Whoever has the list of all sales may be away as well.
    for away in (cluster.node_of("sk:sales"), home):
        away.pause()
        try:
            findings = look(url, sale.id, "replicas:1")
            assert findings[address(away), "server"].level is RED
            assert "can't be examined" in findings[address(away), "server"].seen
            assert (("", "sale") in findings) is (away is not home)
            masters = {address(node) for node in cluster.masters()}
            assert all((name, "role") in findings for name in masters - {address(away)})
        finally:
            away.unpause()
            cluster.wait_until_whole()


def test_a_node_of_a_cluster_that_is_asked_alone(cluster: ClusterGroup) -> None:
    cluster.wait_until_whole()
    for node in cluster.masters():
        findings = look(f"redis://{address(node)}", "nope", "replicas:1")
        assert findings["", "role"].level is RED
        assert "redis+cluster://host:port" in findings["", "role"].remedy
        assert findings["", "server"].level is GREEN
        assert ("", "sale") not in findings
