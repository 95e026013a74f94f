# Everything sets itself up: a virtual environment with the pinned packages of requirements.lock.
#
#   make demo     the whole flow on a simulated subject; open runs/demo/report.html afterwards
#   make quick    the tests a contributor runs at every change, under a minute on two cores
#   make test     the tests, but those that take long: a few minutes on two cores
#   make test-all all of them, as continuous integration runs them
#   make test-machines    unit and parity tests as other processors run them, with a table at the end
#   make check    style, types, import direction
#   make site     the documentation site in build/site: warnings are errors, the tutorials are run (minutes)
#   make mutants  which changes of the loops no quick test notices (hours on two cores, resumable; docs/experiments/mutation.md)
#   make backbones    train the shipped tiny backbones anew (hours on a CPU, resumable)
#   make quickstart-decoder    train the shipped decoder of `braingen quickstart` anew (resumable)
#
# TORCH_INDEX chooses where torch comes from. On a machine without an NVIDIA GPU the CPU wheels are taken, for instance
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu      (CPU)
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cu130    (CUDA 13)

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
RUN := $(VENV)/bin

TORCH := torch==2.13.0
TORCH_FROM := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),)

# As many tests at once as there are cores, each with one thread; a file's tests stay together, since they share what is expensive to make.
# The files of tests/integration come first: they take longest; of the others LONGEST, so that no core is left with them at the end.
quick test test-all: export OMP_NUM_THREADS ?= 1
# what is compiled once, modules and the assertions of tests, is kept for the other processes
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(RUN)/python -m pytest
LONGEST := $(wildcard tests/unit/test_wires_*.py) $(patsubst %,tests/unit/test_%.py,ingest speed moe needs simulate)
TOGETHER := -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: demo quick test test-all test-machines check site mutants backbones quickstart-decoder clean

demo: $(VENV)/installed
	$(RUN)/braingen demo

quick: $(VENV)/installed
	$(PYTEST) $(TOGETHER) -m "not slow and not long" $(LONGEST) tests/parity tests/unit

test: $(VENV)/installed
	$(PYTEST) $(TOGETHER) -m "not long" tests/integration $(LONGEST) tests/parity tests/unit

# whole demos that are killed, several processes at once, compiled networks, backbones built anew, pages and examples typed as they stand
test-all: $(VENV)/installed
	$(PYTEST) $(TOGETHER) tests/integration $(LONGEST) tests/parity tests/unit

test-machines: $(VENV)/installed
	$(RUN)/python tests/machines.py

check: $(VENV)/installed
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/python -m pytest tests/unit/test_import_direction.py

site: export OMP_NUM_THREADS ?= 1
site: $(VENV)/installed
	rm -rf docs/api/generated  # pages of modules that were renamed would stay
	$(RUN)/python -m sphinx -W --keep-going -b html docs build/site
	@echo "Open build/site/index.html in a browser."

# of some modules only: make mutants MODULES="training/encoder.py encoders/ridge.py"
MUTATED = $(if $(MODULES),--modules $(MODULES))

mutants: $(VENV)/installed
	$(RUN)/pip install --quiet --disable-pip-version-check mutmut==3.8.1
	$(RUN)/python benchmarks/mutants.py --out runs/mutants.jsonl --sample $(or $(SAMPLE),8) $(MUTATED)
	$(RUN)/python benchmarks/mutants.py --out runs/wires.jsonl --wires $(MUTATED)

backbones: $(VENV)/installed
	$(RUN)/python -m braingen.simulation.backbones.build

quickstart-decoder: $(VENV)/installed
	$(RUN)/python -m braingen.demo.quickstart_build

# torch first and by itself: asked for by another package, pip would take the build with gigabytes of CUDA libraries
$(VENV)/installed: requirements.lock pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check $(TORCH_FROM) $(TORCH)
	$(RUN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(RUN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

clean:
	rm -rf build dist docs/api/generated docs/tutorials
