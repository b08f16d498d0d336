# Each target makes .venv and installs the pinned set first; nothing needs to be installed by hand but Python 3.11 to 3.13 and cc.
PYTHON ?= python3
BIN := .venv/bin
KERNELS := $(wildcard fastpack/kernels/*.py) $(wildcard fastpack/blocks/*.py) fastpack/compiler.py fastpack/machine.py hatch_build.py

.PHONY: demo test lint bench clean

demo: .venv/installed
	$(BIN)/fastpack demo

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-sort=name --benchmark-columns=min,median,rounds

clean:
	rm -rf .venv .venv-onnx build dist fastpack/_machine_code .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis
	find fastpack tests bench examples -name __pycache__ -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt $(KERNELS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt hatchling editables numba numpy
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[test,lint]'
	touch $@
