# Everything that a person or CI does here. `make demo` and `make test` need Python 3.11 and set up all the rest.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
DOCS_PORT ?= 8000
# Says what is fetched, what cannot work here, and sets up .venv where it is not there yet or out of date.
FIRST_STEPS := $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "sidstream needs Python 3.11 or newer: install it, or name it with make PYTHON=/path/to/python"; exit 1; } \
	&& $(PYTHON) .ci/first_steps.py

.DEFAULT_GOAL := help
.PHONY: help demo test setup lint docs pictures bench chaos audit lock clean

demo: ## The whole story on a real Apache Kafka
	@$(FIRST_STEPS) demo
	@$(BIN)/sidstream demo

test: ## All tests, on a real Apache Kafka
	@$(FIRST_STEPS) test
	@.ci/test

setup: ## Create .venv with everything in it
	@$(FIRST_STEPS) setup

$(READY): requirements/dev.txt pyproject.toml
	@$(FIRST_STEPS) setup

lint: $(READY) ## Style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(READY) ## The documentation as a site, checked, on http://127.0.0.1:8000 (DOCS_PORT=8000)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@$(BIN)/python -m documentation.links build/site
	@echo "Read it on http://127.0.0.1:$(DOCS_PORT); Ctrl-C ends that. It is in build/site."
	@$(BIN)/python -m http.server $(DOCS_PORT) --bind 127.0.0.1 --directory build/site >/dev/null 2>&1

pictures: $(READY) ## Take the documentation's pictures anew, of two runs of the demo (needs Chromium and npx)
	@$(BIN)/python -m documentation.pictures docs/pictures
	@$(BIN)/python -m documentation.recording docs/pictures/demo.svg

bench: $(READY) ## Benchmarks, as tables and as JSON under .sidstream/benchmarks
	@$(BIN)/python -m benchmarks

chaos: $(READY) ## Long runs: hundreds of kills, floods, the quick study (SIDSTREAM_CHAOS_SEEDS=1,2,3; _GROUP_PROTOCOL=consumer)
	@$(BIN)/python -m pytest -m 'chaos or long' --timeout 1800

audit: $(READY) ## Known vulnerabilities in the pinned requirements, where a database of them can be asked
	@.ci/audit

lock: $(READY) ## Pin the requirements anew, for every platform
	@$(BIN)/uv pip compile --quiet --universal pyproject.toml --extra dev --generate-hashes --python-version 3.11 -o requirements/dev.txt
	@$(BIN)/uv pip compile --quiet --universal pyproject.toml --extra fit --extra model --extra monitor --extra gateway --extra registry --extra remote --extra otel --constraint requirements/dev.txt \
		--generate-hashes --python-version 3.11 -o requirements/image.txt
	@mkdir -p build
	@$(BIN)/uv pip compile --quiet --universal pyproject.toml --extra dev --constraint requirements/dev.txt \
		--python-version 3.11 --format pylock.toml -o build/pylock.toml
	@$(BIN)/python .ci/wheels.py build/pylock.toml

clean: ## Remove what runs and builds have left, but not .venv
	@rm -rf .sidstream build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

help: ## What you can do here
	@sed -nE 's/^([a-z]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | awk -F '|' '{ printf "  make %-8s %s\n", $$1, $$2 }'
