"""A process that a test kills leaves nothing open, whatever the process had started itself."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable

import pytest
import uvloop

from tests.children import child

# Its own child holds its output for a while after it is gone.
_PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
print("started", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.filterwarnings("error::ResourceWarning")
def test_nothing_is_left_open(make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    said: list[str] = []

    async def kill_it() -> None:
        async with child(
            *(sys.executable, "-c", _PARENT), stdout=asyncio.subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"started\n"
            process.send_signal(signal.SIGKILL)
            while process.returncode is None:  # noqa: ASYNC110 - `wait` may wait for the pipes, too
                await asyncio.sleep(0.01)
        said.append(repr(process.stdout.at_eof()))

    hook, sys.unraisablehook = sys.unraisablehook, lambda broken: said.append(repr(broken))
    try:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(kill_it())
        gc.collect()
    finally:
        sys.unraisablehook = hook
    assert said == ["True"]
