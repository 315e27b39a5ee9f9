"""The table of answers is complete, and every kind of problem can be seen from outside."""

from __future__ import annotations

import importlib
import logging
import re
from collections import Counter
from typing import Any

import pytest
from aiohttp import web

from seckill import errors
from seckill.engine import Engine
from seckill.errors import (
    EngineClosed,
    OutcomeUnknown,
    Overloaded,
    RedisUnavailable,
    ScriptFailed,
    SeckillError,
    ServerFull,
)
from seckill.order import Outcome
from seckill.server import create_app
from seckill.status import Status
from tests.web.intake import Intake, trusting

problems = importlib.import_module("seckill.server.problems")


def test_every_status_has_an_answer() -> None:
    assert set(problems.ANSWERS) == set(Status)


@pytest.mark.parametrize("status", Status)
def test_an_answer_agrees_with_its_status(status: Status) -> None:
    kind = problems.ANSWERS[status]
    assert (kind.http < 300) == status.ok
    # Codes are written out in the table so that renaming a status does not change them unseen.
    # A code that begins with "token" is about a user token.
    assert kind.code == re.sub("^token_", "queue_token_", status.name.lower())
    assert kind.title == status.meaning
    if kind.http == 503:
        assert status.transient


def test_codes_are_stable_and_distinct() -> None:
    kinds = [*problems.ANSWERS.values()]
    kinds += [kind for kind in vars(problems).values() if isinstance(kind, problems.Kind)]
    assert Counter(kind.code for kind in kinds).most_common(1)[0][1] == 1
    for kind in kinds:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.code)
        assert kind.title


def test_every_exception_has_a_kind() -> None:
    ours = {getattr(errors, name) for name in errors.__all__}
    # It is an InvalidInput, and is answered as one.
    handled = {errors.SaleFileError}
    # Consumers and the ledger raise these, and no request does.
    handled |= {errors.EventsTrimmed, errors.Refused}
    handled |= {errors.LedgerForked, errors.LedgerRefused, errors.LedgerUnavailable}
    assert ours - set(problems.RAISED) == handled


@pytest.mark.parametrize("status", [status for status in Status if not status.ok])
async def test_every_refusal_can_be_sent(
    intake: Intake, monkeypatch: pytest.MonkeyPatch, status: Status
) -> None:
    async def reserve(*_: Any, **__: Any) -> Outcome:
        return Outcome(status)

    sale = await intake.open_sale()
    monkeypatch.setattr(Engine, "reserve", reserve)
    answer = await intake.reserve(sale.id)
    assert answer.is_problem(problems.ANSWERS[status].http, problems.ANSWERS[status].code)


@pytest.mark.parametrize(
    ("error", "code", "retry_after"),
    [
        (Overloaded(1_000), "overloaded", "1"),
        (Overloaded(1_001), "overloaded", "2"),
        (OutcomeUnknown("at /secret/path"), "outcome_unknown", "1"),
        (RedisUnavailable("redis://secret"), "unavailable", "1"),
        (EngineClosed("secret"), "shutting_down", "1"),
        (ServerFull("secret"), "storage_full", "1"),
    ],
)
async def test_exceptions_that_ask_to_come_back(
    intake: Intake,
    monkeypatch: pytest.MonkeyPatch,
    error: SeckillError,
    code: str,
    retry_after: str,
) -> None:
    async def reserve(*_: Any, **__: Any) -> Outcome:
        raise error

    monkeypatch.setattr(Engine, "reserve", reserve)
    answer = await intake.reserve("s")
    assert answer.is_problem(503, code)
    assert answer.headers["Retry-After"] == retry_after
    assert b"secret" not in answer.body


@pytest.mark.parametrize(
    "error",
    [
        ScriptFailed("WRONGTYPE secret"),
        SeckillError("secret"),
        ValueError("secret"),
        TimeoutError("secret"),
        web.HTTPConflict(text="secret"),
        web.HTTPFound("/secret"),
    ],
)
async def test_a_bug_is_logged_and_not_shown(
    intake: Intake,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    async def order(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(Engine, "order", order)
    with caplog.at_level(logging.INFO):
        answer = await intake.get("/v1/sales/s/orders/the-order", "the-buyer")
    assert answer.is_problem(500, "internal")
    assert b"secret" not in answer.body
    (record,) = caplog.records
    assert answer.json["request_id"] in record.getMessage()
    assert "/v1/sales/{sale}/orders/{order}" in record.getMessage()
    assert "the-order" not in caplog.text
    assert "the-buyer" not in caplog.text
    assert record.exc_info is not None
    assert record.exc_info[1] is error


async def test_good_answers_leave_no_line_in_the_log(
    intake: Intake, caplog: pytest.LogCaptureFixture
) -> None:
    sale = await intake.open_sale({"a": 1})
    with caplog.at_level(logging.DEBUG, logger="seckill"):
        await intake.reserve(sale.id)
        await intake.reserve(sale.id, "b2")
        await intake.get("/nope")
    assert not caplog.records


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/sales/", "/v1/sales/s/", "/v2/time", "/%00"])
async def test_unknown_paths(intake: Intake, path: str) -> None:
    assert (await intake.get(path)).is_problem(404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/sales", "GET,HEAD"),
        ("POST", "/healthz", "GET,HEAD"),
        ("OPTIONS", "/v1/sales/s/orders", "POST"),
        ("GET", "/v1/sales/s/orders", "POST"),
        ("PUT", "/v1/sales/s/orders/o", "GET,HEAD"),
        ("GET", "/v1/sales/s/orders/o/confirm", "POST"),
        ("PATCH", "/v1/time", "GET,HEAD"),
        ("POST", "/v1/sales/s/tickets/me", "DELETE,GET,HEAD"),
    ],
)
async def test_unknown_methods(intake: Intake, method: str, path: str, allowed: str) -> None:
    answer = await intake.call(method, path)
    assert answer.is_problem(405, "method_not_allowed")
    assert answer.headers["Allow"] == allowed
    assert not any(name.startswith("Access-Control") for name in answer.headers)


async def test_ids_that_cannot_be(intake: Intake) -> None:
    sale = await intake.open_sale()
    for path, field in (
        ("/v1/sales/a b", "sale"),
        ("/v1/sales/" + "a" * 41, "sale"),
        ("/v1/sales/%E7%A7%92", "sale"),
        ("/v1/sales/a%2F..%2Fb", "sale"),
        ("/v1/sales/%ff%fe", "sale"),
        (f"/v1/sales/{sale.id}/orders/short", "order"),
        (f"/v1/sales/{sale.id}/orders/{'-' * 24}", "order"),
    ):
        answer = await intake.get(path)
        assert answer.is_problem(400, "invalid_input"), path
        assert answer.json["field"] == field
    for order in ("00" + "a" * 22, "ff" + "a" * 22):
        answer = await intake.get(f"/v1/sales/{sale.id}/orders/{order}")
        assert answer.is_problem(404, "unknown_order")


async def test_an_engine_that_was_not_started_is_started_and_closed(intake: Intake) -> None:
    engine = Engine(intake.engine.url, durability="memory", sweep_ms=0)
    runner = web.AppRunner(create_app(engine, identify=trusting))
    await runner.setup()
    assert await engine.sales() == await intake.engine.sales()
    await runner.cleanup()
    with pytest.raises(EngineClosed):
        await engine.sales()
