# Set-up, training and tests; every target may be repeated.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test test-slow lint format notebook clean

train: .venv/ready  ## fetch CIFAR-10, train for five minutes, evaluate
	$(BIN)/vitreous data fetch cifar10
	$(BIN)/vitreous train cifar10 --minutes 5

test: .venv/ready lint  ## lint, type-check, test
	$(BIN)/python -m pytest -n 2

test-slow: .venv/ready  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebook: .venv/ready  ## run the notebook again and keep its output
	$(BIN)/python -m jupyter execute --inplace notebooks/vision_transformer.ipynb

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
