"""The deliveries of one sale, by the one process that holds its lease."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from seckill.consumer.journal import CONSUMER, Entry, Journal, LeaseLost
from seckill.consumer.line import Answer, Job, Line, Office
from seckill.dead import DeadLetters, Letter
from seckill.keys import stream_key
from seckill.sale import Sale
from seckill.stream import Event, decode_event

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["READ_AHEAD", "READ_COUNT", "Delivery"]

READ_AHEAD: Final = 5_000
"""Events of one sale in memory. Those of up to ``READ_COUNT`` more entries may come on top."""
READ_COUNT: Final = 20
CLAIM_COUNT: Final = 500
BLOCK_MS: Final = 5_000
PATIENCE_S: Final = 5.0
LAST_TRY_S: Final = 0.05
_DAMAGED: Final = Answer(False, "it is damaged, or of a newer version", gone=True)

_log = logging.getLogger("seckill.consumer")


class Delivery:
    """Reads one sale's events and delivers them, from ``run`` until ``stop``."""

    def __init__(
        self,
        office: Office,
        sale: Sale,
        origin_ms: int,
        journal: Journal,
        client: Redis,
        reader: Redis,
    ) -> None:
        self._office = office
        self._name = f"{office.group}, sale {sale.id}"
        self._sale = sale
        self._origin_ms = origin_ms
        self._journal = journal
        self._client: Any = client
        self._reader: Any = reader
        self._dead = DeadLetters(client, sale.id, office.group)
        self._lines: dict[str, Line] = {}
        self._couriers: set[asyncio.Task[None]] = set()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopping = asyncio.Event()
        self._room = asyncio.Event()
        self._quiet = asyncio.Event()
        self._marks: dict[bytes, int] = {}
        self._said_full = False
        self.undone = 0
        """Events in memory that are neither delivered nor letters."""

    def stop(self) -> None:
        """Begins the end: attempts under way are finished, no other one begins."""
        self._stopping.set()
        for line in self._lines.values():
            if line.task is not None and not line.sending:
                line.task.cancel()

    async def run(self, *, once: bool) -> None:
        """Delivers until ``stop``, or with ``once`` until nothing is left; gives the lease back.

        Raises LeaseLost, and redis-py's and our own errors when the server goes away. Nothing is
        lost then: what was not ticked off is read again.
        """
        async with self._office.starts:
            await self._load()
        keeper = asyncio.create_task(self._journal.keep())
        reader = asyncio.create_task(self._read(once=once))
        stopping = asyncio.create_task(self._stopping.wait())
        tasks: tuple[asyncio.Task[Any], ...] = (keeper, reader, stopping)
        futures: set[asyncio.Future[Any]] = {*tasks, self._broken}
        try:
            ended, _ = await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            for future in ended:
                future.result()
            reader.cancel()
            self.stop()
            if self._couriers:
                await asyncio.wait(self._couriers)
            keeper.cancel()
            await asyncio.wait({keeper})
            await self._journal.write(release=True)
            self._office.tally.left += self.undone
        finally:
            for task in (*tasks, *self._couriers):
                task.cancel()
            await asyncio.gather(*tasks, *self._couriers, return_exceptions=True)
            if not self._broken.cancel() and not self._broken.cancelled():
                self._broken.exception()  # Looked at, so that asyncio does not call it forgotten.

    # -- reading ------------------------------------------------------------------------------

    async def _load(self) -> None:
        await self._claim()
        self._marks = await self._journal.marks()
        for name, seqs in (await self._dead.index()).items():
            self._lines[name] = Line(name, seqs)
            self._journal.letters += len(seqs)
        self._journal.on_again = self._resend
        await self._journal.write()  # Which asks for the wishes that are there already.

    async def _claim(self) -> None:
        """Takes over what others of this group had taken: workers with ``Engine.events``, before
        they were replaced by this."""
        group, key = self._office.group, stream_key(self._sale.id)
        summary: Any = await self._client.xpending(key, group)
        if all(one["name"] == CONSUMER.encode() for one in summary["consumers"] or ()):
            return
        cursor: Any = "0-0"
        while cursor:
            words = (key, group, CONSUMER, 0, cursor, "COUNT", CLAIM_COUNT, "JUSTID")
            cursor, *_ = await self._client.execute_command("XAUTOCLAIM", *words)
            cursor = None if cursor == b"0-0" else cursor

    async def _read(self, *, once: bool) -> None:
        """What an earlier one left unacknowledged first, in order, and then what is new."""
        cursor = b"0"
        while True:
            while self.undone >= READ_AHEAD:
                self._room.clear()
                await self._room.wait()
            # Not redis-py's own timeout; see stream.py.
            async with asyncio.timeout(PATIENCE_S):
                found = await self._journal.take(
                    self._reader, self._office.replicas, cursor, READ_COUNT
                )
            for entry_id, fields in found.entries:
                self._take(entry_id, fields or ())
            if cursor != b">":
                cursor = found.entries[-1][0] if found.entries else b">"
            elif found.entries and found.entries[-1][0] != found.last_id:
                continue
            elif not once:
                await self._wait(found.last_id)
            elif not found.entries:
                if not self._couriers:
                    return
                self._quiet.clear()
                await self._quiet.wait()

    async def _wait(self, last_id: bytes) -> None:
        """Until there may be an entry behind this one. It is only looked at, not taken: by then the
        lease may be another's."""
        words = ("COUNT", 1, "BLOCK", BLOCK_MS, "STREAMS", stream_key(self._sale.id), last_id)
        async with asyncio.timeout(BLOCK_MS / 1000 + PATIENCE_S):
            await self._reader.execute_command("XREAD", *words)

    def _take(self, entry_id: bytes, fields: Iterable[bytes]) -> None:
        """Puts the events of one entry into their lines, but for those dealt with before."""
        at_ms, _, last = entry_id.decode().partition("-")
        # An event that is not even text is looked at when its turn comes, like any damaged one.
        parts = [part.decode(errors="replace") for part in fields]
        size = len(parts) // 2
        entry = Entry(entry_id, size, self._marks.pop(entry_id, 0))
        if not size:
            _log.error("%s: entry %s was deleted unread", self._name, entry_id.decode())
            self._journal.touch(entry)
        for index in range(size):
            seq = int(last) - size + 1 + index
            if entry.done >> index & 1:
                continue
            line = self._line(parts[2 * index])
            line.queue.append(Job(seq, int(at_ms), parts[2 * index + 1], entry, index))
            self.undone += 1
            self._stir(line)

    def _resend(self, again: set[str]) -> None:
        """Somebody wants these subjects' letters to be sent, or has dropped some of them."""
        for name in again:
            line = self._line(name)
            if not line.letters:
                self._journal.heard(name)
                self._leave(line)
            elif not line.retrying and self._journal.has_written(name):
                line.retrying = True
                self._stir(line)

    # -- delivering ---------------------------------------------------------------------------

    def _line(self, name: str) -> Line:
        return self._lines.setdefault(name, Line(name))

    def _leave(self, line: Line) -> None:
        """Forgets a line in which nothing is left."""
        if line.task is None and not line.queue and not line.letters:
            self._lines.pop(line.name, None)

    def _stir(self, line: Line) -> None:
        """Gives a line a courier, unless it has one."""
        if line.task is None and not self._stopping.is_set():
            line.task = asyncio.create_task(self._carry(line))
            self._couriers.add(line.task)

    async def _carry(self, line: Line) -> None:
        try:
            while not self._stopping.is_set() and not self._broken.done():
                if line.letters and not line.retrying:
                    self._park(line)
                    return
                job = await self._next(line)
                if job is None:
                    return
                await self._deliver(line, job)
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing may be left lying
            self._break(error)
        finally:
            if line.task is not None:
                self._couriers.discard(line.task)
            line.task = None
            self._leave(line)
            if not self._couriers:
                self._quiet.set()

    async def _next(self, line: Line) -> Job | None:
        while line.letters:
            letter = await self._dead.read(line.name, line.letters[0])
            if letter is not None:
                return Job(letter.seq, letter.at_ms, letter.value, None, 0)
            self._journal.forget(line.letters.popleft(), line.name)  # It was dropped.
        if line.retrying:
            line.retrying = False
            self._journal.heard(line.name)
        return line.queue[0] if line.queue else None

    async def _deliver(self, line: Line, job: Job) -> None:
        """Tries until the event is delivered, or a letter, or the end has begun."""
        pace, give_up_s = self._office.pace, self._office.give_up_s
        failures, give_up_at = 0, 0.0
        while not self._stopping.is_set():
            answer = await self._attempt(line, job, new=not failures)
            if answer is None:
                return
            if answer.delivered:
                self._delivered(line, job)
                return
            failures += 1
            give_up_at = give_up_at or time.monotonic() + give_up_s
            self._office.tally.failed += 1
            level = logging.INFO if failures == 1 else logging.DEBUG
            said = "%s: event %d failed, attempt %d: %s"
            _log.log(level, said, self._name, job.seq, failures, answer.cause)
            left_s = give_up_at - time.monotonic()
            if (answer.gone or left_s <= 0) and self._bury(line, job, answer.cause, failures):
                return
            wait_s = pace.wait_s(failures, answer.retry_after_s)
            if 0 < left_s < wait_s:
                wait_s = max(left_s, LAST_TRY_S)
            if not self._stopping.is_set():
                await asyncio.sleep(wait_s)

    async def _attempt(self, line: Line, job: Job, *, new: bool) -> Answer | None:
        """The answer; None when nothing may be sent any more."""
        try:
            event = self._decode(line, job)
        except (LookupError, ValueError):
            return _DAMAGED
        turns = self._office.turns
        await turns.take(self._sale.id, new=new)
        if not self._journal.held:
            self._break(LeaseLost("Redis was away"))
        if self._broken.done() or self._stopping.is_set():
            turns.skip(new=new)
            return None
        line.sending = True
        try:
            answer = await self._office.attempt(self._sale, event)
        except BaseException:
            turns.skip(new=new)
            raise
        finally:
            line.sending = False
        subject = (self._sale.id, line.name)
        turns.give(subject, answer.cause, new=new, answered=answer.answered)
        return answer

    def _decode(self, line: Line, job: Job) -> Event:
        return decode_event(self._sale, self._origin_ms, job.at_ms, job.seq, line.name, job.value)

    def _break(self, error: Exception) -> None:
        """Ends this delivery; the consumer takes the sale up anew."""
        if not self._broken.done():
            self._broken.set_exception(error)

    def _delivered(self, line: Line, job: Job) -> None:
        self._office.tally.delivered += 1
        if job.entry is None:
            line.letters.popleft()
            self._journal.forget(job.seq, line.name)
        else:
            line.queue.popleft()
            self._journal.done(job.entry, job.index)
            self._shrink()

    # -- dead letters -------------------------------------------------------------------------

    def _park(self, line: Line) -> None:
        """Lays what came from the stream behind the letters, as far as there is room for it."""
        while line.queue and self._keep(line, line.queue[0], parked=True):
            pass

    def _bury(self, line: Line, job: Job, cause: str, attempts: int) -> bool:
        """Gives an event up; False when no more letters can be kept: it must be tried on."""
        if not self._keep(line, job, cause=cause, attempts=attempts):
            return False
        self._office.tally.dead += 1
        said = "%s: event %d is a dead letter after %d attempts: %s"
        _log.error(said, self._name, job.seq, attempts, cause)
        return True

    def _keep(
        self, line: Line, job: Job, *, parked: bool = False, cause: str = "", attempts: int = 0
    ) -> bool:
        now_ms = int(time.time() * 1000)
        text = (job.seq, job.at_ms, line.name, job.value, parked, cause, attempts, now_ms)
        if job.entry is None:
            line.retrying = False
            self._journal.bury(Letter(*text), None)
            self._journal.heard(line.name)
            return True
        if not self._journal.has_room:
            if not self._said_full:
                _log.error(
                    "%s: no room for another dead letter; events are tried on instead", self._name
                )
            self._said_full = True
            return False
        self._journal.bury(Letter(*text), job.entry, job.index)
        line.queue.popleft()
        line.letters.append(job.seq)
        self._shrink()
        return True

    def _shrink(self) -> None:
        self.undone -= 1
        if self.undone < READ_AHEAD:
            self._room.set()
