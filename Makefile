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

# Four lanes, of which all but the first print when they are done: two of whole services, which
# wait a lot, by the first letter of a file's name, and beside them two of what only computes.  Both
# of services are done long before the others: the rest of the unit tests runs in their places.
# The last lines say how long each lane took, and its CPU time.
test: $(TESTS)  ## everything but the long tests and benchmarks
	@out=$$(mktemp -d); lanes=; export LANES="$$out/times"; \
	trap 'kill $$lanes 2>/dev/null; wait; rm -rf '$$out EXIT; trap 'exit 130' INT TERM; \
	nice -n 10 $(PYTEST) tests/unit/[a-o]* >$$out/unit 2>&1 & unit=$$!; \
	nice -n 10 $(PYTEST) $(COMPUTED) >$$out/computed 2>&1 & computed=$$!; \
	$(PYTEST) tests/integration/test_[i-z]*.py >$$out/second 2>&1 & second=$$!; \
	$(PYTEST) tests/integration/test_[a-h]*.py & first=$$!; \
	lanes="$$unit $$computed $$second $$first"; failed=0; \
	wait $$second || failed=1; \
	nice -n 10 $(PYTEST) tests/unit/[p-r]* >$$out/third 2>&1 & third=$$!; \
	lanes="$$unit $$computed $$first $$third"; \
	wait $$first || failed=1; \
	nice -n 10 $(PYTEST) tests/unit/[s-z]* >$$out/fourth 2>&1 & fourth=$$!; \
	lanes="$$unit $$computed $$third $$fourth"; cat $$out/second; \
	for lane in computed unit third fourth; do \
		eval "wait \$$$$lane" || failed=1; cat $$out/$$lane; \
	done; \
	lanes=; cat "$$LANES"; exit $$failed

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
