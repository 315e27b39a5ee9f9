"""The receivers of docs/webhook.md, each in its own language, against a real relay and a forger."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.relay import Endpoint, Pace, Relay
from seckill.webhook import sign
from tests.databases import free_port
from tests.support import make_sale, new_sale_id

FOLDER = Path(__file__).parents[2] / "examples" / "receivers"
NEW, OLD, OTHER = b"n" * 32, b"o" * 32, b"x" * 32
START_S = 60.0

FILES = {
    "python": "receiver.py",
    "java": "Receiver.java",
    "php": "receiver.php",
    "go": "receiver.go",
    "node": "receiver.js",
}


class Running:
    """A receiver that knows two secrets, and what it has handled so far."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, out: Path) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}/seckill"
        self._out = out

    def handled(self) -> Counter[str]:
        """How often it did the work of each event, by id."""
        lines = self._out.read_text().splitlines()
        return Counter(line.split()[1] for line in lines if line.startswith("handled "))

    def count(self, event: str) -> int:
        return self.handled()[event]


def command(language: str, port: int, built: Path) -> list[str]:
    program = "python3" if language == "python" else language
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program} here")
    file = str(FOLDER / language / FILES[language])
    match language:
        case "php":
            return ["php", "-S", f"127.0.0.1:{port}", file]
        case "go":
            binary = str(built / "receiver")
            subprocess.run(["go", "build", "-o", binary, file], check=True, timeout=100)
            return [binary]
    return [program, file]


@pytest.fixture(scope="module", params=list(FILES))
def receiver(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("receiver")
    port = free_port()
    words = command(request.param, port, folder)
    (folder / "seen").mkdir()
    out = folder / "out"
    env = os.environ | {
        "PORT": str(port),
        "WEBHOOK_SECRETS": f"{NEW.decode()},{OLD.decode()}",
        "WEBHOOK_SEEN": str(folder / "seen"),
    }
    with out.open("wb") as stdout, (folder / "err").open("wb") as stderr:
        process = subprocess.Popen(words, env=env, cwd=folder, stdout=stdout, stderr=stderr)
        try:
            until_it_listens(process, port, folder / "err")
            yield Running(process, port, out)
        finally:
            process.terminate()
            process.wait(60)


def until_it_listens(process: subprocess.Popen[bytes], port: int, err: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"it does not listen: {err.read_text()}")


async def post(receiver: Running, body: bytes, **headers: str | None) -> int:
    """Posts this body with these headers, of which "signature" may be None: without one."""
    signature = headers.pop("signature", None)
    sent = {"Content-Type": "application/json", **{k: v for k, v in headers.items() if v}}
    if signature is not None:
        sent["Seckill-Signature"] = signature
    timeout = aiohttp.ClientTimeout(total=60)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(receiver.url, data=body, headers=sent) as response,
    ):
        return response.status


def event_body(**fields: Any) -> tuple[str, bytes]:
    name = f"{new_sale_id()}:7"
    event = {"id": name, "kind": "order_held", "data": {"attrs": "地址=5"}} | fields
    return event["id"], json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def now(shift_s: int = 0) -> int:
    return int(time.time()) + shift_s


@pytest.mark.parametrize("secrets", [(NEW,), (OLD,), (NEW, OLD)], ids=["new", "old", "both"])
async def test_takes_what_a_relay_delivers(
    receiver: Running, redis_server: EmbeddedServer, secrets: tuple[bytes, ...]
) -> None:
    """Before, while and after a secret is replaced."""
    sale = make_sale({"a": 9})
    async with Engine(redis_server.url, durability="memory", sweep_ms=0) as engine:
        await engine.create(sale)
        await engine.open(sale.id)
        for number in range(3):
            outcome = await engine.reserve(sale.id, f"b{number}", "k", {"a": 1}, attrs='"\\地址')
            assert outcome.order is not None
            await engine.confirm(sale.id, outcome.order.id, "wx-1")
        to = Endpoint(url=receiver.url, secrets=secrets, give_up_s=5)
        relay = Relay(engine, to, sales=(sale.id,), once=True, pace=Pace(first_s=0.1))
        async with asyncio.timeout(30):
            tally = await relay.run()
    assert (tally.delivered, tally.failed) == (8, 0)
    ours = {name: n for name, n in receiver.handled().items() if name.startswith(sale.id)}
    assert ours == {f"{sale.id}:{seq}": 1 for seq in range(1, 9)}


