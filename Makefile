# Two doors: `make results/table3.csv` and `make test`. Both set up .venv by themselves. `make help` lists the rest.

SHELL := bash
MAKEFLAGS += --no-builtin-rules

# Interpreters tried in this order; name another with `make PYTHON=/path/to/python ...`.
PYTHON ?= python3.11 python3.12 python3.13 python3

# Processes that run the tests side by side; each takes up to about 3 GB.
TEST_WORKERS ?= 2

VENV := .venv
LOCKED := $(VENV)/.locked
READY := $(VENV)/.ready

# The workflow's rules call `deop`, the tests call ruff and snakefmt: all of them by name.
ACTIVATED := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
SNAKEMAKE := $(ACTIVATED) $(VENV)/bin/snakemake

TABLES := table1 table2 table3 table4 table5 table6 tableS1 tableS3 claims
BENCHMARKS := speed scaling
FIGURES := components severance severance_depth anchor_decoder cross_dataset speed_accuracy speed per_class_iou confusion \
    scene figure5
PUBLISHED := $(foreach suffix,csv md tex,$(TABLES:%=results/%.$(suffix))) \
    $(foreach suffix,csv md,$(BENCHMARKS:%=results/%.$(suffix))) $(FIGURES:%=results/figures/%.png)
PUBLISHED_DIR := docs/results/mini
SEEDS := [0,1,2]

.PHONY: help $(VENV) test lint format revisions report publish FORCE

help:
	@echo "make results/table3.csv   set up .venv, make this file (any other under results/ too) on the mini profile"
	@echo "make test                 set up .venv, run all tests"
	@echo "make lint                 ruff, snakefmt, snakemake --lint and make revisions"
	@echo "make format               format Python files and Snakefiles in place"
	@echo "make revisions            check that changed stages have new revisions (src/deop/jobs/revisions.py)"
	@echo "make report               results/report.html: all tables and figures, run times and provenance in one page"
	@echo "make publish              make all of it with three seeds, copy it to $(PUBLISHED_DIR) (refuses a dirty git tree)"
	@echo "make .venv                set up .venv alone"

# Python 3.11.4 brought the filters of tarfile, with which archives are unpacked safely (see pyproject.toml).
# A stamp is written last: an installation that was killed has none, and starts again from an empty folder.
$(LOCKED): requirements.lock
	@rm -rf $(VENV); \
	for python in $(PYTHON); do \
	    if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11, 4))' 2>/dev/null; then \
	        echo "Setting up $(VENV) with $$("$$python" --version) from $< (some minutes, some GB)"; \
	        "$$python" -m venv $(VENV) \
	            && $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $< \
	            && touch $@; \
	        exit; \
	    fi; \
	done; \
	echo "error: deop needs Python 3.11.4 or newer with the venv module, and none of these is one: $(PYTHON)." >&2; \
	echo "Install one (on Debian and Ubuntu: apt install python3 python3-venv), or name one: make PYTHON=/path/to/python" >&2; \
	exit 1

# The build tool comes from the lock too, hence no isolated build environment.
$(READY): $(LOCKED) pyproject.toml
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e . && touch $@

$(VENV): $(READY)

# Always ask Snakemake: it alone knows whether a result is up to date.
results/%: $(READY) FORCE
	$(SNAKEMAKE) $@

test: $(READY)
	$(ACTIVATED) $(VENV)/bin/python -m pytest -n $(TEST_WORKERS) --dist loadfile

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

report: results/report.html

# Not a rule's output: Snakemake writes it from what is there and from its records of how that was made. It needs no
# network, and nor does who reads it.
results/report.html: $(READY) FORCE
	$(SNAKEMAKE)
	$(SNAKEMAKE) --report $@ --report-stylesheet workflow/report/style.css

publish: $(READY)
	@changes="$$(git status --porcelain)" || exit; \
	if [ -n "$$changes" ]; then \
	    echo "error: published tables name the commit that made them, but this tree has uncommitted changes:" >&2; \
	    echo "$$changes" >&2; \
	    echo "Commit or remove them first." >&2; \
	    exit 1; \
	fi
	$(SNAKEMAKE) $(PUBLISHED) --config 'seeds=$(SEEDS)'
	mkdir -p $(PUBLISHED_DIR)
	cp $(PUBLISHED) $(PUBLISHED_DIR)/

FORCE:
