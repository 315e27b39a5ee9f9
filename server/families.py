"""Every metric there is: its name, its meaning, its labels, and how the gauges of several workers
become one. docs/observability.md says how to read them.
"""

from __future__ import annotations

from typing import Final

from .samples import Family

__all__ = [
    "ANSWERS",
    "ANSWER_SECONDS",
    "BATCH_ORDERS",
    "CPU",
    "DEAD_LETTERS",
    "ETA_ERROR",
    "FAILURES",
    "FAMILIES",
    "GROUP_AGE",
    "GROUP_UNREAD",
    "HOT_ORDERS",
    "HOT_PLACES",
    "IN_FLIGHT",
    "JOINS",
    "LANE_DEPTH",
    "LANE_FILL",
    "LOOP_LAG",
    "MEMORY",
    "ORDERS",
    "PLACES",
    "QUEUE_CALLED",
    "QUEUE_LAPSED",
    "QUEUE_LIVE",
    "QUEUE_WAITING",
    "READY",
    "SALE_ORDERS",
    "SALE_PHASE",
    "SALE_UNITS",
    "SCRIPT_SECONDS",
    "SOCKETS",
    "SOCKET_ENDS",
    "SOCKET_FRAMES",
    "SOCKET_VERBS",
    "WORKERS",
    "WORKER_ENDS",
    "WORKER_STARTS",
]

ANSWERS: Final = Family("seckill_answers", "counter", "Requests answered.", ("verb", "code"))
ANSWER_SECONDS: Final = Family(
    "seckill_answer_seconds",
    "histogram",
    "From a request's head being read to its answer being ready to send.",
    ("verb",),
)
ORDERS: Final = Family(
    "seckill_orders", "counter", "Orders asked for, alone or in a batch, by answer.", ("code",)
)
HOT_ORDERS: Final = Family(
    "seckill_hot_orders", "counter", "Order requests that were answered by the hot route."
)
JOINS: Final = Family(
    "seckill_joins", "counter", "Tickets of queues asked for, by answer.", ("code",)
)
PLACES: Final = Family(
    "seckill_place_queries", "counter", "Places in queues asked for, by answer.", ("code",)
)
HOT_PLACES: Final = Family(
    "seckill_hot_place_queries",
    "counter",
    "Places in queues that were answered by the hot route.",
)
ETA_ERROR: Final = Family(
    "seckill_queue_eta_error_seconds",
    "histogram",
    "When buyers were called, minus when joining had told them they would be; of some of them.",
)
FAILURES: Final = Family(
    "seckill_failures",
    "counter",
    "Requests, and orders of batches, answered 5xx; every code is there from the start.",
    ("code",),
)
BATCH_ORDERS: Final = Family(
    "seckill_batch_orders", "histogram", "Orders that reached Redis in one script call."
)
SCRIPT_SECONDS: Final = Family(
    "seckill_script_seconds",
    "histogram",
    "From sending a batch to its answer: the socket, the script, the wait for Redis and its disk.",
)
LANE_DEPTH: Final = Family(
    "seckill_lane_depth",
    "gauge",
    "Orders and joins that wait to be sent to Redis.",
    workers="livesum",
)
LANE_FILL: Final = Family(
    "seckill_lane_fill_ratio",
    "gauge",
    "How full the fullest lane is; at 1 what comes is answered 503 overloaded.",
    workers="livemax",
)
IN_FLIGHT: Final = Family(
    "seckill_in_flight", "gauge", "Requests that wait for their answer.", workers="livesum"
)
SOCKETS: Final = Family(
    "seckill_sockets", "gauge", "Buyers' WebSockets that are open.", workers="livesum"
)
SOCKET_VERBS: Final = Family(
    "seckill_socket_verbs",
    "counter",
    "Messages of buyers' WebSockets that were answered.",
    ("op", "code"),
)
SOCKET_FRAMES: Final = Family(
    "seckill_socket_feed_frames", "counter", "Frames of the stock feed that were sent."
)
SOCKET_ENDS: Final = Family(
    "seckill_socket_ends", "counter", "Buyers' WebSockets that ended, by reason.", ("reason",)
)
READY: Final = Family(
    "seckill_ready", "gauge", "1 if every worker would answer /readyz with 200.", workers="livemin"
)
WORKERS: Final = Family(
    "seckill_workers", "gauge", "Processes that take requests.", workers="livesum"
)
WORKER_STARTS: Final = Family("seckill_worker_starts", "counter", "Workers there ever were.")
WORKER_ENDS: Final = Family(
    "seckill_worker_ends", "counter", "Workers that ended in good order, with all answers given."
)
LOOP_LAG: Final = Family(
    "seckill_loop_lag_seconds",
    "histogram",
    "How late a worker woke up, asked once a second: it has more to do than it can.",
)
CPU: Final = Family("seckill_cpu_seconds", "counter", "Processor time of all workers.")
MEMORY: Final = Family(
    "seckill_resident_bytes", "gauge", "Memory of all workers.", workers="livesum"
)
SALE_UNITS: Final = Family(
    "seckill_sale_units", "gauge", "Units of a sale, over all its SKUs.", ("sale", "state")
)
SALE_ORDERS: Final = Family("seckill_sale_orders", "counter", "Orders ever accepted.", ("sale",))
SALE_PHASE: Final = Family(
    "seckill_sale_phase", "gauge", "1 for the phase a sale is in.", ("sale", "phase")
)
QUEUE_WAITING: Final = Family(
    "seckill_queue_waiting", "gauge", "Tickets that wait to be called.", ("sale",)
)
QUEUE_CALLED: Final = Family(
    "seckill_queue_called", "counter", "Tickets that were called.", ("sale",)
)
QUEUE_LAPSED: Final = Family(
    "seckill_queue_lapsed", "counter", "Called tickets whose token lapsed unused.", ("sale",)
)
QUEUE_LIVE: Final = Family(
    "seckill_queue_live_tokens", "gauge", "Tokens that are good and not used yet.", ("sale",)
)
GROUP_UNREAD: Final = Family(
    "seckill_group_unread_events",
    "gauge",
    "Events that no consumer of the group has taken yet.",
    ("sale", "group"),
)
GROUP_AGE: Final = Family(
    "seckill_group_age_seconds",
    "gauge",
    "How long ago the oldest event happened that the group has not acknowledged; 0 for none.",
    ("sale", "group"),
)
DEAD_LETTERS: Final = Family(
    "seckill_dead_letters",
    "gauge",
    "Events of the group that were given up, or wait behind one that was.",
    ("sale", "group"),
)

FAMILIES: Final = (
    *(ANSWERS, ANSWER_SECONDS, ORDERS, HOT_ORDERS, FAILURES),
    *(JOINS, PLACES, HOT_PLACES, ETA_ERROR),
    *(BATCH_ORDERS, SCRIPT_SECONDS, LANE_DEPTH, LANE_FILL),
    *(SOCKETS, SOCKET_VERBS, SOCKET_FRAMES, SOCKET_ENDS),
    *(IN_FLIGHT, READY, WORKERS, WORKER_STARTS, WORKER_ENDS, LOOP_LAG, CPU, MEMORY),
    *(SALE_UNITS, SALE_ORDERS, SALE_PHASE),
    *(QUEUE_WAITING, QUEUE_CALLED, QUEUE_LAPSED, QUEUE_LIVE),
    *(GROUP_UNREAD, GROUP_AGE, DEAD_LETTERS),
)
