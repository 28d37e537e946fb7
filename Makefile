# make demo and make test do all the set-up on a fresh machine; make help lists the rest.
# Tests run in JOBS processes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CARD := .venv-card
# A process of tests that crashes ends the run: xdist waits for ever for the tests of its group otherwise.
PYTEST = $(BIN)/pytest -q -n $(JOBS) --dist loadgroup --max-worker-restart 0
JOBS ?= 2
# The tools of the tests that need no torch; of the extra dev without what takes long to install.
LIGHT := pytest pytest-timeout pytest-xdist hypothesis SimpleITK 'moto[server]' tensorstore blosc2 pynrrd dcm2niix dcmqi
PYTHONS ?= python3.12 python3.13
# onnxruntime and onnxruntime-gpu overwrite each other: one of the two, by whether an NVIDIA driver answers.
RUNTIME := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
DATA ?= ../shared/data/sts-tumour-ct
MINUTES ?= 15
ifeq ($(DATA),../shared/data/sts-tumour-ct)
LABELS ?= tumor=1
CONFIG ?= bench/sarcoma.toml
endif

.DEFAULT_GOAL := help
.PHONY: help demo nodules luna docs test soak quick coverage oldest card pythons real check lint types imports bench clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/installed ## the whole way on synthetic CTs, 12 minutes after installation on two cores with AVX2; STRICT=1 fails if a goal is missed; DEMO="--cases 12 --epochs 1" is short
	$(BIN)/slicemill demo --out demo $(if $(STRICT),--strict-goals) $(DEMO)

nodules: $(VENV)/installed ## from points to a FROC curve on synthetic chests with nodules, 8 minutes on two cores with AVX2
	$(BIN)/slicemill demo --lungs

luna: $(VENV)/installed ## the folds of LUNA16: make luna DATA=DIR OUT=luna FOLD_MINUTES=600; DRY=1 prints the commands and their time
	$(BIN)/slicemill bench luna $(DATA) $(if $(OUT),--out $(OUT)) $(if $(FOLD_MINUTES),--minutes $(FOLD_MINUTES)) $(if $(DRY),--dry-run)

docs: $(VENV)/developing ## the documentation as pages in build/docs, strict: a link that does not resolve fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "build/docs/index.html"

test: check tests/web/node_modules ## set up, then every check, and all tests but the slow ones
	$(PYTEST) -m "not slow"

soak: $(VENV)/developing ## the slow tests: kills, studies, fuzzing, installations
	$(PYTEST) -m slow

quick: lint ## for the inner loop, under 2 minutes: no types, no slow tests, no trained network
	$(PYTEST) -m "not slow and not trained" --ignore tests/train --ignore tests/bench

oldest: ## the tests of the ground floors and of ingest with the oldest versions that pyproject.toml allows, in .venv-oldest
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python tests/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-oldest/constraints.txt -e '.[ingest,cpu,s3,dicom]' \
		$(LIGHT)
	.venv-oldest/bin/pytest -q -n $(JOBS) --dist loadgroup -W default -m "not slow and not trained" \
		-k "not zarrs and not ome_zarr" tests/common tests/ct tests/store tests/ingest # they need a newer zarr

card: $(CARD)/installed ## the CUDA code without a GPU: onnxruntime-gpu on stand-ins for the CUDA libraries, in .venv-card
	@echo "dry card: stand-ins for the CUDA libraries, which compute nothing; no number here is of a GPU"
	@$(CARD)/bin/pytest -q -n $(JOBS) --dist loadgroup tests/card

pythons: ## the tests that need no torch with other Pythons: make pythons PYTHONS="python3.12 python3.13", in .venv-python3.12 and so on
	set -e; for python in $(PYTHONS); do \
		$$python -m venv .venv-$$python; \
		.venv-$$python/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ingest,cpu,s3,dicom]' \
			$(LIGHT) zarrs ngff-zarr ome-zarr-models; \
		.venv-$$python/bin/pytest -q -n $(JOBS) --dist loadgroup -m "not slow and not trained" \
			tests/common tests/ct tests/store tests/ingest tests/measure; \
	done

coverage: $(VENV)/developing ## every test, with coverage of lines and branches
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

real: $(VENV)/installed ## the whole way on a collection: make real DATA=DIR LABELS=tumor=1 MINUTES=15 CONFIG=TOML
	$(BIN)/slicemill demo --data $(DATA) $(if $(LABELS),--labels $(LABELS)) $(if $(CONFIG),--config $(CONFIG)) --out real --max-minutes $(MINUTES)

check: lint types imports ## style, types, layering

lint: $(VENV)/developing ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/developing ## mypy, strict
	$(BIN)/mypy

imports: $(VENV)/developing ## what may import what
	$(BIN)/lint-imports

bench: $(VENV)/installed ## every stage beside its limit and its peers, recorded in bench/results/runs
	$(BIN)/slicemill bench all --out bench/results/runs

clean: ## remove the environments, the built documentation and what demo, nodules and real made
	rm -rf $(VENV) $(CARD) .venv-oldest demo nodules real build *.egg-info .coverage*

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ingest,train,$(RUNTIME)]'
	touch $@

# The page's tests use axe-core and TypeScript, and are skipped by name without them.
tests/web/node_modules: tests/web/package.json
	@if command -v npm >/dev/null; then \
		npm install --prefix tests/web --silent --no-audit --no-fund --no-package-lock && touch $@ \
			|| echo "npm cannot install axe-core and typescript; their tests are skipped"; \
	fi

$(VENV)/developing: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ingest,train,$(RUNTIME),dicom,web,dev,docs]'
	touch $@

$(CARD)/installed: pyproject.toml constraints.txt
	test -x $(CARD)/bin/python || $(PYTHON) -m venv $(CARD)
	$(CARD)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ingest,train]' onnxruntime-gpu \
		pytest pytest-timeout pytest-xdist hypothesis
	touch $@
