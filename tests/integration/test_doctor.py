"""``seckill doctor``: every fault is planted for real, on a real server, and exactly its check must
turn, while all others stay as they were.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import redis

from seckill.admission import Admission
from seckill.cli import main
from seckill.doctor import CHECKS, groups, server, user_keys
from seckill.embedded import SOCKET_LINK, EmbeddedServer
from seckill.engine import Engine
from seckill.keys import group_keys, queue_keys, shard_keys
from seckill.sale import Sale
from tests.faults.proxy import Command, Fate, Judge, Proxy, let_pass
from tests.support import make_sale

RED, YELLOW, GREEN = "red", "yellow", "green"
# The public key of RFC 8037, appendix A.2.
ED25519_X = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
SECRETS = ["5f1d0c7b9a3e4826", "c3a9e0d84b7f1652"]
SETTINGS = f"""
[users]
secrets = ["{SECRETS[0] * 2}"]
[webhook]
url = "http://127.0.0.1:9/events"
secrets = ["{SECRETS[1] * 2}"]
[gate]
work_bits = 8
secrets = ["{SECRETS[0]}{SECRETS[1]}"]
[[keys]]
name = "mall"
hash = "sha256:{"0" * 64}"
scopes = ["backend"]
"""
# On a busy machine any command may be kept waiting in its midst, and the server calls it slow.
NO_SLOW_LOG = {"slowlog-log-slower-than": "-1"}
Levels = dict[str, str]


class House:
    """A mall at 19:30: a server, an open sale that begins in half an hour, settings, workers."""

    def __init__(self, folder: Path, server: EmbeddedServer) -> None:
        self.folder = folder
        self.server = server
        self.url = server.start()
        self.client = redis.Redis.from_url(self.url)
        self.config = folder / "seckill.toml"
        self.config.touch(0o600)
        self.config.write_text(SETTINGS)
        self.sale = self.create()
        self.keys = shard_keys(self.sale.id)
        for group in ("mall", "webhook"):
            self.work(group)

    def create(
        self, *, opened: bool = True, after: timedelta = timedelta(minutes=30), **fields: Any
    ) -> Sale:
        at = datetime.now(UTC).replace(microsecond=0) + after
        sale = make_sale({"a": 50_000}, opens_at=at, ends_at=at + timedelta(hours=2), **fields)
        self.call(lambda engine: engine.create(sale))
        if opened:
            self.call(lambda engine: engine.open(sale.id))
        return sale

    def call(self, verb: Callable[[Engine], Any]) -> Any:
        async def run() -> Any:
            async with Engine(self.url, sweep_ms=0, timeout_ms=30_000) as engine:
                return await verb(engine)

        return asyncio.run(run())

    def work(self, group: str, sale: Sale | None = None) -> None:
        """A worker of this group reads and acknowledges what there is."""

        async def read(engine: Engine) -> None:
            async for _ in engine.events((sale or self.sale).id, group, follow=False):
                pass

        self.call(read)

    def age(self, ms: int) -> None:
        """As if the sale's events had happened earlier: nobody has taken them since."""
        entries: Any = self.client.xrange(self.keys[6])
        self.client.delete(self.keys[6])
        for entry_id, fields in entries:
            at, _, seq = entry_id.decode().partition("-")
            self.client.xadd(self.keys[6], fields, id=f"{int(at) - ms}-{seq}")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("doctor") / "data", config=NO_SLOW_LOG) as one:
        yield one


