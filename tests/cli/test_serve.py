"""``seckill serve``: a process that takes orders until it is told to end."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from seckill.embedded import EmbeddedServer
from tests.cli.conftest import Seckill, run_seckill

SaleFile = Callable[..., tuple[str, Path]]


@contextmanager
def serving(*args: str, cwd: Path) -> Iterator[tuple[list[str], subprocess.Popen[str]]]:
    """What a `seckill serve` says once it is up, by lines, and its process."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "seckill.cli", "serve", *args],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said: list[str] = []
    try:
        while not said or not said[-1].startswith("Ctrl-C"):
            said.append(process.stdout.readline())
            assert said[-1], said
        yield said, process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def first(pattern: str, said: list[str]) -> str:
    found = re.search(pattern, "".join(said))
    assert found, said
    return found[1]


def test_sells_until_sigterm(
    server: EmbeddedServer, seckill: Seckill, sale_file: SaleFile, tmp_path: Path
) -> None:
    sale, path = sale_file()
    seckill("sale", "create", str(path), "--open")
    options = ("--redis", server.url, "--durability", "memory", "--port", "0", "--dev")
    with serving(*options, cwd=tmp_path) as (said, process):
        assert "may lose acknowledged orders" in "".join(said)
        assert "1 worker, user tokens by 1 secret, 1 API key\n" in said
        assert "dev: a key and a user token for this run only\n" in said
        token = first(r"export SECKILL_TOKEN=(\S+)", said)
        address = first(r"takes orders on (http://\S+)", said)
        request = urllib.request.Request(  # noqa: S310 - our own address
            f"{address}/v1/sales/{sale}/orders",
            data=b'{"items": [{"sku": "phone", "quantity": 1}]}',
            headers={
                "Content-Type": "application/json",
                "Authorization": f"Bearer {token}",
                "Idempotency-Key": "k1",
            },
        )
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - as above
            assert response.status == 201
            order = json.load(response)["order"]["id"]
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0
    assert seckill("order", "show", sale, order, "--json").data["buyer"] == "buyer-1"


def test_commands_join_a_running_embedded_server(sale_file: SaleFile, tmp_path: Path) -> None:
    sale, path = sale_file()
    data = tmp_path / "data"
    unix = tmp_path / "intake.sock"
    options = ("--embedded", str(data), "--unix", str(unix), "--dev")
    with serving(*options, cwd=tmp_path) as (said, process):
        url = first(r"server (unix://\S+)", said)
        by_directory = ("--embedded", str(data))
        created = run_seckill("sale", "create", str(path), *by_directory, cwd=tmp_path)
        assert created.code == 0
        assert sale in run_seckill("sale", "list", *by_directory, cwd=tmp_path).out
        assert sale in run_seckill("sale", "list", "--redis", url, cwd=tmp_path).out
        # One that is in use is not taken over.
        second = run_seckill("serve", "--redis", url, *options[2:], cwd=tmp_path)
        assert (second.code, second.out) == (1, "")
        assert second.err == (
            f"seckill: cannot listen on {unix}: Address already in use;"
            " another server runs there: stop it, or choose another path with --unix\n"
        )
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert not unix.exists()
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(unix))
    # A socket file that was left behind is no obstacle.
    with serving(*options, cwd=tmp_path):
        pass


def test_port_in_use(server: EmbeddedServer, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        options = ("--redis", server.url, "--durability", "memory", "--port", port, "--dev")
        done = run_seckill("serve", *options, cwd=tmp_path)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"seckill: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "choose another port with --port N (0 takes a free one)\n"
    )


def refused(*options: str, cwd: Path, code: int, **env: str) -> str:
    """What an intake says that does not start."""
    done = run_seckill("serve", *options, cwd=cwd, **env)
    assert (done.code, done.out) == (code, "")
    return done.err


