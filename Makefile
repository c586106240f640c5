# Needs Python 3.10+, git and make. PYTHON chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint torture clean

demo: .venv/installed
	$(BIN)/dmpt demo --out demo

test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --durations 20

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Half an hour of kills and full disks (docs/reliability.md); needs Linux.
torture: .venv/installed
	$(BIN)/python tools/torture.py

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	touch $@

# The environment that was made here; results, of the demo too, are left alone.
clean:
	test ! -e .venv/installed || rm -rf .venv
