# make train: train and compare MNM-p, MNM-g and an LSTM.   make test: the test suite.   make lint: ruff and mypy.
# make docs: the documentation, into build/docs.   make venv: the environment alone.
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("3.11" if sys.version_info < (3, 12) else "3.12")')
CONSTRAINTS := .ci/constraints-$(VERSION).txt
RUN := .venv/bin/python -m
MODELS := mnm-p mnm-g lstm

# An update frees and allocates the same large buffers again, which huge pages make cheaper.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: venv train test lint docs

venv: .venv/installed

.venv/installed: setup.cfg $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[all]'
	touch $@

train: venv $(MODELS:%=runs/quick/%/summary.json)
	$(RUN) launch.report --workdir=runs/quick

runs/quick/%/summary.json: | venv
	$(RUN) launch.train --config=launch/configs/dictionary.py:$* --workdir=runs/quick/$* \
		--config.training.steps=700 --config.training.seeds=2

# The tests of a file share compiled programs, so they run in one process.
test: venv
	$(RUN) pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: venv
	.venv/bin/ruff check .
	$(RUN) mypy

docs: venv
	$(RUN) sphinx -W --keep-going --quiet -b html -d build/doctrees docs build/docs
