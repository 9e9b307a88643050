# Everything a newcomer needs; `make` alone lists it.  Override with e.g. `make run PYTHON=python3.12 ARGS="--port 8000"`.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install run test lint format clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## Make the virtual environment and install what the program needs

run: $(VENV)/.installed ## Start the page on http://127.0.0.1:7860 (ARGS="--port 8000" for another port)
	$(VENV)/bin/python app.py $(ARGS)

test: $(VENV)/.installed-dev ## Run the tests (ARGS="-m slow" for the slow ones)
	$(VENV)/bin/python -m pytest -n 2 $(ARGS)

lint: $(VENV)/.installed-dev ## Check style and formatting
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

format: $(VENV)/.installed-dev ## Sort imports and format the code
	$(VENV)/bin/python -m ruff check --select I --fix .
	$(VENV)/bin/python -m ruff format .

clean: ## Delete the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "Could not make $(VENV): install Python's venv module (Debian, Ubuntu: python3-venv)"; exit 1; }

# The stamps are newer than the requirements they were made from, so a second call installs nothing.
$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install -q -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(VENV)/bin/python -m pip install -q -r requirements-dev.txt
	@touch $@
