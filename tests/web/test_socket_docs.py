"""docs/socket.md says what the code says."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from seckill.embedded import EmbeddedServer
from seckill.server import socket_dialogue, socket_end, socket_session, wire_socket
from seckill.server.exchange import BODY_BYTES_MAX
from seckill.server.settings import Limits
from seckill.server.socket_end import End
from seckill.server.sockets import PING_S
from tests.children import child
from tests.support import make_item
from tests.unit.test_docs import ROOT, table
from tests.web.socket_site import site_on, token

HERE = Path(__file__).parent
KEY = f"sk_{'k' * 40}"
STOCK = 5
GUIDE = "socket"
TEXT = (ROOT / "docs" / "socket.md").read_text(encoding="utf-8")


def test_every_op() -> None:
    documented = {row[0]: row[1] for row in table(GUIDE, "op", "fields", "as over HTTP")}
    assert documented.keys() == set(wire_socket.OPS.values())
    for struct, op in wire_socket.OPS.items():
        fields = [field for field in msgspec.structs.fields(struct) if field.name != "id"]
        listed = dict(re.findall(r"(\w+)(\??)", documented[op].replace("`", "")))
        assert listed.keys() == {field.name for field in fields}, op
        # A place without a ticket, and an order without a key, are refused by the decision itself.
        needed = {field.name for field in fields if field.required} | {"ticket", "key"}
        assert {name for name, optional in listed.items() if not optional} == needed & set(listed)


def test_every_field_of_an_answer() -> None:
    rows = table(GUIDE, "field of an answer")
    assert {row[0] for row in rows} == set(wire_socket.Answer.__struct_fields__)


def test_every_end() -> None:
    documented = {(int(row[0]), row[1]) for row in table(GUIDE, "code", "reason", "what it means")}
    ends = {end for end in vars(socket_end).values() if isinstance(end, End) and end.code}
    ends |= {socket_end.broken(code) for code in (1002, 1007, 1009)}
    assert documented - {(1006, "")} == set(ends)


def test_every_number() -> None:
    assert f"up to {socket_dialogue.VERBS_MAX} under way" in TEXT
    assert f"A {socket_dialogue.VERBS_MAX + 1}rd message" in TEXT
    assert f"smaller than {BODY_BYTES_MAX // 1024} KiB" in TEXT
    assert f"silent for {PING_S} s" in TEXT
    assert f"cut after {socket_session.STUCK_S:.0f} s" in TEXT
    assert f"`limits.buyer_sockets`, {Limits().buyer_sockets})" in TEXT


async def test_the_example_lives_through_an_evening(
    redis_server: EmbeddedServer, tmp_path: Path
) -> None:
    """The guide's code as it stands, in node, against an intake: buys, loses its network, pays."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node here")
    sku = "rice-wuchang-5kg"
    digest = f"sha256:{sha256(KEY.encode()).hexdigest()}"
    keys = [{"name": "mall", "hash": digest, "scopes": ["backend"]}]
    async with site_on(redis_server.url, tables={"keys": keys}) as site:
        sale = await site.open_sale(items=(make_item(sku, total=STOCK, limit_per_buyer=0),))
        names = {"HOST": site.base, "SALE": sale.id, "KEY": KEY, "STOCK": STOCK}
        names["token"] = token("ann")
        told = [f"const {name} = {json.dumps(value)};" for name, value in names.items()]
        code = "\n".join(re.findall(r"(?ms)^```js\n(.*?)^```$", TEXT))
        for example, real in (
            ("evening-2026-11-28", sale.id),
            ("/* show them */", "shown.push(items[0].available);"),
        ):
            assert code.count(example) == 1
            code = code.replace(example, real)
        page = tmp_path / "page.mjs"
        (tmp_path / "wx.mjs").write_text((HERE / "wx.mjs").read_text())
        page.write_text(
            "import { connectSocket, tasks } from './wx.mjs';\n"
            + "\n".join(told)
            + "\nconst wx = { connectSocket: connectSocket(HOST) }, shown = [];\n"
            + code
            + (HERE / "wx_evening.mjs").read_text()
        )
        pipe = asyncio.subprocess.PIPE
        async with child(node, page, stdout=pipe, stderr=pipe) as running, asyncio.timeout(200):
            said, complained = await running.communicate()
        assert running.returncode == 0, (said + complained).decode()
        answered = dict(json.loads(line) for line in said.splitlines())
        assert answered == {
            "bought": [201, "created", "held"],
            "fed": STOCK - 1,
            "again": [True, True, 200],
            "sockets": 2,
            "one order a key": True,
            "fed again": STOCK - 1,
            "paid": "done",
            "result": "confirmed",
            "unanswered": 0,
            "stays away": True,
            "login": [1, True],
        }, complained.decode()
        assert (await site.engine.snapshot(sale.id)).orders == 2


# Stands for a mini-program's connections, which the test opens and ends by hand.
_PHONE = """
const tasks = [];
const wx = { connectSocket() {
  const task = { sent: [], onOpen(f) { this.open = f; },
    onMessage() {}, onClose(f) { this.end = f; },
    send({ data }) { this.sent.push(JSON.parse(data).id); } };
  tasks.push(task);
  return task;
} };
"""
_TOO_LARGE = """
const sale = new Sale('evening', 'token'), said = [];
sale.open();
tasks[0].open();
sale.ask('buy', { attrs: '\u4e94'.repeat(22000) }).then(answer => said.push(answer.status));
sale.ask('result', { order: 'o' });
tasks[0].end({ code: 1009 });
while (tasks.length < 2) await new Promise(resolve => setTimeout(resolve, 10));
tasks[1].open();
console.log(JSON.stringify([said, tasks[1].sent]));
process.exit(0);
"""


async def test_the_example_gives_up_what_is_too_large(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node here")
    code = "\n".join(re.findall(r"(?ms)^```js\n(.*?)^```$", TEXT)).partition("const sale =")[0]
    page = tmp_path / "page.mjs"
    page.write_text(_PHONE + code + _TOO_LARGE)
    pipe = asyncio.subprocess.PIPE
    async with child(node, page, stdout=pipe) as running, asyncio.timeout(60):
        said, _ = await running.communicate()
    assert running.returncode == 0
    assert json.loads(said) == [[413], ["hello", "watch", 2]]


async def test_an_unknown_op_and_an_order_without_a_key_name_what_to_send(
    redis_server: EmbeddedServer,
) -> None:
    async with site_on(redis_server.url) as site:
        sale = await site.open_sale()
        async with site.talk(sale.id) as talk:
            strange = (await talk.ask("fly"))["body"]
            assert (strange["code"], strange["field"]) == ("invalid_input", "op")
            assert all(op in strange["detail"] for op in wire_socket.OPS.values())
            keyless = (await talk.ask("buy", items=[{"sku": "a", "quantity": 1}]))["body"]
            assert (keyless["code"], keyless["field"]) == ("idempotency_key_required", "key")
            assert "Idempotency-Key" not in str(keyless)
        # The handshake looks for no sale; each message does.
        async with site.talk("none") as talk:
            assert await talk.code("result", order="00" + "f" * 22) == (404, "unknown_sale")
