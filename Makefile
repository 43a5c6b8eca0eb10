# One place for what a person types. A virtual environment is made once and refilled only when
# pyproject.toml or constraints.txt say something new, or the operators in C changed.
SHELL  := /bin/sh
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
KEY    := $(shell cat pyproject.toml constraints.txt setup.py kernels/native/compile.py kernels/native/src/* | cksum | tr -d ' ')
PROMPT := a red sailboat on a calm sea at sunset

RUN_STAMP  := $(VENV)/.installed-cpu-$(KEY)
TEST_STAMP := $(VENV)/.installed-test-$(KEY)
ZIG_STAMP  := $(VENV)/.installed-zig-$(KEY)

# A processor that draws as a graphics card does (SwiftShader) comes with Debian's chromium; it is taken where it is
# found and VK_ICD_FILENAMES names no other driver.
SWIFTSHADER := $(wildcard /usr/lib/chromium/vk_swiftshader_icd.json)
WEBGPU_ENV  := TINTYPE_REQUIRE_WEBGPU=1 XDG_RUNTIME_DIR=$${XDG_RUNTIME_DIR:-/tmp} $(if $(SWIFTSHADER),\
	VK_ICD_FILENAMES=$${VK_ICD_FILENAMES:-$(SWIFTSHADER)} ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1)

.PHONY: help image test test-fast test-long test-bench test-memory test-webgpu test-openvino test-optimum test-cuda \
	test-processors test-native native fuzz soak check lint types imports postcard postcard-fast postcard-adapters bench bench-gpu clean
help:
	@echo "make image     install the runtime and write postcard.png"
	@echo "make test      install what tests need and run the suite, on 2 processors (WORKERS=8 for more)"
	@echo "make test-fast     what needs no checkpoint and takes little: a minute"
	@echo "make test-long     what trains, judges many pictures, or exports time and again: minutes"
	@echo "make test-bench    run what measures on a tiny model, one test at a time"
	@echo "make test-memory   hold pictures to their memory budgets, one test at a time"
	@echo "make test-webgpu    run postcard by WebGPU, on a GPU or on Debian's chromium (libvulkan1 too)"
	@echo "make test-openvino  run postcard by OpenVINO"
	@echo "make test-optimum   take what optimum exports, and draw in it, in an environment of its own"
	@echo "make test-cuda      run postcard by CUDA, on an NVIDIA GPU"
	@echo "make test-processors  draw on processors that Debian's qemu-user emulates: minutes, 0.5 GB below build/"
	@echo "make test-native  compile the operators in C for every system, and run them guarded and emulated: minutes"
	@echo "make native    compile the operators in C for this machine, after a change"
	@echo "make traces    trace the tests' checkpoints anew and pack what that gives, after a change of tracing"
	@echo "make soak      thousands of pictures in one process, with faults between them, COUNT=2000"
	@echo "make fuzz      hostile inputs for every door, for MINUTES=2 (FUZZ='--seed 1 --doors record' for more)"
	@echo "make check     ruff, mypy, import-linter, then make test"
	@echo "make bench     measure this machine; figures go to bench/results/"
	@echo "make bench-gpu     measure an NVIDIA GPU beside diffusers and torch.compile: hours, 30 GB of disk"
	@echo "make postcard  draw the world, train, judge and export the embedded default again"
	@echo "make postcard-fast  distil its denoiser to four steps again"
	@echo "make postcard-adapters  train its LoRAs and its ControlNet again"
	@echo "make clean     remove what was built, not the virtual environment"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11"; \
		  echo "  fix: make PYTHON=python3.12, or whichever newer one is here"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "error: $(PYTHON) cannot make virtual environments: ensurepip is missing"; \
		  echo "  fix: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[cpu]' -c constraints.txt
	@rm -f $(VENV)/.installed-cpu-*; touch $@

$(TEST_STAMP): | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[cpu,export,test]' -c constraints.txt
	$(BIN)/python -m pip install -q --no-deps 'k-diffusion==0.1.1.post1'  # only its file of samplers is used
	@rm -f $(VENV)/.installed-*; touch $@ $(RUN_STAMP)

image: $(RUN_STAMP)
	$(BIN)/tintype generate "$(PROMPT)" --seed 7 -o postcard.png

# Each worker holds torch and ONNX Runtime, about 2 GiB. What measures would be disturbed by the other worker.
WORKERS ?= 2
XDIST   := -n $(WORKERS) --dist worksteal

test: $(TEST_STAMP)
	$(BIN)/python -m pytest $(XDIST) -m "not long and not bench and not memory" $(PYTEST)

test-long: $(TEST_STAMP)
	$(BIN)/python -m pytest $(XDIST) -m "long and not bench and not memory" $(PYTEST)

# What tracing gives for the tests' checkpoints, packed anew: where the exporter's tracing or its libraries changed.
traces: $(TEST_STAMP)
	rm -f tests/support/traces.zip; rm -rf build/traces .pytest_cache
	-$(BIN)/python -m pytest $(XDIST) -m "not bench and not memory" --basetemp=build/traces $(PYTEST)
	$(BIN)/python tests/support/traces.py build/traces/tintype-cache/traces

test-fast: $(TEST_STAMP)
	$(BIN)/python -m pytest $(XDIST) -m "not slow and not long and not bench and not memory" $(PYTEST)

test-bench: $(TEST_STAMP)
	$(BIN)/python -m pytest -m bench $(PYTEST)

test-memory: $(TEST_STAMP)
	$(BIN)/python -m pytest -m memory $(PYTEST)

# A provider that comes as another onnxruntime, or that other tests are not to see, has an environment of its own.
.venv-webgpu/.installed-$(KEY): | $(BIN)/python
	$(PYTHON) -m venv .venv-webgpu
	.venv-webgpu/bin/python -m pip install -q -e '.[webgpu]' 'pytest>=8.4'
	@rm -f .venv-webgpu/.installed-*; touch $@

test-webgpu: .venv-webgpu/.installed-$(KEY)
	TINTYPE_TEST_DEVICE=webgpu $(WEBGPU_ENV) .venv-webgpu/bin/python -m pytest tests/webgpu tests/devices $(PYTEST)

.venv-openvino/.installed-$(KEY): | $(BIN)/python
	$(PYTHON) -m venv .venv-openvino
	.venv-openvino/bin/python -m pip install -q -e . 'onnxruntime-openvino>=1.24' 'pytest>=8.4'
	@rm -f .venv-openvino/.installed-*; touch $@

test-openvino: .venv-openvino/.installed-$(KEY)
	TINTYPE_TEST_DEVICE=openvino TINTYPE_REQUIRE_OPENVINO=1 .venv-openvino/bin/python -m pytest tests/openvino tests/devices \
		$(PYTEST)

# optimum wants an older transformers than the export's tests have. Beside torch 2.13.0, which is pinned exactly, these
# versions export and draw; both directions are tried.
.venv-optimum/.installed-$(KEY): | $(BIN)/python
	$(PYTHON) -m venv .venv-optimum
	.venv-optimum/bin/python -m pip install -q -e '.[cpu,export]' 'optimum-onnx==0.1.0' 'transformers>=4.57,<4.58' \
		'pytest>=8.4' -c constraints.txt
	@rm -f .venv-optimum/.installed-*; touch $@

test-optimum: .venv-optimum/.installed-$(KEY)
	TINTYPE_REQUIRE_OPTIMUM=1 .venv-optimum/bin/python -m pytest tests/optimum $(PYTEST)

# Other processors, emulated; needs qemu-user, and apt-get for the Python of the other architecture.
test-processors: $(TEST_STAMP)
	$(BIN)/python tests/processors/emulated.py build/processors
	TINTYPE_PROCESSORS=build/processors $(BIN)/python -m pytest tests/processors $(PYTEST)

# On an NVIDIA GPU. torch comes as its index gives it, which is with CUDA on Linux; on Windows name PyTorch's own index
# (PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cu130).
.venv-gpu/.installed-$(KEY): | $(BIN)/python
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install -q -e '.[cuda,export,peers]' 'pytest>=8.4'
	@rm -f .venv-gpu/.installed-*; touch $@

test-cuda: .venv-gpu/.installed-$(KEY)
	TINTYPE_TEST_DEVICE=cuda TINTYPE_REQUIRE_CUDA=1 .venv-gpu/bin/python -m pytest tests/cuda tests/devices \
		$(PYTEST)

GPU_FOLDER ?= build/bench-gpu
bench-gpu: .venv-gpu/.installed-$(KEY)
	.venv-gpu/bin/tintype bench gpu $(GPU_FOLDER) $(BENCH)

$(ZIG_STAMP): $(TEST_STAMP)
	$(BIN)/python -m pip install -q 'ziglang>=0.15' -c constraints.txt
	@touch $@

# The operators in C beside their sources, where this checkout's virtual environment finds them.
native: $(ZIG_STAMP)
	ZIG_GLOBAL_CACHE_DIR=$(CURDIR)/build/zig $(BIN)/python kernels/native/compile.py

test-native: $(ZIG_STAMP)
	ZIG_GLOBAL_CACHE_DIR=$(CURDIR)/build/zig $(BIN)/python -m pytest tests/native $(PYTEST)

# Hostile inputs, each opened by a process of its own; what is found lies in build/fuzz/.
MINUTES ?= 2
fuzz: $(TEST_STAMP)
	$(BIN)/python tests/fuzz/fuzz.py --minutes $(MINUTES) $(FUZZ)

# Pictures of every kind in one process, some cancelled, some failing: nothing may pile up.
COUNT ?= 2000
soak: $(TEST_STAMP)
	$(BIN)/python tests/soak/soak.py --count $(COUNT) $(SOAK)

check: lint types imports test

lint: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy and import-linter read one folder a package, so they are shown the tree as it is once installed.
build/tree: $(TEST_STAMP)
	@rm -rf build/tree && mkdir -p build/tree/tintype
	@cd build/tree/tintype && ln -s ../../../runtime/* . && \
		ln -s ../../../kernels ../../../export ../../../bench ../../../models .
.PHONY: build/tree

types: build/tree
	MYPYPATH=build/tree $(BIN)/mypy -p tintype

imports: build/tree
	PYTHONPATH=build/tree $(BIN)/lint-imports

# Hours on a processor; every stage goes on from its last checkpoint when it is started again.
postcard: $(TEST_STAMP)
	$(BIN)/python -m tintype.models.postcard.judge train
	$(BIN)/python -m tintype.models.postcard.train
	$(BIN)/python -m tintype.models.postcard.pack
	$(BIN)/python -m tintype.models.postcard.pack --fast
	$(BIN)/python -m tintype.models.postcard.memorisation
	$(BIN)/python -m tintype.models.postcard.pack --precision fp32 --out build/postcard-fp32
	$(BIN)/python -m tintype.models.postcard.evaluate autoencoder --out bench/results/postcard-autoencoder.json
	$(BIN)/python -m tintype.models.postcard.evaluate bundle --out bench/results/postcard-int8.json
	$(BIN)/python -m tintype.models.postcard.evaluate bundle --exactness balanced --out bench/results/postcard-int8-balanced.json
	$(BIN)/python -m tintype.models.postcard.evaluate bundle --fast --out bench/results/postcard-fast-int8.json
	PYTHONPATH=tests/processors/pretend $(BIN)/python -m tintype.models.postcard.evaluate bundle --exactness balanced \
		--out bench/results/postcard-int8-balanced-avx2.json
	$(BIN)/python -m tintype.models.postcard.evaluate bundle --bundle build/postcard-fp32 --out bench/results/postcard-fp32.json
	$(BIN)/python -m tintype.models.postcard.edits inpaint --out bench/results/postcard-inpaint.json
	$(BIN)/python -m tintype.models.postcard.edits image-to-image --count 100 --out bench/results/postcard-image-to-image.json
	$(BIN)/python -m tintype.models.postcard.gallery

# The distilled denoiser again, from the checkpoint in the repository: about an hour and a half.
postcard-fast: $(TEST_STAMP)
	[ -e models/postcard/runs/cpu/unet.pt ] || $(BIN)/python -m tintype.models.postcard.train --recipe cpu --stage adopt
	$(BIN)/python -m tintype.models.postcard.train --recipe cpu --stage ways
	$(BIN)/python -m tintype.models.postcard.train --recipe cpu --stage fast
	$(BIN)/python -m tintype.models.postcard.pack --fast
	$(BIN)/python -m tintype.models.postcard.memorisation
	$(BIN)/python -m tintype.models.postcard.evaluate bundle --fast --out bench/results/postcard-fast-int8.json
	$(BIN)/python -m tintype.models.postcard.evaluate bundle --steps 4 --sigmas trailing \
		--out bench/results/postcard-4-steps-int8.json
	$(BIN)/python -m tintype.models.postcard.evaluate bundle --steps 4 --sigmas trailing --guidance-scale 1 \
		--out bench/results/postcard-4-steps-unguided-int8.json

# Its LoRAs and its ControlNet again, from the checkpoint in the repository, and what they do in 100 pictures each: hours.
postcard-adapters: $(TEST_STAMP)
	$(BIN)/python -m tintype.models.postcard.adapters.judge train
	for name in mushroom cyanotype pixel-art; do \
		$(BIN)/python -m tintype.models.postcard.adapters.lora $$name || exit 1; done
	$(BIN)/python -m tintype.models.postcard.adapters.control
	$(BIN)/python -m tintype.models.postcard.adapters.evaluate mushroom cyanotype pixel-art edges \
		--out bench/results
	$(BIN)/python -m tintype.models.postcard.adapters.gallery

bench: $(RUN_STAMP)
	$(BIN)/tintype bench

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache postcard.png