@pytest.mark.parametrize("secrets", [(NEW,), (OLD,), (OTHER, OLD), (NEW, OTHER)])
async def test_takes_each_of_its_secrets(receiver: Running, secrets: tuple[bytes, ...]) -> None:
    name, body = event_body()
    assert await post(receiver, body, signature=sign(body, secrets, now())) == 204
    assert receiver.count(name) == 1


async def test_a_repeat_is_answered_and_not_done_twice(receiver: Running) -> None:
    name, body = event_body()
    for secret in (NEW, OLD, NEW):
        assert await post(receiver, body, signature=sign(body, (secret,), now())) == 204
    # The event's id counts, and that of the body: whoever listened in can send other headers.
    signature = sign(body, (NEW,), now())
    other = {"Seckill-Event-Id": "another:1"}
    assert await post(receiver, body, signature=signature, **other) == 204
    assert receiver.count(name) == 1
    # Even when both come at once.
    name, body = event_body()
    signature = sign(body, (NEW,), now())
    both = (post(receiver, body, signature=signature) for _ in range(4))
    assert await asyncio.gather(*both) == [204] * 4
    assert receiver.count(name) == 1


@pytest.mark.parametrize("shift_s", [-290, 290])
async def test_clocks_may_differ_by_minutes(receiver: Running, shift_s: int) -> None:
    name, body = event_body()
    assert await post(receiver, body, signature=sign(body, (NEW,), now(shift_s))) == 204
    assert receiver.count(name) == 1


@pytest.mark.parametrize("shift_s", [-310, 310, -(10**9)])
async def test_refuses_an_old_delivery(receiver: Running, shift_s: int) -> None:
    name, body = event_body()
    assert await post(receiver, body, signature=sign(body, (NEW,), now(shift_s))) == 401
    assert receiver.count(name) == 0


async def test_refuses_a_forged_body(receiver: Running) -> None:
    name, body = event_body()
    signature = sign(body, (NEW,), now())
    _, forged = event_body(id=name, kind="order_confirmed")
    for text in (forged, body + b" ", body[:-1], b""):
        assert await post(receiver, text, signature=signature) == 401
    assert receiver.count(name) == 0


async def test_refuses_a_forged_signature(receiver: Running) -> None:
    name, body = event_body()
    at, _, mark = sign(body, (NEW,), now()).partition(",v1=")
    stranger = sign(body, (OTHER,), now())
    moved = f"t={now(1)},v1={mark}"
    forged = [None, "", "nonsense", ",", "=", at, f"{at},v1=", f"{at},v1", f"v1={mark}", stranger]
    forged += [
        moved,
        f"{at},v1={mark[:-1]}",
        f"{at},v1={mark}0",
        f"{at},v0={mark}",
        f"t=,v1={mark}",
    ]
    forged += [
        f"t=-1,v1={mark}",
        f"t={'9' * 30},v1={mark}",
        f"t=1e9,v1={mark}",
        f"{at},v1={'é' * 64}",
    ]
    forged += [f"{at},v1={mark[:-1]}{'0' if mark[-1] != '0' else '1'}", f"{at},{'v1=0,' * 500}"]
    for signature in forged:
        assert await post(receiver, body, signature=signature) == 401, signature
    assert receiver.count(name) == 0
    # It is still there, and takes the true one.
    assert await post(receiver, body, signature=f"{at},v1={mark}") == 204
    assert receiver.count(name) == 1


def test_short_enough_to_read() -> None:
    for language, file in FILES.items():
        assert len((FOLDER / language / file).read_text(encoding="utf-8").splitlines()) <= 60
