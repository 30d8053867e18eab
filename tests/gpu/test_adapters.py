"""LoRA with SGLang's kernels and CUDA graphs."""

import pytest

from adapters import assert_the_tree_keeps_adapters_apart

pytestmark = pytest.mark.gpu


def test_the_tree_keeps_adapters_apart(adapter_server, tmp_path):
    assert_the_tree_keeps_adapters_apart(adapter_server, tmp_path)
