# Two commands: `make demo` and `make test`. Each makes its own environment.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
PY := $(VENV)/bin/python
OUT ?= out/demo

.PHONY: demo test install lint clean docs

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Flyball needs Python 3.11 or newer; set PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	$(VENV)/bin/flyball demo --out $(OUT)

test: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m pytest

docs: $(STAMP)
	$(PY) -m flyball.experiments.reference docs
	$(PY) -m flyball.experiments.env_pages docs/envs --picture
	$(PY) -m flyball.experiments.scenario_pages docs/scenarios

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean:
	rm -rf $(VENV) build dist src/*.egg-info out
