# Everything that a user runs. Set-up is done once, by `setup.sh`, and reused while pyproject.toml
# stays as it is.
PYTHON := .venv/bin/python
READY := .venv/.ready
ARGS ?=
MODEL ?= reasoner
DEMO_reasoner := examples.demo.reasoner
DEMO_smollm2 := examples.demo.smollm2
# Every process that imports SGLang would compile it anew, which doubles the start of a server.
export PYTHONDONTWRITEBYTECODE :=
# Tests whose servers nobody shares; they run with those that need no server.
OWN_SERVERS := tests/server/test_adapters.py tests/server/test_documents.py \
	tests/server/test_engine.py tests/server/test_families.py tests/server/test_float8.py \
	tests/server/test_observability.py tests/server/test_view.py tests/server/test_priority.py \
	tests/server/test_frontend.py::test_example_on_its_own_runtime
# Threads of one process would spin for cores that the others have.
PYTEST := OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -m "not gpu and not gpu2"
GPU_PYTEST := OMP_NUM_THREADS=1 PYTHONPATH=.:kernels:patches:$$PYTHONPATH python3 -m pytest -q -rs

.PHONY: demo test test-servers test-ops test-units browser lint gpu-test gpu2-test clean

demo: $(READY)
	$(PYTHON) -m $(or $(DEMO_$(MODEL)),$(error MODEL must be reasoner or smollm2, got $(MODEL); leave it out for the bundled reasoner)) $(ARGS)

# Three at a time, the longest first, since servers wait now and then; each prints what it has when
# it is done.
test: $(READY)
	$(MAKE) --no-print-directory --jobs=3 --output-sync=target test-servers test-units lint test-ops

test-servers: $(READY)
	$(PYTEST) tests/server $(OWN_SERVERS:%=--deselect=%) $(ARGS)

# Triton decides at import whether it interprets, so its tests are a run of their own. There memory
# has pages of more than one token, in which some faults would not show.
test-ops: $(READY)
	TRITON_INTERPRET=1 $(PYTEST) tests/ops tests/memory --ignore tests/memory/test_faults.py $(ARGS)

test-units: $(READY) browser
	$(PYTEST) tests/unit tests/memory $(OWN_SERVERS) $(ARGS)

# A container of CI has no browser; who is not root there installs one, as the tests say.
browser:
	@for name in chromium chromium-browser google-chrome; do \
		command -v $$name >/dev/null && exit 0; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
			apt-get -qq install --no-install-recommends chromium >/dev/null; \
	fi || echo "no browser could be installed: the tests of the page will fail" >&2

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	$(PYTHON) -m benchmarks.report.build --check
	$(PYTHON) tools/generate.py --check

# With the python3 of a GPU host that has SGLang, this plugin's metadata and pytest. No test skips.
# `ARGS=--deselect=tests/gpu` runs the kernels' tests alone, which need torch, Triton and pytest.
gpu-test:
	$(GPU_PYTEST) -m gpu tests/ops tests/gpu $(ARGS)

# The same on a host with two GPUs: one model on both, and a model on each.
gpu2-test:
	$(GPU_PYTEST) -m gpu2 tests/gpu $(ARGS)

$(READY): pyproject.toml setup.sh
	./setup.sh

clean:
	rm -rf .venv .uv .models
