# Needs nothing but Python with venv and pip. Everything else goes into .venv.
#
#   make demo       fetches a network and a photograph, compiles, and draws what it finds; installs what running takes
#   make install    .venv with dnc, editable, and what developing it needs
#   make test       the tests that are quick; -m slow and -m network are left out
#   make check      ruff, its form, and mypy
#   make format     ruff's form, written
#   make coverage   the quick tests, and which lines they ran
#   make docs       the documentation site, build/docs/index.html
#   make fuzz       files that are broken in every way, SECONDS=60 of each kind; SEED=N repeats a run
#   make soak       engines opened, run and closed, SECONDS=60 of it, while nothing piles up
#   make hooks      `make check` before each commit, by pre-commit
#   make release    VERSION=1.2.3: changelog, commit, tag, and dist/ with its SHA256SUMS; DRY_RUN=1 keeps the repository as it is
#   make ci         what must pass before anything lands: about 40 minutes
#   make help       this list
#   make clean      removes all of it
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Hundreds of processes of the tests would compile dnc's modules again, each for itself.
unexport PYTHONDONTWRITEBYTECODE

SECONDS := 60

.PHONY: demo test check format coverage docs fuzz soak hooks release ci help install clean

demo: $(VENV)/.running
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto --dist worksteal

check: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python .ci/check_types.py

format: $(VENV)/.installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

coverage: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report term --cov-report html:build/coverage

docs: $(VENV)/.docs
	@echo 'Making the pages, which takes a minute or two'
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "The documentation: $(CURDIR)/build/docs/index.html"

fuzz: $(VENV)/.installed
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

soak: $(VENV)/.installed
	$(BIN)/python -m tests.fuzz.soak --seconds $(SECONDS)

hooks: $(VENV)/.installed
	$(BIN)/pre-commit install

release: $(VENV)/.release
	$(BIN)/python -m tools.release $(VERSION) $(if $(DRY_RUN),--dry-run)

ci:
	.ci/run

install: $(VENV)/.installed

define into_venv
	@echo "Installing dnc[$(1)] into $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit("dnc needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[$(1)]"
endef

# What runs the demo; what developing takes, which is twice as much and has all of that. They go into one environment,
# so never at the same time.
.NOTPARALLEL:

$(VENV)/.running: pyproject.toml setup.py
	$(call into_venv,onnx)
	touch $@

$(VENV)/.installed: pyproject.toml setup.py
	$(call into_venv,dev)
	touch $@ $(VENV)/.running

# Apart from .installed: the site takes none of what developing does.
$(VENV)/.docs: pyproject.toml setup.py
	$(call into_venv,docs)
	touch $@

$(VENV)/.release: pyproject.toml setup.py
	$(call into_venv,release)
	touch $@

help:
	@sed -n 's/^#   //p' Makefile

clean:
	rm -rf $(VENV) build demo dist *.egg-info
