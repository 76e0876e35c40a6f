# Every target makes its own environment (.venv) and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

export TOKENIZERS_PARALLELISM = false

.PHONY: demo transplant test test-fast lint format bench families family reference clean

# One thread: on models this small several only wait for each other.
demo: $(STAMP)  ## merge, rank and evaluate the built-in family; prints the ranking, writes a report
	OMP_NUM_THREADS=1 $(BIN)/surgeon run recipes/demo.yaml

transplant: $(STAMP)  ## effective, redundant and control neurons into the Instruct endpoint
	OMP_NUM_THREADS=1 $(BIN)/surgeon run recipes/transplant.yaml

test: $(STAMP)  ## every test
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: $(STAMP)  ## the tests that take seconds
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

lint: $(STAMP)  ## format check, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## speed and memory against the targets, as ratios within one run
	$(BIN)/python -m benchmarks

reference: $(STAMP)  ## write docs/reference.md from the settings
	$(BIN)/python docs/reference.py

families: $(STAMP)  ## decode every family of transformers here and by generate; writes docs/families.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.families

family: $(STAMP)  ## train the built-in family anew (an hour on 2 cores) into runs/family
	$(BIN)/python -m benchmarks.family.train --out runs/family

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet torch
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf runs .pytest_cache .ruff_cache
