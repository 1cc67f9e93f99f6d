# vosforge: two commands from a bare checkout. Each makes .venv and installs the pinned versions of pyproject.toml first.
#
#   make demo       shard -> check -> train -> segment -> evaluate on made-up video, at most five minutes on two cores
#   make test       ruff, mypy, pytest;  PYTEST="-k loader" passes words on to pytest
#   make install    .venv alone
#   make clean      removes .venv and what the demo and the tests have left
#
#   DALI=cuda110|cuda120|cuda130 chooses the DALI wheel; by default the driver's CUDA version decides
#   PYTHON=python3.12 chooses the Python that makes .venv

PYTHON ?= python3
VENV ?= .venv
DALI ?= $(shell PYTHON=$(PYTHON) sh tools/choose_dali.sh)
PIP = $(VENV)/bin/python -m pip --quiet --disable-pip-version-check
BIN = $(VENV)/bin
IMGAUG = imgaug==0.4.0
INSTALLED = $(VENV)/installed-$(DALI)

.PHONY: help demo test lint install clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

demo: install
	$(BIN)/python tools/demo.py

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal $(PYTEST)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(INSTALLED)

# The stamp names the DALI wheel: asking for another one swaps it, since two of them overwrite each other's files.
$(INSTALLED): pyproject.toml
	@case "$(DALI)" in cuda110|cuda120|cuda130) ;; *) echo "DALI=$(DALI): expected cuda110, cuda120 or cuda130" >&2; exit 2;; esac
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON): not found; vosforge needs Python 3.11 or later, set PYTHON=" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"vosforge needs Python 3.11 or later, $(PYTHON) is {sys.version.split()[0]}; set PYTHON=")'
	@$(PYTHON) -c 'import sys; sys.exit("$(DALI)" == "cuda110" and sys.version_info >= (3, 13) and "DALI=cuda110 is for Python below 3.13; set DALI=cuda130, or PYTHON=")'
	@# A Debian without python3-venv leaves a .venv without pip behind.
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	-$(PIP) uninstall --yes nvidia-dali-cuda110 nvidia-dali-cuda120 nvidia-dali-cuda130 2>/dev/null
	$(PIP) install --editable '.[dev,$(DALI)]'
	$(PIP) install --no-deps $(IMGAUG)
	rm -f $(VENV)/installed-*
	touch $@

clean:
	rm -rf $(VENV) demo_output .mypy_cache .ruff_cache .pytest_cache
