# `make demo` trains a chatbot and talks; `make test` checks everything. Both set themselves up.
PYTHON ?= python3
VENV := .venv
# Linux wheels of torch on PyPI bring gigabytes of CUDA along; PyTorch's own index has one without.
# With an NVIDIA GPU: make demo TORCH_INDEX=https://pypi.org/simple
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# What keeps numeric libraries to the instructions of a laptop's processor, without AVX-512, VNNI and bf16.
AVX2_ONLY := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 CT2_FORCE_CPU_ISA=AVX2 CT2_USE_MKL=0
NUMERIC := $(patsubst %,tests/test_%.py,engine verify loss mini sentence_encoder)

.PHONY: demo test test-fast test-avx2 lint messages clean

demo: $(VENV)/daedap
	$(VENV)/bin/daedap train
	$(VENV)/bin/daedap answer "오늘 너무 피곤해"
	$(VENV)/bin/daedap answer "짝사랑 중이에요"
	$(VENV)/bin/daedap answer "넌 누구야?"
	@echo 'Talk with it: $(VENV)/bin/daedap chat'

test: $(VENV)/dev lint
	$(VENV)/bin/python -m pytest -n auto --dist loadfile
	$(MAKE) test-avx2

# Without the tests that train, start processes or a browser.
test-fast: $(VENV)/dev
	$(VENV)/bin/python -m pytest -n auto --dist loadfile -m "not slow"

# The engine and all numeric tests once more, as on a processor that has AVX2 and nothing newer.
test-avx2: $(VENV)/dev
	$(AVX2_ONLY) $(VENV)/bin/python -m pytest -n auto --dist loadfile $(NUMERIC)

lint: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Compiles the Korean messages after a change of daedap.po.
messages: $(VENV)/dev
	$(VENV)/bin/pybabel compile --domain daedap --directory daedap/locale

clean:
	rm -rf $(VENV)

$(VENV)/torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	[ "$$(uname -s)" != Linux ] || $(PIP) --no-deps --retries 0 --index-url $(TORCH_INDEX) torch || true
	touch $@

$(VENV)/daedap: $(VENV)/torch pyproject.toml
	$(PIP) -e .
	touch $@

$(VENV)/dev: $(VENV)/daedap
	$(PIP) -e '.[dev]'
	touch $@
