# Everything runs in .venv, which is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test test-all lint wheel install clean

run: install ## check the tiny Qwen3-VL on the CPU
	$(BIN)/vlm-ci run --target qwen3-vl-tiny --recipe decoder-layers --backend eager

test: install ## the tests of every change, on two cores, in about ten minutes
	$(BIN)/python -m pytest suites/selftest -n 2 --dist worksteal -m "not nightly"

test-all: install ## all tests, also the nightly ones: more recipes, backends and repaired twins
	$(BIN)/python -m pytest suites/selftest -n 2 --dist worksteal

lint: install ## what pre-commit runs, and types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel: install ## dist/vlm_ci-VERSION-py3-none-any.whl, for other projects
	$(BIN)/python -m build --wheel --no-isolation -o dist

install: $(STAMP)

# torch by itself first: the version that constraints.txt pins has a CPU build, and nothing else
# may pull in another one.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) vlm-ci-out
