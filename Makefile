# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Needs Python >= 3.11; everything else goes into .venv. Every pip call uses the constraints file.
# On Linux the package index has PyTorch for CUDA, gigabytes of it. `make demo TORCH_INDEX=URL`, with
# the address of PyTorch's index of CPU builds, takes one for CPUs; PyTorch says which address that
# is: https://pytorch.org/get-started/locally/

PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Beside the usual index: of one version pip prefers the build for CPUs, whose local version is `+cpu`.
INDEX := $(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)')
INSTALL := $(PIP) install --quiet $(INDEX) --constraint constraints.txt --editable
# One thread a process: on a busy machine more OpenMP threads are up to 60 times slower.
export OMP_NUM_THREADS := 1
export PYTHONPATH :=
# Tests start a hundred processes; each would compile the package anew.
export PYTHONDONTWRITEBYTECODE :=

# Two workers; a group of tests that must not meet (Ray's), or that share what is built once, stays
# with one of them. In the order of tests/conftest.py: xdist's own begins with groups of many tests.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

.PHONY: demo test check ci lint format docs release hashes clean smpc test-smpc tensorflow test-tensorflow timm test-timm orion

demo: .venv/demo.stamp
	$(BIN)/g2d demo
	@echo "Then:    . $(BIN)/activate    # puts g2d on this shell's PATH"

# All tests.
test: .venv/dev.stamp
	$(PYTEST)

# The developer's loop: all that is checked, without the tests that are marked slow.
check: lint
	$(call beside_types,$(PYTEST) -m "not slow")

# What CI runs: all that is checked, and every test once.
ci: lint
	$(call beside_types,$(PYTEST))

# What takes seconds.
lint: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python .ci/check_sizes.py

# Run the tests while mypy runs beside them, then say what it found; fail if either did.
define beside_types
	@mkdir -p build; $(BIN)/mypy > build/mypy.txt 2>&1 & types=$$!; \
	$(1); tests=$$?; \
	wait $$types; typed=$$?; echo "mypy:"; cat build/mypy.txt; \
	test $$tests -eq 0 -a $$typed -eq 0
endef

format: .venv/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# The environment of parties that compute on shares (docs/confidential.md): SecretFlow SPU pins jax
# and NumPy to versions that nothing else here wants. It finds this package by its path.
smpc: .venv-smpc/smpc.stamp

# What needs it: real parties, three and two, in processes of their own.
test-smpc: smpc .venv/dev.stamp
	$(BIN)/python -m pytest -rs tests/protect/test_smpc_*.py tests/cli/test_cli_smpc.py

# TensorFlow, in an environment of its own: it asks whether what is exported for Keras loads there.
tensorflow: .venv-tf/tensorflow.stamp

test-tensorflow: tensorflow .venv/dev.stamp
	$(BIN)/python -m pytest -rs tests/interop/test_tensorflow.py

# timm, in an environment of its own (11 MB) beside this one: it wants torchvision, whose build on
# PyPI is for CUDA, and which where it is broken breaks what looks for it (transformers).
timm: .venv-timm/timm.stamp

test-timm: timm
	$(BIN)/python -m pytest -rs tests/interop/test_hugging_face.py

# Orion, a rival of encrypted inference, in an environment of its own (1 GB): it pins SciPy, and wants
# a torchvision of torch's own version. `benchmarks.confidential.orion` measures it beside ours.
orion: .venv-orion/orion.stamp

# dist/: packages, a CycloneDX list of what is deployed with them, and the SHA-256 of each file.
release: .venv/dev.stamp
	$(BIN)/python .ci/release.py

# requirements.lock: hashes of what pip would install here; other platforms' stay.
hashes: .venv/dev.stamp
	$(BIN)/python .ci/hashes.py

clean:
	rm -rf .venv .venv-smpc .venv-tf .venv-timm .venv-orion site demo runs build dist .mypy_cache .ruff_cache .import_linter_cache src/*.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) '.[report,attacks,serve,signing]'
	touch $@

.venv/dev.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) '.[dev]'
	touch $@ .venv/demo.stamp

.venv-smpc/smpc.stamp: smpc-constraints.txt
	$(PYTHON) -m venv .venv-smpc
	.venv-smpc/bin/python -m pip --disable-pip-version-check install --quiet --constraint $< spu
	echo '$(CURDIR)/src' > $$(.venv-smpc/bin/python -c 'import site; print(site.getsitepackages()[0])')/g2d.pth
	touch $@

.venv-timm/timm.stamp: .venv/dev.stamp
	$(PYTHON) -m venv .venv-timm
	.venv-timm/bin/python -m pip --disable-pip-version-check install --quiet --no-deps \
	  timm==1.0.31 torchvision==0.28.0
	for python in .venv-timm $(CURDIR)/.venv; do \
	  $$python/bin/python -c 'import site; print(site.getsitepackages()[0])'; done | { read own; \
	  read here; printf '%s\n' '$(CURDIR)/src' "$$here" > "$$own/g2d.pth"; }
	touch $@

.venv-tf/tensorflow.stamp: tensorflow-constraints.txt
	$(PYTHON) -m venv .venv-tf
	.venv-tf/bin/python -m pip --disable-pip-version-check install --quiet --constraint $< tensorflow-cpu keras
	touch $@

.venv-orion/orion.stamp: orion-constraints.txt
	$(PYTHON) -m venv .venv-orion
	.venv-orion/bin/python -m pip --disable-pip-version-check install --quiet $(INDEX) --constraint $< orion-fhe
	touch $@

.venv/docs.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) '.[docs]'
	touch $@
