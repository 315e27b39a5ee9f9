"""The guides to the ledger are true: docs/handoff.md, docs/recovery.md and the README's part.

They are read as tests/unit/test_docs.py reads the others, with two things more. A comment like
``<!-- scene: wiped -->`` brings about what the text after it is about (scenes.py). And the drill,
the last part of docs/recovery.md, is typed line by line into a shell, where each command is a
process of its own.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from seckill.embedded import EmbeddedServer
from seckill.ledger.drift import KINDS, DriftKind
from seckill.ledger.tables import METADATA
from tests.databases import free_port
from tests.ledger.scenes import SCENES, Stage
from tests.unit.test_docs import (
    REDIS_URL,
    ROOT,
    Block,
    Reader,
    assert_printed,
    blocks_of,
    commands_of,
    set_window,
    table,
    text_of,
)

DRILL = "## The drill"
# Run as processes of their own: they change this one's log and signals, or are not ours.
PROCESSES = (
    "seckill ledger run",
    "seckill export",
    "python ",
    "redis-cli ",
    "sqlite3 ",
    "zcat ",
    "head ",
)


class Shell:
    """Somebody at a terminal: one shell, and what each command prints."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self._bash = subprocess.Popen(
            ["bash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environ,
            encoding="utf-8",
            start_new_session=True,
        )

    def run(self, command: str) -> tuple[int, str]:
        """The exit code and everything that was printed."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{command}\necho; echo :done: $?\n")
        self._bash.stdin.flush()
        printed = ""
        for line in self._bash.stdout:
            if line.startswith(":done: "):
                return int(line.split()[1]), printed
            printed += line
        raise AssertionError(f"the shell ended over: {command}\n{printed}")

    def close(self) -> None:
        """Ends it, and what it has started."""
        try:
            self._bash.communicate("kill $(jobs -p) 2>/dev/null; wait\n", timeout=60)
        except subprocess.TimeoutExpired:
            self._bash.kill()
            raise


def is_printed(expected: str, printed: str) -> bool:
    try:
        assert_printed(expected, printed, "")
    except pytest.fail.Exception:
        return False
    return True


@contextmanager
def shell(folder: Path, **more: str) -> Iterator[Shell]:
    """A shell in which ``seckill`` and ``python`` are those of this test."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, words in (("seckill", "-m seckill.cli"), ("python", "")):
        file = programs / name
        file.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
        file.chmod(0o755)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("SECKILL_")}
    path = f"{programs}{os.pathsep}{plain['PATH']}"
    opened = Shell(folder, plain | {"PATH": path, "COLUMNS": "120"} | more)
    try:
        yield opened
    finally:
        opened.close()


