# Two commands matter to a newcomer: make demo, make test. Everything is installed into .venv, without root.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# On a small machine the processes of the demo share two cores: one thread each.
export OMP_NUM_THREADS ?= 1

SEEDS ?= 40
FIRST_SEED ?= 0
JOBS ?= 2
SCENARIO ?=
SECONDS ?= 15
SEED ?= 1
ARGS ?=
EXAMPLES ?= 100

.PHONY: demo test lint coverage simulate simulate-proof nemesis nat chaos voters fuzz bench clean help

help: ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/'

$(STAMP): pyproject.toml constraints.txt
	@echo "== installing into $(VENV) (once; torch is the large part)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	@touch $(STAMP)

demo: $(STAMP) ## start a cluster on this machine and watch it learn (ARGS="--until-promotions 2 --minutes 20")
	@echo "== ringrift-node dev $(ARGS)"
	@$(BIN)/ringrift-node dev $(ARGS)

test: $(STAMP) lint ## everything that guards a change, in under 15 minutes on 2 cores
	@echo "== tests"
	@$(BIN)/python -m pytest -n 2 --dist loadfile -q || { test $$? -eq 1 && \
		echo "== what failed runs once more, alone: what passes now depends on the moment, and is to be mended" && \
		$(BIN)/python -m pytest -q --last-failed --last-failed-no-failures none; }
	@echo "== branch coverage of the law"
	$(BIN)/coverage run -m pytest -q tests/statemachine
	$(BIN)/coverage report --fail-under=100

lint: $(STAMP) ## style, types and the import law
	@echo "== ruff, mypy, import-linter"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

simulate: $(STAMP) ## the whole cluster under virtual time and faults: SEEDS=1000 FIRST_SEED=0 JOBS=2
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --first-seed $(FIRST_SEED) --jobs $(JOBS) $(ARGS)

simulate-proof: $(STAMP) ## switch off one correction of pysyncobj after the other: the first seed that misses it
	$(BIN)/python -m tests.simulation --proof --seeds $(SEEDS) --first-seed 1

nemesis: $(STAMP) ## real processes under kills, partitions, full disks (root): SCENARIO="kill-leader" SECONDS=15 SEED=1
	$(BIN)/python -m tests.nemesis $(SCENARIO) --seconds $(SECONDS) --seed $(SEED) $(ARGS)

nat: $(STAMP) ## followers that nobody can dial, in network namespaces (root), under a minute
	$(BIN)/python -m pytest -q tests/cluster/test_nat.py

chaos: $(STAMP) ## 500 jobs on 4 agents while agents, keepers, programs and voters are killed: SEED=1 ARGS="--jobs 500"
	$(BIN)/python -m tests.chaos --seed $(SEED) $(ARGS)

voters: $(STAMP) ## voters of real processes restarted, replaced, removed and moved to TLS under load, three minutes
	RINGRIFT_TEST_LONG=1 $(BIN)/python -m pytest -q tests/cluster/test_voters.py tests/cluster/test_to_tls.py

fuzz: $(STAMP) ## hostile requests and connections, longer than make test: EXAMPLES=100
	RINGRIFT_FUZZ_EXAMPLES=$(EXAMPLES) RINGRIFT_TEST_FLOOD=10000 $(BIN)/python -m pytest -q tests/cluster/test_schema.py \
		tests/ringrift_cluster/raft/test_hostile.py tests/ringrift_cluster/api/test_connections.py \
		tests/cluster/test_crowd.py

bench: $(STAMP) $(VENV)/.bench ## ours, etcd and PostgreSQL in one sitting, ten minutes (ARGS="etcd propose" for parts)
	$(BIN)/python -m tests.bench $(ARGS)

$(VENV)/.bench: pyproject.toml constraints.txt
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

clean: ## remove what the other targets made
	rm -rf $(VENV) .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
