"""One line a record, and in none of them anything of a buyer's or anybody's secret."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp.http_exceptions import BadStatusLine

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import OutcomeUnknown
from seckill.keys import shard_keys
from seckill.server import log as log_module
from seckill.server.log import ERRORS_PER_S, RequestLines, configure
from seckill.server.settings import Log
from tests.children import child
from tests.support import async_client, make_sale
from tests.web.intake import Client

ORDER = "00b7a6f1c2d3e4f5a6b7c8d9"
TOKEN = jwt.encode({"sub": "buyer-7"}, "x" * 32, algorithm="HS256")
_log = logging.getLogger("seckill.test")

Lines = Callable[[], list[str]]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Lines]:
    """What was written since the last time. Logging is as before afterwards."""
    root = logging.getLogger()
    handlers, level, show = list(root.handlers), root.level, warnings.showwarning
    loggers = [logging.getLogger(name) for name in (*log_module._TAKEN_OVER, *log_module._SILENCED)]
    before = [(it.handlers[:], it.propagate, it.level, it.disabled) for it in loggers]
    # Or force=True would close them.
    root.handlers.clear()
    yield lambda: capsys.readouterr().err.splitlines()
    logging.captureWarnings(capture=False)
    warnings.showwarning = show
    root.handlers[:] = handlers
    root.setLevel(level)
    for logger, (own, propagate, own_level, disabled) in zip(loggers, before, strict=True):
        logger.handlers[:] = own
        logger.propagate, logger.disabled = propagate, disabled
        logger.setLevel(own_level)


def raised(error: BaseException) -> BaseException:
    """The error with a traceback of a frame or two."""
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - it is handed back
        return caught


# -- the form ---------------------------------------------------------------------------------


def test_json(lines: Lines) -> None:
    configure(Log(format="json", level="info"))
    _log.info("卖了 %d 件", 3, extra={"request_id": "r-1", "status": 201, "buyer": "buyer-7"})
    _log.debug("not this")
    (line,) = lines()
    record = json.loads(line)
    at = record.pop("time")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", at)
    assert abs(datetime.fromisoformat(at).timestamp() - time.time()) < 60
    assert record == {
        "level": "info",
        "logger": "seckill.test",
        "message": "卖了 3 件",
        "request_id": "r-1",
        "status": 201,
    }


def test_text(lines: Lines) -> None:
    configure(Log(format="text", level="warning"))
    _log.info("not this")
    _log.warning("slow", extra={"request_id": "r-1"})
    _log.error("request r-2 failed", extra={"request_id": "r-2"}, exc_info=raised(OSError("gone")))
    first, second, *trace = lines()
    assert first[24:] == " warning seckill.test: slow (request r-1)"
    assert second[24:] == " error   seckill.test: request r-2 failed"
    assert trace[-1] == "    builtins.OSError: gone"
    assert all(line.startswith("    ") for line in trace)


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_record_is_one_line_and_harmless_to_a_terminal(form: Any, lines: Lines) -> None:
    configure(Log(format=form))
    evil = "a\nb\r\x1b[2J\x9b1m\u2028c\udcff\x00"
    _log.warning("it says %s", evil)
    text = "\n".join(lines())
    message = json.loads(text)["message"] if form == "json" else text
    assert message.isprintable()
    assert r"a\x0ab\x0d\x1b[2J\x9b1m\x2028c" in message


def test_arguments_that_do_not_fit(lines: Lines) -> None:
    """A mistake in a rare line must not cost the line."""
    configure(Log(format="json"))
    _log.warning("%d of %d", "x")
    assert json.loads(lines()[0])["message"] == "%d of %d"


def test_an_exception_is_one_field(lines: Lines) -> None:
    configure(Log(format="json"))
    cause = raised(OSError("disk"))
    error = RuntimeError("no sale")
    error.__cause__ = cause
    _log.error("it failed", exc_info=raised(error))
    (line,) = lines()
    text = json.loads(line)["exception"]
    assert text.index("OSError: disk") < text.index("RuntimeError: no sale")
    assert text.count("in raised") == 2


def test_exceptions_are_bounded(lines: Lines) -> None:
    configure(Log(format="json"))

    def deep(depth: int) -> None:
        if depth == 0:
            raise RuntimeError("bottom")
        deep(depth - 1)

    error: BaseException = RuntimeError("first")
    for number in range(100):
        after = RuntimeError(f"n{number}")
        after.__cause__ = error
        error = after
    group = ExceptionGroup("many", [OSError(f"e{number}") for number in range(1_000)])
    for failed in (error, group):
        _log.error("it failed", exc_info=failed)
    with pytest.raises(RuntimeError, match="bottom") as caught:
        deep(500)
    _log.error("it failed", exc_info=caught.value)
    written = lines()
    assert len(written) == 3
    assert all(len(line) < 20_000 for line in written)
    assert "n99" in written[0]
    assert "e0" in written[1]
    assert "RuntimeError: bottom" in written[2]


# -- what others have set up ------------------------------------------------------------------


def test_once_however_often_it_is_configured(lines: Lines) -> None:
    logging.getLogger().addHandler(logging.StreamHandler(sys.stderr))
    for _ in range(3):
        configure(Log(format="json"))
    _log.warning("once")
    assert len(lines()) == 1


def test_gunicorn_and_warnings_are_written_alike(lines: Lines) -> None:
    from gunicorn.config import Config
    from gunicorn.glogging import Logger

    gunicorn = Logger(Config())
    configure(Log(format="json"))
    gunicorn.info("Booting worker with pid: %s", 7)
    gunicorn.exception("it failed")
    gunicorn.access_log.info("203.0.113.9 GET /v1/sales/s/orders/%s", ORDER)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        configure(Log(format="json"))
        warnings.warn("mind this", UserWarning, stacklevel=1)
    records = [json.loads(line) for line in lines()]
    assert [record["logger"] for record in records] == [
        "gunicorn.error",
        "gunicorn.error",
        "py.warnings",
    ]
    assert "UserWarning: mind this" in records[2]["message"]


# -- what is left out -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "written"),
    [
        (f"order {ORDER} is gone", "order … is gone"),
        (f"Authorization: Bearer {TOKEN}", "Authorization: Bearer …"),
        (f"a token {TOKEN}.", "a token …."),
        ("the key sk_abcDEF-0_9.", "the key …"),
        ("redis://sale:p%40ss@10.0.0.1:6379/0", "redis://…@10.0.0.1:6379/0"),
        ("redis://10.0.0.1:6379/0 and b@c", "redis://10.0.0.1:6379/0 and b@c"),
        ("<socket raddr=('203.0.113.9', 5)>", "<socket raddr=…>"),
        ("sha 0123456789abcdef and 24 words", "sha 0123456789abcdef and 24 words"),
    ],
)
def test_what_looks_like_a_secret(said: str, written: str, lines: Lines) -> None:
    configure(Log(format="json"))
    _log.warning("%s", said)
    _log.warning("x", exc_info=RuntimeError(said))
    message, exception = (json.loads(line) for line in lines())
    assert message["message"] == written
    assert exception["exception"] == f"builtins.RuntimeError: {written}"


@pytest.mark.parametrize(
    "error",
    [
        KeyError("buyer-7"),
        ValueError("buyer-7"),
        UnicodeDecodeError("utf-8", b"7", 0, 1, "buyer-7"),
    ],
)
def test_exceptions_that_quote_what_was_sent(error: Exception, lines: Lines) -> None:
    configure(Log(format="json"))
    _log.error("it failed", exc_info=raised(error))
    _log.error("it failed", exc_info=raised(ExceptionGroup("some", [error])))
    for line in lines():
        assert "buyer-7" not in line
        assert type(error).__name__ in line
        assert "in raised" in line


async def test_asyncio_names_no_future(lines: Lines) -> None:
    """Its records go on with the repr of the task, and that with its exception's text."""
    configure(Log(format="json", level="debug"))

    buyer = "buyer-7"  # Or it would stand in the source line that a traceback shows.

    async def fail() -> None:
        raise KeyError(buyer)

    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    del task
    asyncio.get_running_loop().call_exception_handler(
        {"message": "Fatal error", "transport": "<_Transport peer=('203.0.113.9', 80)>"}
    )
    written = lines()
    assert [json.loads(line)["message"] for line in written] == [
        "Task exception was never retrieved",
        "Fatal error",
    ]
    assert "buyer-7" not in "".join(written)
    assert "KeyError" in written[0]
    # What a loop in debug mode tells of every connection.
    logging.getLogger("asyncio").debug("%r from %r took %.1f", "it", ("203.0.113.9", 80), 0.5)
    (line,) = lines()
    assert json.loads(line)["message"] == "'…' from '…' took 0.5"
    assert "203.0.113.9" not in "".join(written)