@pytest.fixture
def tenant(tmp_path: Path, shared: EmbeddedServer) -> Iterator[House]:
    """A house for faults that are not the server's: it shares one with others."""
    house = House(tmp_path, shared)
    with house.client:
        yield house


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A house with a server of its own."""
    with EmbeddedServer(tmp_path / "data", config=NO_SLOW_LOG) as own:
        house = House(tmp_path, own)
        yield house
        with contextlib.suppress(redis.RedisError):
            house.client.config_set("save", "")  # Or it would insist on a dump at its end.
        house.client.close()


class Doctor:
    """Runs ``seckill doctor`` in this process: importing everything anew takes longer than it."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.findings: dict[str, dict[str, str]] = {}

    def examine(
        self, house: House, *more: str, sale: str = "", url: str = ""
    ) -> tuple[int, Levels]:
        args = ["doctor", sale or house.sale.id, "--redis", url or house.url, "--json"]
        args += ["--config", str(house.config)]
        with (
            mock.patch.object(sys, "argv", ["seckill", *args, *more]),
            mock.patch.dict("os.environ", SECKILL_REDIS="", SECKILL_DATA=""),
        ):
            code = main()
        said = self.capsys.readouterr()
        assert said.err == ""
        report = json.loads(said.out)
        assert report["ok"] is (code == 0)
        self.findings = {one["check"]: one for one in report["findings"]}
        for finding in self.findings.values():
            assert finding["seen"]
            assert bool(finding["remedy"]) is (finding["level"] != GREEN)
        return code, {check: one["level"] for check, one in self.findings.items()}


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that runs tests is busy, and what is slow here is only what a test has slowed."""
    for name, ms in (
        ("TRIP_RED_MS", 10_000),
        ("TRIP_YELLOW_MS", 10_000),
        ("WRITE_RED_MS", 10_000),
        ("WRITE_YELLOW_MS", 10_000),
    ):
        monkeypatch.setattr(server, name, ms)


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(capsys)


ALL_GREEN = {check: GREEN for group in CHECKS.values() for check in group}


def test_green_without_a_fault(house: House, doctor: Doctor) -> None:
    assert doctor.examine(house, "--strict") == (0, ALL_GREEN)


QUEUES: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("queue", {}, {"next": 12}, GREEN, "queue: tickets can be taken; 12 given out"),
    ("queue", {"joins_at": True}, {}, GREEN, "queue: tickets can be taken from "),
    ("draw", {}, {}, GREEN, "0 given out; the list closes at "),
    ("draw", {"public_value": "双色球"}, {}, YELLOW, "somebody must hand in '双色球'"),
    ("draw", {"public_value": "双色球"}, {"public_value": "1"}, GREEN, "the list closes"),
    ("draw", {}, {"closed_ms": 1}, YELLOW, "the list is closed, and nobody draws"),
    ("shuffle", {}, {"closed_ms": 1, "ranked": 3}, GREEN, "all in order since the draw"),
]


@pytest.mark.parametrize(("mode", "fields", "header", "level", "seen"), QUEUES)
def test_admission(
    tenant: House,
    doctor: Doctor,
    mode: Any,
    fields: dict[str, Any],
    header: dict[str, Any],
    level: str,
    seen: str,
) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=20)
    if "joins_at" in fields:
        fields = {"joins_at": soon}
    sale = tenant.create(admission=Admission(mode=mode, **fields))
    if header:
        tenant.client.hset(queue_keys(sale.id)[0], mapping=header)
    doctor.examine(tenant, sale=sale.id)
    finding = doctor.findings["admission"]
    assert finding["level"] == level
    assert seen in finding["seen"]
    assert bool(finding["remedy"]) == (level == YELLOW)
    assert "tickets more" in doctor.findings["memory"]["seen"]


# -- the server -------------------------------------------------------------------------------


def break_bgsave(house: House) -> None:
    """A directory stands where the dump belongs; saving is on, so the server refuses writes."""
    (house.folder / "data" / "dump.rdb" / "x").mkdir(parents=True)
    house.client.bgsave()
    while house.client.info("persistence")["rdb_last_bgsave_status"] == "ok":
        time.sleep(0.01)
    house.client.config_set("save", "3600 1")


def be_slow(house: House) -> None:
    house.client.config_set("slowlog-log-slower-than", 10_000)
    house.client.eval("local n = 0 for i = 1, 5e7 do n = n + i end", 0)


SERVER_FAULTS: dict[str, tuple[Callable[[House], Any], Levels]] = {
    "fsync every second": (
        lambda house: house.client.config_set("appendfsync", "everysec"),
        {"persistence": RED},
    ),
    "no AOF": (
        lambda house: house.client.config_set("appendonly", "no"),
        # Without the file there is nothing to make room for.
        {"persistence": RED},
    ),
    "no fsync during a rewrite": (
        lambda house: house.client.config_set("no-appendfsync-on-rewrite", "yes"),
        {"persistence": RED},
    ),
    "evicts": (
        lambda house: house.client.config_set("maxmemory-policy", "allkeys-lru"),
        {"eviction": RED},
    ),
    "too little memory": (
        lambda house: house.client.config_set("maxmemory", "50mb"),
        {"memory": RED},
    ),
    "no memory": (
        lambda house: house.client.config_set("maxmemory", "500000"),
        {"memory": RED, "fsync": YELLOW},
    ),
    "tight memory": (
        lambda house: house.client.config_set("maxmemory", "120mb"),
        {"memory": YELLOW},
    ),
    "BGSAVE fails": (break_bgsave, {"disk-writes": RED, "fsync": YELLOW}),
    "too few replicas": (
        lambda house: house.client.config_set("min-replicas-to-write", "1"),
        {"replicas": RED, "fsync": YELLOW},
    ),
    "too few connections": (
        lambda house: house.client.config_set("maxclients", "32"),
        {"connections": RED},
    ),
    "a slow command": (be_slow, {"slow-log": YELLOW}),
}


@pytest.mark.parametrize("fault", SERVER_FAULTS)
def test_fault_of_the_server(house: House, doctor: Doctor, fault: str) -> None:
    plant, turned = SERVER_FAULTS[fault]
    assert doctor.examine(house)[1] == ALL_GREEN
    plant(house)
    code, levels = doctor.examine(house)
    assert levels == ALL_GREEN | turned
    assert code == (RED in turned.values())
    assert doctor.examine(house, "--strict")[0] == 1


def test_a_full_server_says_what_to_set(house: House, doctor: Doctor) -> None:
    house.client.config_set("maxmemory", "500000")
    doctor.examine(house)
    assert "every order is refused" in doctor.findings["memory"]["seen"]
    assert "CONFIG SET maxmemory" in doctor.findings["memory"]["remedy"]


@contextmanager
def proxied(house: House, judge: Judge = let_pass, reply_delay_s: float = 0.0) -> Iterator[str]:
    """The URL of a proxy before the house's server, on a loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def wait_for(coroutine: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    proxy = Proxy(house.url)
    proxy.judge, proxy.reply_delay_s = judge, reply_delay_s
    try:
        wait_for(proxy.__aenter__())
        yield proxy.url
        wait_for(proxy.__aexit__())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.parametrize(("ahead_s", "level"), [(30, RED), (-30, RED), (0.5, YELLOW), (0, GREEN)])
