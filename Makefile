# Everything here needs Python with venv, gcc and make; what else is needed comes by pip into .venv/.
#
#   make test PYTHON=python3.13 PYTEST_ARGS='-k spawn -x'

PYTHON ?= python3
PYTEST_ARGS ?=
TESTS ?= .
DEMO_ARGS ?=
CONFORMANCE_ARGS ?=
comma := ,
SWITCHES = MPROC_EXT_DEBUG MPROC_EXT_SANITIZE MPROC_EXT_COVERAGE MPROC_EXT_WERROR MPROC_EXT_PURE \
	MPROC_EXT_KILL_POINTS

# One set of venvs for each Python: 3.11, 3.13t ...
TAG := $(shell $(PYTHON) -c 'import sys, sysconfig; \
	print(sysconfig.get_python_version() + getattr(sys, "abiflags", ""))')
ifeq ($(TAG),)
$(error $(PYTHON) does not run: choose one with PYTHON=)
endif
VENVS := $(CURDIR)/.venv
DEMO := $(VENVS)/$(TAG)-demo
TEST := $(VENVS)/$(TAG)-test
LINT := $(VENVS)/$(TAG)-lint

C_SOURCES := $(wildcard src/*/*.[ch] tests/c/*.[ch] tests/c/*/*.[ch])
SOURCES := pyproject.toml setup.py _mproc_ext_alias.py $(wildcard src/*/*.[ch] \
	mproc_ext/*.py mproc_ext/*.pyi mproc_ext/*/*.py mproc_ext/*/*.pyi mproc_ext/py.typed)

.NOTPARALLEL:
.PHONY: help demo test c-tests pytest demo-venv test-venv conformance lint format sdist wheel clean
.DELETE_ON_ERROR:

help: ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

demo: $(DEMO)/.installed ## run a real job on the stdlib and on mproc_ext, and compare
	cd examples && $(DEMO)/bin/python index_stdlib.py $(DEMO_ARGS)

demo-venv: $(DEMO)/.installed # what `demo` runs in

test: c-tests pytest ## the whole suite: the core's C tests, then pytest

c-tests: ## the core's C tests alone
	$(MAKE) -C tests/c check

# From tests/, so that a test's child never imports the unbuilt package from its current folder.
pytest: $(TEST)/.installed ## the Python tests alone; TESTS='unit contract' for some folders
	cd tests && $(TEST)/bin/pytest $(PYTEST_ARGS) $(TESTS)

test-venv: $(TEST)/.installed # what `pytest` runs in

conformance: $(TEST)/.installed ## CPython's own multiprocessing tests against the package
	$(TEST)/bin/python tests/conformance/run.py $(CONFORMANCE_ARGS)

lint: $(LINT)/.installed ## ruff, clang-format and mypy
	$(LINT)/bin/ruff check .
	$(LINT)/bin/ruff format --check .
	clang-format --dry-run -Werror $(C_SOURCES)
	$(LINT)/bin/mypy

format: $(LINT)/.installed ## let ruff and clang-format rewrite the sources
	$(LINT)/bin/ruff check --fix .
	$(LINT)/bin/ruff format .
	clang-format -i $(C_SOURCES)

sdist: $(LINT)/.installed ## the source distribution, in dist/
	$(LINT)/bin/python -m build --sdist

wheel: $(LINT)/.installed ## a wheel for this Python, built from the sdist, in dist/
	$(LINT)/bin/python -m build

clean: ## remove all that was made
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find mproc_ext tests examples -name __pycache__ -prune -exec rm -rf {} +
	find mproc_ext -name '*.so' -delete
	if [ -f tests/c/Makefile ]; then $(MAKE) -C tests/c clean; fi

# The package is installed again where a source or a build switch has changed since the last time.
$(DEMO)/.installed: WANTED = .
# For a free-threaded Python mypy has no wheels.
$(TEST)/.installed: WANTED = .[$(if $(filter %t,$(TAG)),test,test$(comma)typing)]
$(LINT)/.installed: WANTED = .[dev]
$(TEST)/%: export MPROC_EXT_WERROR ?= 1

$(VENVS)/%/.installed: $(VENVS)/%/.switches $(SOURCES)
	test -x $(@D)/bin/pip || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check '$(WANTED)'
	@touch $@

# Holds the switches; written only where they differ.
$(VENVS)/%/.switches: FORCE
	@mkdir -p $(@D)
	@echo '$(foreach switch,$(SWITCHES),$(switch)=$($(switch)))' > $@.now
	@cmp -s $@.now $@ || cp $@.now $@
	@rm $@.now

FORCE:
.PRECIOUS: $(VENVS)/%/.switches
