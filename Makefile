# Each target installs its requirements into .venv once, and again only if pyproject.toml or constraints.txt change.
PYTHON ?= python3
PROFILE ?= smoke
ONLY ?=
MODULE ?=
FILE ?= docker/Dockerfile
OPTIONS ?=
BIN := .venv/bin

.PHONY: course test test-slow lab notebooks site image bench frameworks mutants clean

course: .venv/installed
	$(BIN)/ftlab course run $(ONLY) --profile $(PROFILE)

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m slipcover --json --out coverage.json -m pytest tests/unit tests/faults -m "not lengthy" -n 2 --dist worksteal --durations=8
	$(BIN)/python tests/branches.py coverage.json
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/notebooks -m "not lengthy" -n 2 --dist worksteal --durations=8
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/browser -m "not lengthy" -n 2 --dist worksteal --durations=8

test-slow: .venv/installed
	$(BIN)/pytest -m lengthy --durations=8

lab: .venv/installed
	$(BIN)/jupyter lab notebooks

notebooks: .venv/installed
	$(BIN)/ftlab course build $(ONLY) --run

# Into build/site, from the committed outputs of the lessons; then its links and pages are checked in a browser.
site: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e .[site]
	$(BIN)/python -m sphinx -q -W --keep-going -c docs -d build/doctrees . build/site
	$(BIN)/python tests/look_at_site.py build/site

# What a Docker daemon would do with a container file, and the course in the image; as root, with buildah and debootstrap.
image:
	$(PYTHON) tests/build_image.py $(FILE) build/image $(OPTIONS)

bench: .venv/installed
	for name in limit start levers train dpo grpo generate extraction evaluate memory course board; do $(BIN)/python -m benchmarks $$name; done

# What `ftlab recipe show` prints, against the real parsers, each in an environment of its own.
frameworks: .venv/installed
	for name in axolotl==0.19.0:axolotl ms-swift==4.6.0:swift llamafactory==0.9.5:llamafactory; do \
		venv=.venv-frameworks/$${name#*:}; \
		test -x $$venv/bin/python || $(PYTHON) -m venv $$venv; \
		$$venv/bin/python -m pip install -q $${name%:*} && \
		$(BIN)/python -m tests.frameworks.check $${name#*:} $$venv/bin/python || exit 1; \
	done
	# Its configuration alone: verl itself wants vLLM and a GPU.
	test -x .venv-frameworks/verl/bin/python || $(PYTHON) -m venv .venv-frameworks/verl
	.venv-frameworks/verl/bin/python -m pip install -q --no-deps verl==0.9.1
	.venv-frameworks/verl/bin/python -m pip install -q hydra-core==1.3.8 pyyaml
	$(BIN)/python -m tests.frameworks.check verl .venv-frameworks/verl/bin/python

# Mutation testing of the modules in pyproject.toml, of one, or of a sample: make mutants MODULE=ftlab.tokens SAMPLE=60
mutants: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e .[mutants]
ifdef SAMPLE
	-$(BIN)/mutmut run no.such.mutant  # writes the mutants and finds out which tests run them
	$(BIN)/mutmut run $$($(BIN)/python tests/sample_mutants.py $(MODULE) $(SAMPLE))
else
	$(BIN)/mutmut run $(if $(MODULE),"$(MODULE)*")
endif
	$(BIN)/mutmut results

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e .[course,gpu,serve,metrics,dev]
	touch $@

clean:
	rm -rf .venv .venv-frameworks runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache mutants coverage.json .hypothesis
