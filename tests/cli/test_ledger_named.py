"""How commands find the ledger, and what they say where there is none; the report of items with
long names.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console

from seckill.cli.app import run as command_line
from seckill.cli.report import report_screen
from seckill.ledger import Ledger
from seckill.ledger.report import Report, make_report
from seckill.ledger.report_page import render
from seckill.server.load import SettingsErrors, read
from seckill.zone import CHINA, read_zone
from tests.cli.conftest import Ran
from tests.ledger.scripted import SALE, fill, settled

Run = Callable[..., Ran]
READERS = [("report", SALE), ("export", SALE), ("forget", "u9")]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that asks the ledger and nobody else, in this process."""

    def run(*args: str, **env: str) -> Ran:
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(sys, "argv", ["seckill", *args])
            for name, value in ({"COLUMNS": "100"} | env).items():
                patch.setenv(name, value)
            code = command_line()
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture
def told(tmp_path: Path) -> Report:
    """The report of the scripted sale, from a ledger in the test's folder."""

    async def main() -> Report:
        async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
            await fill(ledger, settled())
            async with ledger.engine.begin() as connection:
                await connection.exec_driver_sql("UPDATE seckill_sales SET removed_at_ms = 1")
            return await make_report(ledger, SALE)

    return asyncio.run(main())


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("by_option", [False, True])
def test_the_url_is_in_a_file(
    run: Run, told: Report, tmp_path: Path, command: tuple[str, ...], by_option: bool
) -> None:
    assert told.orders == 6
    secret = tmp_path / "ledger-url"
    secret.write_text(f"sqlite:///{tmp_path}/ledger.db\n")
    secret.chmod(0o600)
    if by_option:
        ran = run(*command, "--ledger", "file:ledger-url")
    else:
        ran = run(*command, SECKILL_LEDGER=f"file:{secret}")
    assert ran.code == 0, ran.err
    assert "chmod" not in ran.err
    secret.chmod(0o644)
    assert "everybody on this machine can read" in run(*command, "--ledger", f"file:{secret}").err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "SECKILL_LEDGER: url cannot be read: No such file or directory; name a file"),
        (b" \n", "SECKILL_LEDGER: url is empty; write the URL into it"),
        (b"\xff", "SECKILL_LEDGER: url is not UTF-8"),
        (b"x" * 70_000, "SECKILL_LEDGER: url is larger than 65536 bytes"),
    ],
)
def test_a_file_that_holds_no_url(
    run: Run, tmp_path: Path, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "url").write_bytes(content)
    ran = run("report", SALE, SECKILL_LEDGER="file:url")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"seckill: {said}")


@pytest.mark.parametrize("command", READERS)
def test_there_is_no_ledger_yet(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "mall.db").touch()
    ran = run(*command, SECKILL_LEDGER="sqlite:///mall.db")
    assert (ran.code, ran.out) == (1, "")
    assert "no ledger yet; `seckill ledger run` makes it and keeps it" in " ".join(ran.err.split())
    assert b"CREATE TABLE" not in (tmp_path / "mall.db").read_bytes()


@pytest.mark.parametrize(
    ("place", "said"), [("", "is a folder"), ("/nix/ledger.db", "is no folder that is there")]
)
def test_serve_wants_a_place_for_the_file(tmp_path: Path, place: str, said: str) -> None:
    with pytest.raises(SettingsErrors) as caught:
        read(None, {"SECKILL_LEDGER__URL": f"sqlite:///{tmp_path}{place}"})
    [error] = caught.value.errors
    assert error.where == "SECKILL_LEDGER__URL"
    assert said in error.problem


LONG = "winter-jacket-down-navy-blue-xxl-2026-12"


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_a_long_sku_stays_in_one_piece(told: Report, width: int) -> None:
    assert len(LONG) == 40
    first, second = told.skus
    long = msgspec.structs.replace(first, sku=LONG, title="冬季加厚羽绒服 藏青色 男款 XXL")
    report = msgspec.structs.replace(told, skus=[long, second])
    console = Console(width=width, highlight=False)
    with console.capture() as shown:
        console.print(report_screen(report, read_zone(CHINA), width)[-1])
    lines = shown.get().splitlines()
    assert any(LONG in line for line in lines), lines
    assert any("冬季加厚羽绒服 藏青色 男款 XXL" in line for line in lines)
    assert all(cell_len(line.rstrip()) <= width for line in lines)


TEXT = re.compile(r'<text( class="\w+")? x="([\d.]+)" y="([\d.]+)"([^>]*)>([^<]*)</text>')


@pytest.mark.parametrize("bucket_ms", [1_000, 2_000, 60_000, 300_000])
def test_no_two_labels_of_a_picture_overlap(told: Report, bucket_ms: int) -> None:
    """By the room that a digit takes, which is six tenths of its size."""
    report = msgspec.structs.replace(told, bucket_ms=bucket_ms)
    page = render(report, read_zone(CHINA)).decode()
    pictures = re.findall(r'<svg class="(\w+)" viewBox="0 0 (\d+) \d+"(.*?)</svg>', page)
    assert {kind for kind, *_ in pictures} == {"narrow", "wide"}
    for kind, width, content in pictures:
        assert int(width) <= 480 or kind == "wide"
        rows: dict[str, list[tuple[float, float]]] = {}
        for _, x, y, rest, words in TEXT.findall(content):
            if "text-anchor" not in rest:
                continue
            long = cell_len(words) * 0.6 * 13
            share = 0.5 if "middle" in rest else 1.0 if '"end"' in rest else 0.0
            rows.setdefault(y, []).append((float(x) - share * long, float(x) + (1 - share) * long))
        assert rows
        for spans in rows.values():
            spans.sort()
            assert all(a[1] + 4 <= b[0] for a, b in itertools.pairwise(spans)), spans
            assert spans[0][0] >= -1
            assert spans[-1][1] <= int(width)
