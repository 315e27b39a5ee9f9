"""From measured costs to machines: ``seckill plan``. Pure arithmetic, which shows itself.

Nothing here is a promise. Each line multiplies a figure (plan_figures.py) with what was asked.
``LOADED`` is how far a core or a Redis is loaded at the peak, because latency climbs steeply near
the capacity (``python -m benchmarks open-loop``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil, exp, floor, lgamma, log
from typing import Final

import msgspec

from seckill.errors import InvalidInput
from seckill.plan_figures import BUILT_IN, Figure

__all__ = ["Asked", "Line", "Plan", "make_plan"]

LOADED: Final = 0.6
# A fork for a rewrite of the AOF, and fragmentation.
MEMORY_SPARE: Final = 1.5
# The AOF grows to twice its size before it is rewritten, and the new one lies beside it.
AOF_SPARE: Final = 3
# Ethernet, IP, TCP and TLS around a small message.
WIRE: Final = 1.25
# The longest that a buyer in a queue is told to wait before asking again.
ASK_S: Final = 30
ORDERS_PER_S_MAX: Final = 100_000_000
BUYERS_MAX: Final = 10_000_000_000
SALES_MAX: Final = 100_000
HOLD_MINUTES_MAX: Final = 7 * 24 * 60
REPLICAS_MAX: Final = 10
# Fewer masters can't agree on who takes the place of one that has died.
CLUSTER_MIN: Final = 3
CROWDED: Final = 0.9
# How often a cluster may put more sales on one server than is said.
BAD_LUCK: Final = 0.1


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be carried: so many orders a second at the peak, all sales together, of so many
    buyers with one order each at most. ``replicas`` is the N of ``replicas:N``."""

    orders_per_second: int
    buyers: int
    sales: int = 1
    hold_minutes: int = 15
    queue: bool = False
    replicas: int = 0


