# A new machine needs Python 3.11 or later, make and a package index; nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --no-deps --require-hashes
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header
UPGRADE ?= --upgrade
# A second environment, with transformers 4.x and all other packages of the first.
TRANSFORMERS4 := .venv-transformers4

.PHONY: quickstart test coverage check docs lock clean

quickstart: $(VENV)/quickstart.done
	$(BIN)/deit quickstart

# One process per core, with one thread each, so that they do not compete for the cores. After a crash, xdist may wait for ever.
# The files keep their order, so that the long tests of e2e come first: one of them that starts last would run alone.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test: check $(TRANSFORMERS4)/test.done
	$(TESTS)

# By itself, since unit tests take a third longer by it.
coverage: check $(TRANSFORMERS4)/test.done
	$(TESTS) --cov --cov-report=term

check: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_imports.py

# A warning is an error. Every page is read again, because a warning appears only when its page is read.
docs: $(VENV)/test.done
	$(BIN)/sphinx-build -q -W --keep-going -E -j auto docs docs/_build/html
	$(BIN)/python -m pytest -q tests/unit/test_docs.py
	@echo "Open docs/_build/html/index.html"

# The stamp files record what is installed: `make test` after `make quickstart` only adds what is missing.
$(VENV)/pip.done:
	$(PYTHON) -c 'import sys; sys.exit("deit needs Python 3.11 or later: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/%.done: requirements/%.txt pyproject.toml | $(VENV)/pip.done
	@echo "Installing requirements/$*.txt into $(VENV): some 6 GB the first time."
	$(INSTALL) -r requirements/$*.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(TRANSFORMERS4)/test.done: requirements/transformers4.txt $(VENV)/test.done
	$(BIN)/python -m venv --clear --without-pip $(TRANSFORMERS4)
	$(BIN)/python -m pip --python $(TRANSFORMERS4)/bin/python install --quiet --no-compile --no-deps --require-hashes -r $<
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	    "$$($(TRANSFORMERS4)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/others.pth"
	touch $@

# Renews the pins: test.txt holds everything, quickstart.txt the subset that running needs, serve.txt that of the container.
# `make lock UPGRADE=` keeps the present pins and only adds what is missing.
lock: | $(VENV)/pip.done
	$(PIP) install --quiet uv
	$(COMPILE) $(UPGRADE) --extra report --extra test --extra docs --extra dev pyproject.toml -o requirements/test.txt
	$(COMPILE) --extra report --extra serve --constraint requirements/test.txt pyproject.toml -o requirements/quickstart.txt
	$(COMPILE) --extra serve --extra inference --constraint requirements/test.txt pyproject.toml -o requirements/serve.txt
	$(COMPILE) $(UPGRADE) --no-deps requirements/transformers4.in -o requirements/transformers4.txt

clean:
	rm -rf $(VENV) $(TRANSFORMERS4) docs/_build docs/api/generated
