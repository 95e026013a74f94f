# Everything sets itself up: a virtual environment with the pinned packages of requirements.lock.
#
#   make demo     the whole flow on a simulated subject; open runs/demo/report.html afterwards
#   make test     the tests
#   make check    style, types, import direction
#   make backbones    train the shipped tiny backbones anew (hours on a CPU, resumable)
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

.PHONY: demo test check backbones clean

demo: $(VENV)/installed
	$(RUN)/braingen demo

test: $(VENV)/installed
	$(RUN)/python -m pytest

check: $(VENV)/installed
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/python -m pytest tests/unit/test_import_direction.py

backbones: $(VENV)/installed
	$(RUN)/python -m braingen.simulation.backbones.build

# torch first and by itself: asked for by another package, pip would take the build with gigabytes of CUDA libraries
$(VENV)/installed: requirements.lock pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check $(TORCH_FROM) $(TORCH)
	$(RUN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(RUN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

clean:
	rm -rf build dist
