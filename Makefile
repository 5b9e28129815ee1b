PYTHON ?= python3
BIN := .venv/bin

.PHONY: install test lint demo clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

test: install
	$(BIN)/python -m pytest -q

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Teaches the bundled model one prompt, then draws it before and after into one picture.
demo: RUN := demo-$(shell date +%Y%m%d-%H%M%S)
demo: install
	$(BIN)/dpok train-rl --prompt "a green colored rabbit" --name $(RUN)
	$(BIN)/dpok sample --run $(RUN) --before --output runs/$(RUN)/before-after

# Leaves runs/ and what the recipe in examples/ keeps under build/.
clean:
	rm -rf .venv *.egg-info build/lib build/bdist.* .pytest_cache .ruff_cache .mypy_cache
	find dpok_cli plugins tests examples -name __pycache__ -type d -exec rm -rf {} +
