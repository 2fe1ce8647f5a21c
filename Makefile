# `make demo` trains a chatbot and talks; `make test` checks everything. Both set themselves up.
PYTHON ?= python3
VENV := .venv
# Linux wheels of torch on PyPI bring gigabytes of CUDA along; PyTorch's own index has one without.
# With an NVIDIA GPU: make demo TORCH_INDEX=https://pypi.org/simple
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint clean

demo: $(VENV)/daedap
	$(VENV)/bin/daedap train
	$(VENV)/bin/daedap answer "오늘 너무 피곤해"
	$(VENV)/bin/daedap answer "짝사랑 중이에요"
	$(VENV)/bin/daedap answer "넌 누구야?"
	@echo 'Talk with it: $(VENV)/bin/daedap chat'

test: $(VENV)/dev lint
	$(VENV)/bin/python -m pytest -n auto

lint: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

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
