# What a user and CI type. Everything lands in .venv; the program is .venv/bin/bcami.
#
#   make demo      set up everything and run the main job
#   make test      set up everything and pass the tests
#   make install   what both do first
#   make soak      long runs of what the tests do in short; hours (SOAK_SEEDS, SOAK_EXAMPLES, SOAK_SCHEDULES)
#   make check     formatting, lint, types, import directions, tidiness
#   make lock      renew requirements.lock from pyproject.toml
#   make clean     remove what the above made

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCK_FLAGS := --generate-hashes --no-header --strip-extras --all-extras \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host

.DEFAULT_GOAL := help
.PHONY: help install demo test soak check lock clean

help:
	@sed -n 's/^#   //p' Makefile

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: install
	$(BIN)/bcami demo

test: install
	$(BIN)/pytest -n 2 --dist loadfile --ignore tests/style

SOAK_SEEDS ?= 10000
SOAK_EXAMPLES ?= 20000
SOAK_SCHEDULES ?= 20000

soak: install
	BCAMI_SIMULATED_SEEDS=$(SOAK_SEEDS) BCAMI_FUZZ_EXAMPLES=$(SOAK_EXAMPLES) BCAMI_SIMULATED_SCHEDULES=$(SOAK_SCHEDULES) \
		BCAMI_KMS_HISTORIES=$(SOAK_SEEDS) BCAMI_KMS_MEMBERS=100000 \
		$(BIN)/pytest -n 2 --dist loadfile --timeout 0 tests/simulation tests/properties tests/paper/test_kms_tables.py

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -q tests/style

lock: install
	$(BIN)/python -m venv build/lock
	build/lock/bin/python -m pip install --quiet pip-tools
	build/lock/bin/pip-compile --quiet $(LOCK_FLAGS) --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .grimp_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
