# make demo | test | lint | types | format | clean: each sets up what it needs in $(VENV).
VENV ?= .venv
BIN := $(VENV)/bin
EVERYTHING := $(VENV)/.has-train,notebooks,aot-cuda,test,dev

.PHONY: demo test lint types format clean

demo: $(VENV)/.has-train
	$(BIN)/python -m models.gpt3.demo

test: $(EVERYTHING) $(VENV)/.has-browser
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: $(EVERYTHING)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo

types: $(EVERYTHING)
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(EVERYTHING)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv* build *.egg-info

# For the tests of pages, which are skipped where neither this one nor another browser is found.
$(VENV)/.has-browser: .ci/browser $(EVERYTHING)
	.ci/browser $(BIN)/python $(VENV)/browser || echo 'No browser: tests of pages may be skipped.'
	touch '$@'

# After ".has-" come the extras. Installed again only when the settings have changed.
$(VENV)/.has-%: setup.cfg pyproject.toml
	test -x $(BIN)/python || "$${PYTHON:-$$(.ci/python 3.11 3.12 3.13 3)}" -m venv $(VENV)
	@echo 'Installing .[$*] into $(VENV), about a minute.'
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch '$@'
