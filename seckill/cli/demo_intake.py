"""The demo's intake process: what ``seckill serve`` runs, but it ends when the demo does.

Takes a Redis URL, prints its own address once it takes requests, and ends in good order when stdin
does, so that not even a SIGKILL of the demo leaves it behind.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from seckill.engine import Engine
from seckill.server import run

__all__ = ["main"]


def main() -> None:
    """Serves until stdin ends."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    def ready(address: str) -> None:
        sys.stdout.write(address + "\n")
        sys.stdout.flush()
        # Not before: the handler that makes SIGTERM an orderly end is in place now.
        threading.Thread(target=watch, daemon=True).start()

    run(Engine(sys.argv[1]), "127.0.0.1", 0, on_ready=ready)


if __name__ == "__main__":
    main()
