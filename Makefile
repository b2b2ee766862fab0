# Every target makes its own environment: `make demo` and `make test` are all a new clone needs.
# Debian: git, make, python3, python3-venv.
PYTHON ?= python3
UV := .venv/bin/uv
RUN := .venv/bin/siglip-jax
READY := .venv/ready
LIBTPU := .libtpu
EXTRAS := --extra search --extra export --extra huggingface --extra serve
QUICK := not slow and not tpu_compile and not gpu

# The newest jax needs Python 3.12 or later; TensorFlow and ScaNN end at 3.13. pyenv's shims answer to no version that is
# not switched on, so its folders are looked into as well.
NEWEST := .venv-newest
NEWEST_PYTHON ?= $(shell for python in python3.13 ~/.pyenv/versions/3.13.*/bin/python \
  python3.12 ~/.pyenv/versions/3.12.*/bin/python; do "$$python" -c '' 2>/dev/null && command -v "$$python" && break; done)

CATALOG ?=
ENCODER ?=
LAYOUT ?= catalog
CONFIG ?= $(if $(CATALOG),configs/fashion.py,configs/demo.py)

# `make help` shows the text behind ##.
.PHONY: help demo finetune-start finetune-compare test test-newest test-newest-smoke test-tensorflows test-exports \
  test-consumers test-slow test-tpu gpu-wheels docs lint lock clean
.DEFAULT_GOAL := demo

$(READY): pyproject.toml uv.lock
	@echo "setting up .venv (about 2.5 GB, TensorFlow the most of it)"
	@test -x $(UV) || { $(PYTHON) -m venv --clear .venv && .venv/bin/python -m pip install --quiet --disable-pip-version-check uv; }
	@$(UV) sync --frozen --inexact --no-progress --python .venv/bin/python $(EXTRAS)
	@touch $(READY)

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# What an encoder in a file needs: .venv/tflite and .venv/onnxruntime mark that it is installed.
ENCODER_NEEDS := $(if $(filter %.tflite,$(ENCODER)),.venv/tflite)$(if $(filter %.onnx,$(ENCODER)),.venv/onnxruntime)

demo: $(READY) $(ENCODER_NEEDS)  ## the whole workflow on a synthetic catalogue; CATALOG=folder-or-zip CONFIG=file.py ENCODER=mobilenet.tflite for your own
	$(RUN) demo $(if $(CATALOG),--catalog="$(CATALOG)") --layout=$(LAYOUT) --config=$(CONFIG) $(if $(ENCODER),--encoder="$(ENCODER)")

.venv/tflite .venv/onnxruntime: $(READY)
	@$(UV) sync --frozen --inexact --no-progress --python .venv/bin/python $(EXTRAS) --extra $(@F)
	@touch $@

# Gain and forgetting of fine-tuning (docs/guide/finetuning.md): the catalogue's two halves, by FIELD.
HALVES := runs/finetuning
FIELD ?= masterCategory
FIRST ?= Apparel
SECOND ?= Accessories Footwear
SPLITS := --split=train=0.72 --split=validation=0.08 --split=test=0.2  # defaults are chosen on validation

finetune-start: $(READY)  ## datasets and first model of the fine-tuning measurement: CATALOG=archive.zip LAYOUT=fashion
	$(RUN) data --catalog="$(CATALOG)" --layout=$(LAYOUT) --output=$(HALVES)/first $(SPLITS) $(FIRST:%=--only=$(FIELD)=%)
	$(RUN) data --catalog="$(CATALOG)" --layout=$(LAYOUT) --output=$(HALVES)/second $(SPLITS) $(SECOND:%=--only=$(FIELD)=%)
	$(RUN) train --config=$(CONFIG) --dataset=$(HALVES)/first --workdir=$(HALVES)/start

finetune-compare: $(READY)  ## gain and forgetting of two ways of fine-tuning, as a table
	$(RUN) bench finetune --config=configs/fashion.py:from=$(HALVES)/start \
	  --learned=$(HALVES)/first --new=$(HALVES)/second --workdir=$(HALVES)/compared

include results.mk

# The TPU compiler of the lock, for tests that compile for a slice: a folder of its own, put on the path of their
# processes. Inside .venv it would have JAX look for a TPU at every start.
$(LIBTPU)/ready: pyproject.toml uv.lock | $(READY)
	@mkdir -p $(LIBTPU) && $(UV) export --frozen --quiet --only-group libtpu --output-file $(LIBTPU)/requirements.txt >/dev/null
	@$(UV) pip install --quiet --python .venv/bin/python --target $(LIBTPU) --requirement $(LIBTPU)/requirements.txt
	@touch $@

test test-tpu: export SIGLIP_JAX_LIBTPU := $(LIBTPU)

test: $(READY) $(LIBTPU)/ready lint  ## lint and all tests but the slow ones
	.venv/bin/python -m pytest -q -n 2 -m "$(QUICK)"

$(NEWEST)/ready: pyproject.toml uv.lock | $(READY)
	@test -n "$(NEWEST_PYTHON)" || { echo "test-newest: no Python 3.12 or 3.13 found; pass NEWEST_PYTHON=path"; exit 1; }
	@echo "setting up $(NEWEST) with $(NEWEST_PYTHON)"
	@UV_PROJECT_ENVIRONMENT=$(NEWEST) $(UV) sync --quiet --frozen --inexact --no-progress --python "$(NEWEST_PYTHON)" $(EXTRAS)
	@touch $@

test-newest: $(NEWEST)/ready  ## the tests of `make test` with the newest jax of the lock, on Python 3.12 or 3.13
	$(NEWEST)/bin/python -m pytest -q -n 2 -m "$(QUICK)"

