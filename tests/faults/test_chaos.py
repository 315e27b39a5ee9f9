"""Chaos in short: a few seeds of what works, and engines broken on purpose, which must be seen.

A run is judged by its verdict alone; how fast anything was says nothing here. `make chaos` runs
more and longer ones.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import redis
from redis.asyncio.connection import AbstractConnection, Connection

from seckill.engine import Engine
from seckill.fencing import Greeting, Told
from seckill.scripts import FORMAT
from tests.children import child
from tests.faults.chaos import exit_code, main, show_schedule
from tests.faults.chaos_broken import VARIANTS, break_engine
from tests.faults.chaos_crew import ROOT
from tests.faults.chaos_groups import Cluster
from tests.faults.chaos_judge import Result
from tests.faults.chaos_node import ChaosNode, StallingLink, mute
from tests.faults.chaos_patience import Patience
from tests.faults.chaos_run import Plan, run
from tests.faults.chaos_schedule import ALONE, FAULTS, TOPOLOGIES, Fault, schedule, usual_faults
from tests.faults.chaos_servers import SALE
from tests.faults.checker import Report, Verdict
from tests.faults.disk import can_watch_syncs
from tests.faults.evening import state_of
from tests.faults.observed import SeenEvent
from tests.faults.plants import evening, leave_alone
from tests.faults.topologies import HOST, Link, wait_until
from tests.support import make_sale

SEEDS = (1, 2, 3, 4, 5, 6)
SHORT_S = 1.6
# These stand alone, and a short run would have time for little else.
LONG = tuple(name for name, kind in FAULTS["single"].items() if kind.lane == ALONE)
SAFE = tuple(name for name in usual_faults("single") if name not in LONG)


class Caught(NamedTuple):
    """What a broken engine does not survive, and the rules that say so."""

    variant: str
    topology: str
    fault: str
    rules: set[str]
    seconds: float = 3.0


CAUGHT = (
    Caught("everysec", "single", "kill_cut", {"lost"}),
    Caught("new_key", "single", "kill_cut", {"lost", "phantom", "twice"}),
    Caught("no_limit", "single", "stall", {"zombie", "phantom"}),
    Caught("no_fence", "single", "old_snapshot", {"lost"}),
    Caught("no_wait", "sentinel", "mute_master", {"lost"}, seconds=0.5),
    Caught("no_wait", "cluster", "split_master", {"lost"}, seconds=0.5),
)
BROKEN_SEEDS = (2, 3, 5, 7, 11, 13, 17, 19)
PATIENT_MS = 240_000
# How long a test listens for what shall not come. On a slow machine it sees less, and never fails.
SILENCE_S = 0.3
CID_HELD = ("cid.k", "held")

needs_shim = pytest.mark.skipif(not can_watch_syncs(), reason="needs Linux and a C compiler")


@needs_shim
@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_sound_engine_survives(seed: int) -> None:
    plan = Plan("single", seed, SHORT_S, SAFE, callers=6)
    print(show_schedule(plan.schedule))
    result = run(plan)
    print(result)
    assert result.verdict is Verdict.VALID, result.report.problems[:10]
    assert result.accepted > 0
    assert exit_code([result]) == 0


@needs_shim
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("caught", CAUGHT, ids=lambda caught: f"{caught[0]}-{caught[1]}")
def test_a_broken_engine_is_caught_where_a_sound_one_survives(caught: Caught) -> None:
    """Not each run meets the moment that matters, so a few seeds may be tried. The sound engine
    gets the seed that has caught the broken one."""
    variant, topology, fault, rules, seconds = caught
    for seed in BROKEN_SEEDS:
        plan = Plan(topology, seed, seconds, (fault,), variant, callers=16)
        result = run(plan)
        print(result)
        if result.folder:
            shutil.rmtree(result.folder)
        if result.verdict is Verdict.INVALID:
            assert result.report.rules & rules, result.report.problems[:10]
            assert exit_code([result]) == 1
            sound = run(msgspec.structs.replace(plan, broken=""))
            print(sound)
            assert sound.verdict is Verdict.VALID, sound.report.problems[:10]
            return
    pytest.fail(f"{variant} was caught by none of {BROKEN_SEEDS}, so a pass elsewhere is no proof")


def test_each_variant_is_caught() -> None:
    assert set(VARIANTS) == {caught.variant for caught in CAUGHT}


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_seed_is_a_schedule(topology: str) -> None:
    kinds = FAULTS[topology]
    seen: Counter[str] = Counter()
    for seed in range(200):
        faults = schedule(topology, seed, 6.0)
        assert faults == schedule(topology, seed, 6.0)
        assert faults != schedule(topology, seed + 1, 6.0)
        assert faults == sorted(faults, key=lambda fault: fault.at_ms)
        seen.update(fault.name for fault in faults)
        for number, one in enumerate(faults):
            for other in faults[number + 1 :]:
                lanes = {kinds[one.name].lane, kinds[other.name].lane}
                if ALONE in lanes or len(lanes) == 1:
                    assert one.at_ms + one.for_ms < other.at_ms
    assert set(seen) == set(usual_faults(topology))


@pytest.mark.parametrize("topology", TOPOLOGIES)
async def test_a_seed_is_the_same_schedule_in_another_process(topology: str) -> None:
    code = (
        "from tests.faults.chaos import show_schedule\n"
        "from tests.faults.chaos_schedule import schedule\n"
        f"print(show_schedule(schedule({topology!r}, 7, 6.0)))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12"}
    async with child(sys.executable, "-c", code, stdout=PIPE, cwd=ROOT, env=environment) as other:
        said, _ = await other.communicate()
    assert said.decode().strip() == show_schedule(schedule(topology, 7, 6.0))


@pytest.mark.slow
async def test_who_parts_a_clusters_master_parts_it_from_engines(tmp_path: Path) -> None:
    """The links carry what engines say, and no order is acknowledged that one server alone has."""
    with Cluster(tmp_path) as servers:
        durability: Any = servers.durability
        async with Engine(
            servers.url, durability=durability, sweep_ms=0, timeout_ms=PATIENT_MS
        ) as engine:
            assert (await engine.create(make_sale(id=SALE))).ok
            assert (await engine.open(SALE)).ok
            for name, stays in (("hide_master", True), ("split_master", False)):
                master = servers.master()
                fault = Fault(name, 0, 0, 0)
                assert (await engine.reserve(SALE, name, "before", {"a": 1})).order
                await asyncio.to_thread(servers.begin, fault)
                call = asyncio.create_task(engine.reserve(SALE, name, "while", {"a": 1}))
                done, _ = await asyncio.wait({call}, timeout=SILENCE_S)
                assert not done, f"{name}: it was answered"
                await asyncio.to_thread(servers.end, fault)
                assert (await call).order
                assert (servers.master() is master) is stays


@pytest.mark.slow
def test_who_waits_for_replicas_lets_the_network_come_back(tmp_path: Path) -> None:
    with Cluster(tmp_path) as servers:
        servers.begin(Fault("drop", 0, 100, 3))
        killed = Fault("kill_replica", 0, 0, 0)
        servers.begin(killed)
        # A replica that is back finds its master through a link, and no other step comes meanwhile.
        servers.end(killed)
        assert servers.replica().follows(servers._links[servers.master()].port)


def test_faults_can_be_chosen() -> None:
    assert {fault.name for fault in schedule("single", 1, 6.0, ["cut", "kill"])} == {"cut", "kill"}
    faults = schedule("single", 1, 6.0, ["old_snapshot", "cut"])
    assert [fault.name for fault in faults].count("old_snapshot") <= 1


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ChaosNode]:
    if not can_watch_syncs():
        pytest.skip("needs Linux and a C compiler")
    with ChaosNode(tmp_path / "a", {"appendonly": "yes", "appendfsync": "always"}) as node:
        yield node


def server_s(node: ChaosNode) -> float:
    seconds, micros = node.ask("TIME")
    return int(seconds) + int(micros) / 1e6


def test_a_servers_clock_can_be_set(node: ChaosNode) -> None:
    # All three are asked in the same minutes, and the steps are of hours.
    for by_h, ahead_h in ((1, 1), (-3, -2), (2, 0)):
        node.step_clock(by_h * 3_600_000)

        def is_set(ahead_s: int = ahead_h * 3_600) -> bool:
            return abs(server_s(node) - time.time() - ahead_s) < 1_000

        # A server looks at the clock when a round of its loop begins, which may have been before.
        wait_until(is_set, "the new time")


def test_a_full_disk_ends_the_server_and_loses_nothing_that_was_answered(node: ChaosNode) -> None:
    node.ask("SET", "before", "1")
    node.leave_room(200)
    told = 0
    for number in range(1_000):
        try:
            node.ask("SET", f"key-{number}", "x" * 20)
        except redis.RedisError:
            break
        told += 1
    assert 0 < told < 200 / 20
    node.leave_room()
    assert node.mend()
    assert node.ask("DBSIZE") == told + 1
    assert not node.mend()
    assert node.ask("SET", "after", "1")


def test_an_older_state_can_be_put_back(node: ChaosNode) -> None:
    node.ask("SET", "old", "1")
    node.keep_data()
    node.ask("SET", "new", "1")
    node.restore_data()
    assert node.ask("KEYS", "*") == ["old"]


def test_a_stalled_connection_is_late_and_others_are_not(node: ChaosNode) -> None:
    with StallingLink(node.port) as link:
        clients = [redis.Redis(HOST, link.port, socket_timeout=60.0) for _ in range(16)]
        try:
            for client in clients:
                assert client.ping()
            link.stall()
            connections = [client.connection_pool.get_connection() for client in clients]
            for number, connection in enumerate(connections):
                connection.send_command("SET", number, "1")
            stalled = link.stalled
            assert 0 < stalled < 16
            with redis.Redis(HOST, link.port) as fresh:
                # One that came later passes, and whoever is not frozen.
                wait_until(lambda: fresh.dbsize() == 16 - stalled, "those that pass")
                assert fresh.ping()
                assert fresh.dbsize() == 16 - stalled
            link.heal()
            assert [connection.read_response() for connection in connections] == [b"OK"] * 16
            assert node.ask("DBSIZE") == 16
        finally:
            for client in clients:
                client.close()


def test_who_is_muted_is_not_heard_and_others_are(node: ChaosNode) -> None:
    with (
        Link(node.port) as link,
        redis.Redis(HOST, link.port, single_connection_client=True) as muted,
        redis.Redis(HOST, link.port, single_connection_client=True) as other,
    ):
        address = muted.client_info()["addr"]
        assert other.ping()
        assert mute(link, {int(address.rpartition(":")[2])}) == 1
        assert muted.connection is not None
        muted.connection.send_command("SET", "of the muted", "1")
        assert other.set("of the other", "1")
        assert link.cut() == 2
        assert node.ask("KEYS", "*") == ["of the other"]


def test_what_a_restored_state_lacks_is_listed_and_nothing_else_is_forgiven() -> None:
    case = evening().case()
    # The server goes back to where "cid.k" was just held, and it lapses there.
    place = next(n for n, e in enumerate(case.seen.events) if (e.subject, e.kind) == CID_HELD)
    case.seen = state_of(case.seen.sale, case.seen.events[: place + 1])
    assert case.judge(keeps="nothing", sightings=[]).verdict is Verdict.VALID
    assert case.judge(sightings=[]).verdict is Verdict.INVALID
    held = case.seen.events[-1]
    assert held.record is not None
    lapsed = msgspec.structs.replace(held.record, state="x", version=2)
    at_ms = held.at_ms + case.seen.sale.hold_ms
    event = SeenEvent(held.seq + 1, at_ms, "cid.k", "expired", "", "", lapsed)
    case.seen = state_of(case.seen.sale, [*case.seen.events, event])
    leave_alone(case)
    report = case.judge(keeps="nothing")
    assert report.verdict is Verdict.VALID, report.problems
    assert any("cid.k" in loss for loss in report.listed)
    case.seen.stock["0"].available += 1
    assert case.judge(keeps="nothing").rules == {"conservation"}


def test_words_are_changed_on_their_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # Put back when the test is over.
    monkeypatch.setattr(AbstractConnection, "pack_command", AbstractConnection.pack_command)
    connection = Connection()
    before = connection.pack_commands([("PING",), ("WAITAOF", 1, 0, 500)])
    break_engine("no_wait")
    assert connection.pack_commands([("PING",), ("WAITAOF", 1, 0, 500)]) == before
    [told] = connection.pack_commands([("WAIT", 2, 500)])
    assert told == connection.pack_commands([("EVAL", "return tonumber(ARGV[1])", 0, 2)])[0]


def test_what_is_to_be_broken_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is broken before that is found out is put back as well.
    monkeypatch.setattr(Greeting, "_ask", Greeting._ask)
    monkeypatch.delattr(Told, "note")
    with pytest.raises(AttributeError, match="note"):
        break_engine("no_fence")


async def test_an_engine_without_a_fence_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Told, "note", Told.note)
    monkeypatch.setattr(Greeting, "_ask", Greeting._ask)
    break_engine("no_fence")
    greeting, told = Greeting(), Told()
    told.note(77, "0a1b")
    await greeting._ask(Connection())
    assert greeting.words(told) == f"{FORMAT}  0"


def test_the_exit_code_tells_the_worst() -> None:
    def result(verdict: Verdict, *problems: str) -> Result:
        report = Report(verdict, problems)
        return Result("single", 1, (), report, 1, 1, 0, Patience(), 0.0, 0.0)

    valid, invalid = result(Verdict.VALID), result(Verdict.INVALID, "lost: one")
    explained = result(Verdict.UNKNOWN, "empty: nothing was acknowledged")
    other = result(Verdict.UNKNOWN, "empty: nothing", "unsettled: a load has died")
    assert exit_code([valid, explained]) == 0
    assert exit_code([valid, other]) == 3
    assert exit_code([valid, other, invalid]) == 1


def test_what_cannot_be_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--seeds", "0"], ["--faults", "fire"], ["--seconds", "0"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert arguments[0] in capsys.readouterr().err