@pytest.mark.parametrize("level", ["debug", "info"])
def test_requests_that_are_none(level: Any, lines: Lines) -> None:
    """Anybody can send them by the million, so they are written only to somebody who looks."""
    configure(Log(format="json", level=level))
    for name in ("aiohttp.server", "gunicorn.error"):
        logging.getLogger(name).error(
            "Error handling request from %s", "203.0.113.9", exc_info=BadStatusLine("buyer-7")
        )
        logging.getLogger(name).error(
            "Error handling request from %s", "203.0.113.9", exc_info=raised(RuntimeError("a bug"))
        )
    written = lines()
    assert len(written) == (4 if level == "debug" else 2)
    assert "203.0.113.9" not in "".join(written)
    assert "buyer-7" not in "".join(written)
    assert "a bug" in written[-1]


# -- a line for a request ---------------------------------------------------------------------


ROUTE = "/v1/sales/{sale}/orders"


def write(which: Any, status: int, method: str = "POST") -> None:
    RequestLines(which).write(method, ROUTE, "r-1", status, "created", 0.01234)


def test_a_request_line(lines: Lines) -> None:
    configure(Log(format="json"))
    write("all", 201)
    record = json.loads(lines()[0])
    del record["time"]
    assert record == {
        "level": "info",
        "logger": "seckill.requests",
        "message": "POST /v1/sales/{sale}/orders: 201 created in 12.3 ms",
        "request_id": "r-1",
        "method": "POST",
        "route": "/v1/sales/{sale}/orders",
        "status": 201,
        "code": "created",
        "ms": 12.3,
    }


