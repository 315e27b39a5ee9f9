"""docs/api.md is true: its commands run and print what it says, its tables are the code's. How a
guide is read stands in test_docs.py.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.server import wire, wire_queue
from seckill.server.app import ROUTES
from seckill.server.openapi import every_kind
from seckill.server.operation import operation_of
from seckill.server.problems import ANSWERS
from tests.unit.test_docs import ROOT, Reader, set_window, table

GUIDE = "api"


class ApiReader(Reader):
    """Pastes the two lines that `seckill serve --dev` prints."""

    def serve(self, command: str) -> str:
        said = super().serve(command)
        self.assignments += re.findall(r"(?m)^export (SECKILL_\w+=\S+)$", said)
        return said


def test_the_guide_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", "examples")
    set_window(Path("examples", "evening-sale.toml"), opens_in_s=-180)
    with EmbeddedServer(tmp_path / "data") as server, asyncio.Runner() as runner:
        engine = Engine(server.url)
        runner.run(engine.start())
        reader = ApiReader(GUIDE, engine, runner)
        try:
            reader.read()
        finally:
            reader.leave()
            runner.run(engine.aclose())


def test_every_code() -> None:
    transient = {kind.code: status.transient for status, kind in ANSWERS.items()}
    expected = [
        [
            kind.code,
            str(kind.http),
            kind.title,
            # What was not decided may be repeated when time is what it lacked.
            "yes"
            if transient.get(kind.code, kind.http in (408, 429, 503) or kind.code == "body_broken")
            else "no",
        ]
        for kind in every_kind()
    ]
    assert [row[:4] for row in table(GUIDE, "code", "HTTP", "title", "again?")] == expected


WHO = {
    "anyone": {"everybody"},
    "user": {"buyer", "buyer or backend"},
    "backend": {"backend"},
    "admin": {"admin"},
    "metrics": {"metrics"},
}


def test_every_endpoint() -> None:
    documented = {(row[0], row[1]): row for row in table(GUIDE, "method", "path", "who")}
    routes = {(route.method, re.sub(r":\[.*?\]\+}", "}", route.path)): route for route in ROUTES}
    assert documented.keys() == routes.keys()
    for key, route in routes.items():
        operation = operation_of(route.handler)
        assert operation is not None
        _, _, who, body, answers = documented[key]
        assert who in WHO[operation.who], key
        named = re.findall(r'"(\w+)"', body) if body.startswith("{") else []
        if operation.body is None:
            assert body == "", key
        elif named:
            assert set(operation.body.__struct_fields__) <= set(named), key
        codes = re.findall(r"\b[a-z]+(?:_[a-z]+)*\b", answers.partition(", or a refusal")[0])
        if "refusal" in answers:
            assert sorted(codes) == sorted(kind.code for kind in operation.good), key


@pytest.mark.parametrize("what", ["an order", "a problem", "a place"])
def test_every_field(what: str) -> None:
    document = {
        "an order": wire.OrderDocument,
        "a problem": wire.ProblemDocument,
        "a place": wire_queue.PlaceDocument,
    }[what]
    rows = table(GUIDE, f"field of {what}")
    assert [row[0] for row in rows] == list(document.__struct_fields__)
