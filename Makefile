# Everything a newcomer needs: `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN := $(BIN)/cifarbench

.DEFAULT_GOAL := help
.PHONY: help setup demo train test lint format tensorboard benchmark reproduce results kill damage fuzz soak clean
# Tests run in as many processes, each with one thread; those that hold a time limit run alone after them.
# Exit code 5 of pytest: none of the tests that ARGS names is of this kind.
JOBS ?= 2
PROFILE ?= quick
MINUTES ?= 60

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv with the pinned versions and the project in it

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## Train on drawn images, no download: under two minutes on two cores
	$(RUN) train data=synthetic data.size=12000 model=simple_cnn trainer.epochs=4

train: $(READY) ## Train the default model on the real CIFAR-10 (fetched where missing)
	$(RUN) train $(ARGS)

# The tests start dozens of processes: bytecode is kept for them, whatever the environment says.
test: export PYTHONDONTWRITEBYTECODE =
test: $(READY) ## Run the test suite
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder -m "not timed" $(ARGS) || [ $$? -eq 5 ]
	$(BIN)/pytest -m timed $(ARGS) || [ $$? -eq 5 ]

lint: $(READY) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## Put the code into the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

tensorboard: $(READY) ## Serve the logs of outputs/ at http://localhost:6006
	$(BIN)/tensorboard --logdir outputs --port 6006

benchmark: $(READY) ## Measure the loop against a bare one, a tutorial-style one, and torch's own operations
	$(RUN) bench data=synthetic model=vgg bench.tutorial=true "bench.against=['trainer.kernels=torch']" $(ARGS)
	$(RUN) bench data=synthetic model=resnet bench.tutorial=true "bench.against=['trainer.kernels=torch']" $(ARGS)

reproduce: $(READY) ## Run the rows of RESULTS.md: PROFILE=quick (drawn images), cpu or gpu
	$(BIN)/python scripts/reproduce.py --profile $(PROFILE) $(ARGS)

results: $(READY) ## Write RESULTS.md from the records; ARGS=--check compares
	$(BIN)/python scripts/results.py $(ARGS)

kill: $(READY) ## Kill training 300 times at random moments and compare every end; about half an hour
	OMP_NUM_THREADS=1 $(BIN)/python scripts/kill.py $(ARGS)

damage: $(READY) ## Flip 2,000 bits of checkpoints and cut 500 short: each must be noticed
	OMP_NUM_THREADS=1 $(BIN)/python scripts/damage.py $(ARGS)

fuzz: $(READY) ## Try 10,000 wrong command lines and files; about an hour
	OMP_NUM_THREADS=1 $(BIN)/python scripts/fuzz.py $(ARGS)

soak: $(READY) ## Random work for MINUTES=60 (train, kill, resume, sweep, report), then a check of all that is on disk
	OMP_NUM_THREADS=1 $(BIN)/python scripts/soak.py --minutes $(MINUTES) $(ARGS)

clean: ## Remove caches and build products; .venv and outputs/ stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find cifarbench tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
