# Needs Python 3.11 or newer, git and make; everything else is installed into .venv and .venv-emulator beside this file.
# Paths are relative, so that the folder's own path may hold anything.

PYTHON ?=
PYTEST_ARGS ?=
LOCK_ARGS ?=
FAULTS_ARGS ?=
FUZZ_ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory
.PHONY: help demo test faults fuzz lint format bench schemas lock up down clean

# The root holds folders named like packages (dbt/, airflow/): it must not come before site-packages on sys.path.
export PYTHONSAFEPATH := 1
export UV_PYTHON_DOWNLOADS := never
export UV_CUSTOM_COMPILE_COMMAND := make lock

help: ## List what can be made
	@sed -n 's/^\([a-z]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

demo: .venv/.stamp-runner .venv-emulator/.stamp ## The sample pipeline on real flights, from nothing to a lineage tree
	@.venv/bin/runner demo

test: .venv/.stamp-dev .venv-emulator/.stamp ## All tests (make test PYTEST_ARGS="-k lease" for some)
	@.venv/bin/pytest -n 2 --dist loadfile $(PYTEST_ARGS)

faults: .venv/.stamp-dev .venv-emulator/.stamp ## Kill, freeze and cut off workers everywhere, and count what is lost or doubled
	@PYTHONPATH=. .venv/bin/python tests/faults/suite.py $(FAULTS_ARGS)

fuzz: .venv/.stamp-dev ## Look for inputs that crash or hang a parser, for five minutes (make fuzz FUZZ_ARGS="--seconds 60")
	@PYTHONPATH=. .venv/bin/python tests/fuzz/run.py $(FUZZ_ARGS)

lint: .venv/.stamp-dev ## Style, formatting, types, and no package registry's address in any file
	@.venv/bin/ruff check --quiet
	@.venv/bin/ruff format --check --quiet || { echo "not formatted: run make format"; exit 1; }
	@.venv/bin/mypy
	@git grep --untracked -nIE '$(registry)'; test $$? -eq 1 || { echo "no file may name a package registry's address (above)"; exit 1; }

format: .venv/.stamp-dev ## Mend style and formatting where a tool can
	@.venv/bin/ruff check --fix --quiet || true
	@.venv/bin/ruff format --quiet

bench: .venv/.stamp-dev .venv-emulator/.stamp ## All benchmarks, into benchmarks/results and docs/benchmarks.md
	@missed=0; for each in publish_iceberg lineage contract_pass many_models broker_read warm_jobs table; do \
	    PYTHONPATH=. .venv/bin/python -m benchmarks.$$each || missed=1; \
	done; exit $$missed

schemas: .venv/.stamp-runner ## Write schemas/*.json anew from the models
	@.venv/bin/python -m runner.model.schemas schemas

lock: .venv/.stamp-seed ## Compile requirements/*.txt anew (make lock LOCK_ARGS=--upgrade for newer versions)
	@$(uv_settings); set -e; \
	$(call compile,runner) pyproject.toml --extra all; \
	$(call compile,dev) pyproject.toml --extra all --group dev --constraints requirements/runner.txt; \
	$(call compile,bootstrap) requirements/bootstrap.in --constraints requirements/dev.txt; \
	$(call compile,demo) requirements/demo.in --no-deps; \
	for name in emulator airflow infra; do $(call compile,$$name) requirements/$$name.in; done

up: .venv/.stamp-runner .venv-emulator/.stamp ## Start the embedded services and leave them running
	@.venv/bin/runner up

down: ## Stop the embedded services; their data stays
	@if [ -x .venv/bin/runner ]; then .venv/bin/runner down; fi

clean: ## Stop the embedded services and remove all that was made here, their data too
	@if [ -x .venv/bin/runner ]; then .venv/bin/runner down --purge; fi
	@rm -rf .venv .venv-emulator .runner .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- environments ---------------------------------------------------------------------------------------------
# A stamp is newer than the locks it was installed from, so a second run installs nothing.

# An environment's scripts name the folder they were made for: one that came here with a copy is made anew.
ifneq ($(shell cat .venv/.stamp-seed 2>/dev/null),$(CURDIR))
.PHONY: .venv/.stamp-seed
endif

.venv/.stamp-seed: requirements/bootstrap.txt
	@$(find_python); echo "setting up .venv (once) ..."; "$$python" -m venv --clear .venv
	@.venv/bin/python -m pip install -qq --disable-pip-version-check --no-cache-dir --require-hashes -r requirements/bootstrap.txt
	@echo "$(CURDIR)" > $@

.venv/.stamp-runner: .venv/.stamp-seed requirements/runner.txt requirements/demo.txt pyproject.toml
	@$(call install,$(if $(wildcard .venv/.stamp-dev),dev,runner))
	@touch $@

.venv/.stamp-dev: .venv/.stamp-seed requirements/dev.txt requirements/demo.txt pyproject.toml
	@$(call install,dev)
	@touch .venv/.stamp-runner $@

.venv-emulator/.stamp: .venv/.stamp-seed requirements/emulator.txt
	@echo "setting up .venv-emulator (once) ..."
	@.venv/bin/python -m venv --clear --without-pip .venv-emulator
	@$(uv_settings); .venv/bin/uv pip sync --quiet --python .venv-emulator --require-hashes --compile-bytecode \
	    requirements/emulator.txt
	@touch $@

# Exactly the lock and nothing besides. --no-build-isolation: what comes as source (the demo's data, this package) is
# built by the seed's hashed build tools, or uv would fetch others. --compile-bytecode: a process that may not write
# beside its packages (or has PYTHONDONTWRITEBYTECODE) would compile dbt at each start, which doubles it.
define install
echo "installing requirements/$(1).txt into .venv ..."; $(uv_settings); \
.venv/bin/uv pip sync --quiet --python .venv --require-hashes --no-build-isolation --compile-bytecode \
    requirements/bootstrap.txt requirements/$(1).txt requirements/demo.txt && \
.venv/bin/uv pip install --quiet --python .venv --no-deps --no-build-isolation --editable .
endef

define compile
echo "compiling requirements/$(1).txt"; .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url $(LOCK_ARGS) --output-file requirements/$(1).txt
endef

# uv reads none of pip's settings: it is told the index that pip would use, and the machine's certificates. Its cache is
# the user's where one can be kept, else the project's.
define uv_settings
export UV_SYSTEM_CERTS=true; \
export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$(.venv/bin/python -m pip config list | sed -n "s/^.*[.]index-url='\(.*\)'$$/\1/p" | head -n 1)}"; \
cache="$${UV_CACHE_DIR:-$${XDG_CACHE_HOME:-$${HOME:-/dev/null}/.cache}/uv}"; \
{ mkdir -p "$$cache" && test -w "$$cache"; } 2>/dev/null || export UV_CACHE_DIR=.cache/uv
endef

# Sets $python to PYTHON where that is given, else to the first of these that is new enough.
define find_python
python=; for each in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
    if "$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then python=$$each; break; fi; \
done; \
if [ -z "$$python" ]; then \
    echo "Python 3.11 or newer is needed; $(or $(PYTHON),python3) is: $$($(or $(PYTHON),python3) --version 2>/dev/null || echo not there)." >&2; \
    echo "Install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; \
fi
endef

registry := https?://[a-z0-9.-]*(pypi|pythonhosted|npmjs|debian)[.](org|com|net)
