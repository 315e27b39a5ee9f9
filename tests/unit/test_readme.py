"""The README's example is run as it is printed, and prints what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    fenced = re.findall(
        r"^```(\w*)\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return [text for found, text in fenced if found == language]


def test_example_runs_as_printed(tmp_path: Path) -> None:
    [example] = blocks("python")
    assert len(example.strip().splitlines()) <= 20
    expected = next(block for block in blocks("") if block.startswith("CREATED"))

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-c", example],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run() == expected
    # "Run the script twice and the second run finds the first one's order."
    assert run().startswith("EXISTS then EXISTS True\nALREADY ")
