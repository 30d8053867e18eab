"""What a scheduler's process has: arguments, a model's configuration, and our hooks."""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

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
    """Becomes the scheduler of a model without weights.

    Raises:
        RuntimeError: a seam is not as tested.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(_MODEL))
        return become_scheduler_of(folder, kv_budget=16, skip_tokenizer_init=True)


def become_scheduler_of(model_path: str, **settings: Any) -> ServerArgs:
    """Publishes arguments for a model on the CPU, and installs the hooks.

    Args:
        model_path: Of the model, of which no more than the configuration is read.
        settings: More of SGLang's arguments, and L as ``kv_budget``.

    Raises:
        RuntimeError: a seam is not as tested.
    """
    load_plugins()
    server_args: ServerArgs = Engine.server_args_class(
        model_path=model_path,
        device="cpu",
        attention_backend="torch_native",
        pp_max_micro_batch_size=32,
        kv_policy="raas",
        **settings,
    )
    server_args.resolve_once()
    ranks = runtime_context.SpawnRanks(world_rank=0)
    runtime_context.publish(server_args, role="test", ranks=ranks)
    runtime_context.process_model_config()  # which is kept; the probe's folder is not
    logging.getLogger("sglang").setLevel(logging.CRITICAL)  # it logs each refusal
    installation.require_seams()
    return server_args
