# Two commands for a newcomer: `make quickstart` and `make test`. The rest is for those who change things.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup quickstart test test-slurm test-thorough check bench coverage docs freeze clean

setup: $(VENV)/.ready

# constraints.txt pins torch 2.13.0; where pip finds a CPU build of it, that is what gets installed.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("needs Python 3.11 or newer: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

quickstart: setup
	$(BIN)/var-scaling run quickstart

test: setup
	$(BIN)/pytest -n 2 --dist worksteal

# On a real Slurm that the tests start, published sizes, and what takes too long for every change.
# Each of the two workers has a cluster of its own.
test-slurm: setup
	$(BIN)/pytest -m "(slurm or slow or golden) and not thorough" -n 2 --dist worksteal --timeout 600

# What CI has no time for: the same claims at full length, or by the longer way round.
test-thorough: setup
	$(BIN)/pytest -m thorough -n 2 --dist worksteal --timeout 600

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Times beside the released way and, with BEFORE=<commit>, beside an earlier version; about 15
# minutes. Results are appended to benchmarks/results/. Nothing else may run meanwhile.
CODE = $(if $(BEFORE),build/before) .
bench: setup
ifdef BEFORE
	rm -rf build/before
	git worktree prune
	git worktree add --detach build/before $(BEFORE)
endif
	$(BIN)/python benchmarks/train.py --code $(CODE) --seconds 4
	$(BIN)/python benchmarks/tokenizing.py --code $(CODE) --seconds 3
	$(BIN)/python benchmarks/generate.py --code $(CODE) --seconds 3
	$(BIN)/python benchmarks/tokenizer_training.py --code $(CODE) --seconds 6
	$(BIN)/python benchmarks/pipeline.py --code $(CODE) --only status plan rows mirror again driver
	$(BIN)/python benchmarks/fit.py --report --code $(CODE) --rounds 1

# How often 95 % intervals contain the truth, in simulated tables of runs: prints the tables and
# writes docs/tables/coverage.json and docs/coverage.md. Below 20 minutes on one core; not in CI.
coverage: setup
	$(BIN)/python benchmarks/coverage.py

# The pages that are made from the code (commands, settings), and the numbers and figures of results
# in README and docs, from docs/tables.
docs: setup
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/results.py

freeze: setup
	( echo "# What this project was last tested with, whole; regenerate with: make freeze"; \
	  $(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' ) > constraints.txt

# Leaves runs/ alone: results are not rubbish.
clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
