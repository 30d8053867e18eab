"""LoRA on the CPU engine, which SGLang's own code runs but for the memory that it pins."""

from adapters import FLAGS, assert_the_tree_keeps_adapters_apart
from conftest import beside, start_server

KV = ("--kv-policy", "raas", "--kv-budget", "64", "--max-total-tokens", "8000")


def test_the_tree_keeps_adapters_apart(tmp_path):
    flags = (*KV, *FLAGS, "--lora-backend", "torch_native")
    with start_server(*flags, **beside("pageable")) as server:
        assert_the_tree_keeps_adapters_apart(server, tmp_path)
        assert server.is_alive(), server.log_end()