class Line(msgspec.Struct, frozen=True):
    """One step: what is reckoned, how, and what comes out."""

    what: str
    how: str
    result: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed. ``redis_nodes`` are those that decide, ``redis_servers`` they and their
    replicas, and memory and AOF are of all of these. ``problems`` say what no number of machines
    mends; ``figures`` are those that were used."""

    asked: Asked
    workers: int
    redis_nodes: int
    redis_servers: int
    ledger_consumers: int
    cores: int
    intake_memory_bytes: int
    redis_memory_bytes: int
    network_bits_per_s: int
    aof_bytes: int
    aof_bytes_per_s: int
    ledger_bytes: int
    loaded: float
    lines: tuple[Line, ...]
    problems: tuple[str, ...]
    figures: dict[str, Figure]

    @property
    def fits(self) -> bool:
        """Whether it can be built."""
        return not self.problems


def make_plan(asked: Asked, table: Mapping[str, Figure] = BUILT_IN) -> Plan:
    """What this takes. Raises InvalidInput for what nobody can ask."""
    _check(asked)
    return _Planner(asked, table).plan()


def _check(asked: Asked) -> None:
    for option, value, most in (
        ("--orders-per-second", asked.orders_per_second, ORDERS_PER_S_MAX),
        ("--buyers", asked.buyers, BUYERS_MAX),
        ("--sales", asked.sales, SALES_MAX),
        ("--hold-minutes", asked.hold_minutes, HOLD_MINUTES_MAX),
        ("--replicas", asked.replicas, REPLICAS_MAX),
    ):
        least = 0 if option == "--replicas" else 1
        if not least <= value <= most:
            raise InvalidInput(option, f"{value:,} is out of range", f"give {least} to {most:,}")


class _Planner:
    """One plan in the making; it notes each step."""

    def __init__(self, asked: Asked, table: Mapping[str, Figure]) -> None:
        self.asked = asked
        self.table = table
        self.used: dict[str, Figure] = {}
        self.lines: list[Line] = []

    def plan(self) -> Plan:
        """All of it, in the order in which it is shown."""
        asked = self.asked
        workers = self._workers()
        nodes = self._nodes()
        consumers = self._consumers()
        servers = self._servers(nodes)
        cores = self._cores(workers, servers, consumers)
        problems = tuple(self._problems())
        memory = self._redis_memory(servers)
        return Plan(
            asked=asked,
            workers=workers,
            redis_nodes=nodes,
            redis_servers=servers,
            ledger_consumers=consumers,
            cores=cores,
            intake_memory_bytes=self._intake_memory(workers),
            redis_memory_bytes=memory,
            network_bits_per_s=self._network(),
            aof_bytes_per_s=self._aof_rate(),
            aof_bytes=self._aof_disk(),
            ledger_bytes=self._times("disk for the ledger", asked.buyers, "orders", "ledger_bytes"),
            loaded=LOADED,
            lines=tuple(self.lines),
            problems=problems,
            figures=self.used,
        )

    # -- processes ----------------------------------------------------------------------------

    def _workers(self) -> int:
        rate = self.asked.orders_per_second
        # A buyer's first request brings a user token that no worker has seen.
        busy = self._busy("intake, everybody's first request", rate, "a second", "intake_first")
        if self.asked.queue:
            # They join first, and order with a token that is known.
            busy += self._busy("intake, orders of those called", rate, "a second", "intake_order")
            asks = ceil(self.asked.buyers / ASK_S)
            buyers = f"{self.asked.buyers:,} buyers ÷ {ASK_S} s"
            self._note("questions for a place", buyers, f"{asks:,} a second")
            busy += self._busy("intake, their answers", asks, "a second", "intake_place")
        busy += self._payments()
        workers = _up(busy / LOADED)
        self._note("workers", f"{busy:.2f} cores ÷ {LOADED:g} loaded", _count(workers, "worker"))
        return workers

    def _payments(self) -> float:
        """Cores that payments take: one call to begin and one to confirm, spread over the hold."""
        asked = self.asked
        hold_s = asked.hold_minutes * 60
        held = min(asked.buyers, asked.orders_per_second * hold_s)
        how = f"least of {asked.buyers:,} and {asked.orders_per_second:,} × {hold_s:,} s"
        self._note("held at once", how, f"{held:,} orders")
        calls = ceil(2 * held / hold_s)
        self._note("calls of payments", f"2 × {held:,} ÷ {hold_s:,} s", f"{calls:,} a second")
        # They go aiohttp's whole way, which no order does.
        return self._busy("intake, payments", calls, "a second", "intake_payment")

    def _nodes(self) -> int:
        rate = self.asked.orders_per_second
        busy = self._busy("Redis", rate, "orders/s", "redis_order")
        most = self._figure("redis_orders")
        part = rate / (most.value * LOADED)
        how = f"{rate:,} orders/s ÷ ({most.value:,.0f} × {LOADED:g})"
        if self.asked.queue:
            busy += self._busy("Redis, joins", rate, "joins/s", "redis_join")
            joins = self._figure("redis_joins")
            part += rate / (joins.value * LOADED)
            how += f" + {rate:,} joins/s ÷ ({joins.value:,.0f} × {LOADED:g})"
        # By its CPU time, if that ends before the rate that was seen.
        if busy / LOADED > part:
            part, how = busy / LOADED, f"{busy:.2f} cores ÷ {LOADED:g} loaded"
        self._note("Redis, of one server", how, f"{part:.2f}")
        return self._nodes_for(part)

    def _nodes_for(self, part: float) -> int:
        """Servers for so many parts of one: a sale is on one of them as a whole."""
        sales = self.asked.sales
        on_one = min(sales, max(1, _down(sales / part)))
        # One sale that is too much for a server is too much for any number of them.
        nodes = max(_up(part), -(-sales // on_one))
        how = f"{_count(sales, 'sale')} of {part / sales:.2f} each, {on_one:,} on a server"
        self._note("Redis servers", how, _count(nodes, "server"))
        if nodes > 1:
            self._cluster(part / sales, nodes)
        return nodes

    def _cluster(self, each: float, nodes: int) -> None:
        """What of it comes together where nobody places the sales: a slot goes by a sale's name."""
        sales, masters = self.asked.sales, max(CLUSTER_MIN, nodes)
        most = _most_on_one(sales, masters)
        load = each * most * LOADED
        how = f"{masters:,} masters, at most {most:,} of {sales:,} sales on one, 9 times in 10"
        mend = ": move slots" if load > CROWDED else ""
        self._note("as a cluster", how, f"one {load:.0%} loaded{mend}")

    def _servers(self, nodes: int) -> int:
        """They and their replicas, each of which does all that its master does but decide."""
        replicas = self.asked.replicas
        if not replicas:
            return nodes
        servers = nodes * (1 + replicas)
        how = f"{_count(nodes, 'server')} × (1 + {_count(replicas, 'replica')})"
        self._note("Redis, with replicas", how, _count(servers, "server"))
        return servers

    def _consumers(self) -> int:
        rate = self.asked.orders_per_second
        each = self._figure("ledger_orders")
        consumers = _up(rate / (each.value * LOADED))
        how = f"{rate:,} orders/s ÷ ({each.value:,.0f} × {LOADED:g})"
        self._note("ledger, in step", how, _count(consumers, "consumer"))
        return consumers

    def _cores(self, workers: int, servers: int, consumers: int) -> int:
        # A rewrite of the AOF is a process of its own beside its server.
        cores = workers + 2 * servers + consumers
        how = f"{_count(workers, 'worker')} + 2 × {servers} Redis + {_count(consumers, 'consumer')}"
        self._note("cores", how, f"{cores}, without nginx and the database")
        return cores

    def _problems(self) -> Iterator[str]:
        sales, rate = self.asked.sales, self.asked.orders_per_second
        # The same parts that a whole server has, for one sale.
        most = _down(LOADED * self._one_redis())
        each = ceil(rate / sales)
        if each > most:
            full = _down(self._one_redis())
            wanted = _count(_up(rate / most), "sale")
            yield (
                f"one sale lives on one Redis, which ends at {most:,} orders/s with headroom "
                f"({full:,} without); {each:,} a second of one sale do not fit, and more servers "
                f"do not help: {self._pace()}, or sell it as {wanted} or more"
            )

    def _pace(self) -> str:
        if self.asked.queue:
            return "call fewer a second (joins are reckoned at the same pace)"
        return "let a queue call fewer at a time"

    def _one_redis(self) -> float:
        """Orders a second that one server takes at most, joins of as many in the same second
        included where there is a queue."""
        orders_s = 1 / self._figure("redis_orders").value
        busy_s = self._figure("redis_order").value / 1e6
        if self.asked.queue:
            orders_s += 1 / self._figure("redis_joins").value
            busy_s += self._figure("redis_join").value / 1e6
        return 1 / max(orders_s, busy_s)

    # -- bytes --------------------------------------------------------------------------------

    def _redis_memory(self, servers: int) -> int:
        asked = self.asked
        paid, held = self._figure("paid_bytes"), self._figure("held_bytes")
        each = max(paid.value, held.value)
        total = asked.buyers * each
        how = f"{asked.buyers:,} orders × {each:,.0f} bytes"
        if asked.queue:
            waiting = self._figure("waiting_bytes")
            total += asked.buyers * waiting.value
            how += f" + {asked.buyers:,} tickets × {waiting.value:,.0f}"
        copies, times = self._copies()
        needed = ceil(total * MEMORY_SPARE * copies)
        of_all = f" on {servers} servers together" if servers > 1 else ""
        how = f"({how}) × {MEMORY_SPARE:g}{times}"
        self._note("Redis memory", how, f"{_size(needed)}{of_all}")
        return needed

    def _intake_memory(self, workers: int) -> int:
        return self._times("intake memory", workers, "workers", "worker_bytes")

    def _network(self) -> int:
        rate = self.asked.orders_per_second
        if self.asked.queue:
            rate = 2 * rate + ceil(self.asked.buyers / ASK_S)
        sent, answered = self._figure("request_bytes"), self._figure("answer_bytes")
        each = max(sent.value, answered.value)
        bits = ceil(rate * each * 8 * WIRE)
        how = f"{rate:,} answers/s × {each:,.0f} bytes × 8 × {WIRE:g}"
        self._note("network to buyers", how, f"{_bits(bits)} each way")
        inner = self._figure("redis_in_bytes").value + self._figure("redis_out_bytes").value
        orders = self.asked.orders_per_second
        how = f"{orders:,} orders/s × {inner:,.0f} bytes × 8 × {WIRE:g}"
        self._note("network to Redis", how, _bits(ceil(orders * inner * 8 * WIRE)))
        return bits

    def _aof_rate(self) -> int:
        rate, replicas = self.asked.orders_per_second, self.asked.replicas
        each = self._figure("aof_held_bytes").value
        how = f"{rate:,} orders/s × {each:,.0f} bytes"
        if replicas:
            # What goes to them is what is written to the file.
            bits = ceil(rate * each * replicas * 8 * WIRE)
            self._note("network to replicas", f"{how} × {replicas} × 8 × {WIRE:g}", _bits(bits))
        synced = "once a second" if replicas else "at once"
        self._note("AOF at the peak", how, f"{_size(ceil(rate * each))}/s, synced {synced}")
        return ceil(rate * each)

    def _aof_disk(self) -> int:
        each = self._figure("aof_paid_bytes").value
        copies, times = self._copies()
        total = ceil(self.asked.buyers * each * AOF_SPARE * copies)
        how = f"{self.asked.buyers:,} orders × {_each(each)} × {AOF_SPARE}{times}"
        self._note("disk for the AOF", how, _size(total))
        return total

    def _copies(self) -> tuple[int, str]:
        """How many servers have each order, and how that is written behind a product."""
        copies = 1 + self.asked.replicas
        return copies, f" × {copies} copies" if copies > 1 else ""

    # -- steps --------------------------------------------------------------------------------

    def _figure(self, name: str) -> Figure:
        figure = self.used[name] = self.table[name]
        return figure

    def _busy(self, what: str, rate: int, unit: str, name: str) -> float:
        """Cores that so many a second keep busy."""
        figure = self._figure(name)
        busy = rate * figure.value / 1e6
        self._note(what, f"{rate:,} {unit} × {figure.value:,.3g} µs", f"{busy:.2f} cores")
        return busy

    def _times(self, what: str, count: int, noun: str, name: str) -> int:
        figure = self._figure(name)
        total = ceil(count * figure.value)
        self._note(what, f"{count:,} {noun} × {_each(figure.value)}", _size(total))
        return total

    def _note(self, what: str, how: str, result: str) -> None:
        self.lines.append(Line(what, how, result))


