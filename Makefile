# One virtual environment, `.venv`, filled one extra at a time: `make demo` need not install what only the
# documentation needs. A stamp in `.venv` records each extra, so that the second call starts at once.

# Tried in turn; the first that is Python 3.11 or newer with `venv` is used.
PYTHON ?= python3.11 python3 python3.12 python3.13 python3.14
# An interpreter for `make test-newest`, which finds or gets one otherwise.
NEWEST_PYTHON ?=
# For `make bench-gpu`: an interpreter whose JAX sees the GPU, and one with the other libraries.
GPU_PYTHON ?=
PEERS_PYTHON ?=
# Passed on to pytest: make test ARGS="tests/curv -k trace"
ARGS ?=

python := .venv/bin/python
pytest := $(python) -m pytest -n auto --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo demo-regression test test-slow test-torch test-newest lint format docs notebooks bench bench-peers bench-quick bench-gpu bench-quality bench-all clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: .venv/.examples  ## classify digits: MAP against Laplace, report in out/demo
	$(python) examples/digits.py --out out/demo

demo-regression: .venv/.examples  ## regression with its predictive band, report in out/demo-regression
	$(python) examples/diabetes.py --out out/demo-regression

test: .venv/.dev  ## run the tests, without the slow ones
	$(pytest) -m "not slow" $(ARGS)

test-slow: .venv/.dev  ## run the slow tests only
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(pytest) -m slow $(ARGS)

test-torch: .venv/.dev  ## run the tests of torch modules, in .venv-torch with torch and transformers
	.ci/torch $(ARGS)

test-newest:  ## run the tests on Python 3.13 or newer with the newest packages
	NEWEST_PYTHON="$(NEWEST_PYTHON)" .ci/newest $(ARGS)

lint: .venv/.dev  ## check style and formatting
	$(python) -m ruff check .
	$(python) -m ruff format --check .

format: .venv/.dev  ## repair what `make lint` can repair
	$(python) -m ruff check --fix .
	$(python) -m ruff format .

docs: .venv/.docs  ## build the documentation into site/
	$(python) -m mkdocs build --strict

notebooks: .venv/.dev  ## execute the notebooks into out/notebooks
	@mkdir -p out/notebooks
	@for notebook in notebooks/*.py; do \
		$(python) -m jupytext --to ipynb --execute --run-path out/notebooks \
			--output "out/notebooks/$$(basename "$$notebook" .py).ipynb" "$$notebook" || exit 1; \
	done

bench: .venv/.dev  ## measure what curvature products and layer capture cost
	$(python) -m benchmarks.products
	$(python) -m benchmarks.memory
	$(python) -m benchmarks.capture
	$(python) -m benchmarks.first_answer --python .venv-peers/bin/python
	$(python) -m benchmarks.peers --python .venv-peers/bin/python

bench-peers: .venv/.dev .venv-peers/.installed  ## measure next to other libraries; renews docs/benchmarks.md
	$(python) -m benchmarks.first_answer --python .venv-peers/bin/python
	$(python) -m benchmarks.peers --python .venv-peers/bin/python

bench-quick: .venv/.dev  ## the same on small problems, to see that it runs
	$(python) -m benchmarks.products --quick
	$(python) -m benchmarks.memory --quick
	$(python) -m benchmarks.capture --quick
	$(python) -m benchmarks.first_answer --quick
	$(python) -m benchmarks.peers --quick
	$(python) -m benchmarks.gpu --quick

bench-gpu: $(if $(GPU_PYTHON),,.venv/.dev)  ## measure on a GPU, in eight minutes, next to what is installed
	$(or $(GPU_PYTHON),$(python)) -m benchmarks.gpu --python $(or $(PEERS_PYTHON),$(GPU_PYTHON),$(python))

bench-quality: .venv/.dev  ## measure how good predictions are, on the data in LAPLACE_KIT_DATA
	$(python) -m benchmarks.quality.classification
	$(python) -m benchmarks.quality.images
	$(python) -m benchmarks.quality.regression
	$(python) -m benchmarks.peers.page

bench-all: bench-peers bench-quality  ## regenerate every number that the documentation quotes: over an hour
	$(python) -m benchmarks.peers.quality --python .venv-peers/bin/python
	$(python) -m docs.structure_costs
	$(python) -m docs.tuning_table
	$(python) -m docs.predictive_table

clean:  ## remove everything these targets made
	rm -rf .venv .venv-peers .venv-torch .newest out site dist .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.created:
	@for candidate in $(PYTHON); do \
		if $$candidate -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "making .venv with $$($$candidate --version)"; \
			$$candidate -m venv .venv && touch $@; exit; \
		fi; \
	done; \
	echo "No Python 3.11 or newer with the venv module among: $(PYTHON)." >&2; \
	echo "Install one (on Debian or Ubuntu: apt install python3 python3-venv) or name it: make PYTHON=/path/to/python3.11 ..." >&2; \
	exit 1

.venv/.examples .venv/.dev .venv/.docs: .venv/.%: pyproject.toml .venv/.created
	@echo "installing laplace-kit[$*] into .venv: one to three minutes the first time"
	@$(python) -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

# torchvision's wheel may be of another build than torch's, and then stops laplace-torch importing.
.venv-peers/.installed: benchmarks/peers/requirements.txt .venv/.created
	@$(python) -m venv .venv-peers
	@echo "installing the other libraries into .venv-peers: several minutes the first time"
	@.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@.venv-peers/bin/python -m pip uninstall --quiet --yes torchvision
	@touch $@
