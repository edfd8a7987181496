# Targets for a machine with python3, python3-venv and make; each has its own virtual environment.
PYTHON ?= python3
# More arguments for pytest: make test ARGS='-k lab'
ARGS ?=

metadata := setup.cfg pyproject.toml Makefile
sources := $(shell find check_pgsock -name '*.py' -o -name '*.sql')

.PHONY: demo test prove lint clean

# A real PostgreSQL, load on it, and what the checks say: under a minute after the downloads.
demo: .venv-demo/installed
	@.venv-demo/bin/python -I -m check_pgsock.pgsock.lab.demo $(ARGS)

test: .venv-test/installed
	@.venv-test/bin/python -m pytest -m 'not prove' $(ARGS)

# Full sizes and counts, and the speed goals as a table (as root): minutes, not seconds.
prove: .venv-test/installed
	@.venv-test/bin/python -m pytest -m prove $(ARGS)
	@.venv-test/bin/python -m bench.checks

lint: .venv-lint/installed
	.venv-lint/bin/ruff check
	.venv-lint/bin/mypy

clean:
	rm -rf .venv-demo .venv-test .venv-lint build *.egg-info .mypy_cache .ruff_cache .pytest_cache

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

.venv-lint/installed: $(metadata)
	$(PYTHON) -m venv .venv-lint
	.venv-lint/bin/pip install --quiet --disable-pip-version-check ruff mypy -e '.[test,binary]'
	@touch $@
