"""One thread with an event loop and an engine, and how other threads call that engine.

    caller threads ──inbox──▶ loop thread: one async engine ──▶ lanes ──▶ Redis
          ▲                        │
          └──── value or error ────┘

A call is put into the inbox and the loop is woken once for all that wait there; that takes a third
less time than asyncio.run_coroutine_threadsafe. uvloop made no difference that could be measured.

- **A fork** copies only the thread that forks. The child must leave the loop of its parent alone
  and begins with a thread of its own, see ``_forked``.
- **The end of the process** does not wait for daemon threads, so an atexit function ends each loop
  in good order. It starts no thread and uses no executor, which is forbidden by then.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from seckill.engine import Engine
from seckill.errors import EngineClosed

if TYPE_CHECKING:
    from seckill.embedded import EmbeddedServer

__all__ = ["LoopThread"]

_log = logging.getLogger("seckill.sync")
_T = TypeVar("_T")

# At the end, readers are cancelled again after this long: one may only just have begun.
_AGAIN_S: Final = 0.1


class LoopThread:
    """Begins at once. ``make`` makes the engine, given a URL; ``server`` is an embedded server that
    lives as long as the thread.

    ``ready`` gives the server's URL once the engine has started, or tells why it did not.
    ``serving`` says that calls are taken; ``gone`` that the thread has ended, or was left behind in
    the parent process.
    """

    def __init__(
        self, url: str, make: Callable[[str], Engine], server: EmbeddedServer | None
    ) -> None:
        self.engine = make(url)
        self.ready: Future[str] = Future()
        self.serving = False
        self.gone = False
        self._make = make
        self._server = server
        self._loop = asyncio.new_event_loop()
        # Re-entrant, because the garbage collector may close an iterator between any two lines, and
        # so also in a thread that holds this lock.
        self._lock = threading.RLock()
        self._inbox: deque[_Call[Any]] = deque()
        self._woken = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._readers: set[_Reader[Any]] = set()
        self._ending = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="seckill", daemon=True)
        _threads.add(self)
        self._thread.start()

    # -- in the callers' threads ------------------------------------------------------------------

    def wait_until_ready(self) -> str:
        """The server's URL. Raises what Engine.start raises."""
        self._refuse_inside()
        return self.ready.result()

    def call(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Runs it over there, waits, and returns or raises what it does.

        Raises EngineClosed when nothing is taken any more, RuntimeError in the loop's own thread.
        A caller that is interrupted leaves it running.
        """
        try:
            self._refuse_inside()
        except RuntimeError:
            coroutine.close()
            raise
        call = _Call(coroutine)
        self._send(call)
        return call.result()

    def iterate(self, source: AsyncIterator[_T], *, at_once: int) -> Iterator[_T]:
        """What the source gives, fetched ``at_once`` at a time."""
        reader = _Reader(source)
        try:
            while items := self.call(reader.take(at_once, self._readers)):
                yield from items
        finally:
            # Nobody waits for it: the garbage collector may be here, in any thread.
            self._send(_Call(reader.close()))

    def stop(self) -> None:
        """Answers what waits and ends the thread. Can be repeated."""
        self._refuse_inside()
        with self._lock:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()

    def _refuse_inside(self) -> None:
        if threading.get_ident() == self._thread.ident:
            raise RuntimeError(
                "seckill.sync was called in its own thread, which would wait for itself for ever"
            )

    def _send(self, call: _Call[Any]) -> None:
        with self._lock:
            if not self.serving:
                call.refuse()
                return
            self._inbox.append(call)
            if not self._woken:
                # Whoever comes before the loop has looked needs no wake of its own. In this order,
                # because Ctrl-C may come in between: a wake too many is harmless.
                self._loop.call_soon_threadsafe(self._collect)
                self._woken = True

    # -- in the loop's thread ---------------------------------------------------------------------

    def _collect(self) -> None:
        with self._lock:
            calls, self._inbox = self._inbox, deque()
            self._woken = False
        for call in calls:
            task = self._loop.create_task(call.run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _run(self) -> None:
        try:
            if self._server is not None:
                self.engine = self._make(self._server.start())
            self._loop.run_until_complete(self._live())
        except BaseException as error:  # noqa: BLE001 - whoever starts the engine gets it
            self._close()
            if self.ready.done():
                _log.error("the engine did not end in good order", exc_info=error)
            else:
                self.ready.set_exception(error)
        else:
            self._close()

    async def _live(self) -> None:
        await self.engine.start()
        self.serving = True
        self.ready.set_result(self.engine.url)
        try:
            await self._ending.wait()
        finally:
            with self._lock:
                self.serving = False
            self._collect()
            while self._tasks:
                # Only readers may wait for ever; the others end by the timeout of their call.
                for reader in self._readers:
                    reader.cancel()
                await asyncio.wait(self._tasks, timeout=_AGAIN_S)
            await self.engine.aclose()

    def _close(self) -> None:
        try:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            with self._lock:
                self._loop.close()
            if self._server is not None:
                self._server.stop()
            self.gone = True
            _threads.discard(self)

    # -- in a forked child ------------------------------------------------------------------------

    def leave(self) -> None:
        """The thread stayed with the parent. Whatever it used is left as it is: the frames of a
        thread that is not there any more are never cleared, so nothing is closed by accident."""
        self.serving, self.gone = False, True
        self._lock = threading.RLock()  # Somebody else may have held it.


class _Call(Generic[_T]):
    """A call on its way. Its caller waits for the lock ``answered``, which costs less than a
    Future."""

    __slots__ = ("answered", "coroutine", "error", "value")

    value: _T

    def __init__(self, coroutine: Coroutine[Any, Any, _T]) -> None:
        self.coroutine = coroutine
        self.error: BaseException | None = None
        self.answered = threading.Lock()
        self.answered.acquire()

    async def run(self) -> None:
        try:
            self.value = await self.coroutine
        except asyncio.CancelledError:
            self.error = EngineClosed("the engine was stopped before the call was answered")
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread
            self.error = error
        finally:
            self.answered.release()

    def refuse(self) -> None:
        self.coroutine.close()
        self.error = EngineClosed("the engine was stopped, or is another process's")
        self.answered.release()

    def result(self) -> _T:
        self.answered.acquire()
        error, self.error = self.error, None
        if error is None:
            return self.value
        try:
            raise error
        finally:
            del error  # It knows this frame, and would keep everything in it alive.


class _Reader(Generic[_T]):
    """Takes from an asynchronous iterator step by step. A step may wait for ever."""

    def __init__(self, source: AsyncIterator[_T]) -> None:
        self._source = source
        self._step: asyncio.Task[Any] | None = None

    async def take(self, at_once: int, readers: set[_Reader[Any]]) -> list[_T]:
        self._step = asyncio.current_task()
        readers.add(self)
        items: list[_T] = []
        try:
            async for item in self._source:
                items.append(item)
                if len(items) == at_once:
                    break
        finally:
            readers.discard(self)
            self._step = None
        return items

    def cancel(self) -> None:
        if self._step is not None:
            self._step.cancel()

    async def close(self) -> None:
        # A step is still under way if its caller was interrupted.
        if self._step is not None:
            self._step.cancel()
            await asyncio.wait({self._step})
        if isinstance(self._source, AsyncGenerator):
            await self._source.aclose()


_threads: Final[set[LoopThread]] = set()


def _forked() -> None:
    for thread in _threads:
        thread.leave()
    _threads.clear()


def _exit() -> None:
    for thread in list(_threads):
        thread.stop()


os.register_at_fork(after_in_child=_forked)
atexit.register(_exit)
