"""The whole buyer's evening as locust users: see locustfile.py beside this package, and
docs/load-testing.md."""
