"""The ledger at the ends of a sale's life, as the person on duty has it: an id that is used again,
a sale that is gone from Redis, one that can't go yet, a loss that the webhook missed, and a machine
that only keeps the ledger.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis

from seckill.cli import lean
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import InvalidInput
from seckill.keys import group_keys
from seckill.ledger import Ledger
from seckill.ledger.fence import check
from seckill.ledger.rebuild import rebuild
from seckill.ledger.run import LedgerRunner
from seckill.sale import Sale
from seckill.server import settings as intake
from tests.cli.conftest import Ran, run_seckill
from tests.support import make_sale

Seckill = Callable[..., Ran]
SIGNER = "this secret has more than 32 bytes in it"


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """One of its own: the ledger takes all sales that are there."""
    with EmbeddedServer(tmp_path_factory.mktemp("own"), appendfsync="no") as server:
        yield server


@pytest.fixture
def server(own_server: EmbeddedServer) -> EmbeddedServer:
    with redis.Redis.from_url(own_server.url) as client:
        client.flushall()
    return own_server


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def seckill(server: EmbeddedServer, url: str, tmp_path: Path) -> Seckill:
    def run(*args: str, **env: str) -> Ran:
        # As a secret is named everywhere else.
        (tmp_path / "ledger-url").write_text(url + "\n")
        (tmp_path / "ledger-url").chmod(0o600)
        given = {"SECKILL_REDIS": server.url, "SECKILL_LEDGER": f"file:{tmp_path}/ledger-url"}
        is_daemon = args[0] == "relay" or args[:2] == ("ledger", "run")
        more = () if is_daemon else ("--durability", "memory")
        given["SECKILL_REDIS__DURABILITY"] = "memory"
        return run_seckill(*args, *more, cwd=tmp_path, **(given | env))

    return run


class Shop:
    """An engine and a ledger on the test's server, used for as long as a call lasts."""

    def __init__(self, server: EmbeddedServer, url: str) -> None:
        self._server = server
        self._url = url
        self.sale: Sale = make_sale()

    def do(self, work: Callable[[Engine, Ledger], Any]) -> Any:
        async def main() -> Any:
            options: dict[str, Any] = {"durability": "memory", "sweep_ms": 0}
            async with Engine(self._server.url, **options) as engine, Ledger(self._url) as ledger:
                return await work(engine, ledger)

        return asyncio.run(main())

    async def sell(self, engine: Engine, _: Ledger) -> None:
        assert (await engine.create(self.sale)).ok
        assert (await engine.open(self.sale.id)).ok
        for number in range(3):
            got = await engine.reserve(self.sale.id, f"u{number}", "k", {"a": 1})
            assert got.order is not None
            assert (await engine.confirm(self.sale.id, got.order.id, f"p{number}")).ok

    async def drain(self, engine: Engine, ledger: Ledger) -> None:
        await LedgerRunner(engine, ledger, once=True).run()


@pytest.fixture
def shop(server: EmbeddedServer, url: str) -> Shop:
    return Shop(server, url)


@pytest.mark.slow
def test_a_sale_that_is_gone_is_proved_by_the_ledger(seckill: Seckill, shop: Shop) -> None:
    """Closed with a hold, then settled, removed, proved, and its id used again."""
    sale = shop.sale.id

    async def hold(engine: Engine, ledger: Ledger) -> str:
        got = await engine.reserve(sale, "late", "k", {"b": 2})
        assert got.order is not None
        await engine.close(sale)
        await shop.drain(engine, ledger)
        return got.order.id

    shop.do(shop.sell)
    held = shop.do(hold)
    early = seckill("sale", "remove", sale)
    assert (early.code, early.out) == (1, "")
    said = " ".join(early.err.split())
    assert "it is closed, and settled once no unit is held: 2 still are" in said
    assert "lapse at their deadline, which takes a program that sweeps: `seckill serve`" in said
    assert "close it" not in said

    async def settle(engine: Engine, ledger: Ledger) -> None:
        assert (await engine.release(sale, held)).ok
        await shop.drain(engine, ledger)

    shop.do(settle)
    assert seckill("sale", "remove", sale).code == 0
    proved = seckill("verify", sale)
    assert (proved.code, proved.err) == (0, "")
    assert f"✓ sale {sale}: no violation in 12 events, 4 orders" in proved.out
    assert "by the ledger alone: Redis has not had it since" in proved.out
    assert seckill("verify", sale, "--json").data["ledger_alone"] is True
    unnamed = seckill("verify", sale, SECKILL_LEDGER="")
    assert unnamed.code == 1
    assert "if it was removed, give --ledger URL, which has it" in " ".join(unnamed.err.split())
    used_again(seckill, shop)


