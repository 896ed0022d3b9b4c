# Steersman: `make help` lists the targets.
SHELL := /bin/bash
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help install serve sae test check fmt bench

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

install: ## make .venv with everything; quick when nothing changed (PYTHON=… for a new .venv)
	@PYTHON="$(PYTHON)" scripts/install.sh

serve: install ## serve, by default the embedded model (make serve ARGS="--port 9000")
	@$(BIN)/steersman serve $(ARGS)

sae: install ## train a small autoencoder of the served model, four minutes of it capturing states (ARGS="--layer 15")
	@$(BIN)/steersman sae train --serve --minutes 4 $(ARGS)

test: install ## run the tests (make test ARGS="-k store"), two at a time on a CPU; `.venv/bin/pytest` runs one
	@$(BIN)/pytest -n auto --dist loadscope --no-loadscope-reorder $(ARGS)

check: install ## lint, formatting, types, direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: install ## format, and fix what ruff can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: install ## measure the running stack against stock vLLM (an hour; ARGS="--rounds 3" for less)
	@$(BIN)/python tests/bench/serve.py $(ARGS)
	@$(BIN)/python tests/bench/steering_speed.py $(ARGS)
	@$(BIN)/python tests/bench/steering_speed.py --compile $(ARGS)
	@$(BIN)/python tests/bench/vllm_steering_pair.py $(ARGS)
	@$(BIN)/python tests/bench/vllm_steering_pair.py --compile $(ARGS)
	@$(BIN)/python tests/bench/watching_speed.py $(ARGS)
	@$(BIN)/python tests/bench/policy_speed.py $(ARGS)
	@$(BIN)/python tests/bench/policy_value.py
