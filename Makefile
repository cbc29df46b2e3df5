# refnet: `make help` lists the targets.

DATA    ?=
ARCH    ?= $(if $(DATA),small,mini)
EPOCHS  ?= $(if $(DATA),40,12)
DEVICE  ?= auto
SEED    ?= 0
RECIPE  ?= default
RUN     ?= $(if $(DATA),$(shell basename "$$(realpath "$(DATA)")"),scenes)-$(ARCH)$(if $(filter-out 0,$(SEED)),-seed$(SEED))
WEIGHTS ?= weights/$(RUN).h5
OUT     ?= out/$(RUN)
PARTS   ?=
DOGS    ?=
CALTECH ?=
VOC     ?=
BUDGET  ?= 8
RANKS   ?=
PYTHON  ?= python3

PY       := .venv/bin/python
# The major version of CUDA that an NVIDIA driver takes, and the extra with the CuPy that fits it; none without one.
CUDA     := $(if $(filter cpu,$(DEVICE)),,$(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: \([0-9]*\).*/\1/p'))
GPU      := $(if $(CUDA),$(if $(filter 11 12,$(CUDA)),gpu,gpu13))
MPI      := $(if $(RANKS),mpi)
comma    := ,
space    := $(subst ,, )
EXTRAS   := $(subst $(space),$(comma),$(strip $(GPU) $(MPI)))
CORE     := .venv/core$(GPU)$(MPI)
DEV      := .venv/dev$(GPU)
# Open MPI's mpirun refuses root, few cores and threads on more than one of them unless told otherwise.
MPIRUN    = $(firstword $(wildcard .venv/bin/mpirun) mpirun)
mpirun    = $(if $(RANKS),$(PY) tools/_mpirun.py $(MPIRUN) -n $(RANKS) $(if $(findstring Open MPI,$(shell $(MPIRUN) --version)),--allow-run-as-root --oversubscribe --bind-to none))
data_arg  = $(if $(DATA),--data "$(DATA)")

.DEFAULT_GOAL := help
.PHONY: help train evaluate visualize figures report demo describe bench test test-all torture mutants test-gpu lint oracles clean

help: ## list the targets
	@echo 'make TARGET [DATA=folder-of-classes] [ARCH=$(ARCH)] [EPOCHS=$(EPOCHS)] [DEVICE=auto|cpu|cuda] [RANKS=processes] [RUN=name] [SEED=0]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

train: $(CORE) ## train on DATA (default: drawn scenes), write weights/RUN.h5 and the sheet out/RUN/features.png
	$(mpirun) $(PY) tools/train.py $(data_arg) --arch $(ARCH) --epochs $(EPOCHS) --seed $(SEED) --device $(DEVICE) \
	  --recipe $(RECIPE) --out "$(WEIGHTS)" --resume
	$(PY) tools/visualize.py "$(WEIGHTS)" $(data_arg) --device $(DEVICE) --out "$(OUT)"

evaluate: $(CORE) ## top-1, top-5 and per class of WEIGHTS (default: weights/RUN.h5) on DATA
	$(PY) tools/evaluate.py "$(WEIGHTS)" $(data_arg) --device $(DEVICE)

visualize: $(CORE) ## Figure 2 of WEIGHTS on DATA: top-9 projections of every convolution, into OUT
	$(PY) tools/visualize.py "$(WEIGHTS)" $(data_arg) --device $(DEVICE) --out "$(OUT)"

report: $(CORE) ## the page of WEIGHTS on DATA, to walk through in a browser: OUT/report/index.html
	$(PY) tools/report.py "$(WEIGHTS)" $(data_arg) --device $(DEVICE) --experiments "$(OUT)" --out "$(OUT)/report"

demo: $(CORE) ## pages of the weights that come with refnet, out/demo/*/index.html; photographs from DATA
	$(PY) tools/report.py weights/scenes.h5 --device $(DEVICE) --out out/demo/scenes
	$(PY) tools/report.py weights/imagenette-small.h5 $(data_arg) --device $(DEVICE) --out out/demo/imagenette-small

figures: $(CORE) ## every figure and table of WEIGHTS on DATA into OUT, with DOGS, CALTECH, VOC; trains BUDGET epochs a net
	$(PY) tools/figures.py "$(WEIGHTS)" $(data_arg) $(if $(DOGS),--dogs "$(DOGS)") $(if $(CALTECH),--caltech "$(CALTECH)") \
	  $(if $(VOC),--voc "$(VOC)") --epochs $(BUDGET) --device $(DEVICE) --out "$(OUT)"

describe: $(CORE) ## print what WEIGHTS holds
	$(PY) tools/describe.py "$(WEIGHTS)"

bench: oracles ## race PyTorch, ONNX Runtime and Captum, all PARTS or some; photographs from DATA; writes out/benchmark.json
	$(PY) -m pip install -q onnx onnxruntime
	$(PY) tools/benchmark.py $(PARTS) $(data_arg)

test: $(DEV) ## everything that a CPU can check in minutes
	$(PY) -m pytest -q

test-all: $(DEV) ## the long tests as well
	$(PY) -m pytest -q -m "not gpu"

torture: $(DEV) ## kill, cut, fuzz and overload at length, within an hour (tests/RELIABILITY.md)
	REFNET_MUTANTS=50000 REFNET_KILLS=200 REFNET_AT_ONCE=8 REFNET_ARCHS=5000 $(PY) -m pytest -q -s -p no:cacheprovider \
	  tests/test_reliability.py tests/test_random_archs.py
	$(PY) -m pip install -q atheris
	$(PY) tests/fuzz.py 60

mutants: $(DEV) ## change refnet/ops at 500 places, one at a time, and see that a test fails: an hour
	$(PY) -m pip install -q 'cosmic-ray>=8.3'
	OPENBLAS_NUM_THREADS=1 $(PY) tests/mutants.py 500

test-gpu: $(DEV) ## what needs a CUDA device
	$(PY) -m pytest -q -m gpu

lint: $(DEV) ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

oracles: $(DEV) ## install PyTorch, Captum, ONNX, Keras and MPI, so that the tests compare with them too
	$(PY) -m pip install -q 'torch==2.13.0+cpu' || $(PY) -m pip install -q torch
	$(PY) -m pip install -q 'captum>=0.8' -e '.[interop,mpi]' onnxscript safetensors keras

clean: ## remove what make and the tests made, but no weights and no build/
	rm -rf .venv out .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$$($(PYTHON) --version) found, refnet needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	touch $@

$(CORE): .venv/python pyproject.toml
	$(PY) -m pip install -q --disable-pip-version-check -e '.$(if $(EXTRAS),[$(EXTRAS)])'
	touch $@

$(DEV): .venv/python pyproject.toml
	$(PY) -m pip install -q --disable-pip-version-check -e '.[dev$(if $(GPU),$(comma)$(GPU))]'
	touch $@ .venv/core$(GPU)
