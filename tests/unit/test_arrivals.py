"""The open-loop load against servers that misbehave on purpose: what they do must show."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import ClassVar

import msgspec
import pytest

from benchmarks import arrivals_client
from benchmarks.arrivals import Ask, Came, Phase, Times, moments, offer, quantile

ACCEPTED = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}"
REFUSED = b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\n{}"
BARE = b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\n{}"
END = b'"quantity":1}]}'

# What to say to the request of this number, after how many seconds: None is nothing, b"" hangs up.
Answer = Callable[[int], tuple[float, bytes | None]]


class Planted(asyncio.Protocol):
    """Answers as it was told to."""

    asked = 0
    made: ClassVar[list[asyncio.Transport]] = []

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        Planted.made.append(transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.received.endswith(END):
            return
        assert self.received.startswith(b"POST /orders HTTP/1.1\r\n")
        assert self.received.count(END) == 1, "it must wait for the answer before it asks again"
        self.received = b""
        Planted.asked += 1
        after_s, said = self.answer(Planted.asked)
        if said is None:
            return
        if after_s:
            asyncio.get_running_loop().call_later(after_s, self.say, said)
        else:
            self.say(said)

    def say(self, said: bytes) -> None:
        if said:
            self.transport.write(said)
        else:
            self.transport.close()


@contextmanager
def planted(answer: Answer) -> Iterator[str]:
    """Such a server; its address."""
    loop = asyncio.new_event_loop()
    Planted.asked = 0
    server = loop.run_until_complete(
        loop.create_server(lambda: Planted(answer), "127.0.0.1", 0, backlog=512)
    )
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/orders"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for transport in Planted.made:
            transport.abort()
        Planted.made.clear()
        # They close in the next round of the loop.
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "tokens"
    path.write_text("token-1\ntoken-2\n")
    return str(path)


def counted(came: Came) -> int:
    return came.accepted + came.refused + came.wrong + came.overdue + came.lost + came.unsent


def shown(ask: Ask, is_so: Callable[[Came], bool]) -> Came:
    """What came of the first load of some in which it is so: where it takes a schedule or a round
    that is kept to some tenths of a second, a busy machine may come between now and then."""
    for _ in range(8):
        Planted.asked = 0
        found = offer(ask).phases[0]
        if is_so(found):
            break
    return found


def test_a_stall_shows_that_a_closed_loop_hides(file: str) -> None:
    stall_s, began_s = 0.25, 0.0

    def stalls(number: int) -> tuple[float, bytes]:
        # Everybody who comes in that quarter of a second waits for its end.
        nonlocal began_s
        began_s = monotonic() if number == 1 else began_s
        into_s = monotonic() - began_s - 0.4
        return (stall_s - into_s if 0 <= into_s < stall_s else 0.0), ACCEPTED

    with planted(stalls) as url:
        phase = Phase(per_s=300, seconds=1.5)
        found = offer(Ask(url=url, file=file, phases=(phase,), connections=64)).phases[0]
        ask = Ask(url=url, file=file, phases=(Phase(0, 1.5),), connections=1)
        closed = shown(ask, lambda came: came.times.p99_ms < 200 <= came.times.max_ms)
    assert found.accepted == found.offered == 450
    # A sixth of all came during the stall; somebody at its beginning.
    assert found.times.p999_ms >= 200
    assert found.times.p99_ms >= 200
    # One request in a thousand and more: in its place many would have come, and none was sent.
    assert closed.times.p99_ms < 200 <= closed.times.max_ms


def test_a_connection_that_is_waited_for_counts_from_the_schedule(file: str) -> None:
    with planted(lambda _: (0.1, ACCEPTED)) as url:
        ask = Ask(url=url, file=file, phases=(Phase(per_s=100, seconds=0.1),), connections=1)
        found = offer(ask).phases[0]
    # Ten that come in a tenth of a second, and one connection that takes a second for them.
    assert found.accepted == 10
    assert found.times.max_ms >= 900


def test_lost_answers_are_seen(file: str) -> None:
    for said in (None, b""):  # Never answered, and hung up.

        def loses(number: int, said: bytes | None = said) -> tuple[float, bytes | None]:
            return 0.0, said if number % 10 == 0 else ACCEPTED

        with planted(loses) as url:
            phase = Phase(per_s=200, seconds=0.5)
            ask = Ask(url=url, file=file, phases=(phase,), connections=32, deadline_ms=1_000)
            found = shown(ask, lambda came: came.lost == 10)
        assert (found.offered, found.lost) == (100, 10)
        assert found.accepted + found.overdue == 90


def test_every_answer_is_of_one_kind(file: str) -> None:
    said = {1: ACCEPTED, 2: REFUSED, 3: BARE, 4: b"HTTP/1.1 409 No\r\ncontent-length: 0\r\n\r\n"}
    with planted(lambda number: (0.0, said.get(number % 5, ACCEPTED))) as url:
        phases = (Phase(per_s=200, seconds=0.25), Phase(per_s=100, seconds=0.5))
        answers = offer(Ask(url=url, file=file, phases=phases, connections=8, seed=None))
    for came in answers.phases:
        assert came.offered == counted(came) == 50
        assert (came.accepted, came.refused, came.wrong) == (20, 10, 20)
        # A refusal that doesn't say when to come back is none.
        assert came.odd == {"503": 10, "409": 10}
    assert answers.limit_per_s > 0


def test_an_answer_after_the_deadline_is_overdue(file: str) -> None:
    with planted(lambda number: (1.5 if number > 5 else 0.0, ACCEPTED)) as url:
        phase = Phase(per_s=100, seconds=0.1)
        ask = Ask(url=url, file=file, phases=(phase,), deadline_ms=1_000)
        found = shown(ask, lambda came: (came.accepted, came.overdue) == (5, 5))
    assert (found.accepted, found.overdue, found.lost) == (5, 5, 0)


@pytest.mark.parametrize("waits", [True, False])
def test_whoever_finds_no_connection(file: str, waits: bool) -> None:
    with planted(lambda _: (0.3, ACCEPTED)) as url:
        phase = Phase(per_s=100, seconds=0.2)
        ask = Ask(
            url=url, file=file, phases=(phase,), connections=2, waits=waits, deadline_ms=1_000
        )
        # Waiting, three rounds of two are answered within their second, more or less.
        wanted = range(4, 11) if waits else (2,)
        found = shown(ask, lambda came: not came.lost and came.accepted + came.overdue in wanted)
    assert found.offered == counted(found) == 20
    assert found.lost == 0
    assert found.accepted + found.overdue in wanted


def test_an_answer_in_pieces(file: str) -> None:
    def say(self: Planted, said: bytes) -> None:
        for at in range(len(said)):
            loop = asyncio.get_running_loop()
            loop.call_later(0.002 * at, self.transport.write, said[at : at + 1])

    with pytest.MonkeyPatch.context() as patch, planted(lambda _: (0.0, ACCEPTED)) as url:
        patch.setattr(Planted, "say", say)
        ask = Ask(url=url, file=file, phases=(Phase(per_s=50, seconds=0.2),), connections=4)
        found = offer(ask).phases[0]
    assert (found.offered, found.accepted) == (10, 10)


def test_a_schedule_that_was_not_kept_says_so(file: str) -> None:
    with planted(lambda _: (0.0, REFUSED)) as url:
        phase = Phase(per_s=10_000_000, seconds=0.015)
        ask = Ask(url=url, file=file, phases=(phase,), connections=4, waits=False, seed=None)
        found = offer(ask).phases[0]
    assert found.offered == counted(found) == 150_000
    # Nobody can write this much: the last was late by more than the schedule is long.
    assert found.late.p99_ms > 15


@pytest.mark.parametrize("core", [None, 0])
def test_a_load_sleeps_between_arrivals(
    file: str, monkeypatch: pytest.MonkeyPatch, core: int | None
) -> None:
    """Whether it has a core of its own or not: who spins takes from whoever it measures."""
    waits: list[float] = []
    sleep = arrivals_client.Client.sleep

    def slept(self: arrivals_client.Client, most_s: float) -> None:
        waits.append(most_s)
        sleep(self, most_s)

    monkeypatch.setattr(arrivals_client.Client, "sleep", slept)
    with planted(lambda _: (0.0, ACCEPTED)) as url:
        ask = Ask(url=url, file=file, phases=(Phase(50, 0.5),), connections=4, core=core)
        client = arrivals_client.Client(ask)
        client.run(monotonic(), list(moments(ask.phases[0], None)))
        client.drain()
        client.poll.close()
        for connection in client.connections.values():
            connection.sock.close()
    assert list(client.kind) == [arrivals_client.ACCEPTED] * 25
    # One sleep at most ends with each arrival, and one with each answer.
    assert 10 < len(waits) <= 50
    assert all(0 < most_s < 0.5 for most_s in waits)


def test_the_loads_own_lateness_can_be_told_from_the_servers(file: str) -> None:
    with planted(lambda _: (0.05, ACCEPTED)) as url:
        # All of them are due at once, and the last has its turn when the first are answered.
        phase = Phase(per_s=2_000_000, seconds=0.01)
        ask = Ask(url=url, file=file, phases=(phase,), connections=4, deadline_ms=60_000)
        came = offer(msgspec.structs.replace(ask, waits=False)).phases[0]
    assert came.offered == 20_000
    assert came.accepted > 0
    # An answer takes its time however late it was asked for.
    assert 50 <= came.punctual_times.p50_ms <= came.times.p50_ms
    assert came.punctual_times.max_ms < came.times.max_ms
    assert came.times.max_ms <= came.punctual_times.max_ms + came.late.max_ms


def test_a_client_that_finds_nobody_fails(file: str) -> None:
    ask = Ask(url="http://127.0.0.1:9/orders", file=file, phases=(Phase(1, 0.1),))
    with pytest.raises(RuntimeError, match="the load failed"):
        offer(ask)


def test_goodput_leaves_out_what_comes_first() -> None:
    none = Times(0, 0, 0, 0)
    kinds = dict.fromkeys(("accepted", "refused", "wrong", "overdue", "lost", "unsent"), 0)
    came = Came(
        **kinds,
        offered=0,
        odd={},
        times=none,
        punctual_times=none,
        refused_times=none,
        late=none,
        began_s=0,
        seconds=1,
        done=(5, 5, 10, 10, 10, 0, 0, 0, 0, 0),
    )
    assert came.goodput() == 40
    assert came.goodput(skip_s=0.2) == pytest.approx(37.5)


def test_schedules() -> None:
    assert list(moments(Phase(4, 1), None)) == [0, 0.25, 0.5, 0.75]
    drawn = list(moments(Phase(1_000, 2), 7))
    assert drawn == list(moments(Phase(1_000, 2), 7)) != list(moments(Phase(1_000, 2), 8))
    assert drawn == sorted(drawn)
    assert drawn[-1] < 2
    # Six standard deviations.
    assert abs(len(drawn) - 2_000) < 270
    # As irregular as chance: the gaps vary by as much as they are long.
    gaps = [after - before for before, after in pairwise(drawn)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert 0.8 < deviation / mean < 1.2


def test_quantiles() -> None:
    thousand = [float(number) for number in range(1, 1_001)]
    assert [quantile(thousand, at) for at in (0.5, 0.99, 0.999, 1.0)] == [500, 990, 999, 1_000]
    assert quantile([7.0], 0.5) == quantile([7.0], 0.999) == 7.0
    assert Times.of([]) == Times(0, 0, 0, 0)
