# Two commands do everything on a fresh machine with Python 3.11 or later: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
DEMO ?= demo

.PHONY: demo test lint docs clean

demo: $(VENV)/.installed
	$(BIN)/demilune train digits-standard --out $(DEMO)/standard --resume
	$(BIN)/demilune doctor $(DEMO)/standard --limit 500
	$(BIN)/demilune train digits-sat --out $(DEMO)/sat --resume
	$(BIN)/demilune doctor $(DEMO)/sat --limit 500
	$(BIN)/demilune train digits-rat --out $(DEMO)/rat --resume
	$(BIN)/demilune doctor $(DEMO)/rat --limit 500
	$(BIN)/demilune curves $(DEMO)/rat --only iterations,budgets
	$(BIN)/demilune report $(DEMO)/standard $(DEMO)/sat $(DEMO)/rat --out $(DEMO)/report
	@echo "open $(DEMO)/report/index.html"

test: $(VENV)/.installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open site/index.html; to search in it: $(BIN)/python -m http.server -d site"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e ".[dev]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) $(DEMO) build dist site