def used_again(seckill: Seckill, shop: Shop) -> None:
    """Somebody creates a sale under its id and names no ledger."""
    sale = shop.sale.id
    assert seckill("ledger", "status").code == 0
    shop.do(shop.sell)
    looked = seckill("ledger", "status")
    assert looked.code == 1
    assert "id reused" in looked.out
    told = " ".join(looked.err.split())
    assert f"sale {sale} was created under the id of one that was removed" in told
    assert f"pause it (seckill sale pause {sale}), sell what is left under another id" in told
    ran = seckill("ledger", "run", "--once")
    assert ran.code == 1
    assert f"nothing of it is written: pause it (seckill sale pause {sale})" in ran.err
    compared = seckill("reconcile", sale)
    assert compared.code == 1
    assert "sale id reused" in compared.out
    assert "seckill rebuild" not in compared.out


class Hook(ThreadingHTTPServer):
    """An endpoint that refuses each event once, and those of a subject in ``never`` for good."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seqs: list[int] = []
        self.refused: set[str] = set()
        self.never: set[str] = set()


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        subject = event["order"]["id"] if event["order"] else "sale"
        status = 410 if subject in self.server.never else 204
        if status == 204 and event["id"] not in self.server.refused:
            self.server.refused.add(event["id"])
            status = 503
        assert event["id"] == self.headers["Seckill-Event-Id"]
        assert "v1=" in self.headers["Seckill-Signature"]
        if status == 204:
            self.server.seqs.append(event["seq"])
        self.send_response(status)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def hook() -> Iterator[Hook]:
    with Hook() as hook:
        thread = threading.Thread(target=hook.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield hook
        hook.shutdown()
        thread.join()


@pytest.mark.slow
def test_what_the_webhook_missed(
    seckill: Seckill, shop: Shop, server: EmbeddedServer, hook: Hook
) -> None:
    """Redis is lost before the relay has read the sale; the ledger has it."""
    sale = shop.sale.id
    env = {
        "SECKILL_WEBHOOK__URL": f"http://127.0.0.1:{hook.server_port}/hook",
        "SECKILL_WEBHOOK__SECRETS": json.dumps([SIGNER]),
    }

    async def lose(engine: Engine, ledger: Ledger) -> str:
        await shop.sell(engine, ledger)
        await shop.drain(engine, ledger)
        order = await engine.reserve(sale, "u0", "k", {"a": 1})
        assert order.order is not None
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
        return order.order.id

    async def bring_back(engine: Engine, ledger: Ledger) -> None:
        await check(engine, ledger)
        assert (await rebuild(engine, ledger, sale)).done

    first = shop.do(lose)
    args = ("relay", "--sale", sale, "--from-ledger", "3")

    async def look(engine: Engine, ledger: Ledger) -> None:
        await check(engine, ledger)

    shop.do(look)
    fenced = seckill(*args, **env)
    assert fenced.code == 1
    assert f"bring it back first: seckill rebuild {sale}" in " ".join(fenced.err.split())
    shop.do(bring_back)
    with redis.Redis.from_url(server.url) as client:
        client.set(group_keys(sale, "webhook").lease, "x")
        assert "stop it, and start it again after this" in seckill(*args, **env).err
        client.delete(group_keys(sale, "webhook").lease)
    late = seckill("relay", "--sale", sale, "--from-ledger", "1000009", **env)
    assert late.code == 2
    assert "leave it out: seckill relay delivers those" in " ".join(late.err.split())
    assert "name it: --sale ID" in seckill("relay", "--from-ledger", "3", **env).err
    assert hook.seqs == []

    hook.never = {first}
    stuck = seckill(*args, **env)
    assert stuck.code == 1
    assert "given up: 1 orders, at the events 3" in stuck.err
    assert "go on with --from-ledger 3" in stuck.err
    assert sorted(hook.seqs) == [5, 6, 7, 8]
    hook.never = set()
    done = seckill(*args, **env)
    assert (done.code, done.out) == (0, "")
    assert "delivered 6 of the events 3 to 8, failed attempts 2" in done.err
    assert sorted(hook.seqs[4:]) == [3, 4, 5, 6, 7, 8]
    assert hook.seqs.index(3) < hook.seqs.index(4)
    # From there the relay goes on.
    assert seckill("relay", "--once", "--sale", sale, **env).code == 0
    assert min(hook.seqs[10:]) > 1_000_000


def without(folder: Path, *modules: str) -> dict[str, str]:
    """What lets Python find none of these."""
    lines = [f"sys.modules[{module!r}] = None" for module in modules]
    (folder / "sitecustomize.py").write_text("import sys\n" + "\n".join(lines) + "\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path[1:]])}


def test_a_machine_that_only_keeps_the_ledger(
    server: EmbeddedServer, shop: Shop, url: str, tmp_path: Path
) -> None:
    """The extras cli and ledger are enough: no part of the intake is there."""
    shop.do(shop.sell)
    (tmp_path / "bare").mkdir()
    # Not pydantic: typer uses it where it is there.
    extra = "aiohttp uvloop gunicorn pydantic_settings jwt cryptography prometheus_client yarl"
    bare = without(tmp_path / "bare", *extra.split())
    config = tmp_path / "seckill.toml"
    (tmp_path / "url").write_text(url)
    (tmp_path / "url").chmod(0o600)
    config.write_text(
        f'[redis]\nurl = "{server.url}"\ndurability = "memory"\n'
        f'[ledger]\nurl = "file:{tmp_path}/url"\n[log]\nformat = "json"\n[users]\nx = 1\n'
    )

    def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "seckill.cli", *args, "--config", str(config)],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"]} | bare | env,
            capture_output=True,
            text=True,
            timeout=100,
        )

    ran = run("ledger", "run", "--once")
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    last = json.loads(ran.stderr.splitlines()[-1])
    assert last["message"] == "wrote 8 events, new dead letters 0, left 0"
    assert (last["level"], last["logger"]) == ("info", "seckill.ledger")
    bad = run("ledger", "run", "--once", SECKILL_LEDGER__KEEP_EVENTS_S="5")
    assert bad.returncode == 2
    assert bad.stderr.startswith("seckill: SECKILL_LEDGER__KEEP_EVENTS_S: is refused: ")
    # The test itself: what needs the intake is not there.
    assert "pip install 'seckill[server]'" in run("serve").stderr


def test_the_plain_settings_are_those_of_the_intake() -> None:
    """Names, defaults and what is refused."""
    for kind in (lean.Redis, lean.Ledger, lean.Log):
        plain = kind()
        section = getattr(intake, kind.__name__)()
        assert {name: getattr(plain, name) for name in plain.__struct_fields__} == dict(section)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"SECKILL_LEDGER__RETENTION_DAYS": "-1"}, "SECKILL_LEDGER__RETENTION_DAYS: is refused"),
        ({"SECKILL_LOG__LEVEL": "loud"}, "SECKILL_LOG__LEVEL: is refused"),
        ({"SECKILL_LEDGER": "file:/nowhere/url"}, "SECKILL_LEDGER: /nowhere/url cannot be read"),
        ({"SECKILL_CONFIG": "/nowhere/x.toml"}, "/nowhere/x.toml: cannot be read"),
    ],
)
def test_bad_plain_settings(environ: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        lean.read(None, {}, environ)
    assert str(caught.value).startswith(said)


def test_what_wins_among_plain_settings(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('[redis]\ndata = "d"\n[ledger]\nurl = "sqlite:///a"\nkeep_sales_days = 3\n')
    environ = {"SECKILL_REDIS": "redis://h", "SECKILL_LEDGER__KEEP_EVENTS_S": "60"}
    read = lean.read(path, {"ledger.url": ("--ledger", "sqlite:///b")}, environ)
    assert (read.redis.url, read.redis.data) == ("redis://h", "")
    assert read.ledger == lean.Ledger(url="sqlite:///b", keep_events_s=60, keep_sales_days=3)
    path.write_text("[ledger]\nkeep_sale_days = 3\n")
    with pytest.raises(InvalidInput, match=r"ledger.keep_sale_days: is refused"):
        lean.read(path, {}, {})
