# Two commands do everything: `make demo` and `make test`. Each target installs what it needs, once, into .venv.

VENV := .venv
BIN := $(VENV)/bin
# Notebooks run on one thread: sums then come in the same order wherever they are run again and compared. Tests run
# on the other core meanwhile.
ONE_THREAD := exec env OMP_NUM_THREADS=1
INSTALLED := $(VENV)/.installed

# The first Python that runs, is of a tested version, and can make an environment. PYTHON=... chooses another.
CHECK := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3 python; do \
	if $$python -c '$(CHECK)' >/dev/null 2>&1; then echo $$python; break; fi; done)

.PHONY: help demo test tests lessons lint lab notebooks gallery weights install

help: ## say what there is to make (this)
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | \
		while IFS='	' read -r target text; do printf 'make %-10s %s\n' "$$target" "$$text"; done

demo: $(INSTALLED) ## portraits of the people in data/faces -> outputs/portraits.png, and how alike they are
	$(BIN)/python -m uniportrait_lite demo

test: lint ## style, tests, and the notebooks run again and compared with what they show, both at once
	@echo "The notebooks run beside the tests; what they say follows, and stands in runs/lessons.log."
	@mkdir -p runs; $(MAKE) --no-print-directory lessons >runs/lessons.log 2>&1 & lessons=$$!; \
	trap 'kill $$lessons 2>/dev/null; exit 130' INT TERM; \
	$(MAKE) --no-print-directory tests; tests=$$?; wait $$lessons; lessons=$$?; \
	cat runs/lessons.log; exit $$((tests | lessons))

tests: $(INSTALLED) ## the tests alone
	$(ONE_THREAD) $(BIN)/python -m pytest -q tests

lessons: $(INSTALLED) ## the notebooks alone, run again and compared with what they show
	$(ONE_THREAD) $(BIN)/python -m pytest -q --nbval --nbval-current-env notebooks

lint: $(INSTALLED) ## style alone
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

lab: $(INSTALLED) ## JupyterLab on the notebooks
	$(BIN)/python -m jupyter lab notebooks

notebooks: $(INSTALLED) ## make the notebooks from notebooks/src, run them, keep what they show
	$(ONE_THREAD) $(BIN)/python -m uniportrait_lite.learn.notebooks build

gallery: $(INSTALLED) ## draw the pictures of docs/gallery.md again
	$(BIN)/python -m uniportrait_lite gallery --out docs

weights: $(INSTALLED) ## train every network of data/tiny again (HOURS=8; may be stopped and started again)
	$(BIN)/python -m uniportrait_lite weights $(if $(HOURS),--hours $(HOURS))

install: $(INSTALLED) ## the environment alone

$(INSTALLED): pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		if ! $(PYTHON) -c '$(CHECK)' >/dev/null 2>&1; then \
			echo "No usable Python 3.11, 3.12 or 3.13 with venv was found$(if $(PYTHON), (tried $(PYTHON)))." >&2; \
			echo "Install one (Debian, Ubuntu: python3 and python3-venv), or name it: make PYTHON=/path/to/python" >&2; \
			exit 1; fi; \
		echo "Making $(VENV) with $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv --clear $(VENV) || exit 1; fi
	@# A pip older than 23.2 downloads whole packages (PyTorch: 500 MB) only to read what they require.
	$(BIN)/python -m pip install --upgrade "pip>=25.1"
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	@$(BIN)/python -c 'import skia, cv2' || { \
		echo "Drawing and face detection need system libraries: sudo apt-get install libgl1 libegl1 libglib2.0-0" >&2; \
		exit 1; }
	@touch $@
