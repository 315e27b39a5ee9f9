"""``seckill relay`` and ``seckill dead`` as the person on duty has them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis

from seckill.embedded import EmbeddedServer
from seckill.keys import group_keys
from tests.cli.conftest import Seckill, run_seckill

SIGNER = "this secret has more than 32 bytes in it"
SaleFile = Callable[..., tuple[str, Path]]


class Hook(ThreadingHTTPServer):
    """An endpoint that answers as ``statuses`` says, by kind of event; else 204."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses: dict[str, int] = {}
        self.events: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?key=hush"


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = self.server.statuses.get(event["kind"], 204)
        if status == 204:
            self.server.events.append(event)
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


@pytest.fixture
def config(hook: Hook, tmp_path: Path) -> Path:
    path = tmp_path / "seckill.toml"
    path.write_text(f'[webhook]\nurl = "{hook.url}"\nsecrets = ["{SIGNER}"]\ntimeout_s = 5\n')
    path.chmod(0o600)
    return path


def sell(seckill: Seckill, sale_file: SaleFile) -> str:
    sale, path = sale_file()
    assert seckill("sale", "create", str(path), "--open").code == 0
    return sale


@contextmanager
def relaying(server: EmbeddedServer, config: Path, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    options = ("--redis", server.url, "--durability", "memory", "--config", str(config))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "seckill.cli", "relay", *options],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=60)


def until(happened: Callable[[], Any]) -> None:
    """Waits for it. The limit is not what is tested: it ends a test whose relay does nothing."""
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_once(seckill: Seckill, sale_file: SaleFile, hook: Hook, config: Path) -> None:
    sale = sell(seckill, sale_file)
    ran = seckill("relay", "--once", "--sale", sale, "--config", str(config))
    assert (ran.code, ran.out) == (0, "")
    assert [(event["sale"], event["seq"]) for event in hook.events] == [(sale, 1), (sale, 2)]
    assert "delivered 2, failed attempts 0, new dead letters 0, left 0" in ran.err
    # Neither the secret nor what stands in the URL beside the host.
    assert "hush" not in ran.err
    assert "this secret" not in ran.err
    # The environment does as well as a file.
    env = {"SECKILL_WEBHOOK__URL": hook.url, "SECKILL_WEBHOOK__SECRETS": json.dumps([SIGNER])}
    assert seckill("relay", "--once", "--sale", sale, **env).code == 0
    assert len(hook.events) == 2


def test_until_sigterm(
    seckill: Seckill,
    sale_file: SaleFile,
    hook: Hook,
    config: Path,
    tmp_path: Path,
) -> None:
    """On a server of its own, because it relays every sale there is, and one that another test has
    trimmed or damaged may end it."""
    with EmbeddedServer(tmp_path / "data", appendfsync="no") as server:
        sale = sell(partial(seckill, SECKILL_REDIS=server.url), sale_file)
        with relaying(server, config, tmp_path) as process:
            until(lambda: len(hook.events) == 2 or process.poll() is not None)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, ""), err
    assert [(event["sale"], event["seq"]) for event in hook.events] == [(sale, 1), (sale, 2)]
    assert "Traceback" not in err
    assert re.search(rf"webhook, sale {sale}: this process has it", err)


# The command line, with leases that last as many ms as its first argument says.
SHORT_LEASES = """
import sys
from seckill.relay import Relay
Relay.__init__.__kwdefaults__["lease_ms"] = int(sys.argv.pop(1))
from seckill.cli import main
sys.exit(main())
"""


