#!/usr/bin/env bash
# Makes .venv with this package and the SGLang of its extra. Needs Python 3.11 or 3.12, git and a C
# compiler; gets uv by itself where it is not installed. PYTHON=python3.11 chooses an interpreter.
set -euo pipefail
cd "$(dirname "$0")"

fail() {
  echo "setup: $1" >&2
  exit 1
}

supported() { # a Python
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

version() { # of a Python
  "$1" -c 'import sys; print(sys.version_info[:2])'
}

command -v git >/dev/null || fail "git must be installed, found none; install it with your package manager"
command -v cc >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null ||
  fail "a C compiler must be installed, found neither cc, gcc nor clang; install gcc (Triton compiles with it)"

python=""
for candidate in ${PYTHON:-python3.12 python3.11 python3 python}; do
  if supported "$candidate"; then
    python=$(command -v "$candidate")
    break
  fi
done
[ -n "$python" ] || fail "Python 3.11 or 3.12 must be installed, found neither${PYTHON:+ as $PYTHON}; install python3.12"
"$python" -c 'import sysconfig, os, sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
  fail "the headers of $python must be installed, found no Python.h; install its development package"

uv=$(command -v uv || true)
if [ -z "$uv" ] || ! "$uv" --version >/dev/null 2>&1; then
  "$python" -m venv --clear .uv || fail "$python must have the venv module; install its venv package"
  .uv/bin/python -m pip install --quiet uv
  uv=.uv/bin/uv
fi

echo "setup: installing SGLang and raas-sglang into .venv (about 9 GB, once)"
if ! supported .venv/bin/python ||
  { [ -n "${PYTHON:-}" ] && [ "$(version .venv/bin/python)" != "$(version "$python")" ]; }; then
  "$uv" venv --quiet --clear --python "$python" .venv
fi
"$uv" pip install --quiet --python .venv/bin/python --editable ".[sglang]" --group dev
.venv/bin/python -m raas_sglang check >/dev/null || fail "the installed SGLang is not the one that was tested; run .venv/bin/python -m raas_sglang check"
touch .venv/.ready
