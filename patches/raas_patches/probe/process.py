"""What a scheduler's process has: arguments, a model's configuration, and our hooks."""

import json
import logging
import tempfile
from pathlib import Path

from sglang.srt import runtime_context
from sglang.srt.entrypoints.engine import Engine
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs

from raas_patches import installation

CONTEXT = 1280
_MODEL = {
    **{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 256},
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": CONTEXT},
}


def become_scheduler() -> ServerArgs:
    """Publishes arguments for a model without weights, and installs the hooks.

    Raises:
        RuntimeError: a seam is not as tested.
    """
    load_plugins()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(_MODEL))
        server_args: ServerArgs = Engine.server_args_class(
            model_path=folder,
            device="cpu",
            attention_backend="torch_native",
            skip_tokenizer_init=True,
            pp_max_micro_batch_size=32,
            kv_policy="raas",
            kv_budget=16,
        )
        server_args.resolve_once()
        ranks = runtime_context.SpawnRanks(world_rank=0)
        runtime_context.publish(server_args, role="test", ranks=ranks)
        runtime_context.process_model_config()  # while there is a folder to read it from
    logging.getLogger("sglang").setLevel(logging.CRITICAL)
    installation.require_seams()
    return server_args
