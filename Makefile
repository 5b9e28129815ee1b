PYTHON ?= python3
BIN := .venv/bin

.PHONY: docs install test test-fast lint browser demo paper parity clean chaos dist soak

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

# One process per core, each with one torch thread (tests/conftest.py); `pytest -q` uses one process.
# A file's tests are run by one of them: what they share is made once, and there is one browser.
test: install
	$(BIN)/python -m pytest -q -n logical --maxprocesses 8 --dist loadfile

# The same without those that start many processes or a browser, kill runs, or train for long.
test-fast: install
	$(BIN)/python -m pytest -q -n logical --maxprocesses 8 --dist loadfile -m 'not slow'

# Writes the tables of metrics in docs/ from the code.
docs: install
	$(BIN)/python docs/metrics_tables.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Installs Chromium for the browser tests from Debian's packages (as root); without it they are skipped.
browser:
	@for name in chromium chromium-browser google-chrome; do command -v $$name && exit 0; done; \
	apt-get update -q && apt-get install -q -y --no-install-recommends chromium

# Trains the bundled model on one prompt, then writes an image of it before and after training.
demo: RUN := demo-$(shell date +%Y%m%d-%H%M%S)
demo: install
	$(BIN)/dpok train-rl --prompt "a green colored rabbit" --name $(RUN)
	$(BIN)/dpok sample --run $(RUN) --before --output runs/$(RUN)/before-after

# Repeats the paper's study on the tiny world, in some hours, and writes docs/paper.md; it is resumed
# after an interruption. Not in CI.
paper: install
	$(BIN)/python examples/paper/run.py

# Compares image-reward with the published package, in the environment of image-reward-package, which
# needs Python 3.9 to 3.11. Not in CI.
parity: export DPOK_CACHE := build/parity
parity: install
	$(BIN)/dpok rewards install image-reward-package
	$(BIN)/python examples/parity/image_reward.py build/parity/checkpoint

# Keeps runs/ and the state of the recipe in examples/ under build/.
clean:
	rm -rf .venv *.egg-info build/lib build/bdist.* .pytest_cache .ruff_cache .mypy_cache
	find dpok_cli plugins tests examples -name __pycache__ -type d -exec rm -rf {} +

# Kills fifty runs at random moments, resumes them, and compares what they leave. Not in CI.
chaos: install
	DPOK_CHAOS=50 $(BIN)/python -m pytest -q -s tests/test_chaos.py

# Runs random commands for half an hour (DPOK_SOAK seconds), and checks what must hold after each.
# SEED=NUMBER repeats the commands of another time. Not in CI.
soak: SEED ?= $(shell date +%s)
soak: export DPOK_SOAK ?= 1800
soak: install
	DPOK_SOAK_SEED=$(SEED) $(BIN)/python -m pytest -q -s tests/soak

# Makes sdist and wheel from the last commit, and tries them in a new environment. Not in CI.
dist: DIST := build/dist
dist: install
	git diff --quiet HEAD || echo 'Uncommitted changes are left out.'
	rm -rf $(DIST) && mkdir -p $(DIST)
	git archive --prefix=source/ --output=$(DIST)/source.tar HEAD
	tar -xf $(DIST)/source.tar -C $(DIST)
	$(BIN)/python -m build -q --outdir $(DIST) $(DIST)/source  # the wheel is built from the sdist
	$(PYTHON) -m venv $(DIST)/venv
	$(DIST)/venv/bin/python -m pip install -q -c constraints.txt $(DIST)/dpok-*.whl \
		$(DIST)/source/examples/dpok-reward-sharpness
	DPOK_DIST=$(DIST) $(BIN)/python -m pytest -q tests/test_dist.py
