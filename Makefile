# Every target makes its own virtual environment in .venv; only python3 and make are needed.
#   make demo ARGS=--json        make test ARGS='-k lane'        make demo PYTHON=python3.12
PYTHON ?= python3
ARGS ?=
TESTS ?= tests
SECKILL_SOAK_SECONDS ?= 180

BIN := .venv/bin
# Two processes, for two cores; a file stays in one, so what its fixtures build is built once. (The
# mark xdist_group does nothing with pytest 9.2: pytest-xdist issue 1386.)
PYTEST := $(BIN)/pytest -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test check lint bench soak clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

bench: .venv/.dev ## questions with numbers
	@$(BIN)/python -m benchmarks $(ARGS)

# One soak test may run for the whole time, so the usual limit of a test is raised with it.
soak: .venv/.dev ## the random tests, for SECKILL_SOAK_SECONDS (180)
	@SECKILL_SOAK_SECONDS=$(SECKILL_SOAK_SECONDS) $(BIN)/pytest -m soak -s \
		--timeout $$(($(SECKILL_SOAK_SECONDS) + 120)) $(TESTS) $(ARGS)

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
