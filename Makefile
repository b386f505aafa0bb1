# The environment is .venv; scripts/setup_env.sh makes it and says when it is up to date.
# Variables of `make setup`: PYTHON TORCH_INDEX_URL EXTRA_WHEELS FORCE_CUDA (docs/install.md).
VENV_BIN := $(CURDIR)/.venv/bin
WORKERS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=
# Commands find .venv first; no account is asked for anywhere.
IN_VENV := PATH="$(VENV_BIN):$$PATH" WANDB_MODE=offline

.PHONY: help setup lint format test demo clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: ## .venv with the pinned packages and ocp_faenet, editable
	@sh scripts/setup_env.sh

lint: setup ## ruff, mypy, import-linter
	$(VENV_BIN)/ruff check .
	$(VENV_BIN)/ruff format --check .
	$(VENV_BIN)/mypy
	$(VENV_BIN)/lint-imports

format: setup ## ruff's fixes and formatting, in place
	$(VENV_BIN)/ruff check --fix .
	$(VENV_BIN)/ruff format .

test: setup ## the tests, two at a time (WORKERS=, PYTEST_ARGS=)
	$(IN_VENV) OMP_NUM_THREADS=1 $(VENV_BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

demo: setup ## embedded data, training, validation, predictions, pictures (DEMO_ARGS=)
	$(IN_VENV) $(VENV_BIN)/ocp-faenet demo $(DEMO_ARGS)

clean: ## caches of the tools
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## also .venv and the compiled wheels; data and runs stay
	rm -rf .venv build *.egg-info
