"""The command line. Needs the extra ``cli``; without it, ``main`` says so and nothing else."""

from __future__ import annotations

import sys

from seckill.errors import MissingExtra

__all__ = ["main"]


def main() -> int:
    """Runs the command line; the answer is the process's exit code.

    0 done, 1 refused or a violation was found, 2 bad usage or bad input, 130 interrupted.
    """
    try:
        from seckill.cli.app import run
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in ("rich", "typer"):
            raise
        sys.stderr.write(f"seckill: {MissingExtra('cli', module)}\n")
        return 1
    return run()
