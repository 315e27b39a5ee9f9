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
        process.communicate(timeout=20)


def first(pattern: str, said: list[str]) -> str:
    found = re.search(pattern, "".join(said))
    assert found, said
    return found[1]


def test_sells_until_sigterm(
    server: EmbeddedServer, seckill: Seckill, sale_file: SaleFile, tmp_path: Path
) -> None:
    sale, path = sale_file()
    seckill("sale", "create", str(path), "--open")
    options = ("--redis", server.url, "--durability", "memory", "--port", "0")
    with serving(*options, cwd=tmp_path) as (said, process):
        assert "may lose acknowledged orders" in "".join(said)
        address = first(r"takes orders on (http://\S+)", said)
        request = urllib.request.Request(  # noqa: S310 - our own address
            f"{address}/v1/sales/{sale}/orders",
            data=b'{"items": [{"sku": "phone", "quantity": 1}]}',
            headers={
                "Content-Type": "application/json",
                "Seckill-Buyer": "u1",
                "Idempotency-Key": "k1",
            },
        )
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - as above
            assert response.status == 201
            order = json.load(response)["order"]["id"]
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20) == ("", "")
        assert process.returncode == 0
    assert seckill("order", "show", sale, order, "--json").data["buyer"] == "u1"


def test_commands_join_a_running_embedded_server(sale_file: SaleFile, tmp_path: Path) -> None:
    sale, path = sale_file()
    data = tmp_path / "data"
    unix = tmp_path / "intake.sock"
    with serving("--embedded", str(data), "--unix", str(unix), cwd=tmp_path) as (said, process):
        url = first(r"server (unix://\S+)", said)
        by_directory = ("--embedded", str(data))
        created = run_seckill("sale", "create", str(path), *by_directory, cwd=tmp_path)
        assert created.code == 0
        assert sale in run_seckill("sale", "list", *by_directory, cwd=tmp_path).out
        assert sale in run_seckill("sale", "list", "--redis", url, cwd=tmp_path).out
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 0
    # A socket file that was left behind is no obstacle.
    with serving("--embedded", str(data), "--unix", str(unix), cwd=tmp_path):
        pass


def test_port_in_use(server: EmbeddedServer, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        options = ("--redis", server.url, "--durability", "memory", "--port", port)
        done = run_seckill("serve", *options, cwd=tmp_path)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"seckill: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "choose another port with --port N (0 takes a free one)\n"
    )


def test_bad_addresses(server: EmbeddedServer, tmp_path: Path) -> None:
    options = ("--redis", server.url, "--durability", "memory")
    outside = run_seckill("serve", *options, "--host", "0.0.0.0", cwd=tmp_path)  # noqa: S104 - refused
    assert outside.code == 2
    assert "is not a loopback address" in outside.err
    nowhere = run_seckill("serve", *options, "--unix", "/nonexistent/x.sock", cwd=tmp_path)
    assert nowhere.code == 1
    assert "cannot listen on /nonexistent/x.sock" in nowhere.err
    assert run_seckill("serve", *options, "--port", "99999", cwd=tmp_path).code == 2
    silent = run_seckill("serve", "--redis", "redis://127.0.0.1:1", cwd=tmp_path)
    assert silent.code == 1
    assert silent.err.startswith("seckill: no Redis answers there")
