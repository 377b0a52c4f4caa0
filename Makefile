PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVES := $(VENV)/.serves
TESTS := $(VENV)/.tests
PYTEST := $(BIN)/python -m pytest -q
COMPUTED := tests/properties tests/simulation tests/conformance

# Else each process of each service of the tests compiles the sources again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup serve test check coverage docs bench clean

setup: $(TESTS)  ## virtual environment with everything the service and its tests need

$(SERVES): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the service into $(VENV) (a few minutes the first time)"
	@$(BIN)/pip install -q -c constraints.txt -e .
	@touch $@

$(TESTS): $(SERVES)
	@echo "installing what the tests need, torch among it, into $(VENV)"
	@$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

serve: $(SERVES)  ## the service on river's Phishing stream, playing it, until Ctrl-C
	@exec $(BIN)/online serve --play phishing

# A library's threads would wait for each other: the lanes have all cores already.
test: export OMP_NUM_THREADS := 1

test: $(TESTS)  ## everything but the long tests and benchmarks
	@exec $(BIN)/python tests/lanes.py

check: $(TESTS)  ## format, lint, types, import contracts, sizes, documents
	$(BIN)/ruff format --check benchmarks online pages paramserver replay evaluation refusals examples tests
	$(BIN)/ruff check benchmarks online pages paramserver replay evaluation refusals examples tests
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini
	$(BIN)/lint-imports
	$(PYTEST) tests/unit/project/test_limits.py tests/unit/project/test_pages.py tests/unit/project/test_docstrings.py
	@$(BIN)/zensical build --strict >$(VENV)/docs.log || { cat $(VENV)/docs.log; exit 1; }

coverage: $(TESTS)  ## branches of the core that its own tests take; fails under 90 of 100
	$(PYTEST) --cov --cov-report=term tests/unit/learning tests/unit/paramserver tests/unit/replay tests/conformance

docs: $(TESTS)  ## the documents as a site, in the folder site; those made from the code anew
	$(BIN)/python -m pages
	$(BIN)/zensical build --strict --clean

bench: $(TESTS)  ## the measured tables, and 20,000 simulated seeds (long)
	$(PYTEST) -m long tests
	EXPLORE=1 $(PYTEST) tests/unit $(COMPUTED)
	$(BIN)/python tests/simulation/run.py --seeds 20100
	$(BIN)/python -m benchmarks all

clean:
	rm -rf $(VENV) build dist *.egg-info
