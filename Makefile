# Everything that is done to this repository, by people and by CI. All of it stays in this directory: the
# environment, the tools and their caches live in .venv, and `make clean` leaves nothing behind.

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
LOCK_ARGS ?=

BIN := .venv/bin
DISTRIBUTIONS := worker plugins/sagemaker
PROJECTS := $(DISTRIBUTIONS:%=%/pyproject.toml)

# The scripts in a virtual environment name its directory and its interpreter, so a copied or renamed checkout gets an
# environment of its own. The other stamps lie in .venv, too: they go when it is made anew.
ENVIRONMENT := .venv/made-$(shell echo "$(CURDIR) $(PYTHON)" | cksum | cut -d' ' -f1)
RUNTIME := .venv/runtime
DEV := .venv/dev

# uv trusts what the machine trusts, as pip does. It reads no pip.conf, so it is told of the mirror that pip uses.
export UV_SYSTEM_CERTS ?= true
export UV_CACHE_DIR ?= $(CURDIR)/.venv/cache/uv
UV = UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(BIN)/pip config get global.index-url 2>/dev/null)}}" $(BIN)/uv
INSTALL = $(UV) pip install --quiet --python $(BIN)/python --no-build-isolation
LOCK = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	--no-header --no-emit-package remora $(LOCK_ARGS)

# Tools that would look for news or keep files elsewhere.
export BUF_CACHE_DIR ?= $(CURDIR)/.venv/cache/buf
export PYRIGHT_PYTHON_IGNORE_WARNINGS ?= 1
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV

.DELETE_ON_ERROR:
.PHONY: help setup demo test check bench proto lock clean

help: ## list the targets (this)
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r name text; do \
		printf '%-12s  %s\n' "$$name" "$$text"; done

setup: $(DEV) ## install everything into .venv; the other targets do it by themselves
	@echo 'Installed in .venv; try .venv/bin/remora --help'

demo: $(RUNTIME) ## run a workflow on a simulated SageMaker: scheduler, worker and simulator on this machine
	@$(BIN)/remora demo

test: $(DEV) ## run the tests; PYTEST_ARGS='-k journal -x' chooses
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(DEV) ## run the linters, formatters and type checkers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo
	$(BIN)/buf lint
	$(BIN)/buf format --exit-code --diff

bench: $(DEV) ## measure; the figures and what they mean are printed
	$(BIN)/python tests/bench $(BENCH_ARGS)

proto: $(DEV) ## generate the Python code of proto/
	$(BIN)/python -m grpc_tools.protoc --proto_path=proto \
		--plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
		--python_out=worker --grpc_python_out=worker --mypy_out=worker --mypy_grpc_out=worker \
		proto/remora/v1/*.proto

lock: $(ENVIRONMENT) ## pin the dependencies after a change of them; LOCK_ARGS=--upgrade takes the newest of all
	@$(LOCK) requirements/build.in --output-file requirements/build.txt
	@$(LOCK) $(PROJECTS) --extra simulator --output-file requirements/runtime.txt
	@$(LOCK) requirements/dev.in $(PROJECTS) --extra simulator --constraint requirements/runtime.txt \
		--output-file requirements/dev.txt

clean: ## remove the environment and everything that was generated, except what is committed
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(ENVIRONMENT):
	@command -v "$(PYTHON)" >/dev/null || { echo "Remora needs Python 3.11 or newer; '$(PYTHON)' was not found. \
	Install it, or name it: make PYTHON=/path/to/python3"; exit 1; } >&2
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Remora needs Python 3.11 or newer; \
	'$(PYTHON)' is $$("$(PYTHON)" -V 2>&1). Name a newer one: make PYTHON=python3.11"; exit 1; } >&2
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "'$(PYTHON)' cannot make virtual environments. \
	On Debian and Ubuntu: apt install python3-venv"; exit 1; } >&2
	@echo "Making .venv with $$("$(PYTHON)" -V)"
	@"$(PYTHON)" -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-cache-dir --require-hashes \
		-r requirements/build.txt
	@touch $@

$(RUNTIME): $(ENVIRONMENT) requirements/build.txt requirements/runtime.txt $(PROJECTS)
	@echo "Installing what Remora needs to run (requirements/runtime.txt)"
	@$(INSTALL) --require-hashes -r requirements/build.txt -r requirements/runtime.txt
	@$(INSTALL) --no-deps $(DISTRIBUTIONS:%=--editable %)
	@sync # on a slow disk, what was installed would hold up what is made durable next, for a minute
	@touch $@

$(DEV): $(RUNTIME) requirements/dev.txt tests/example_plugin/pyproject.toml
	@echo "Installing what its tests and checks need (requirements/dev.txt)"
	@$(INSTALL) --require-hashes -r requirements/dev.txt
	@$(INSTALL) --no-deps --editable tests/example_plugin
	@sync
	@touch $@
