# Everything runs in .venv, which is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXAMPLES := docs/examples/github
# What the commands need that only read results or comments.
TOOLS := click filelock githubkit hishel httpx Jinja2 junitparser markdown-it-py msgspec rich

.PHONY: run test test-all lint workflows wheel install tools clean

run: install ## check the tiny Qwen3-VL on the CPU
	$(BIN)/vlm-ci run --target qwen3-vl-tiny --recipe decoder-layers --backend eager

test: install ## the tests of every change, on two cores, in about 15 minutes
	$(BIN)/python -m pytest suites/selftest -n 2 --dist worksteal -m "not nightly"

test-all: install ## all tests, also the nightly ones: more recipes, backends and repaired twins
	$(BIN)/python -m pytest suites/selftest -n 2 --dist worksteal

lint: install ## what pre-commit runs, and types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy .github/scripts
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory workflows

workflows: install ## the workflows and actions: security, schemas, and the shell of every step
	$(BIN)/zizmor --offline --quiet --no-progress --persona auditor --strict-collection .github $(EXAMPLES)/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml $(EXAMPLES)/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-actions .github/actions/*/action.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/python .github/scripts/shell_steps.py .github .ci/run $(EXAMPLES)

wheel: install ## dist/vlm_ci-VERSION-py3-none-any.whl, for other projects
	$(BIN)/python -m build --wheel --no-isolation -o dist

install: $(STAMP)

tools: $(VENV)/.tools ## vlm_ci without torch: enough for junit, report and bot

# torch by itself first: the version that constraints.txt pins has a CPU build, and nothing else
# may pull in another one.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

# Where everything is installed, the tools are too.
$(VENV)/.tools: pyproject.toml constraints.txt
	test -e $(STAMP) || $(PYTHON) -m venv $(VENV)
	test -e $(STAMP) || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TOOLS)
	test -e $(STAMP) || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps .
	touch $@

clean:
	rm -rf $(VENV) vlm-ci-out
