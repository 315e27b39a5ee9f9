"""What `import seckill` offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import seckill


def test_every_public_name_is_there_and_sorted() -> None:
    assert seckill.__all__ == sorted(seckill.__all__)
    for name in seckill.__all__:
        assert getattr(seckill, name).__name__ == name
    assert set(seckill.__all__) <= set(dir(seckill))
    with pytest.raises(AttributeError, match="has no attribute 'Motor'"):
        _ = seckill.Motor  # type: ignore[attr-defined]


def test_importing_engine_does_not_import_redis_or_the_intake() -> None:
    code = (
        "import sys; from seckill import Engine, Item, Sale;"
        "print([m for m in ('redis', 'aiohttp', 'typer', 'rich', 'tomllib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
