# make test: the test suite.   make venv: the environment alone.   make lint: ruff.
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("3.11" if sys.version_info < (3, 12) else "3.12")')
CONSTRAINTS := .ci/constraints-$(VERSION).txt

.PHONY: venv test lint

venv: .venv/installed

.venv/installed: setup.cfg pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[test,data]'
	touch $@

test: venv
	.venv/bin/python -m pytest -n 2

lint: venv
	.venv/bin/ruff check --config .ci/ruff.toml .