class LedgerReader(Reader):
    """Reads a guide in which there are scenes. ``stage`` is where they play."""

    def __init__(self, guide: str, stage: Stage, runner: asyncio.Runner) -> None:
        super().__init__(guide, stage.engine, runner)
        self.stage = stage
        self.names["postgresql://seckill_owner@10.0.0.6/mall"] = stage.ledger_url
        self.lines = {block.line: block for block in blocks_of(guide)}

    def read(self) -> None:
        text = text_of(self.guide).partition(DRILL)[0]
        scenes = {
            text.count("\n", 0, found.start()) + 1: found[1]
            for found in re.finditer(r"<!-- scene: ([\w-]+) -->", text)
        }
        printed, end = "", text.count("\n") + 1
        for line in sorted({*scenes, *self.lines}):
            if line >= end:
                break
            if line in scenes:
                self.runner.run(SCENES[scenes[line]](self.stage))
                self.namespace["engine"] = self.stage.engine
                continue
            block = self.lines[line]
            at = f"docs/{self.guide}.md:{line}"
            match block.language:
                case "python":
                    printed = self.run_python(block.text, at)
                case "text":
                    assert_printed(block.text, printed, at)
                case "console":
                    self.run_console(block, at)
                case "sql" if block.text.startswith("SELECT"):
                    printed = self.run_sql(block.text)
                case "" | "sql" | "toml" | "ini":
                    pass  # Diagrams, and what other tests check.
                case _:
                    pytest.fail(f"{at}: nobody knows how to check {block.language!r}")

    def run_sql(self, query: str) -> str:
        with closing(sqlite3.connect("ledger.db")) as db:
            rows = db.execute(query).fetchall()
        return "".join(f"{' | '.join(map(str, row))}\n" for row in rows)

    def run_console(self, block: Block, at: str) -> None:
        for command, expected in commands_of(block.text):
            where = f"{at}: $ {command}"
            if not command.startswith(PROCESSES):
                self.run_command(command, expected, where)
                continue
            with shell(Path.cwd(), **self.environ()) as terminal:
                command = command.replace('-u "$SECKILL_REDIS"', f"-s {self.stage.socket}")
                _, printed = terminal.run(self.as_here(command))
            assert_printed(expected, self.as_written(printed), where)

    def run_command(self, command: str, expected: str, at: str) -> None:
        if not command.startswith("seckill "):
            super().run_command(command, expected, at)
            return
        code, printed = self.run_seckill(command)
        assert_printed(expected, self.as_written(printed), at)
        if expected.startswith("seckill: "):
            assert code != 0, f"{at}: exit code {code}"

    def environ(self) -> dict[str, str]:
        return {"SECKILL_REDIS": self.names[REDIS_URL], "SECKILL_LEDGER": self.stage.ledger_url}


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["handoff", "recovery"])
def test_guide_is_true(guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("redis-cli", "sqlite3"):
        if f"$ {program} " in text_of(guide) and shutil.which(program) is None:
            pytest.skip(f"there is no {program} here")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", "examples")
    set_window(Path("examples", "evening-sale.toml"), opens_in_s=-180)
    monkeypatch.setenv("SECKILL_LEDGER", "sqlite:///ledger.db")
    with EmbeddedServer(tmp_path / "data") as server, asyncio.Runner() as runner:
        monkeypatch.setenv("SECKILL_REDIS", server.url)
        stage = Stage(server.url, "sqlite:///ledger.db")
        runner.run(stage.begin())
        reader = LedgerReader(guide, stage, runner)
        try:
            reader.read()
        finally:
            reader.leave()
            runner.run(stage.engine.aclose())


@pytest.mark.slow
def test_the_drill(tmp_path: Path) -> None:
    """From top to bottom, in one shell."""
    if shutil.which("bash") is None or shutil.which("curl") is None:
        pytest.skip("there is no bash or no curl here")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    begins = text_of("recovery").partition(DRILL)[0].count("\n")
    port = free_port()
    blocks = [block for block in blocks_of("recovery") if block.line > begins]
    assert any("flushall" in block.text for block in blocks)
    with shell(tmp_path, SECKILL_SERVER__PORT=str(port)) as terminal:
        for block in blocks:
            if block.language != "console":
                continue
            for command, expected in commands_of(block.text):
                at = f"docs/recovery.md:{block.line}: $ {command}"
                command = command.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
                _, printed = terminal.run(command)
                for _ in range(20):
                    if not command.startswith("sleep ") or is_printed(expected, printed):
                        break
                    _, printed = terminal.run(command)  # On a machine that is busy.
                assert_printed(expected, printed, at)


def test_every_kind_of_drift() -> None:
    """What the table of docs/handoff.md says is what `seckill reconcile` says."""
    rows = table("handoff", "drift", "wrong", "--fix", "meaning", "what to do")
    assert [row[0] for row in rows] == [str(kind) for kind in DriftKind]
    for kind, (_, side, mends, meaning, remedy) in zip(DriftKind, rows, strict=True):
        about = KINDS[kind]
        expected = [str(about.side), "yes" if about.fixable else "no", about.meaning]
        assert [side, mends, meaning] == expected
        assert remedy == about.remedy.replace("{sale}", "SALE")


def test_every_drift_has_its_chapter() -> None:
    """Each kind is in one group of docs/recovery.md; `--fix` stands beside those that it mends."""
    kinds: list[str] = []
    for names, _, remedy in table("recovery", "kinds", "what happened", "do"):
        kinds += names.split(", ")
        for name in names.split(", "):
            assert DriftKind(name).fixable == ("--fix" in remedy)
    assert sorted(kinds) == sorted(DriftKind)


def test_every_column() -> None:
    """Of the ledger's tables, each is told of, and no other."""
    told = table("handoff", "table", "column")
    assert [(row[0], row[1]) for row in told] == [
        (sql_table.name, column.name)
        for sql_table in METADATA.tables.values()
        for column in sql_table.columns
    ]
