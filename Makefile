# Each target makes what it needs: `make train` on a fresh clone sets up first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup train compare test test-slow lint

setup: .venv/ready ## make .venv, install, fetch the default model

.venv/ready: requirements.txt tests/requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt -r tests/requirements.txt
	$(BIN)/python -m dasd_jax.fetch
	touch $@

train: .venv/ready ## post-train SmolLM2-135M with DASD, about 12 minutes on two cores
	$(BIN)/python -m dasd_jax.train --config=configs/smollm2_math.py

compare: .venv/ready ## the same run beside the same seed with beta = 0, as a table
	$(BIN)/python benchmarks/compare_beta.py

test: .venv/ready ## lint and tests, without slow ones
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: .venv/ready ## parity with transformers on real weights; installs torch
	$(BIN)/pip install --quiet --disable-pip-version-check -r tests/requirements-slow.txt
	$(BIN)/python -m pytest -m slow

lint: .venv/ready ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