def test_clock_of_the_server(house: House, doctor: Doctor, ahead_s: float, level: str) -> None:
    in_multi = False

    async def judge(command: Command) -> Fate | bytes:
        nonlocal in_multi
        in_multi = command.args[0] == b"MULTI" or (in_multi and command.args[0] != b"EXEC")
        if in_multi or command.args != [b"TIME"]:
            return Fate.PASS
        parts = divmod(int((time.time() + ahead_s) * 1_000_000), 1_000_000)
        texts = [b"%d" % part for part in parts]
        return b"*2\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(text), text) for text in texts)

    with proxied(house, judge) as url:
        code, levels = doctor.examine(house, url=url)
    assert levels == ALL_GREEN | {"clock": level}
    assert code == (level == RED)
    assert ("ahead of" in doctor.findings["clock"]["seen"]) or ahead_s <= 0


def test_a_server_far_away(house: House, doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TRIP_RED_MS", 15)
    with proxied(house, reply_delay_s=0.02) as url:
        assert doctor.examine(house, url=url) == (1, ALL_GREEN | {"latency": RED})


def test_a_slow_disk(house: House, doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WRITE_RED_MS", 200)

    async def judge(command: Command) -> Fate:
        if command.args[0] == b"SET":
            await asyncio.sleep(0.22)
        return Fate.PASS

    with proxied(house, judge) as url:
        assert doctor.examine(house, url=url) == (1, ALL_GREEN | {"fsync": RED})


@contextmanager
def replica_of(house: House) -> Iterator[EmbeddedServer]:
    """A replica in step with the house's server."""
    house.client.config_set("repl-diskless-sync-delay", "0")
    house.client.config_set("bind", "127.0.0.1")
    port = 0
    for tried in range(20_000, 30_000, 7):
        try:
            house.client.config_set("port", tried)
        except redis.ResponseError:
            continue
        port = tried
        break
    config = {"replicaof": f"127.0.0.1 {port}"} | NO_SLOW_LOG
    with EmbeddedServer(house.folder / "replica", config=config) as replica:
        with redis.Redis.from_url(replica.url) as client:
            while client.info("replication")["master_link_status"] != "up":
                time.sleep(0.02)
        yield replica


def test_a_replica_and_a_promoted_one(house: House, doctor: Doctor) -> None:
    with replica_of(house) as replica:
        # Whether the data is at home, and how its disk is, is a question to a master.
        unasked = {"home", "fsync"}
        code, levels = doctor.examine(house, url=replica.url)
        expected = {check: level for check, level in ALL_GREEN.items() if check not in unasked}
        assert (code, levels) == (1, expected | {"role": RED})
        assert doctor.examine(house) == (0, ALL_GREEN)
        assert "1 in step" in doctor.findings["replicas"]["seen"]
        with redis.Redis.from_url(replica.url) as client:
            client.execute_command("REPLICAOF", "NO", "ONE")
        assert doctor.examine(house, url=replica.url) == (1, ALL_GREEN | {"home": RED})
        assert "promoted" in doctor.findings["home"]["seen"]


def test_a_server_that_is_away(house: House, doctor: Doctor) -> None:
    house.server.kill()
    code, levels = doctor.examine(house)
    intake = dict.fromkeys(CHECKS["intake"], GREEN)
    assert (code, levels) == (1, intake | {"server": RED})
    assert "can't be examined" in doctor.findings["server"]["seen"]


def test_a_wrong_password_is_not_shown(house: House, doctor: Doctor) -> None:
    house.client.config_set("requirepass", "right")
    url = house.url.replace("unix://", "unix://:wr0ng@")
    assert doctor.examine(house, url=url)[0] == 1
    assert "wr0ng" not in str(doctor.findings)


def test_a_server_that_hides_its_settings(house: House, doctor: Doctor) -> None:
    words = ("ACL", "SETUSER", "mall", "on", ">secret", "~sk:*", "+@all", "-config", "-slowlog")
    house.client.execute_command(*words)
    url = house.url.replace("unix://", "unix://mall:secret@")
    code, levels = doctor.examine(house, url=url)
    assert code == 0
    turned = {check for check in levels if levels[check] != GREEN}
    assert {"persistence", "slow-log"} <= turned <= {"persistence", "slow-log", "connections"}
    assert "unverified" in doctor.findings["persistence"]["remedy"]
    # Where its directory is, is hidden as well.
    assert "disk-space" not in levels


@pytest.mark.parametrize(
    ("rights", "refused"),
    [
        ("-evalsha -eval -script", "refused: SCRIPT LOAD, EVALSHA, EVAL ("),
        ("-script|load", "refused: SCRIPT LOAD ("),
        ("-evalsha", "refused: EVALSHA ("),
        ("-eval", "refused: EVAL ("),
        # Allowed to run them, and not what they call.
        ("-llen", "refused: EVALSHA, EVAL ("),
    ],
)
def test_a_user_who_may_not_run_scripts(
    house: House, doctor: Doctor, rights: str, refused: str
) -> None:
    words = ("ACL", "SETUSER", "lim", "on", ">pw", "~*", "&*", "+@all")
    house.client.execute_command(*words)
    url = house.url.replace("unix://", "unix://lim:pw@")
    assert doctor.examine(house, url=url)[1]["scripts"] == GREEN
    house.client.execute_command("SCRIPT", "FLUSH")
    house.client.execute_command(*words, *rights.split())
    assert doctor.examine(house, url=url) == (1, ALL_GREEN | {"scripts": RED})
    assert doctor.findings["scripts"]["seen"].startswith(refused)
    assert "+evalsha +eval" in doctor.findings["scripts"]["remedy"]


def test_what_may_not_be_read_is_not_called_damaged(house: House, doctor: Doctor) -> None:
    words = ("ACL", "SETUSER", "lim", "on", ">pw", "~*", "&*", "+@all", "-xinfo")
    house.client.execute_command(*words)
    house.client.config_set("maxmemory", "500000")
    url = house.url.replace("unix://", "unix://lim:pw@")
    code, levels = doctor.examine(house, url=url)
    assert (code, levels.get("keys"), levels["server"]) == (1, None, RED)
    assert "permission" in doctor.findings["server"]["seen"]


def test_memory_is_planned_for_all_sales_that_are_not_over(house: House, doctor: Doctor) -> None:
    house.client.config_set("maxmemory", "180mb")
    assert doctor.examine(house)[1]["memory"] == GREEN
    other = house.create(after=timedelta(days=3))
    assert doctor.examine(house)[1]["memory"] == RED
    house.call(lambda engine: engine.close(other.id))
    assert doctor.examine(house)[1]["memory"] == GREEN


# -- the sale ---------------------------------------------------------------------------------


def order(house: House) -> None:
    """An order, now: the sale begins at once, as its definition and its header say."""
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1)
    house.sale = make_sale({"a": 100}, opens_at=at, ends_at=at + timedelta(hours=2))
    house.keys = shard_keys(house.sale.id)

    async def sell(engine: Engine) -> None:
        await engine.create(house.sale)
        await engine.open(house.sale.id)
        assert (await engine.reserve(house.sale.id, "ann", "k", {"a": 1})).ok

    house.call(sell)
    for group in ("mall", "webhook"):
        house.work(group)


def read_and_die(house: House) -> None:
    """Two minutes ago a worker took the events and was never seen again."""
    house.age(120_000)
    for group in ("mall", "webhook"):
        house.client.xgroup_create(house.keys[6], group, id="0")
        house.client.xreadgroup(group, "w", {house.keys[6]: ">"}, noack=group == "webhook")


def never_read(house: House) -> None:
    house.age(120_000)
    for group in ("mall", "webhook"):
        house.client.xgroup_create(house.keys[6], group, id="0")
    house.client.xreadgroup("webhook", "w", {house.keys[6]: ">"}, noack=True)


Plant = Callable[[House], Any]


def delete_event(place: int) -> Plant:
    def plant(house: House) -> None:
        entries: Any = house.client.xrange(house.keys[6])
        house.client.xdel(house.keys[6], entries[place][0])

    return plant


def move_house(house: House) -> None:
    """The sale says that it was made on another server, while this one had run for long: a server
    tells its age in whole seconds, and two are forgiven."""
    while house.client.info("server")["uptime_in_seconds"] < 4:
        time.sleep(0.1)
    house.sale = house.create()
    for group in ("mall", "webhook"):
        house.work(group)
    house.client.hset(shard_keys(house.sale.id)[0], "server", "f" * 40)


# Planted into the sale that begins in half an hour.
SALE_FAULTS: dict[str, tuple[Plant, Levels, set[str]]] = {
    "a key of another type": (
        lambda house: house.client.set(house.keys[4], "oops"),
        {"keys": RED},
        set(),
    ),
    "no stock": (lambda house: house.client.delete(house.keys[1]), {"keys": RED}, {"stock"}),
    "no events": (
        lambda house: house.client.delete(house.keys[6]),
        {"keys": RED},
        {"groups", "dead-letters"},
    ),
    "no header": (
        lambda house: house.client.delete(house.keys[0]),
        {"sale": RED, "keys": RED},
        {"stock", "window", "admission", "sale-clock", "home"},
    ),
    "events lost at the end": (
        lambda house: house.client.hincrby(house.keys[0], "seq", 3),
        {"keys": RED},
        set(),
    ),
    "a unit too many": (
        lambda house: house.client.hincrby(house.keys[1], "0:available", 1),
        {"stock": RED},
        set(),
    ),
    "a negative number": (
        lambda house: house.client.hset(house.keys[1], "0:held", "-1"),
        {"stock": RED},
        set(),
    ),
    "a limit of another sale": (
        lambda house: house.client.hset(house.keys[1], "0:limit", "7"),
        {"stock": RED},
        set(),
    ),
    "another definition": (
        lambda house: house.client.hincrby(house.keys[0], "hold_ms", 1),
        {"sale": RED},
        set(),
    ),
    "a later format": (
        lambda house: house.client.hset(house.keys[0], "format", "99"),
        {"sale": RED},
        {"stock", "window", "admission", "sale-clock", "home"},
    ),
    "a definition that is no JSON": (
        lambda house: house.client.hset(house.keys[0], "definition", "{"),
        {"sale": RED},
        {"stock", "window", "admission", "sale-clock", "home"},
    ),
    "paused": (
        lambda house: house.call(lambda engine: engine.pause(house.sale.id, "价格有误")),
        {"window": RED},
        set(),
    ),
    "closed": (
        lambda house: house.call(lambda engine: engine.close(house.sale.id)),
        {"window": RED},
        set(),
    ),
    "a clock set back": (
        lambda house: house.client.hincrby(house.keys[0], "last_ms", 60_000),
        {"sale-clock": RED},
        set(),
    ),
    "created on another server": (move_house, {"home": RED}, set()),
    "the first event deleted": (delete_event(0), {"keys": RED}, set()),
    "the last event deleted": (delete_event(-1), {"keys": RED}, set()),
    "all events trimmed": (
        lambda house: house.client.xtrim(house.keys[6], 0),
        {"keys": RED},
        set(),
    ),
    "a group nobody reads": (never_read, {"groups": RED}, set()),
    "a worker that died": (read_and_die, {"groups": RED}, set()),
    "dead letters": (
        lambda house: house.client.hset(group_keys(house.sale.id, "webhook").dead, "2:sale", "x"),
        {"dead-letters": RED},
        set(),
    ),
    "damaged dead letters": (
        lambda house: house.client.set(group_keys(house.sale.id, "webhook").dead, "x"),
        {"dead-letters": RED},
        set(),
    ),
}


@pytest.mark.parametrize("fault", SALE_FAULTS)
def test_fault_of_the_sale(tenant: House, doctor: Doctor, fault: str) -> None:
    plant, turned, unasked = SALE_FAULTS[fault]
    plant(tenant)
    code, levels = doctor.examine(tenant)
    expected = {check: level for check, level in ALL_GREEN.items() if check not in unasked}
    assert levels == expected | turned
    assert code == 1


# Planted into a sale that has an order.
SELLING_FAULTS: dict[str, tuple[Plant, Levels]] = {
    "orders lost": (lambda house: house.client.delete(house.keys[3]), {"keys": RED}),
    "buyers lost": (lambda house: house.client.delete(house.keys[2]), {"keys": RED}),
    "both lists of deadlines lost": (
        lambda house: house.client.delete(house.keys[4], house.keys[5]),
        {"keys": RED},
    ),
    "nobody has swept": (
        lambda house: house.client.hincrby(house.keys[0], "last_ms", -700_000),
        {"sale-clock": RED},
    ),
}


@pytest.mark.parametrize("fault", SELLING_FAULTS)
def test_fault_of_a_selling_sale(tenant: House, doctor: Doctor, fault: str) -> None:
    order(tenant)
    plant, turned = SELLING_FAULTS[fault]
    assert doctor.examine(tenant) == (0, ALL_GREEN)
    plant(tenant)
    assert doctor.examine(tenant) == (1, ALL_GREEN | turned)


@pytest.mark.parametrize(
    ("opened", "after", "level", "said"),
    [
        (False, timedelta(minutes=30), RED, "not opened"),
        (False, timedelta(days=2), YELLOW, "not opened"),
        (True, timedelta(days=2), GREEN, "it is open"),
        (True, timedelta(hours=-1), GREEN, "it is open"),
        (False, timedelta(hours=-1), RED, "not opened"),
        (True, timedelta(hours=-3), RED, "its time was over"),
    ],
)
def test_window(
    tenant: House, doctor: Doctor, opened: bool, after: timedelta, level: str, said: str
) -> None:
    sale = tenant.create(opened=opened, after=after)
    for group in ("mall", "webhook"):
        tenant.work(group, sale)
    code, levels = doctor.examine(tenant, sale=sale.id)
    assert (code, levels) == (int(level == RED), ALL_GREEN | {"window": level})
    assert said in doctor.findings["window"]["seen"]


def test_unknown_sale(tenant: House, doctor: Doctor) -> None:
    code, levels = doctor.examine(tenant, sale="nope")
    outside = {check: GREEN for group in ("server", "intake") for check in CHECKS[group]}
    assert (code, levels) == (1, outside | {"sale": RED})


def test_a_server_that_was_started_anew(house: House, doctor: Doctor) -> None:
    house.server.stop()
    time.sleep(1)  # A server tells its age in whole seconds.
    house.client.close()
    house.url = house.server.start()
    house.client = redis.Redis.from_url(house.url)
    assert doctor.examine(house) == (0, ALL_GREEN)
    assert "the same directory" in doctor.findings["home"]["seen"]
    # Of any other server nobody knows whether it has read the same data.
    (house.folder / "data" / SOCKET_LINK).unlink()
    assert doctor.examine(house) == (0, ALL_GREEN | {"home": YELLOW})


def test_groups(tenant: House, doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "IDLE_S", 0.0)
    time.sleep(0.01)
    # The relay's group must have a reader, because the settings want a webhook.
    assert doctor.examine(tenant) == (1, ALL_GREEN | {"groups": RED})
    assert "start `seckill relay --config …`, and look" in doctor.findings["groups"]["remedy"]
    tenant.config.write_text(SETTINGS.replace("http://127.0.0.1:9/events", ""))
    assert doctor.examine(tenant) == (0, ALL_GREEN | {"groups": YELLOW})
    assert "no reader has asked" in doctor.findings["groups"]["seen"]
    assert "relay" not in doctor.findings["groups"]["remedy"]
    for group in ("mall", "webhook"):
        tenant.client.xgroup_destroy(tenant.keys[6], group)
    assert doctor.examine(tenant) == (0, ALL_GREEN | {"groups": YELLOW})
    assert "nobody reads" in doctor.findings["groups"]["seen"]
    tenant.config.write_text(SETTINGS)
    assert doctor.examine(tenant) == (1, ALL_GREEN | {"groups": RED})
    assert "webhook" in doctor.findings["groups"]["seen"]
    assert doctor.findings["groups"]["remedy"] == "start `seckill relay --config …`"


# -- the intake -------------------------------------------------------------------------------


def rewrite(old: str, new: str) -> Plant:
    assert old in SETTINGS
    return lambda house: house.config.write_text(SETTINGS.replace(old, new))


def share_a_secret(house: House) -> None:
    file = house.folder / "secret"
    file.write_text(SECRETS[0] * 2)
    file.chmod(0o644)
    rewrite(SECRETS[0] * 2, f"file:{file}")(house)


NO_LOAD = set(CHECKS["intake"]) - {"open-files", "settings"}
INTAKE_FAULTS: dict[str, tuple[Plant, Levels, set[str]]] = {
    "an unknown setting": (rewrite("[gate]", "[gate]\nworkbits = 1"), {"settings": RED}, NO_LOAD),
    "a short secret": (rewrite(SECRETS[0] * 2, "hunter2"), {"settings": RED}, NO_LOAD),
    "a secret that is none": (rewrite(SECRETS[1] * 2, "changeme" * 4), {"secrets": RED}, set()),
    "no way to know a buyer": (
        rewrite(f'secrets = ["{SECRETS[0] * 2}"]', ""),
        {"secrets": RED},
        set(),
    ),
    "a file everybody can read": (
        lambda house: house.config.chmod(0o644),
        {"file-modes": RED},
        set(),
    ),
    "a secret everybody can read": (share_a_secret, {"file-modes": RED}, set()),
    "no key for the backend": (rewrite('"backend"', '"metrics"'), {"api-keys": RED}, set()),
    "a webhook that signs nothing": (
        rewrite(f'secrets = ["{SECRETS[1] * 2}"]', ""),
        {"settings": RED},
        NO_LOAD,
    ),
    "a webhook in the open": (
        rewrite("http://127.0.0.1:9", "http://mall.example"),
        {"webhook": YELLOW},
        set(),
    ),
    "work for minutes": (rewrite("work_bits = 8", "work_bits = 22"), {"gate": YELLOW}, set()),
    "published keys that are away": (
        rewrite("[users]", '[users]\njwks_url = "http://127.0.0.1:9/keys"'),
        {"user-keys": YELLOW},
        set(),
    ),
    "no other keys than those": (
        rewrite(f'secrets = ["{SECRETS[0] * 2}"]', 'jwks_url = "http://127.0.0.1:9/keys"'),
        {"user-keys": RED},
        set(),
    ),
}


class Malls(ThreadingHTTPServer):
    """Its end waits for its threads: none speaks up in another test."""

    daemon_threads = False


class Mall(BaseHTTPRequestHandler):
    """Publishes one key at /keys, none at /empty, and says nothing at /never."""

    def do_GET(self) -> None:
        if self.path == "/never":
            with contextlib.suppress(OSError):
                self.rfile.read()  # Until the other side has gone.
            return
        key = {"kty": "OKP", "crv": "Ed25519", "kid": "1", "x": ED25519_X}
        body = json.dumps({"keys": [key] if self.path == "/keys" else []}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing: stderr is looked at."""


@pytest.mark.parametrize(
    ("path", "level", "said"),
    [
        ("/keys", GREEN, "publishes keys of use"),
        ("/empty", RED, "no key of use is among them"),
        ("/never", RED, "no answer within"),
    ],
)
def test_published_keys(
    tenant: House,
    doctor: Doctor,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    level: str,
    said: str,
) -> None:
    monkeypatch.setattr(user_keys, "FETCH_S", 0.4 if path == "/never" else 10.0)
    with Malls(("127.0.0.1", 0), Mall) as mall:
        thread = threading.Thread(target=mall.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{mall.server_port}{path}"
        rewrite(f'secrets = ["{SECRETS[0] * 2}"]', f'jwks_url = "{url}"')(tenant)
        code, levels = doctor.examine(tenant)
        mall.shutdown()
        thread.join()
    assert (code, levels) == (int(level == RED), ALL_GREEN | {"user-keys": level})
    assert said in doctor.findings["user-keys"]["seen"]


@pytest.mark.parametrize("fault", INTAKE_FAULTS)
def test_fault_of_the_intake(tenant: House, doctor: Doctor, fault: str) -> None:
    plant, turned, unasked = INTAKE_FAULTS[fault]
    plant(tenant)
    code, levels = doctor.examine(tenant)
    expected = {check: level for check, level in ALL_GREEN.items() if check not in unasked}
    assert levels == expected | turned
    assert code == (RED in turned.values())
    assert "hunter2" not in str(doctor.findings)


@pytest.mark.parametrize(("limit", "level"), [(512, RED), (3_000, YELLOW)])
def test_open_files(tenant: House, limit: int, level: str) -> None:
    words = [sys.executable, "-m", "seckill.cli", "doctor", tenant.sale.id, "--redis", tenant.url]
    words += ["--config", str(tenant.config), "--json"]
    script = f"ulimit -n {limit}; exec {' '.join(words)}"
    shell = shutil.which("bash") or "sh"
    done = subprocess.run([shell, "-c", script], capture_output=True, text=True, timeout=60)
    levels = {one["check"]: one["level"] for one in json.loads(done.stdout)["findings"]}
    assert levels.keys() == ALL_GREEN.keys()
    assert levels["open-files"] == level
    assert {check for check in levels if levels[check] == RED} <= {"open-files"}
    assert done.returncode == (level == RED)