@pytest.mark.slow
def test_once_beside_a_running_one(
    seckill: Seckill,
    sale_file: SaleFile,
    hook: Hook,
    config: Path,
    client: redis.Redis,
    server: EmbeddedServer,
    tmp_path: Path,
) -> None:
    """It waits for as long as a dead relay's lease would last, and then says who is at work."""
    sale = sell(seckill, sale_file)
    client.set(group_keys(sale, "webhook").lease, "mall-1-2345")
    options = ("--sale", sale, "--config", str(config), "--redis", server.url)
    # Where such a lease is over before anything was asked for, it has no time to stand by.
    for lease_ms in ("600", "6000"):
        command = [sys.executable, "-P", "-c", SHORT_LEASES, lease_ms, "relay", "--once", *options]
        beside = subprocess.run(
            [*command, "--durability", "memory"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
        )
        if "standing by" in beside.stderr:
            break
    assert beside.returncode == 1
    assert f"webhook, sale {sale}: standing by, process mall-1-2345 has it" in beside.stderr
    assert f"sale {sale}: another relay has it" in beside.stderr
    assert hook.events == []


@pytest.mark.slow
def test_dead_letters(seckill: Seckill, sale_file: SaleFile, hook: Hook, config: Path) -> None:
    sale = sell(seckill, sale_file)
    relay = ("relay", "--once", "--sale", sale, "--config", str(config))
    hook.statuses["sale_created"] = 410
    ran = seckill(*relay)
    assert ran.code == 1
    assert f"webhook, sale {sale}: event 1 is a dead letter after 1 attempts: HTTP 410" in ran.err

    listed = seckill("dead", "list", sale)
    assert listed.code == 1
    assert re.search(r"1 +sale +sale_created +dead +1 .* HTTP 410", listed.out)
    assert re.search(r"2 +sale +sale_opened +parked ", listed.out)
    rows = seckill("dead", "list", sale, "--json").data
    assert [(row["seq"], row["state"], row["kind"]) for row in rows] == [
        (1, "dead", "sale_created"),
        (2, "parked", "sale_opened"),
    ]

    others = seckill("dead", "list", sale, "--group", "mall")
    assert (others.code, others.out) == (0, "no dead letters\n")
    absent = seckill("dead", "retry", sale, "00" + "a" * 22)
    assert (absent.code, absent.err) == (1, f"seckill: {sale}: no dead letters of 00{'a' * 22}\n")
    assert seckill("dead", "drop", sale, "2", "3").code == 1
    hook.statuses.clear()
    assert seckill("dead", "retry", sale, "sale").code == 0
    assert {row["state"] for row in seckill("dead", "list", sale, "--json").data} == {"retrying"}
    assert seckill(*relay).code == 0
    assert [event["seq"] for event in hook.events] == [1, 2]
    empty = seckill("dead", "list", sale)
    assert (empty.code, empty.out) == (0, "no dead letters\n")

    hook.statuses["sale_paused"] = 410
    seckill("sale", "pause", sale)
    seckill("sale", "resume", sale)
    seckill(*relay)
    assert seckill("dead", "drop", sale, "3", "--json").data == {"events": 1}
    assert seckill(*relay).code == 0
    assert [event["seq"] for event in hook.events] == [1, 2, 4]
    assert seckill("dead", "list", sale).code == 0


def test_bad_input(seckill: Seckill, sale_file: SaleFile, config: Path, tmp_path: Path) -> None:
    sale = sell(seckill, sale_file)
    unset = seckill("relay", "--once")
    assert unset.code == 2
    assert unset.err.startswith("seckill: webhook.url: is not set; write http://host/path")
    short = {"SECKILL_WEBHOOK__SECRETS": '["short"]'}
    refused = seckill("relay", "--once", "--config", str(config), **short)
    assert refused.code == 2
    assert "webhook.secrets" in refused.err
    nowhere = seckill("relay", "--once", "--config", str(config), "--sale", "no-such-sale")
    assert (nowhere.code, "no sale 'no-such-sale'" in nowhere.err) == (1, True)
    both = ("--redis", "redis://127.0.0.1:1", "--embedded", "x")
    assert run_seckill("relay", "--config", str(config), *both, cwd=tmp_path).code == 2
    away = run_seckill(
        "relay", "--config", str(config), "--redis", "redis://127.0.0.1:1", cwd=tmp_path
    )
    assert away.code == 1
    assert "no Redis answers there" in away.err
    for command in (("dead", "retry", sale), ("dead", "drop", sale, "1", "--all")):
        assert seckill(*command).code == 2
    for verb in ("list", "retry", "drop"):
        every = () if verb == "list" else ("--all",)
        assert seckill("dead", verb, "no-such-sale", *every).code == 1
