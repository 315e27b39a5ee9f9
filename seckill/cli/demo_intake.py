"""The demo's intake process: what ``seckill serve`` runs, but it ends when the demo does.

Takes the URLs of Redis and of the ledger and, as the first line of stdin, what proves who a buyer
and the mall are; prints its own address once it takes requests, and ends in good order when stdin
does, so that not even a SIGKILL of the demo leaves it behind.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading

import msgspec
from pydantic import SecretStr

from seckill.cli.demo_messages import Proofs
from seckill.engine import Engine
from seckill.server import run
from seckill.server.settings import ApiKey, Ledger, Settings, Users

__all__ = ["main"]


def main() -> None:
    """Serves until stdin ends."""

    proofs = msgspec.json.decode(sys.stdin.buffer.readline(), type=Proofs)
    digest = hashlib.sha256(proofs.key.encode()).hexdigest()
    settings = Settings(
        users=Users(secrets=(SecretStr(proofs.secret),)),
        keys=(ApiKey(name="mall", hash=f"sha256:{digest}", scopes=("backend",)),),
        ledger=Ledger(url=sys.argv[2]),
    )

    def watch() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    def ready(address: str) -> None:
        sys.stdout.write(address + "\n")
        sys.stdout.flush()
        # Not before: the handler that makes SIGTERM an orderly end is in place now.
        threading.Thread(target=watch, daemon=True).start()

    run(Engine(sys.argv[1]), "127.0.0.1", 0, settings=settings, on_ready=ready)


if __name__ == "__main__":
    main()
