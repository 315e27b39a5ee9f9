"""Questions with numbers: ``python -m benchmarks [name …]`` from the checkout, or ``make bench``.

Each module's header states its question, its canonical workload and its command. Accepted orders
are the only ones counted; comparisons run interleaved in one run and give a ratio with its range.
"""
