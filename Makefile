PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup serve test check bench clean

setup: $(STAMP)  ## virtual environment with everything the service and its tests need

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

serve: $(STAMP)  ## the service on river's Phishing stream, playing it, until Ctrl-C
	@exec $(BIN)/online serve --play phishing

test: $(STAMP)  ## everything but the long benchmarks
	$(BIN)/python -m pytest -q tests

check: $(STAMP)  ## format, lint, types, import contracts
	$(BIN)/ruff format --check online paramserver replay evaluation tests
	$(BIN)/ruff check online paramserver replay evaluation tests
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## the measured tables of the README, and 20,000 simulated seeds (long)
	$(BIN)/python tests/simulation/run.py --seeds 20000
	$(BIN)/online bench all

clean:
	rm -rf $(VENV) build dist *.egg-info
