# Everything a newcomer needs: `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN := $(BIN)/cifarbench

.DEFAULT_GOAL := help
.PHONY: help setup demo train test lint format tensorboard benchmark clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv with the pinned versions and the project in it

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## Train on drawn images, no download: under two minutes on two cores
	$(RUN) train data=synthetic data.size=20000 model=simple_cnn trainer.epochs=5

train: $(READY) ## Train the default model on the real CIFAR-10 (fetched where missing)
	$(RUN) train $(ARGS)

test: $(READY) ## Run the test suite
	$(BIN)/pytest $(ARGS)

lint: $(READY) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## Put the code into the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

tensorboard: $(READY) ## Serve the logs of outputs/ at http://localhost:6006
	$(BIN)/tensorboard --logdir outputs --port 6006

benchmark: $(READY) ## Measure the loop against a bare loop and a tutorial-style loop
	$(RUN) bench data=synthetic model=vgg trainer.batch_size=128 bench.tutorial=true $(ARGS)
	$(RUN) bench data=synthetic model=resnet trainer.batch_size=128 bench.tutorial=true $(ARGS)

clean: ## Remove caches and build products; .venv and outputs/ stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find cifarbench tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
