# Start with `make results/table3.csv` or `make test`; both create .venv if it is missing. `make help` lists all targets.

SHELL := bash
MAKEFLAGS += --no-builtin-rules

# Python interpreters to try, in this order. To use another one: `make PYTHON=/path/to/python ...`.
PYTHON ?= python3.11 python3.12 python3.13 python3

# Number of processes that run tests in parallel. Each needs up to about 3 GB of memory.
TEST_WORKERS ?= 2

# Address of an index with CPU builds of torch. With it, the environment has no CUDA and is 5 GB smaller (docs/running.md).
CPU_INDEX ?=

VENV := .venv
LOCKED := $(VENV)/.locked
READY := $(VENV)/.ready

# The workflow calls `deop` by name, and the tests call ruff, snakefmt and mypy.
ACTIVATED := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
SNAKEMAKE := $(ACTIVATED) $(VENV)/bin/snakemake

PUBLISHED_DIR := docs/results/mini
SEEDS := [0,1,2]

.PHONY: help $(VENV) test test-faults reliability test-slurm lint format revisions schemas docs pictures rule-graph \
    bundled scale report publish FORCE

help:
	@echo "make results/table3.csv   make this result, or any other file in results/, with the mini profile"
	@echo "make test                 run all tests but those of make test-slurm"
	@echo "make test-faults          run the tests that inject faults: kills, damaged files, no room (docs/reliability.md)"
	@echo "make reliability          the same, and write the table of faults into docs/reliability.md"
	@echo "make test-slurm           run the tests on a Slurm cluster of two nodes, which they start on this machine"
	@echo "make lint                 run ruff, mypy, snakefmt, snakemake --lint and make revisions"
	@echo "make format               format Python files and Snakefiles in place"
	@echo "make revisions            check that stages whose code changed have new revisions (src/deop/jobs/revisions.py)"
	@echo "make schemas              write the JSON Schemas of the configuration files to workflow/schemas, and docs/settings.md"
	@echo "make docs                 build the documentation site in site/"
	@echo "make pictures             draw the pictures of docs/paper-in-pictures.md"
	@echo "make rule-graph           draw docs/workflow.svg, with Graphviz"
	@echo "make bundled              copy the trained system es171/deop into the package, as deop.load('deop-mini')"
	@echo "make scale                measure the data path with 10,000 to 1,000,000 images (docs/scale.md; about half an hour)"
	@echo "make report               write results/report.html: all tables and figures with run times and provenance"
	@echo "make publish              make all results with three seeds and copy them to $(PUBLISHED_DIR);"
	@echo "                          refused if there are uncommitted changes, or parts that another commit made"
	@echo "make .venv                create the environment alone; all other targets do this first"

# Python 3.11.4 is needed for the extraction filters of tarfile, which make unpacking archives safe (see pyproject.toml).
# The stamp is written last, so an interrupted installation starts again from an empty folder.
NO_CUDA := --extra-index-url $(CPU_INDEX) -r <(grep -vE '^(cuda|nvidia|triton)\b' requirements.lock)
$(LOCKED): requirements.lock
	@rm -rf $(VENV); \
	for python in $(PYTHON); do \
	    if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11, 4))' 2>/dev/null; then \
	        echo "Setting up $(VENV) with $$("$$python" --version) from $< (some minutes, some GB)"; \
	        "$$python" -m venv $(VENV) \
	            && $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(CPU_INDEX),$(NO_CUDA),-r $<) \
	            && touch $@; \
	        exit; \
	    fi; \
	done; \
	echo "error: deop needs Python 3.11.4 or newer with the venv module, and none of these is one: $(PYTHON)." >&2; \
	echo "Install one (on Debian and Ubuntu: apt install python3 python3-venv), or name one: make PYTHON=/path/to/python" >&2; \
	exit 1

# setuptools is in the lock as well, so no isolated build environment is needed.
$(READY): $(LOCKED) pyproject.toml
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e . && touch $@

$(VENV): $(READY)

# FORCE: only Snakemake knows whether a result is up to date.
results/%: $(READY) FORCE
	$(SNAKEMAKE) $@

# A file stays in one process, for its fixtures. Files are in the order of tests/conftest.py; by itself, the plugin begins
# with those of many tests.
IN_ORDER := --dist loadfile --no-loadscope-reorder

test: $(READY)
	$(ACTIVATED) $(VENV)/bin/python -m pytest -n $(TEST_WORKERS) $(IN_ORDER) -m "not slurm"

# Tests of one file share what takes long to make. The folder is named because its conftest.py has --fault-table.
TEST_FAULTS := $(VENV)/bin/python -m pytest tests -n $(TEST_WORKERS) $(IN_ORDER) -m faults --hypothesis-profile thorough

test-faults: $(READY)
	$(ACTIVATED) $(TEST_FAULTS)

reliability: $(READY)
	$(ACTIVATED) $(TEST_FAULTS) --fault-table docs/reliability.md

# Where Slurm or munge is missing, the tests are skipped and say so.
test-slurm: $(READY)
	$(ACTIVATED) $(VENV)/bin/python -m pytest -m slurm tests/slurm

lint: $(READY)
	$(ACTIVATED) $(VENV)/bin/pre-commit run --all-files
	$(SNAKEMAKE) --lint
	$(VENV)/bin/python -m deop.tools.revisions

revisions: $(READY)
	$(VENV)/bin/python -m deop.tools.revisions

format: $(READY)
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/snakefmt .

# The folder of a system that the package brings: its CLIP is bundled, so it is referred to and not copied.
BUNDLED_SYSTEM ?= es171/deop
bundled: $(READY)
	$(VENV)/bin/python -m deop.tools.bundle $(BUNDLED_SYSTEM) deop-mini

schemas: $(READY)
	$(VENV)/bin/python -m deop.tools.schemas
	$(VENV)/bin/python -m deop.tools.settings_reference

# The theme announces its successor on every run.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

pictures: $(READY)
	$(VENV)/bin/python -m deop.tools.paper_pictures

rule-graph: $(READY)
	$(ACTIVATED) $(VENV)/bin/python -m deop.tools.rule_graph

# On temporary links to a few small pictures, below TMPDIR.
scale: $(READY)
	$(VENV)/bin/python -m deop.tools.scale 10000 100000 1000000

report: results/report.html

# No rule makes the report: Snakemake writes it from existing results and its records of how they were made. Neither
# writing nor reading it needs a network.
results/report.html: $(READY) FORCE
	$(SNAKEMAKE)
	$(SNAKEMAKE) --report $@ --report-stylesheet workflow/report/style.css

# Before the run, so that hours are not spent on what is refused, and after it.
OF_ONE_COMMIT := $(VENV)/bin/python -m deop.tools.published --check '$(SEEDS)'

publish: $(READY)
	@changes="$$(git status --porcelain)" || exit; \
	if [ -n "$$changes" ]; then \
	    echo "error: published tables name the commit that made them, but there are uncommitted changes:" >&2; \
	    echo "$$changes" >&2; \
	    echo "Commit or remove them first." >&2; \
	    exit 1; \
	fi
	files="$$($(VENV)/bin/python -m deop.tools.published)" && \
	    $(OF_ONE_COMMIT) && \
	    $(SNAKEMAKE) $$files --config 'seeds=$(SEEDS)' && \
	    $(OF_ONE_COMMIT) && \
	    mkdir -p $(PUBLISHED_DIR) && \
	    cp $$files $(PUBLISHED_DIR)/

FORCE:
