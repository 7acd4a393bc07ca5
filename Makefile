# `make demo` and `make test` do everything on a fresh machine with python3.11 and a C++ compiler
# (without one the package installs too, with no kernels). Both make .venv, from constraints.txt.

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# --no-compile: Python compiles what is imported, which is a fraction of what is installed.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check \
  -c constraints.txt

DEMO_EFFORT ?= 120s
DEMO_JSON := pared/demo.json
PYTEST_MARKS ?= not slow and not gpu
# Two processes of one thread each: half of the tests wait for children.
PYTEST_ARGS ?= -n 2 --dist loadfile

INSTALLED_FROM := pyproject.toml constraints.txt CMakeLists.txt \
  $(wildcard src/paredown/kernels/cpp/* src/paredown/kernels/cpp/*/*)

.PHONY: help demo test test-all lint types layers tests docs matrix schemas generated readme \
	browser bench bench-techniques clean

help:
	@echo "make demo      pare the digits network down and print the proof"
	@echo "make test      every check that CI runs"
	@echo "make test-all  the slow tests as well"
	@echo "make matrix    every pair of techniques on a small CNN, ViT and decoder (minutes)"
	@echo "make bench     side by side with single backends and NNCF (tens of minutes)"
	@echo "make schemas   JSON Schemas, the technique manifest and docs/papers.md, written anew"
	@echo "make readme    the README's demo block from the last make demo"
	@echo "make browser   install Chromium for the browser tests (Debian, root)"

# ---------------------------------------------------------------- environments
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The editable install serves both: [dev] holds all that [demo] holds.
$(VENV)/.demo: $(INSTALLED_FROM) | $(BIN)/python
	$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(INSTALLED_FROM) | $(BIN)/python
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.demo

# ---------------------------------------------------------------- the main job
demo: $(VENV)/.demo
	@mkdir -p pared
	$(BIN)/pare down examples/digits.py \
	  --to "latency <= 0.1x" --to "size <= 0.3x" --to "drop <= 1%" \
	  --effort $(DEMO_EFFORT) --json $(DEMO_JSON)

readme: $(VENV)/.demo
	$(BIN)/python scripts/readme_demo.py $(DEMO_JSON)

# ---------------------------------------------------------------- checks
test: lint types layers generated tests docs

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/pyright

layers: $(VENV)/.dev
	$(BIN)/lint-imports

generated: $(VENV)/.dev
	$(BIN)/python scripts/schemas.py --check
	$(BIN)/python scripts/manifest.py --check
	$(BIN)/python scripts/zoo.py --check
	$(BIN)/python scripts/benchmarks_doc.py --check

tests: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "$(PYTEST_MARKS)" $(PYTEST_ARGS)

test-all: PYTEST_MARKS = not gpu
test-all: test

# Snippets of the pages run in tests/test_docs.py.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

browser:
	@if command -v chromium >/dev/null; then echo "chromium is there"; \
	elif [ "$$(id -u)" = 0 ]; then apt-get install -y -q chromium chromium-driver; \
	else echo "run as root: apt-get install chromium chromium-driver"; fi

# ---------------------------------------------------------------- things written to the repository
schemas: $(VENV)/.dev
	$(BIN)/python scripts/schemas.py
	$(BIN)/python scripts/manifest.py
	$(BIN)/python scripts/papers_doc.py
	$(BIN)/python scripts/benchmarks_doc.py
	$(BIN)/python scripts/zoo.py

matrix: $(VENV)/.dev
	$(BIN)/python scripts/matrix.py

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/down.py --json benchmarks/results/down.json
	$(BIN)/python scripts/benchmarks_doc.py

bench-techniques: $(VENV)/.dev
	$(BIN)/python benchmarks/techniques.py --scale full --json benchmarks/results/techniques.json
	$(BIN)/python scripts/benchmarks_doc.py

clean:
	rm -rf build dist site .pytest_cache .ruff_cache