def test_bad_addresses(server: EmbeddedServer, tmp_path: Path) -> None:
    options = ("--redis", server.url, "--durability", "memory", "--dev", "--unix")
    said = refused(*options, "/nonexistent/x.sock", cwd=tmp_path, code=1)
    assert said == (
        "seckill: cannot listen on /nonexistent/x.sock: No such file or directory;"
        " create the directory /nonexistent\n"
    )
    said = refused(*options, "x" * 200, cwd=tmp_path, code=1)
    assert said == f"seckill: cannot listen on {'x' * 200}: AF_UNIX path too long\n"
    said = refused("--dev", "--redis", "redis://127.0.0.1:1", "--port", "0", cwd=tmp_path, code=1)
    assert said.startswith("seckill: no Redis answers there")
    assert said.count("\n") == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])  # noqa: S104 - refused
def test_dev_is_for_this_machine(host: str, tmp_path: Path) -> None:
    said = refused("--dev", "--host", host, cwd=tmp_path, code=2)
    assert said.startswith("seckill: --dev: is for this machine only, and others can reach " + host)


def test_nobody_could_get_in(tmp_path: Path) -> None:
    said = refused("--redis", "redis://127.0.0.1:1", cwd=tmp_path, code=2)
    assert "nobody could prove who they are" in said
    assert "`seckill key new`" in said
    assert "--dev" in said


def test_no_server_is_named(tmp_path: Path) -> None:
    assert "give --redis URL or --embedded DIR" in refused("--dev", cwd=tmp_path, code=2)
    both = ("--dev", "--redis", "redis://h", "--embedded", "d")
    assert "--redis, --embedded: are both given" in refused(*both, cwd=tmp_path, code=2)


def test_every_error_at_once(tmp_path: Path) -> None:
    config = tmp_path / "seckill.toml"
    config.write_text("[server]\nprot = 5\n[redis]\ntimeout_ms = 0\n")
    options = ("--config", str(config), "--port", "70000", "--workers", "0")
    said = refused(*options, cwd=tmp_path, code=2, SECKILL_LIMITS__BUYER_PER_S="often")
    assert said == (
        "seckill: 5 settings are wrong\n"
        "  --port: 70000 is refused; write 0 to 65,535\n"
        "  --workers: 0 is refused; write 1 to 64\n"
        f"  {config}: server.prot: is no setting; did you mean server.port?\n"
        f"  {config}: redis.timeout_ms: 0 is refused; write 1 to 600,000\n"
        '  SECKILL_LIMITS__BUYER_PER_S: "often" is refused; write 0 to 10,000\n'
    )


def test_settings_are_shown(tmp_path: Path) -> None:
    secret = "a-secret-that-must-never-be-shown-anywhere"  # noqa: S105 - of this test only
    config = tmp_path / "seckill.toml"
    config.write_text(f'[server]\nport = 5\n[users]\nsecrets = ["{secret}"]\n')
    config.chmod(0o644)
    shown = run_seckill(
        "settings", "--config", str(config), cwd=tmp_path, SECKILL_REDIS="unix:///s"
    )
    assert shown.code == 0
    assert "chmod o-r" in shown.err
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in shown.out.splitlines()}
    assert lines["server.port"].startswith("5 ")
    assert lines["server.host"] == '"127.0.0.1" default'
    assert lines["redis.url"] == '"unix:///s" SECKILL_REDIS'
    assert lines["users.secrets"].startswith("1 secret ")
    config.chmod(0o600)
    check = ("settings", "--check", str(config))
    checked = run_seckill(*check, cwd=tmp_path, SECKILL_REDIS="unix:///s")
    assert (checked.code, checked.err) == (0, "")
    assert "is in order; 3 of " in " ".join(checked.out.split())
    checked = run_seckill(*check, cwd=tmp_path)
    assert checked.code == 0
    assert "seckill serve will want a server" in checked.err
    data = run_seckill("settings", "--config", str(config), "--json", cwd=tmp_path).data
    assert {row["name"]: row["value"] for row in data}["users.secrets"] == "1 secret"
    assert secret not in shown.out + shown.err + str(data)
    config.write_text("[server]\nport = true\n")
    checked = run_seckill("settings", "--check", str(config), cwd=tmp_path)
    assert (checked.code, checked.out) == (2, "")
    assert checked.err == f"seckill: {config}: server.port: true is refused; write 0 to 65,535\n"
