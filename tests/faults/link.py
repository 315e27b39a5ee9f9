"""A TCP link to one server that can be slow, silent, cut or parted, switched while it is in use.

    with Link(node.port) as link:           # clients connect to link.port
        link.partition()
        ...
        link.heal()

Between a master and one replica: ``replica.ask("REPLICAOF", HOST, link.port)`` with a link to the
master's port. The replica tells the master its own port, so clients still find it there.

Where servers are told of each other (sentinels, and all that ask them), each server gets a link of
its own and announces that one's port: ``CONFIG SET replica-announce-port``. Then clients, sentinels
and replicas reach it through its link only, and ``partition`` parts a master from all of them. (A
replica's own connection to its master goes through the master's link.) SentinelGroup does so with
``links=True``, and ClusterGroup with the port that nodes announce in a cluster.

``shut_out`` parts only those who come from some address, as 127.0.0.12: a server that was told its
``bind-source-addr`` is known by it.

The link runs on a thread of its own. A switch is in force when its method returns; what the kernel
had taken by then may still arrive. What is random comes from ``seed``.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Collection, Coroutine
from enum import Flag, auto
from typing import Any, Self, TypeVar

__all__ = ["Link", "Way"]

HOST = "127.0.0.1"
CHUNK_BYTES = 1 << 16
# Chunks that wait in one direction of a connection; then its sender has to wait, too.
CHUNKS = 64
SWITCH_S = 60.0

T = TypeVar("T")


class Way(Flag):
    """A direction: THERE is to the server, BACK is from it."""

    THERE = auto()
    BACK = auto()
    BOTH = THERE | BACK


NEITHER = Way(0)


class Link:
    """Listens on ``port`` of 127.0.0.1 and forwards to ``target_port``, which may change.

    Switches add up until ``heal``.
    """

    def __init__(self, target_port: int, *, seed: int = 0) -> None:
        self.target_port = target_port
        self.port = 0
        self._state = _State(seed)
        self._shut_state = _State(seed)
        self._shut: frozenset[str] = frozenset()
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._switch(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._switch(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        # A link that is broken must fail its test, not look like one more broken connection.
        for failure in self._failures:
            raise failure

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self._connections)

    @property
    def lossy(self) -> int:
        """How many of them have lost something to ``drop``: bytes, or the news of an end."""
        return sum(connection.lossy for connection in list(self._connections))

    @property
    def halved(self) -> int:
        """How many chunks ``halve`` has cut so far."""
        return self._state.halved

    def heal(self) -> None:
        """Everything passes again, at once. What a partition has held back arrives; a connection
        that has lost something is cut, because what follows would not fit what came before."""
        self._switch(self._heal())

    def delay(self, delay_ms: int, *, jitter_ms: int = 0) -> None:
        """What comes from now on arrives ``delay_ms`` and up to ``jitter_ms`` later, in order."""
        self._switch(self._set(delay_ms=delay_ms, jitter_ms=jitter_ms))

    def drop(self, way: Way = Way.BOTH) -> None:
        """What goes this way vanishes. Connections stay, also when one end closes or dies. Who
        connects is let in and hears nothing, and gets through if it still waits at ``heal``."""
        self._switch(self._set(dropped=way))

    def partition(self) -> None:
        """Nothing passes in either way until ``heal``; TCP would send it again, so nothing is lost.
        Who connects is let in, hears nothing, and gets through if it still waits at ``heal``."""
        self._switch(self._set(parted=True))

    def shut_out(self, addresses: Collection[str]) -> None:
        """Nothing passes between the server and who comes from one of these addresses, and only
        them, until ``let_back``: as in a partition, whatever else is switched and healed."""
        self._switch(self._shut_out(frozenset(addresses)))

    def let_back(self) -> None:
        """Who was shut out is served like everybody; what was held back arrives."""
        self._switch(self._shut_out(frozenset()))

    def cut(self) -> int:
        """Resets every connection, at both ends, and returns how many; new ones are welcome."""
        return self._switch(self._cut())

    def halve(self, way: Way = Way.THERE) -> None:
        """Of the next chunk that goes this way only a part arrives, then its connection is cut.
        Everything else passes."""
        self._switch(self._set(halving=way))

    def _switch(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(SWITCH_S)

    async def _listen(self) -> None:
        # Not asyncio's own server: that trips over who comes in just while it is closed.
        self._listener = socket.create_server((HOST, 0))
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._loop.add_reader(self._listener, self._let_in)

    async def _close(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        # Who was just let in begins to be served, so that it can be reset.
        await asyncio.sleep(0)
        await self._cut()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _set(self, **switches: Any) -> None:
        self._state.set(**switches)

    async def _heal(self) -> None:
        lossy = [connection for connection in self._connections if connection.lossy]
        for connection in lossy:
            connection.reset()
        # In the same step, or another connection might lose something meanwhile.
        self._state.set(delay_ms=0, jitter_ms=0, dropped=NEITHER, halving=NEITHER, parted=False)
        for connection in lossy:
            await connection.ended.wait()

    async def _shut_out(self, addresses: frozenset[str]) -> None:
        before, self._shut = self._shut, addresses
        held, self._shut_state = self._shut_state, _State(0)
        self._shut_state.set(parted=True)
        for connection in self._connections:
            if connection.peer in before | addresses:
                connection._state = self._state_of(connection.peer)
        # Only now, or what was held back might wait on.
        held.set(parted=False)

    def _state_of(self, peer: str) -> _State:
        return self._shut_state if peer in self._shut else self._state

    async def _cut(self) -> int:
        connections = list(self._connections)
        for connection in connections:
            connection.reset()
        for connection in connections:
            await connection.ended.wait()
        return len(connections)

    def _let_in(self) -> None:
        try:
            client, address = self._listener.accept()
        except OSError:
            return  # It has gone again.
        client.setblocking(False)
        task = self._loop.create_task(self._serve(client, address[0]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: socket.socket, peer: str) -> None:
        connection = _Connection(self._state_of(peer), client, peer)
        self._connections.add(connection)
        try:
            # Cancelled is what a connection is when it is reset.
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await connection.run(self.target_port)
        except Exception as error:  # noqa: BLE001 - raised when the link is closed
            self._failures.append(error)
        finally:
            self._connections.discard(connection)


class _State:
    """What becomes of the chunks of all connections of a link."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.delay_ms = 0
        self.jitter_ms = 0
        self.dropped = NEITHER
        self.halving = NEITHER
        self.halved = 0
        self.parted = False
        # Set while chunks go on, and while a new connection may be made.
        self.passing = asyncio.Event()
        self.welcome = asyncio.Event()
        self.set()

    def set(self, **switches: Any) -> None:
        for name, value in switches.items():
            setattr(self, name, value)
        for event, on in (
            (self.passing, not self.parted),
            (self.welcome, not self.parted and not self.dropped),
        ):
            if on:
                event.set()
            else:
                event.clear()

    def delay_s(self) -> float:
        return (self.delay_ms + self.random.uniform(0, self.jitter_ms)) / 1000


