# Every target makes its own virtual environment in .venv; only python3 and make are needed.
#   make demo ARGS=--json        make test ARGS='-k lane'        make demo PYTHON=python3.12
#   make bench ARGS='lane queue' make bench-compare BASE=HEAD~1
#   make chaos ARGS='--seeds 20 --topology single'
PYTHON ?= python3
ARGS ?=
BASE ?=
TESTS ?= tests
SECKILL_SOAK_SECONDS ?= 180

BIN := .venv/bin
# Three processes keep two cores busy, for a test waits a good part of its time. A file stays in one,
# so what its fixtures build is built once. (The mark xdist_group does nothing with pytest 9.2:
# pytest-xdist issue 1386.)
PYTEST := $(BIN)/pytest -n 3 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test check lint bench bench-full bench-compare locust soak chaos clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.all ## sell a real sale over real sockets and prove that nothing was lost
	@$(BIN)/seckill demo $(ARGS)

test: .venv/.dev ## every test but the soak
	@$(PYTEST) -m 'not soak' $(TESTS) $(ARGS)

check: lint ## lint, types and the fast tests, in under a minute
	@$(PYTEST) -m 'not slow and not soak' tests/unit tests/lua $(ARGS)

lint: .venv/.dev ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# Both leave a folder of their own in bench/: a table, the figures as data, pictures.
bench: .venv/.dev ## ten minutes on one server, Valkey, next to Fastify, Go...; ARGS=lane: on all servers
	@$(BIN)/python -m benchmarks --out bench $(ARGS)

bench-full: .venv/.dev ## every benchmark and reference on every server, more rounds: takes long
	@$(BIN)/python -m benchmarks --full --out bench $(ARGS)

bench-compare: .venv/.dev ## what an order costs here and at BASE=<revision>, counted; takes about 2 minutes, 5 with valgrind
	@$(BIN)/python -m benchmarks.compare $(BASE) $(ARGS)

locust: .venv/.dev ## an evening of buyers, who notice a broken promise
	@$(BIN)/python -m benchmarks locust $(ARGS)

# One soak test may run for the whole time, so the usual limit of a test is raised with it.
soak: .venv/.dev ## the random tests, for SECKILL_SOAK_SECONDS (180)
	@SECKILL_SOAK_SECONDS=$(SECKILL_SOAK_SECONDS) $(BIN)/pytest -m soak -s \
		--timeout $$(($(SECKILL_SOAK_SECONDS) + 120)) $(TESTS) $(ARGS)

chaos: .venv/.dev ## real servers broken at seeded moments under load, and a verdict (docs/chaos.md)
	@$(BIN)/python -m tests.faults.chaos $(ARGS)

clean: ## remove .venv and everything else that was built
	@rm -rf .venv build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip -qq keeps quiet about everything but errors. The extra `dev` contains `all`.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "seckill needs Python 3.11 or newer: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing seckill[$(1)] into .venv ..." >&2
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@$(BIN)/pip install -qq --disable-pip-version-check -e '.[$(1)]'
endef

.venv/.all: pyproject.toml
	$(call install,all)
	@touch $@

.venv/.dev: pyproject.toml
	$(call install,dev)
	@touch .venv/.all $@
