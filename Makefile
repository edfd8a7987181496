# Targets for a machine with python3, python3-venv and make; each has its own virtual environment.
PYTHON ?= python3
# More arguments for pytest: make test ARGS='-k lab'
ARGS ?=
# Processes that make test runs in; most tests wait most of the time. What fails is run once more,
# and named: tests share the machine with each other.
WORKERS ?= 3

metadata := setup.cfg pyproject.toml Makefile
proofs := .proofs.jsonl
sources := $(shell find check_pgsock -name '*.py' -o -name '*.sql' -o -name '*.txt')

.PHONY: demo test prove lint clean

# A real PostgreSQL, load on it, and what the checks say: a minute and a half after the downloads.
demo: .venv-demo/installed
	@.venv-demo/bin/pgsock lab drill --short $(ARGS)

test: .venv-test/installed
	@.venv-test/bin/python -m pytest -m 'not prove' -n $(WORKERS) --dist loadfile \
		--reruns 1 -rR $(ARGS)

# Full sizes and counts, on PostgreSQL 14 to 18 (from npm), and the speed goals; as root. It ends
# with a table. What passed is not run again on the same tree, but with FRESH=1.
prove: .venv-test/installed .postgresql/installed
	@$(if $(FRESH),rm -f $(proofs))
	@PGSOCK_TEST_PG_BINS="$${PGSOCK_TEST_PG_BINS:+$$PGSOCK_TEST_PG_BINS:}$$(cat .postgresql/installed)" \
		.venv-test/bin/python -m pytest -m prove --proofs=$(proofs) $(ARGS)

lint: .venv-lint/installed
	.venv-lint/bin/ruff check
	.venv-lint/bin/mypy

clean:
	rm -rf .venv-demo .venv-test .venv-lint build *.egg-info .mypy_cache .ruff_cache .pytest_cache
	rm -rf .postgresql $(proofs)

# Installed as a user installs it: the demo runs what the package holds, not this tree.
.venv-demo/installed: $(metadata) $(sources)
	@rm -rf build
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/pip install --quiet --disable-pip-version-check '.[binary,lab]'
	@touch $@

# compat: a path, and no finder whose imports every check would start with.
.venv-test/installed: $(metadata)
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/pip install --quiet --disable-pip-version-check \
		--config-settings editable_mode=compat -e '.[test,binary,lab]'
	@touch $@

.postgresql/installed: tests/postgres_majors.py | .venv-test/installed
	@.venv-test/bin/python -m tests.postgres_majors $(@D)

.venv-lint/installed: $(metadata)
	$(PYTHON) -m venv .venv-lint
	.venv-lint/bin/pip install --quiet --disable-pip-version-check ruff mypy -e '.[test,binary]'
	@touch $@
