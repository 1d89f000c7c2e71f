# make sample PROMPT="a big rocket in neon style on a dark blue background"
# make test
# Every target sets up .venv first, with the versions in constraints.txt. `make help` lists them.

PYTHON ?= python3
ARGS ?=
PROMPT ?= a red apple in flat style on a light blue background
# The prompt reaches the script as it was typed: neither make nor the shell reads $, quotes or `.
override export PROMPT := $(value PROMPT)

VENV := .venv
RUN := $(VENV)/bin/python
# What pip says is the progress of the setup: names, sizes and, in a terminal, bars.
INSTALL = $(RUN) -m pip install --disable-pip-version-check -c constraints.txt
# One worker a core, each with one thread; the tests of a file stay together and share models.
SPREAD := -n logical --maxprocesses 8 --dist loadfile
READY := $(VENV)/.ready
READY_TEST := $(VENV)/.ready-test
READY_DEV := $(VENV)/.ready-dev

.PHONY: help sample test test-slow test-gpu check audit sbom book site parity bench data clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

sample: $(READY)  ## paint PROMPT="..." with the embedded model; further flags in ARGS="..."
	@$(RUN) sample/text_to_image.py $(ARGS) -- "$$PROMPT"

test: $(READY_TEST)  ## the tests that need neither a GPU nor patience
	$(RUN) -m pytest -q $(SPREAD) -m "not slow and not gpu"

test-slow: $(READY_TEST)  ## the tests that take longer
	$(RUN) -m pytest -q $(SPREAD) -m "slow and not gpu"

test-gpu: $(READY_TEST)  ## the tests that need a CUDA device
	$(RUN) -m pytest -q -m gpu

check: $(READY_DEV)  ## lint, format and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check --quiet .
	$(RUN) -m pyright --pythonpath $(RUN)

book: $(READY_TEST)  ## measure, draw and write the pages of docs/book; ARGS="--only 7" for one
	$(RUN) -m docs.book build $(ARGS)

site: $(READY)  ## site/: all documents and a reference of the public names, in English and Chinese
	@$(INSTALL) --quiet -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict
	@echo "made: site/index.html"

audit: $(READY)  ## known holes in the pinned packages
	@$(INSTALL) --quiet -e ".[audit]"
	$(RUN) -m pip_audit --requirement constraints.txt --no-deps --disable-pip

sbom: $(READY)  ## build/sbom.json: what is installed, as CycloneDX
	@$(INSTALL) --quiet -e ".[audit]"
	@mkdir -p build
	$(RUN) -m cyclonedx_py environment $(RUN) --output-format JSON --output-file build/sbom.json

parity: $(READY_TEST)  ## sdcore beside diffusers and transformers at full size (minutes, gigabytes)
	$(RUN) -m bench.parity $(ARGS)

bench: $(READY_TEST)  ## how well the prompt controls the picture
	$(RUN) -m bench.prompt_control $(ARGS)

data: $(READY_TEST)  ## fetch the pinned drawings (npm) and build the training set
	$(RUN) -m train.emoji.data.drawings $(ARGS)

clean:  ## remove .venv and caches; runs/ and outputs/ stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build site *.egg-info

$(READY): pyproject.toml constraints.txt setup.py $(wildcard sdcore/kernels/*.cpp sdcore/kernels/*.h)
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "sdcore needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@echo "setting up $(VENV), once: torch is most of what is fetched; a kernel is compiled last"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) -e .
	@echo "set up: $(VENV)/bin/sdcore"
	@touch $@

$(READY_TEST): $(READY)
	@$(INSTALL) -e ".[test]"
	@touch $@

$(READY_DEV): $(READY_TEST)
	@$(INSTALL) -e ".[dev]"
	@touch $@
