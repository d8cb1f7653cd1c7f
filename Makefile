# Each target installs its requirements into .venv once, and again only if pyproject.toml or constraints.txt change.
PYTHON ?= python3
PROFILE ?= smoke
ONLY ?=
BIN := .venv/bin

.PHONY: course test lab notebooks bench clean

course: .venv/installed
	$(BIN)/ftlab course run $(ONLY) --profile $(PROFILE)

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest --durations=8

lab: .venv/installed
	$(BIN)/jupyter lab notebooks

notebooks: .venv/installed
	$(BIN)/ftlab course build $(ONLY) --run

bench: .venv/installed
	for name in limit start levers train dpo grpo generate extraction memory course board; do $(BIN)/python -m benchmarks $$name; done

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e .[course,gpu,serve,dev]
	touch $@

clean:
	rm -rf .venv runs build *.egg-info .pytest_cache .ruff_cache .hypothesis
