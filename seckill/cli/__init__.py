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
        # The imports take longer than many a command, so Ctrl-C is expected in them as well.
        from seckill.cli.app import run

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("seckill: interrupted\n")
        return 130
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in ("rich", "typer"):
            raise
        sys.stderr.write(f"seckill: {MissingExtra('cli', module)}\n")
        return 1
