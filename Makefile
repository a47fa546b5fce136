# Each target does all the set-up it needs. VENV=<folder> chooses the environment.
VENV ?= .venv
# options for pytest, such as ARGS="-k template"
ARGS ?=
export VENV

# recipes call bare python3, so the environment comes first on PATH
run := PATH="$(abspath $(VENV))/bin:$$PATH"

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint engine bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: ## environment and ESPnet's recipe template; instant when done already
	@./setup_env.sh

demo: setup ## train, size, decode and score on a small synthetic corpus
	cd egs2/librispeech/asr1 && $(run) ./run_demo.sh

test: setup ## the tests, without the slow ones
	$(run) python -m pytest $(ARGS)

test-all: setup ## all tests, the slow ones too
	$(run) python -m pytest -m "slow or not slow" $(ARGS)

lint: setup ## ruff, black and, where present, shellcheck
	$(run) python -m ruff check .
	$(run) python -m black --check .
	@if command -v shellcheck >/dev/null; then \
	    git ls-files -co --exclude-standard '*.sh' .ci/run espnet_omnisparse/recipe/bin \
	        | xargs shellcheck --severity=warning; \
	else echo "shellcheck is not installed: the shell scripts were not checked"; fi

engine: setup ## the engine of packed files again, after a change of its sources
	$(run) python setup.py -q build_ext --inplace

bench: setup ## paired times: supernet, stock Conformer, each size, and run times
	$(run) python -m espnet_omnisparse.bench
	$(run) python -m espnet_omnisparse.bench.memory
	$(run) omnisparse bench --random 12x256 --keep 0.5 --chunks 8 32

clean: ## remove caches and build leftovers; environment and experiments stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find espnet_omnisparse tests egs2 -name __pycache__ -prune -exec rm -rf {} +
