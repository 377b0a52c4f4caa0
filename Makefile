PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVES := $(VENV)/.serves
TESTS := $(VENV)/.tests

.PHONY: setup serve test check bench clean

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

# What starts services goes one after the other; what only computes goes beside it, and prints after.
test: $(TESTS)  ## everything but the long benchmarks
	@out=$$(mktemp); \
	nice -n 10 $(BIN)/python -m pytest -q tests/unit tests/properties tests/simulation >$$out 2>&1 & \
	beside=$$!; trap 'kill $$beside 2>/dev/null; rm -f '$$out EXIT; \
	$(BIN)/python -m pytest -q tests/conformance tests/integration; services=$$?; \
	wait $$beside; computed=$$?; cat $$out; exit $$((services || computed))

check: $(TESTS)  ## format, lint, types, import contracts
	$(BIN)/ruff format --check online paramserver replay evaluation examples tests
	$(BIN)/ruff check online paramserver replay evaluation examples tests
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(TESTS)  ## the measured tables of the README, and 20,000 simulated seeds (long)
	$(BIN)/python -m pytest -q -m long tests
	$(BIN)/python tests/simulation/run.py --seeds 20100
	$(BIN)/online bench all

clean:
	rm -rf $(VENV) build dist *.egg-info
