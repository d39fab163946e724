# make demo and make test set up everything that they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --constraint constraints.txt
STAMP := $(VENV)/.installed

.PHONY: help env demo test bench smoke lint format clean

help:
	@echo "make demo    environment, demo data, training and a table (about 3 minutes after the install)"
	@echo "make test    environment and tests"
	@echo "make bench   environment, all benchmarks and docs/performance.md (about half an hour on two cores)"
	@echo "make smoke   build the package, install it alone and use it (needs the network)"
	@echo "make lint    environment, ruff and mypy"
	@echo "make clean   remove the environment and the demo's outputs"

env: $(STAMP)

# basicsr's setup.py imports torch, numpy and cython, so they come first and the build is not isolated.
# opencv-python needs libGL, which a server may not have; its headless twin does not.
$(STAMP): setup.py constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info < (3, 13), "Python 3.10 to 3.12 is needed: make PYTHON=python3.11"'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(UV) torch torchvision numpy cython setuptools wheel
	$(UV) --no-build-isolation --editable '.[dev]'
	$(BIN)/python -c 'import cv2' 2>/dev/null || $(UV) --reinstall opencv-python-headless
	touch $@

demo: env
	$(BIN)/basicsr prepare --demo
	$(BIN)/basicsr train -opt options/csd_demo.yml
	$(BIN)/basicsr summary -opt options/csd_demo.yml

test: env
	$(BIN)/python -m pytest

bench: env
	$(UV) --no-build-isolation --editable '.[bench]'
	$(BIN)/python -m benchmarks

# What someone has who installs the package and nothing else.
smoke: env
	$(UV) build twine
	rm -rf build/smoke $(VENV)-smoke && mkdir -p build/smoke
	$(BIN)/python -m build --installer uv --outdir build/smoke/dist .
	$(BIN)/twine check build/smoke/dist/*
	$(PYTHON) -m venv $(VENV)-smoke
	VIRTUAL_ENV=$(CURDIR)/$(VENV)-smoke $(BIN)/uv pip install --quiet --constraint constraints.txt \
		torch torchvision numpy cython setuptools wheel
	VIRTUAL_ENV=$(CURDIR)/$(VENV)-smoke $(BIN)/uv pip install --quiet --constraint constraints.txt \
		--no-build-isolation "$$(ls $(CURDIR)/build/smoke/dist/*.whl)[onnx]"
	cd build/smoke && PATH="$(CURDIR)/$(VENV)-smoke/bin:$$PATH" && basicsr options && basicsr prepare --demo && \
		basicsr train -opt options/csd_demo.yml --force_yml train:total_iter=2 val:val_freq=2 && \
		basicsr export options/csd_demo.yml --format pth safetensors onnx && \
		basicsr upscale datasets/demo/val_LR_bicubic_X2 -o enlarged --model experiments/csd_demo/export/csd_demo_0.5.onnx && \
		basicsr upscale datasets/demo/val_LR_bicubic_X2 -o by_default

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-smoke build datasets/demo experiments/csd_demo tb_logger/csd_demo