def test_a_method_that_somebody_invents(lines: Lines) -> None:
    configure(Log(format="json"))
    write("all", 405, "BUYER-7")
    assert "BUYER-7" not in lines()[0]


@pytest.mark.parametrize(
    ("which", "statuses"), [("none", []), ("errors", [500, 503]), ("all", [201, 409, 500, 503])]
)
def test_which_requests_get_a_line(which: Any, statuses: list[int], lines: Lines) -> None:
    configure(Log(format="json"))
    for status in (201, 409, 500, 503):
        write(which, status)
    assert [json.loads(line)["status"] for line in lines()] == statuses


def test_a_storm_of_errors_is_not_followed_by_one_of_lines(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(Log(format="json"))
    now_s = 7.0
    monkeypatch.setattr(log_module, "monotonic", lambda: now_s)
    writer = RequestLines("errors")
    for _ in range(ERRORS_PER_S + 500):
        writer.write("POST", ROUTE, "r", 503, "busy", 0.001)
    assert len(lines()) == ERRORS_PER_S
    now_s = 8.0
    writer.write("POST", ROUTE, "r", 503, "busy", 0.001)
    left_out, line = lines()
    assert json.loads(left_out)["message"] == "500 more requests got no line"
    assert json.loads(line)["code"] == "busy"


# -- the whole intake -------------------------------------------------------------------------

_PROGRAM = """
import asyncio, sys
from aiohttp import web
from seckill import Engine
from seckill.server import create_app
from seckill.server.log import configure
from seckill.server.settings import Settings

async def main():
    settings = Settings.model_validate_json(sys.argv[2])
    configure(settings.log)
    engine = Engine(sys.argv[1], durability="memory", timeout_ms=2_000)
    # With aiohttp's access log, which is on unless somebody switches it off.
    runner = web.AppRunner(create_app(engine, settings))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(site.name, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()

asyncio.run(main(), debug=True)
"""

ADDRESS = "127.7.7.7"
SECRET = "a-secret-of-the-mall-that-is-long-enough"  # noqa: S105 - of this test
API_KEY = "sk_Zq9-backendbackendbackendbackend"
FORWARDED = "203.0.113.77"
# What requests carry, besides order ids and the tokens. Each begins alike to be found in pieces.
BUYER, KEY, ATTRS, PAYMENT, COOKIE, QUERY, JUNK = (
    f"hush{n}{word}"
    for n, word in enumerate(("buyer", "key", "attrs", "payment", "cookie", "query", "junk"))
)


def settings_of(form: str) -> str:
    scopes = ["backend", "admin", "metrics"]
    digest = hashlib.sha256(API_KEY.encode()).hexdigest()
    return json.dumps(
        {
            "log": {"format": form, "level": "debug", "requests": "all"},
            "server": {"trusted_proxies": [ADDRESS]},
            "limits": {"address_per_s": 1_000},
            "users": {"secrets": [SECRET]},
            "keys": [{"name": "tests", "hash": f"sha256:{digest}", "scopes": scopes}],
        }
    )


def user_token(**claims: Any) -> str:
    now = int(time.time())
    return jwt.encode({"sub": BUYER, "exp": now + 600} | claims, SECRET, algorithm="HS256")


@asynccontextmanager
async def intake_process(url: str, form: str, errors: Path) -> Any:
    command = (sys.executable, "-c", _PROGRAM, url, settings_of(form))
    pipe = subprocess.PIPE
    with errors.open("wb") as stderr:
        async with child(*command, stdin=pipe, stdout=pipe, stderr=stderr) as process:
            assert process.stdout is not None
            async with asyncio.timeout(60):
                base = (await process.stdout.readline()).decode().strip()
            assert base
            connector = aiohttp.TCPConnector(local_addr=(ADDRESS, 0))
            async with aiohttp.ClientSession(connector=connector) as session:
                yield Client(session, base)
            assert process.stdin is not None
            process.stdin.close()
            async with asyncio.timeout(60):
                assert await process.wait() == 0


async def send_bytes(base: str, data: bytes) -> None:
    port = int(base.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(ADDRESS, 0))
    writer.write(data)
    try:
        async with asyncio.timeout(0.3):
            await reader.read()
    except TimeoutError:
        pass  # It waits for more. Closing now is one more way to fail.
    writer.close()


class Buyer:
    """Sends requests with something to hide in every part."""

    def __init__(self, client: Client, tokens: list[str]) -> None:
        self.client = client
        self.tokens = tokens
        self.request_ids: set[str] = set()

    async def send(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        token = headers.pop("token", "")
        sent = {
            "Authorization": f"Bearer {token or API_KEY}",
            "X-Forwarded-For": FORWARDED,
            "Cookie": f"{COOKIE}={COOKIE}",
            "User-Agent": JUNK,
            "Referer": f"https://example.com/{QUERY}",
            "Idempotency-Key": KEY,
            "X-Request-Id": JUNK,
        } | headers
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if data is not None:
            sent["Content-Type"] = "application/json"
        url = f"{path}?{QUERY}={QUERY}"
        answer = await self.client.call(method, url, data=data, headers=sent)
        # What aiohttp refuses by itself has none.
        if request_id := answer.headers.get("X-Request-Id"):
            self.request_ids.add(request_id)
        return answer


async def everything(buyer: Buyer, sale: str) -> set[str]:
    """Every endpoint, well and badly asked. Returns the ids of the orders."""
    orders = f"/v1/sales/{sale}/orders"
    wish = {"items": [{"sku": "a", "quantity": 1}], "attrs": ATTRS}
    (good, *bad) = buyer.tokens
    found = set()
    for token in (good, ""):
        answer = await buyer.send("POST", orders, wish, token=token, **{"Seckill-Buyer": BUYER})
        if answer.http == 201:
            found.add(answer.json["order"]["id"])
    assert found
    (order,) = found
    for token in bad:
        assert (await buyer.send("POST", orders, wish, token=token)).http in (401, 403)
    for path in ("", "/begin-payment", "/confirm", "/release", "/refund", f"/{JUNK}"):
        for body in (
            {"payment": PAYMENT},
            {"refund": PAYMENT, "return_units": True, "return_limit": True},
            {JUNK: JUNK},
            f'{{"{JUNK}": '.encode(),
            b"\xff" + JUNK.encode(),
        ):
            await buyer.send("POST", f"{orders}/{order}{path}", body)
            await buyer.send("POST", f"{orders}/{JUNK}{path}", body)
    for method in ("GET", "DELETE", "PATCH", JUNK.upper()):
        for path in (f"{orders}/{order}", orders, f"/v1/sales/{sale}", "/v1/sales", f"/{order}"):
            await buyer.send(method, path)
    batch = {"orders": [{"buyer": BUYER, "key": KEY, **wish}, {"buyer": f"{BUYER} "}]}
    await buyer.send("POST", f"{orders}:batch", batch)
    for path in ("challenge", "tickets", "socket"):
        await buyer.send("GET", f"/v1/sales/{sale}/{path}", token=good)
    for path in ("/healthz", "/readyz", "/metrics", "/v1/time", f"/v1/admin/sales/{JUNK}"):
        await buyer.send("GET", path)
    await buyer.send("PUT", f"/v1/admin/sales/{sale}", {JUNK: JUNK})
    await buyer.send("POST", f"/v1/admin/sales/{sale}:pause", {"reason": JUNK})
    await buyer.send("POST", f"/v1/admin/sales/{sale}:resume")
    return found


_HEAD = (
    f"HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\nContent-Type: application/json\r\n"
)
RAW = [
    f"GET /{QUERY} HTTP/1.1\r\n{JUNK}\r\n\r\n",
    f"{JUNK}\r\n\r\n",
    f"GET /{QUERY} HTTP/9.{JUNK}\r\n\r\n",
    f"POST /v1/sales/s/orders {_HEAD}Content-Length: {JUNK}\r\n\r\n",
    f"GET / {_HEAD}X: \0\r\n\r\n",
    f"GET / {_HEAD}Cookie: {COOKIE * 4_000}\r\n\r\n",
    f"POST /v1/sales/s/orders {_HEAD}Transfer-Encoding: chunked\r\n\r\n{JUNK}\r\n",
    f"POST /v1/sales/s/orders {_HEAD}Content-Length: 999\r\n\r\n{JUNK}",
]


@pytest.mark.parametrize("form", ["json", "text"])
async def test_nobody_is_named(form: str, tmp_path: Path) -> None:
    """Everything that can go well or wrong, at level debug with a line for each request."""
    errors = tmp_path / "stderr"
    tokens = [
        user_token(),
        user_token(exp=1),
        user_token()[:-6] + "AAAAAA",
        jwt.encode({"sub": BUYER}, "another-secret-of-32-bytes-or-more", algorithm="HS256"),
        f"{JUNK}.{JUNK}.{JUNK}",
        "sk_" + JUNK,
    ]
    with EmbeddedServer(tmp_path / "redis", appendfsync="no") as redis:
        sale = make_sale({"a": 100})
        async with Engine(redis.url, durability="memory", sweep_ms=0) as engine:
            assert (await engine.create(sale)).ok
            assert (await engine.open(sale.id)).ok
        async with intake_process(redis.url, form, errors) as client:
            buyer = Buyer(client, tokens)
            found = await everything(buyer, sale.id)
            for data in RAW:
                await send_bytes(client.base, data.encode())
            os.kill(redis.pid, signal.SIGSTOP)
            try:
                late = await buyer.send(
                    *("POST", f"/v1/sales/{sale.id}/orders/{next(iter(found))}/confirm"),
                    {"payment": PAYMENT},
                )
                assert late.http == 503
            finally:
                os.kill(redis.pid, signal.SIGCONT)
            async with async_client(redis.url) as raw:
                await raw.hset(shard_keys(sale.id)[3], next(iter(found)), BUYER)
            broken = await buyer.send("GET", f"/v1/sales/{sale.id}/orders/{next(iter(found))}")
            assert broken.http == 500
            await client.get(f"/v1/sales/{sale.id}")
    written = errors.read_text("utf-8")
    # It is no proof if little was written.
    assert written.count("/v1/sales/{sale}/orders/{order}") > 30
    assert len(buyer.request_ids) > 90
    assert "Traceback (most" not in written
    assert "seckill.server" in written
    # The sweeper names the sale of the damaged order, if it came by in time. No request does.
    swept = "are not swept"
    asked = "".join(line for line in written.splitlines(keepends=True) if swept not in line)
    assert sale.id not in asked
    hidden = [*found, *tokens, SECRET, API_KEY, FORWARDED, ADDRESS]
    for secret in (*hidden, "hush", "HUSH", "sk_Zq9", tokens[0].split(".")[1]):
        at = written.find(secret)
        assert at < 0, written[max(0, at - 600) : at + 200]
    if form == "json":
        records = [json.loads(line) for line in written.splitlines()]
        assert {record["level"] for record in records} >= {"debug", "info", "error"}
        assert buyer.request_ids <= {record.get("request_id") for record in records}


async def test_a_lost_order_is_not_named_by_its_error(lines: Lines) -> None:
    """The one error of the engine whose text names an order."""
    configure(Log(format="json"))
    _log.error("it failed", exc_info=OutcomeUnknown(f"no answer for order {ORDER}; ask again"))
    (line,) = lines()
    assert ORDER not in line
    assert "no answer for order …; ask again" in line