class _Connection:
    """A client's connection and its counterpart to the server. ``peer`` is the address it comes
    from; ``lossy`` says that something of it has vanished, ``ended`` that both sockets are closed.
    """

    def __init__(self, state: _State, client: socket.socket, peer: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._state = state
        self._client = client
        self.peer = peer
        self._writers: list[asyncio.StreamWriter] = []
        self.lossy = False
        self.ended = asyncio.Event()

    def reset(self) -> None:
        """Closes both ends at once, as if the machine between them had gone."""
        for writer in self._writers:
            _reset(writer)
        self._task.cancel()

    async def run(self, target_port: int) -> None:
        try:
            from_client, to_client = await asyncio.open_connection(sock=self._client)
            self._writers.append(to_client)
            await self._state.welcome.wait()
            try:
                from_server, to_server = await asyncio.open_connection(HOST, target_port)
            except OSError:
                _reset(to_client)
                return
            self._writers.append(to_server)
            await asyncio.gather(
                self._pump(Way.THERE, from_client, to_server),
                self._pump(Way.BACK, from_server, to_client),
            )
        finally:
            await self._close()

    async def _close(self) -> None:
        try:
            for writer in self._writers:
                writer.close()
            for writer in self._writers:
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        finally:
            # It has no writer yet if it was reset in its first moment.
            self._client.close()
            self.ended.set()

    async def _pump(
        self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        chunks: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(CHUNKS)
        filling = asyncio.ensure_future(self._fill(reader, chunks))
        try:
            while await self._forward(way, *await chunks.get(), writer):
                pass
        except OSError:
            pass  # The other pump reads that this end is gone, and tells the one that we read from.
        finally:
            filling.cancel()

    async def _fill(
        self, reader: asyncio.StreamReader, chunks: asyncio.Queue[tuple[float, bytes | None]]
    ) -> None:
        """Each chunk with the time it is due; at last an empty one, or None for a reset."""
        data: bytes | None = b"more"
        while data:
            try:
                data = await reader.read(CHUNK_BYTES)
            except OSError:
                data = None
            due_s = self._task.get_loop().time() + self._state.delay_s()
            await chunks.put((due_s, data))

    async def _forward(
        self, way: Way, due_s: float, data: bytes | None, writer: asyncio.StreamWriter
    ) -> bool:
        """Sends one chunk on; False after the last one."""
        state = self._state
        await asyncio.sleep(max(0.0, due_s - self._task.get_loop().time()))
        await state.passing.wait()
        if way in state.dropped:
            # After an end this waits for more in vain; whoever heals or closes the link resets us.
            self.lossy = True
            return True
        if data is None:
            _reset(writer)
        elif not data:
            writer.write_eof()
        elif way in state.halving and len(data) > 1:
            await self._halve(way, data, writer)
        else:
            writer.write(data)
            await writer.drain()
            return True
        return False

    async def _halve(self, way: Way, data: bytes, writer: asyncio.StreamWriter) -> None:
        state = self._state
        state.halving &= ~way
        state.halved += 1
        writer.write(data[: state.random.randrange(1, len(data))])
        await writer.drain()
        self.reset()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes a socket with RST instead of FIN; what it still had to send is thrown away."""
    with contextlib.suppress(OSError):
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
