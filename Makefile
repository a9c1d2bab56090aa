# Each goal makes its own virtual environment from nothing and is quick the second time.
#   make demo    ten institutions, two liars, 20,190 real records      make lint    ruff, mypy --strict, import-linter
#   make test    the tests                                             make prove   the tests at full counts, and a dated JSON
#   make bench   the benchmarks                                        make compat  our apps on the newest Flower; fails nothing
# On Linux, PyTorch's default wheel brings several GB of CUDA. To take the CPU wheel (0.2 GB) instead, put the address of
# PyTorch's CPU wheel index into TORCH_INDEX:   make demo TORCH_INDEX=...

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
OUT ?= runs/demo

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# setuptools warns of folders named like the package: here they are the package (CONTRIBUTING.md, import names)
INSTALL := PYTHONWARNINGS=ignore $(PIP) install --quiet --constraint constraints.txt
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: demo test lint prove bench compat clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	rm -rf $(OUT)
	$(BIN)/causaldao simulate rand-hie --members 10 --liars 2 --attack forge --out $(OUT)
	$(BIN)/causaldao ledger verify $(OUT)/ledger.bundle --policy $(OUT)/policy
	$(BIN)/causaldao audit $(OUT)/ledger.bundle --policy $(OUT)/policy
	@echo "Open $(OUT)/report.html"

test: $(VENV)/.dev
	$(BIN)/pytest --numprocesses auto --dist loadscope --no-loadscope-reorder --cov --cov-report=term:skip-covered

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

prove: $(VENV)/.dev
	$(BIN)/python -m tests.prove

bench: $(VENV)/.dev
	$(BIN)/causaldao bench engine --json
	$(BIN)/causaldao bench demo --json

# What it finds is news, not a fault: the release that is pinned is the one that is supported. So it always ends well.
# First what is pinned, then the newest Flower over it, whose own demands win: pip lists them as conflicts with ours.
COMPAT := .venv-compat
COMPAT_INSTALL := PYTHONWARNINGS=ignore $(COMPAT)/bin/python -m pip --disable-pip-version-check install --quiet
compat:
	@{ test -x $(COMPAT)/bin/python || $(PYTHON) -m venv $(COMPAT); } \
	&& $(COMPAT_INSTALL) --upgrade "pip>=24" \
	&& $(COMPAT_INSTALL) --constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch \
	&& $(COMPAT_INSTALL) --constraint constraints.txt --editable . \
	&& $(COMPAT_INSTALL) --upgrade flwr \
	&& $(COMPAT)/bin/python -m tests.compat --pinned $(BIN)/python \
	|| echo "compat: not the same answer, or none. This goal tells of Flower's future and fails nothing; see docs/adr/0017-flower-version.md."

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage

$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python {v[0]}.{v[1]} is not supported: set PYTHON to 3.11, 3.12 or 3.13, as in make demo PYTHON=python3.12")'
	@echo "Setting up $(VENV): downloads about 0.4 GB, of which PyTorch's CPU wheel is 0.2 GB (see TORCH_INDEX in the Makefile), and takes 2 GB of disk."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet --upgrade "pip>=24"
	@$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@touch $@

$(VENV)/.demo: $(VENV)/.base
	@$(INSTALL) --editable ".[demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "Adding the tools of the tests: about 0.1 GB more."
	@$(INSTALL) --editable ".[demo,dev]"
	@$(INSTALL) --no-deps byzfl==0.0.11  # an oracle of the tests; what else it asks for is not used, and does not fit
	@touch $@ $(VENV)/.demo
