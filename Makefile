# Everything that a person or CI does here. `make demo` and `make test` need Python 3.11 and set up all the rest.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
UV_VERSION := 0.13.8
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench chaos audit lock clean

help: ## What you can do here
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

setup: $(READY) ## Create .venv with everything in it

$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "sidstream needs Python 3.11 or newer: install it, or name it with make PYTHON=/path/to/python"; exit 1; }
	@echo "Setting up .venv (about a minute the first time) …"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet -r requirements/dev.txt
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY) ## The whole story on a real Apache Kafka, in a few minutes
	@$(BIN)/sidstream demo

test: $(READY) ## All tests, on a real Apache Kafka
	@$(BIN)/python -m pytest

lint: $(READY) ## Style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(READY) ## Benchmarks, as tables and as JSON under .sidstream/benchmarks
	@$(BIN)/python -m benchmarks

chaos: $(READY) ## Long runs of faults: hundreds of kills, floods (SIDSTREAM_CHAOS_SEEDS=1,2,3)
	@$(BIN)/python -m pytest -m chaos --timeout 1800

audit: $(READY) ## Known vulnerabilities in the pinned requirements, where a database of them can be asked
	@.ci/audit

lock: $(READY) ## Pin the requirements anew
	@$(BIN)/uv pip compile --quiet pyproject.toml --extra dev --generate-hashes --python-version 3.11 -o requirements/dev.txt
	@$(BIN)/uv pip compile --quiet pyproject.toml --extra fit --extra model --extra monitor --constraint requirements/dev.txt \
		--generate-hashes --python-version 3.11 -o requirements/image.txt

clean: ## Remove what runs and builds have left, but not .venv
	@rm -rf .sidstream build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
