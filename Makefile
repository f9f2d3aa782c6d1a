# Two commands for a newcomer: `make quickstart` and `make test`. Both make .venv and reuse it.
PYTHON ?= python3
BIN := .venv/bin
# Tests run in so many processes, each with one thread.
WORKERS ?= 2
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: quickstart real docs test test-all lint format mlproject clean

quickstart: .venv/ready
	@$(BIN)/oodflow main

# The effect on real images; needs the packages that docs/real-images.md names.
real: .venv/ready
	@$(BIN)/python -m pip install -qq --disable-pip-version-check \
		-c constraints.txt --config-settings editable_mode=compat -e '.[dev,real]'
	@$(BIN)/oodflow reproduce --plan real

# Open build/docs/index.html. A warning, such as a dead link, is an error.
docs: .venv/ready
	@$(BIN)/sphinx-build -q -W --keep-going -d build/doctrees docs build/docs

# What a developer needs before a commit.
test: .venv/ready
	$(PYTEST) -m "not long"

# The long ones as well: real servers, killed processes, torchrun, a browser.
test-all: .venv/ready
	$(PYTEST)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

mlproject: .venv/ready
	$(BIN)/python -m oodflow.mlproject > MLproject.new && mv MLproject.new MLproject

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "oodflow needs Python 3.10 or newer: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }
	@echo "making .venv (once; about two minutes and 6 GB)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check \
		-c constraints.txt --config-settings editable_mode=compat -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info
