# Needs make, Python 3.11 or newer and Node 20 or newer; everything else is installed by it.
.POSIX:
.SUFFIXES:
.NOTPARALLEL:
.PHONY: help demo test lint types unit serial engines system clean
.PHONY: bench bench-agreement bench-decisions bench-routing bench-unequal

# The newest Python that really runs: a version manager's shims exist for versions that it has not.
# Choose another by `make PYTHON=python3.12 ...`.
PYTHON = $$(for name in python3.14 python3.13 python3.12 python3.11 python3; do \
	if "$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	>/dev/null 2>&1; then echo "$$name"; break; fi; done)

VENV = .venv
RUN = $(VENV)/bin/python
READY = $(VENV)/ready
# Tests that take the whole machine, or a browser: one after the other.
ALONE = real or netns or browser

help:
	@echo 'make demo     a router, two nodes with a real model each, an emulated slow one; 36 answers'
	@echo 'make test     everything that CI runs: lint, types, contracts, all tests'
	@echo 'make lint     ruff, import contracts'
	@echo 'make types    mypy --strict'
	@echo 'make unit     tests without real engines, network namespaces and browser'
	@echo 'make bench    what the router costs'
	@echo 'make bench-agreement  whether the simulator tells what the real router does (20 minutes)'
	@echo 'make bench-decisions  what a decision of the scheduler costs'
	@echo 'make bench-routing   what routing is worth: Herd beside eleven policies, simulated'
	@echo 'make bench-unequal  Herd beside least connections on three real devices (Linux, root)'
	@echo 'make engines  install the real engines that the demo and the tests use'
	@echo 'make clean    remove what the above have made in this folder'

demo: $(READY)
	@$(RUN) -m demo

test: $(READY) system engines lint types unit serial

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports

types: $(READY)
	$(VENV)/bin/mypy

unit: $(READY)
	$(RUN) -m pytest -q -n 2 -m 'not ($(ALONE))'

serial: $(READY)
	$(RUN) -m pytest -q -m '$(ALONE)'

bench: $(READY)
	$(RUN) -m benchmarks.overhead

bench-agreement: $(READY)
	$(RUN) -m benchmarks.agreement

bench-decisions: $(READY)
	$(RUN) -m benchmarks.decisions

bench-routing: $(READY)
	$(RUN) -m benchmarks.routing

bench-unequal: $(READY)
	$(RUN) -m benchmarks.unequal

engines: $(READY)
	@$(RUN) -m devtools.engines llama-server || echo 'What needs llama-server will be skipped.'

system: $(READY)
	@$(RUN) -m devtools.system

clean:
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	rm -rf build dist
	find src tests demo devtools benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || :

# A half-made environment has no stamp and is made anew; one that works is only brought up to date.
$(READY): pyproject.toml
	@if ! { test -e $(READY) && $(RUN) -c ''; } 2>/dev/null; then \
		python="$(PYTHON)"; \
		if [ -z "$$python" ]; then \
			echo 'No Python 3.11 or newer with venv was found.' >&2; \
			echo 'On Debian and Ubuntu: apt-get install python3-venv' >&2; \
			exit 1; \
		fi; \
		echo "Making $(VENV) with $$("$$python" --version) ..."; \
		rm -rf $(VENV) && "$$python" -m venv $(VENV); \
	fi
	@echo 'Installing what is needed into $(VENV) ...'
	@$(RUN) -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable . --group dev
	@touch $@
