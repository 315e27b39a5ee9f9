"""The servers that `python -m benchmarks http` compares, each a process of its own: our intake as
it is served in production, and two references on the same aiohttp, uvloop and Redis.

Each takes one argument, a Start as JSON, prints where it listens, and ends on SIGTERM.
"""
