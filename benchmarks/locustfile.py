"""Does a whole evening of buyers see any promise broken?

Each user of locust is one buyer: looks at the page, learns the server's clock, waits for the
opening, joins the queue where the sale has one and holds the place, buys at the second, clicks
twice, pays or gives up or abandons, and asks for the result until it is final. The load is closed
loop: a buyer who waits for an answer asks nothing else, so these times say how the evening felt to
so many buyers and not how fast the intake is (docs/load-testing.md).

canonical workload   `python -m benchmarks locust`: a sale that opens while the buyers look at it,
                     of which each of its two SKUs has a unit for one buyer of five

    locust -f benchmarks/locustfile.py --host http://127.0.0.1:8000 --sale evening-2026-11-28

with EVENING_USER_SECRET and EVENING_API_KEY in the environment. Ends with 1 if a promise was
broken, or if a request got no answer however often it was repeated.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
# While it reads this file, locust has this folder in front of all modules, where http.py and
# queue.py would be taken for those of Python. Its place is the checkout's, then.
if Path(sys.path[0]).resolve() == _HERE:
    sys.path[0] = str(_HERE.parent)

from locust import argument_parser, events, runners  # noqa: E402

from benchmarks.evening.options import add_options  # noqa: E402
from benchmarks.evening.run import Run  # noqa: E402
from benchmarks.evening.shapes import Rush  # noqa: E402
from benchmarks.evening.users import PhoneBuyer  # noqa: E402

__all__ = ["PhoneBuyer", "Rush"]

# A process whose thousands of buyers all press at once is busy for a while. A master would take it
# for lost after 3 s.
runners.HEARTBEAT_LIVENESS = 30
# A worker asks for this once for each option in every message that says how many buyers are to be
# there, and each time all options are made anew: half a second in which no buyer has a turn.
argument_parser.default_args_dict = cache(argument_parser.default_args_dict)


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    add_options(parser)


@events.init.add_listener
def _init(environment: Any, **_: Any) -> None:
    environment.evening = Run(environment)
    environment.evening.listen()
