# Everything that a user runs. Set-up is done once, by `setup.sh`, and reused while pyproject.toml
# stays as it is.
PYTHON := .venv/bin/python
READY := .venv/.ready
ARGS ?=

.PHONY: demo test lint gpu-test clean

demo: $(READY)
	$(PYTHON) benchmarks/demo.py $(ARGS)

# Triton decides at import whether it interprets, so its tests are a run of their own.
test: $(READY) lint
	TRITON_INTERPRET=1 $(PYTHON) -m pytest -q -m "not gpu" tests/ops $(ARGS)
	$(PYTHON) -m pytest -q -m "not gpu" tests/unit tests/memory tests/server $(ARGS)

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# On a GPU host whose own Python has SGLang; a skipped test fails the run.
gpu-test:
	python3 -m pytest -q -m gpu tests $(ARGS)

$(READY): pyproject.toml setup.sh
	./setup.sh

clean:
	rm -rf .venv .uv
