# `make help` lists the targets. Everything runs in .venv, which `make` creates from the pinned set.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

# Installs $(1) and prints the name and size of each larger package that is downloaded; pip's errors are shown.
define install
	set -o pipefail; $(VENV)/bin/pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '$(1)' | \
	awk '/Downloading .*MB\)/ {print "  " $$2, $$3, $$4; fflush()} /^Installing/ {print "  unpacking"; fflush()}'
endef

.DEFAULT_GOAL := help
.PHONY: help install demo sample repro tutorial ui test lint bench docs clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "Installing PyTorch, MLflow, DVC and what they need into $(VENV): 1.8 GB on disk with PyTorch for CPUs"
	@$(PYTHON) -m venv $(VENV)
	@$(call install,.)
	@$(VENV)/bin/python -m optlab.orchestration.merge_driver
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "Installing what the tests and linters need besides: Ray, clients of databases and S3, optimizer collections"
	@$(call install,.[dev])
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	@echo "Installing MkDocs, which builds the documentation site"
	@$(call install,.[docs])
	@touch $@

$(VENV)/installed-bench: $(VENV)/installed-dev
	@echo "Installing Lightning, which the benchmarks compare with"
	@$(call install,.[bench])
	@touch $@

install: $(VENV)/installed ## Create .venv with the pinned packages that a comparison needs

demo: $(VENV)/installed ## Show the recorded comparison, without any training
	@optlab show
	@echo "make ui opens MLflow's pages; . $(VENV)/bin/activate makes the command optlab available"

sample: $(VENV)/installed ## Train and compare three optimizers on 600 images, in a minute
	@optlab sample

repro: $(VENV)/installed ## Download, train every optimizer, evaluate, compare
	@optlab repro

tutorial: $(VENV)/installed ## Replay the tutorial's experiment
	@cd tutorial && optlab repro

ui: $(VENV)/installed ## Open MLflow's pages on http://127.0.0.1:5000
	@optlab ui || [ $$? = 130 ] # Ctrl-C

docs: $(VENV)/installed-docs ## Build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

test: $(VENV)/installed-dev ## Run the tests
	pytest -n 4 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed-dev ## Check style, types and imports
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
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache
