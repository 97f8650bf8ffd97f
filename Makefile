# `make help` lists the targets. Everything runs in .venv, which `make` creates from the pinned set.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help install repro tutorial ui test lint bench clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/installed-bench: $(VENV)/installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $@

install: $(VENV)/installed ## Create .venv and install the pinned packages

repro: $(VENV)/installed ## Download, train every optimizer, evaluate, compare
	optlab repro

tutorial: $(VENV)/installed ## Replay the tutorial's experiment
	cd tutorial && optlab repro

ui: $(VENV)/installed ## Open MLflow's pages on http://127.0.0.1:5000
	optlab ui

test: $(VENV)/installed ## Run the tests
	pytest -n 4 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed ## Check style, types and imports
	ruff check .
	ruff format --check .
	mypy
	lint-imports --no-cache --no-logo

bench: $(VENV)/installed-bench ## Measure the speed on this machine
	dvc repro --quiet download
	python benchmarks/throughput.py
	python benchmarks/side_by_side.py
	python benchmarks/startup.py

clean: ## Remove .venv and the caches of the tools
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
