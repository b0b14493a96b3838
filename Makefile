# Everything a contributor does is one word. Each target sets up what it needs; only Python 3.11+ and make are assumed.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SERVES := $(VENV)/.serves
READY  := $(VENV)/.ready
TESTS  ?= tests
# One more than two cores: a third of the suite's time is waiting, for leases, outages and processes that start.
JOBS   ?= 3

FAST   := tests/diffusion tests/docs tests/worker/conditioning tests/worker/contract tests/worker/outputs tests/worker/store \
          $(addprefix tests/worker/engine/test_, batcher.py engine.py readback.py same_pixels.py step_costs.py) \
          $(addprefix tests/worker/queue/test_, leases.py order.py) \
          $(addprefix tests/service/test_, generate.py jobs.py images.py)

.PHONY: run test test-fast coverage check audit bench gpu-check bench-gpu soak clean

run: $(SERVES)
	$(BIN)/reverie up --draw .reverie/images

# Files in the order of their folders: those that start the whole product come early and short ones last, so that no process
# is left alone with a long one. What takes longest is told at the end.
test: $(READY)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --durations 40 $(TESTS)

# Under two minutes on two cores: what to run while writing.
test-fast: $(READY)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile -m "not slow and not gpu" $(FAST)

# Which lines no test runs, those of started processes included. COVERAGE='tests/service --cov-report html' narrows it, or
# writes pages. Left out is what kills processes, whose lines are lost, and what measures time. From Python 3.12 on it costs
# little (sys.monitoring); before, tests of pure Python take half as long again, so CI does not run it.
COVERED = $(filter-out tests/__pycache__ tests/bench tests/docker tests/faults tests/gpu_check,$(patsubst %/,%,$(wildcard tests/*/)))
coverage: $(READY)
	COVERAGE_CORE=$$($(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') \
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --cov --cov-report term-missing $(or $(COVERAGE),$(COVERED))

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Known vulnerabilities in what constraints.txt pins, by the Python Packaging Advisory Database. In an environment of
# its own: what it needs must not decide what is installed beside the code. --strict: what can't be looked up fails.
audit:
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet pip-audit
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

bench: $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m tests.bench

# What only a GPU shows, in ten minutes: a table and gpu-check.json. Without a GPU it says so and runs nothing.
gpu-check: $(READY)
	$(BIN)/python -m tests.gpu_check $(CHECK)

bench-gpu: $(READY)
	@$(BIN)/python -m tests.gpu_check --present; present=$$?; \
	if [ $$present -eq 3 ]; then exit 0; fi; \
	[ $$present -eq 0 ] || exit $$present; \
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]' \
	&& $(BIN)/python -m tests.bench overhead engine reload --device cuda

# Kills everything that can be killed for ten minutes, and prints what was lost. SOAK='--seed N' runs the same faults again.
soak: $(READY)
	$(BIN)/python -m tests.faults $(SOAK)

# torch goes first and alone: with it in place no other package's looser range can pull a different build. What serves
# comes before what tests: a new user's `make run` need not wait for the tools.
$(SERVES): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Reverie needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[service,worker,training]'
	touch $(SERVES)

$(READY): $(SERVES)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