# Sixty percent of 50,000 are 30,000 and not a little more, whatever binary fractions make of it.
_CRUMB: Final = 1e-6


def _up(number: float) -> int:
    return ceil(number - _CRUMB)


def _down(number: float) -> int:
    return floor(number + _CRUMB)


def _most_on_one(sales: int, nodes: int) -> int:
    """The most sales that one of so many nodes gets, but for BAD_LUCK: which slot a sale is in is
    as good as chance. The chances of all nodes are added up, so it errs on the safe side."""
    beyond, each, others = 0.0, log(1 / nodes), log(1 - 1 / nodes)
    for count in range(sales, 0, -1):
        ways = lgamma(sales + 1) - lgamma(count + 1) - lgamma(sales - count + 1)
        beyond += nodes * exp(ways + count * each + (sales - count) * others)
        if beyond > BAD_LUCK:
            return count
    return 1


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _each(value: float) -> str:
    return _size(ceil(value)) if value >= 1e6 else f"{value:,.0f} bytes"


def _size(number: int) -> str:
    """Bytes in the unit that reads best: ``1.0 GB``."""
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= scale:
            return f"{number / scale:,.1f} {unit}"
    return f"{number} bytes"


def _bits(number: int) -> str:
    for unit, scale in (("Gbit/s", 10**9), ("Mbit/s", 10**6)):
        if number >= scale:
            return f"{number / scale:,.1f} {unit}"
    return f"{number / 1e3:,.1f} kbit/s"
