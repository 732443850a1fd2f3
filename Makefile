# `make demo` runs the main job, `make test` the tests. Both create .venv and install what they need first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
JOBS   ?= 2

.PHONY: demo test prove lint format bench page docs notebooks workflows clean
.DEFAULT_GOAL := demo

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "peg-rag needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[all]" --group dev
	@touch $@

demo: $(READY)
	@$(BIN)/peg-rag demo

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

prove: $(READY)
	$(BIN)/python -m pytest -m "slow and not gpu" --timeout 3600

lint: $(READY) workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python benchmarks/embed.py

# The documentation site, in build/site; a broken link fails. Needs the dependency group `docs`.
docs: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt --group docs
	$(BIN)/python docs/site/stage.py build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/site/index.html"

# Runs the example notebooks and keeps their results.
notebooks: $(READY)
	$(BIN)/python docs/site/run_notebooks.py

# Form, then security of .github.
workflows: $(READY)
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/zizmor --offline .github

# The question-answering page: web/ → peg_rag/serving/web/dist, which is committed.
page:
	npm ci --prefix web --no-audit --no-fund
	npm run build --prefix web

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