# A part of it under a minute: the loss, the towers, the step, and a SavedModel for TensorFlow 2.20 in .venv.
SMOKE := losses/test_sigmoid.py models/test_towers.py training/test_step.py export/test_stablehlo.py
test-newest-smoke:
	$(if $(NEWEST_PYTHON),$(MAKE) --no-print-directory $(NEWEST)/ready,@echo "no Python 3.12 or 3.13, so not the newest jax")
	$(if $(NEWEST_PYTHON),$(NEWEST)/bin/python -m pytest -q -n 2 -m "$(QUICK)" \
	  $(addprefix tests/siglip_jax/,$(SMOKE)) tests/behaviour/test_newest_jax.py)

# What consumers have: an environment for each TensorFlow that reads our SavedModels, about 1 GB each.
TENSORFLOWS := $(addprefix .venv-tensorflow/,2.16 2.17 2.18 2.19 2.20 2.21)
TENSORFLOW := tensorflow$(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),-cpu)

.venv-tensorflow/%/ready: | $(READY)
	@echo "setting up TensorFlow $*"
	@$(UV) venv --quiet --clear --python .venv/bin/python .venv-tensorflow/$*
	@$(UV) pip install --quiet --python .venv-tensorflow/$*/bin/python "$(TENSORFLOW)==$*.*" "setuptools<80"
	@touch $@

test-tensorflows: $(TENSORFLOWS:=/ready)  ## TensorFlow 2.16 to 2.21 read what the oldest jax writes, and the newest where .venv-newest is
	.venv/bin/python -m pytest -q -rP tests/behaviour/test_tensorflow_releases.py

# In one process: the exports are made once and asked in one process of each format.
test-exports: $(READY)  ## every format, tower and precision of an export beside the model, with odd pictures and titles
	.venv/bin/python -m pytest -q -rs tests/behaviour/test_export_matrix.py

# Other languages' onnxruntime. Without npm's install scripts, which would fetch CUDA libraries. For C++ unpack a release
# of onnxruntime, or give ONNXRUNTIME=folder with include/ and lib/; for Java put onnxruntime.jar into .consumers.
CONSUMERS := .consumers
ONNXRUNTIME ?= $(CONSUMERS)/onnxruntime

$(CONSUMERS)/node_modules:
	@npm install --silent --no-audit --no-fund --ignore-scripts --prefix $(CONSUMERS) onnxruntime-node@1 sharp@0.35

test-consumers: $(READY) $(CONSUMERS)/node_modules  ## Node embeds golden pictures as the model does, and C++ with ONNXRUNTIME=folder
	SIGLIP_JAX_CONSUMERS=$(CONSUMERS) SIGLIP_JAX_ONNXRUNTIME=$(ONNXRUNTIME) \
	  .venv/bin/python -m pytest -q -rPs tests/examples/test_examples_consumers.py

test-slow: $(READY)  ## runs that are killed and resumed many times
	.venv/bin/python -m pytest -q -n 2 -m "slow"

test-tpu: $(READY) $(LIBTPU)/ready  ## compiles the loss and the configs for TPU slices, on any Linux machine without a TPU
	.venv/bin/python -m pytest -q -rP -m tpu_compile tests

# What a GPU machine without a network lacks, for Python 3.12 on x86_64: JAX, flax, optax, orbax, torch, transformers,
# numba, pyarrow and Pillow are taken for installed there (llvmlite and pyarrow alone would be 90 MiB).
WHEELS := .whl
WHEEL_NAMES := ml-collections absl-py etils lazy-loader safetensors sentencepiece simplejpeg grain array-record \
  tensorflow-datasets tensorflow-metadata googleapis-common-protos immutabledict simple-parsing docstring-parser toml \
  wrapt dm-tree portpicker psutil importlib-resources zipp tensorboard
WHEEL_TAGS := $(foreach tag,2_28 2_27 2_24 2_17 2_12 2_5,--platform manylinux_$(tag)_x86_64) --platform manylinux2014_x86_64
WHEELS_MIB := 40

gpu-wheels: $(READY)  ## the packages that `siglip-jax bench gpu` needs on a GPU machine without a network, in .whl/
	@rm -rf $(WHEELS) && mkdir -p $(WHEELS)
	@$(UV) export --frozen --quiet --no-hashes --no-emit-project --no-dev --output-file $(WHEELS)/lock.txt >/dev/null
	@.venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
	  --python-version 3.12 $(WHEEL_TAGS) --dest $(WHEELS) --constraint $(WHEELS)/lock.txt $(WHEEL_NAMES)
	@.venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(WHEELS) \
	  --constraint $(WHEELS)/lock.txt promise
	@rm $(WHEELS)/lock.txt
	@test $$(du -sm $(WHEELS) | cut -f1) -le $(WHEELS_MIB) || { echo "$(WHEELS) exceeds $(WHEELS_MIB) MiB"; exit 1; }
	@echo "$$(ls $(WHEELS) | wc -l) wheels, $$(du -sm $(WHEELS) | cut -f1) MiB, in $(WHEELS)/; docs/benchmarks/gpu.md says how to install them"

docs: $(READY)  ## the pages that are made from the code
	.venv/bin/python -m siglip_jax.training.config_reference > docs/reference/config.md

lint: $(READY)  ## ruff and mypy
	.venv/bin/ruff check --quiet
	.venv/bin/ruff format --check --quiet
	.venv/bin/mypy

lock:  ## uv.lock again, after a change of pyproject.toml
	$(UV) lock

clean:  ## removes runs, builds and caches
	rm -rf runs dist .pytest_cache .mypy_cache .ruff_cache
