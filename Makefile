# Set-up, training, tests and measurements. Every target may be repeated.
PYTHON ?= python3
BIN := .venv/bin

PEERS := .venv-peers/bin
BUDGET ?= 6e13
DATA ?= cifar10
SEEDS ?= 42 43 44
FINAL ?=
JOBS ?= 1
TRASHNET ?= trash.zip
MINUTES ?= 5
STUDY ?= ablation
RUN ?= runs/cifar10-default-seed42-001

.PHONY: setup train test test-slow test-package test-native test-cuda lint format notebook bench-speed bench-peers bench-peer-recipe bench-accuracy bench-study bench-folders bench-unequal leaderboard report-picture clean

setup: .venv/ready  ## .venv with the package and everything that development needs

train: .venv/ready  ## fetch CIFAR-10, train for five minutes, evaluate
	$(BIN)/vitreous data fetch cifar10
	$(BIN)/vitreous train cifar10 --minutes 5

test: .venv/ready lint  ## lint, type-check, test
	$(BIN)/python -m pytest -n 2

test-slow: .venv/ready  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-package: .venv/ready  ## build wheel and source distribution, install the wheel and train with it
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_packaging.py

test-native:  ## the C++ kernels under ASan, UBSan and, where it can be had, TSan
	sh tests/native/check.sh

test-cuda: .venv/ready  ## training and its commands on an NVIDIA GPU
	$(BIN)/python -m pytest -m cuda

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebook: .venv/ready  ## run the notebook again and keep its output
	$(BIN)/python -m jupyter execute --inplace notebooks/vision_transformer.ipynb

bench-speed: .venv/ready  ## the notebook's network in plain torch and in vitreous, and where a step's time goes (11 minutes)
	$(BIN)/python benchmarks/speed.py

bench-peers: .venv-peers/ready  ## a plain ViT beside timm's, transformers', torchvision's and vit-pytorch's (22 minutes)
	$(PEERS)/python benchmarks/peers.py

bench-peer-recipe: .venv-peers/ready  ## CCT-2/3x2 trained by its authors' recipe, e.g. MINUTES=10
	$(PEERS)/python benchmarks/peer_recipe.py --minutes $(MINUTES)

bench-accuracy: .venv/ready  ## accuracy at a budget of FLOPs, e.g. BUDGET=6e13 DATA=cifar100 SEEDS="42 43" FINAL=1
	$(BIN)/python benchmarks/accuracy.py --data $(DATA) --flops $(BUDGET) --seeds $(SEEDS) $(if $(FINAL),--final)

bench-study: .venv/ready  ## a study on validation: STUDY=law, STUDY=ablation or STUDY=seconds
	$(BIN)/python benchmarks/study.py $(STUDY)

bench-folders: .venv/ready  ## real data sets of several sizes: ours, two ResNet-9 and the notebook's recipe, e.g. JOBS=12 FINAL=1
	$(BIN)/python benchmarks/folders.py --jobs $(JOBS) --trashnet $(TRASHNET) $(if $(FINAL),--final)

bench-unequal: .venv/ready  ## what --balance does at several ratios (about an hour); TRASHNET=path/to/trash.zip
	$(BIN)/python benchmarks/unequal.py --trash $(TRASHNET)

report-picture: .venv/ready  ## docs/report.png from a run, e.g. RUN=runs/cifar10-default-seed42-001
	$(BIN)/python benchmarks/report_picture.py $(RUN)

leaderboard: .venv/ready  ## all tables and plots of the pages, from the records
	$(BIN)/python benchmarks/leaderboard.py

clean:
	rm -rf .venv .venv-peers build dist .pytest_cache .mypy_cache .ruff_cache

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@# On Linux, PyPI's torch brings gigabytes of CUDA. A machine without a GPU takes torch's small CPU build from its own
	@# index, or PyPI's if that index is out of reach.
	[ "$$(uname)" != Linux ] || command -v nvidia-smi >/dev/null || \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --retries 0 --timeout 15 \
	    -c constraints.txt --index-url https://download.pytorch.org/whl/cpu torch || true
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.venv-peers/ready: pyproject.toml benchmarks/peers.txt
	$(PYTHON) -m venv .venv-peers
	$(PEERS)/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt -e .
	touch $@
