"""Logs that were cut, doubled or never written: what of them is read, and what they prove."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.faults.checker import Verdict, check
from tests.faults.evening import Case, Evening
from tests.faults.history import History

# Nothing here asks a Redis.
pytestmark = pytest.mark.once


def evening() -> Case:
    """Two orders, one of them paid."""
    sale = Evening()
    sale.reserve("ann", "k", plenty=1)
    sale.reserve("bob", "k", plenty=1)
    sale.act("confirm", "bob.k", payment="p")
    return sale.case()


def write(log: Path, lines: list[dict[str, Any]]) -> bytes:
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    log.write_bytes(data)
    return data


def test_a_log_is_read_as_it_grows(tmp_path: Path) -> None:
    log, history = tmp_path / "load.jsonl", History()
    data = write(log, evening().lines)
    for end in range(len(data) + 1):
        log.write_bytes(data[:end])
        history.read(log)
    assert not history.damage
    assert (history.accepted, history.calls) == (2, 3)
    whole = History()
    whole.read(log)
    assert whole.orders == history.orders


def test_a_log_that_was_cut_anywhere_is_read_up_to_the_cut(tmp_path: Path) -> None:
    """A call without an answer is unknown, and one that was not even begun is nobody's."""
    case = evening()
    log = tmp_path / "load.jsonl"
    data = write(log, case.lines)
    for end in range(0, len(data) + 1, 3):
        log.write_bytes(data[:end])
        history = History()
        history.read(log)
        assert not history.damage
        assert history.calls == data[:end].rpartition(b"\n")[0].count(b'"op"')
        # The server was killed with the load: it has what was begun and no more.
        begun_orders = set(history.orders)
        paid = any(call.verb == "confirm" for call in history.orders.get("bob.k", []))
        left = evening()
        left.forget(
            lambda event, begun=begun_orders, paid=paid: (  # type: ignore[misc]
                event.subject in {"sale", *begun} and (paid or event.kind != "confirmed")
            )
        )
        report = check(history, left.seen, ledger=left.ledger, sightings=left.sightings)
        wanted = Verdict.VALID if history.accepted else Verdict.UNKNOWN
        assert report.verdict is wanted, report


def test_an_empty_log_proves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "load.jsonl"
    log.touch()
    history = History()
    history.read(log)
    report = check(history, Evening().case().seen)
    assert report.verdict is Verdict.UNKNOWN
    assert report.problems == ("empty: nothing was acknowledged",)


def test_orders_without_any_log_are_nobodys(tmp_path: Path) -> None:
    assert check(History(), evening().seen).rules == {"phantom"}


def test_several_processes_may_count_alike(tmp_path: Path) -> None:
    """Their calls have the same numbers, and their logs may have the same name."""
    case, history = evening(), History()
    half = [line for line in case.lines if line["n"] == 1]
    rest = [line | {"n": line["n"] - 1} for line in case.lines if line["n"] > 1]
    for name, lines in (("one", half), ("two", rest)):
        folder = tmp_path / name
        folder.mkdir()
        write(folder / "load.jsonl", lines)
        history.read(folder / "load.jsonl")
    assert check(history, case.seen).verdict is Verdict.VALID
    assert len({call.process for calls in history.orders.values() for call in calls}) == 2


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[]",
        "{}",
        '{"n": 1, "t": 1.0, "op": "reserve"}',
        '{"n": 77, "t": 1.0, "answer": "CREATED"}',
        '{"n": 1, "t": 0.0, "answer": "CREATED"}',
        '{"n": 1, "t": 200.0, "op": "look", "order": "again"}',
    ],
)
def test_a_line_that_no_load_has_written_proves_nothing(tmp_path: Path, line: str) -> None:
    case, history = evening(), History()
    log = tmp_path / "load.jsonl"
    begin = json.dumps(case.lines[0])
    log.write_text(f"{begin}\n{line}\n")
    history.read(log)
    assert len(history.damage) == 1
    seen = evening()
    seen.forget(lambda event: event.subject == "sale")
    assert check(history, seen.seen).verdict is Verdict.UNKNOWN
