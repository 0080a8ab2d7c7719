# Targets depend on setup: `make train` on a fresh clone installs everything first.
PYTHON ?= python3
BIN := .venv/bin
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: setup libtpu tpu-tables train compare fields test test-slow test-browser lint

setup: .venv/ready ## create .venv, install requirements, download the default model

.venv/ready: requirements.txt tests/requirements.txt dasd_jax/fetch.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt -r tests/requirements.txt
	$(BIN)/python -m dasd_jax.fetch
	touch $@

libtpu: .venv/libtpu/ready ## the TPU compiler, for python -m dasd_jax.compile

# In its own folder, where JAX does not find it: otherwise every JAX process would search for chips first. The version is
# the one that JAX requires.
.venv/libtpu/ready: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/libtpu \
		"$$($(BIN)/python -c 'import importlib.metadata as m; print(*(r.split(";")[0] for r in m.requires("jax") if r.startswith("libtpu")))')"
	touch $@

tpu-tables: .venv/libtpu/ready ## compile the paper's run for TPU slices and update the tables in docs/tpu.md, about half an hour for each
	$(BIN)/python -m benchmarks.tpu_tables

train: .venv/ready ## post-train SmolLM2-135M with DASD, about 11 minutes on two cores, and make a page of the run
	$(BIN)/python -m dasd_jax.train --config=configs/smollm2_math.py
	$(BIN)/python -m dasd_jax.report runs/smollm2_math --output=runs/smollm2_math/report.html

compare: .venv/ready ## the same run and a run with beta = 0 from the same seed, as a table
	$(BIN)/python benchmarks/compare_beta.py

fields: .venv/ready ## generate docs/fields.md from the field declarations
	$(BIN)/python -m dasd_jax.field_help > docs/fields.md

test: .venv/libtpu/ready ## lint and fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/transformers4/ready ## parity with transformers 4.55 and 5 on real weights; installs torch
	$(BIN)/pip install --quiet --disable-pip-version-check -r tests/requirements-slow.txt
	$(BIN)/python -m pytest -m slow

test-browser: .venv/ready ## the report in headless Chromium; installs the system's chromium and playwright
	command -v chromium > /dev/null || { $(SUDO) apt-get update -q && $(SUDO) apt-get install -q -y chromium; }
	$(BIN)/pip install --quiet --disable-pip-version-check -r tests/requirements-browser.txt
	$(BIN)/python -m pytest -m browser tests/browser

# In its own folder, since two versions cannot be installed together: a process that has the folder first on its path
# imports 4.55, every other one imports 5.
.venv/transformers4/ready: .venv/ready tests/requirements-transformers4.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/transformers4 \
		-r tests/requirements-transformers4.txt
	touch $@

lint: .venv/ready ## fix and format with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
