"""``seckill queue``, ``seckill draw`` and what other commands say of a sale with a queue."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis

from seckill.keys import queue_keys
from seckill.sync import Engine
from tests.cli.conftest import Seckill, run_seckill

SaleFile = Callable[..., tuple[str, Path]]


def with_admission(path: Path, *lines: str) -> None:
    text = "\n".join(["[admission]", *lines, ""])
    path.write_text(path.read_text(encoding="utf-8").replace("[[items]]", f"{text}[[items]]", 1))


def join(client: redis.Redis, sale: str, *buyers: str) -> list[str]:
    """Their tickets."""
    host = client.connection_pool.connection_kwargs["path"]
    engine = Engine(f"unix://{host}", durability="memory", sweep_ms=0)
    try:
        found = [engine.queue.join(sale, buyer).place for buyer in buyers]
    finally:
        engine.stop()
    return [place.ticket for place in found if place is not None]


@pytest.mark.slow
def test_a_queue_is_shown_and_its_keys_are_replaced(
    seckill: Seckill, sale_file: SaleFile, client: redis.Redis, tmp_path: Path
) -> None:
    sale, path = sale_file()
    none = seckill("queue", "show", sale)
    assert (none.code, "no such sale" in none.err) == (1, True)
    with_admission(path, 'mode = "queue"', "rate_per_s = 7", "token_life_ms = 30_000")
    assert seckill("sale", "create", str(path)).code == 0
    assert "queue  tickets at once; 7 called a second at most; 30 s to order\n" in (
        seckill("sale", "show", sale).out
    )
    idle = seckill("queue", "show", sale).out
    assert "waiting 0\n" in idle
    assert len(join(client, sale, "ann", "bob", "cy")) == 3
    early = seckill("queue", "show", sale)
    assert early.code == 0
    assert "waiting 3 · the stock left may reach " in early.out
    assert "nobody is called: the sale has not started" in early.out
    assert seckill("sale", "open", sale).code == 0
    shown = seckill("queue", "show", sale, "--json")
    assert (shown.data["mode"], shown.data["next"], shown.data["refusal"]) == ("queue", 3, None)
    assert shown.data["waiting"] + shown.data["head"] == 3
    url = f"unix://{client.connection_pool.connection_kwargs['path']}"
    top = run_seckill("top", sale, "--once", cwd=tmp_path, SECKILL_REDIS=url).out
    assert "queue: " in top
    assert " called" in top
    memory = seckill("inspect", sale, "--json").data["memory_bytes"]
    assert memory[queue_keys(sale)[1]] > 0
    before = client.hget(queue_keys(sale)[0], "keys")
    rotated = seckill("queue", "rotate", sale)
    assert rotated.code == 0
    assert "a new key signs" in rotated.out
    assert "counts until it was rotated 3 times" in rotated.out
    assert client.hget(queue_keys(sale)[0], "keys") != before
    other, plain = sale_file()
    assert seckill("sale", "create", str(plain), "--open").code == 0
    refused = seckill("queue", "show", other)
    assert (refused.code, "the sale has no queue" in refused.err) == (1, True)
    refused = seckill("draw", "show", other)
    assert (refused.code, "has no draw" in refused.err) == (2, True)


@pytest.mark.slow
def test_a_draw_is_followed_settled_and_published(
    seckill: Seckill, sale_file: SaleFile, client: redis.Redis, tmp_path: Path
) -> None:
    sale, path = sale_file("2099-01-01T20:00:00+08:00")
    draw_at, header = datetime(2098, 12, 12, 12, tzinfo=UTC), queue_keys(sale)[0]
    lines = ('mode = "draw"', f"draw_at = {draw_at.isoformat()}", "weights = {gold = 3}")
    with_admission(path, *lines, 'public_value = "双色球 2026-12-12"')
    assert seckill("sale", "create", str(path), "--open").code == 0
    assert "lots gold 3; public value: 双色球 2026-12-12\n" in (
        seckill("sale", "show", sale, COLUMNS="200").out
    )
    join(client, sale, "ann", "bob", "cy")
    early = seckill("draw", "show", sale)
    assert "tickets are taken; the list closes at " in early.out
    commitment = seckill("draw", "show", sale, "--json").data["commitment"]
    assert commitment in early.out
    folder = tmp_path / "out" / "draw"
    nothing = seckill("draw", "export", sale, str(folder))
    assert (nothing.code, "nothing to publish yet" in nothing.err) == (2, True)
    assert not folder.exists()
    refused = seckill("draw", "value", sale, "3 9 27")
    assert (refused.code, "not before it" in refused.err) == (1, True)
    assert "nobody is called: the list of tickets closes at" in seckill("queue", "show", sale).out

    client.hset(header, "draw_ms", 0)  # The moment has come.
    closed = seckill("draw", "show", sale)
    client.hset(header, "closed_ms", int(draw_at.timestamp() * 1000))
    assert "the list is closed; hand in '双色球 2026-12-12'" in closed.out
    assert "nobody is called: hand in '双色球 2026-12-12'" in seckill("queue", "show", sale).out
    assert "seed is not in it yet" in seckill("draw", "export", sale, str(folder)).out
    assert seckill("draw", "value", sale, "3 9 27").code == 0
    again = seckill("draw", "value", sale, "3 9 27")
    assert (again.code, "identical call" in again.out) == (0, True)
    other = seckill("draw", "value", sale, "3 9 28")
    assert (other.code, "another value was handed in" in other.err) == (1, True)
    assert "done: the tickets are in order" in seckill("draw", "show", sale).out
    done = seckill("draw", "export", sale, str(folder), "--json")
    assert done.data["tickets"] == 3
    assert done.data["revealed"] is True
    assert json.loads((folder / "draw.json").read_text())["public_value"] == "3 9 27"
    assert sorted(file.name for file in folder.iterdir()) == ["draw.json", "tickets.txt"]
    files = [str(folder / "draw.json"), str(folder / "tickets.txt")]
    proof = run_seckill("verify-draw", *files, "--commitment", commitment, cwd=tmp_path)
    assert (proof.code, "3 tickets" in proof.out) == (0, True)
    (tmp_path / "file").touch()
    bad = seckill("draw", "export", sale, str(tmp_path / "file"))
    assert (bad.code, "DIR: " in bad.err) == (2, True)


def test_a_draw_for_which_nobody_must_come_yet(seckill: Seckill, sale_file: SaleFile) -> None:
    sale, path = sale_file("2098-01-01T20:00:00+08:00")
    with_admission(path, 'mode = "draw"', "joins_at = 2098-01-01T19:00:00+08:00")
    assert seckill("sale", "create", str(path), "--open").code == 0
    shown = seckill("queue", "show", sale).out
    assert "nobody is called: tickets can be taken from 2098-01-01 " in shown
    refused = seckill("draw", "value", sale, "3 9 27")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == (
        f"seckill: VALUE: the definition of '{sale}' names no public value; "
        "there is nothing to hand in; it draws itself\n"
    )


def test_a_sale_for_now_takes_its_times_along(seckill: Seckill, sale_file: SaleFile) -> None:
    sale, path = sale_file("2098-01-01T20:00:00+08:00")
    times = ("joins_at = 2098-01-01T19:00:00+08:00", "draw_at = 2098-01-01T20:30:00+08:00")
    with_admission(path, 'mode = "shuffle"', *times)
    assert seckill("sale", "create", str(path), "--now").code == 0
    definition = seckill("sale", "show", sale, "--json").data["definition"]
    admission, opens_ms = definition["admission"], definition["opens_ms"]
    assert opens_ms - admission["joins_ms"] == 3_600_000
    assert admission["draw_ms"] - opens_ms == 1_800_000
