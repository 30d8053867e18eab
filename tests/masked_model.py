"""transformers' own models, where each layer and KV head sees what it is told to see."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

NAME = "masked"


class Attended(NamedTuple):
    """What the attention of a layer was given.

    Attributes:
        queries: [Hq, N, D] after RoPE; query heads of one KV head are neighbours.
        keys: [H, N, D] after RoPE.
        values: [H, N, D].
        scaling: Factor on q·k.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    scaling: float


class MaskedModel:
    """A model in float32, with the eager attention of its own file under another mask.

    Attributes:
        layers: What each layer was given when a text was read last.
    """

    def __init__(self, path: Path) -> None:
        AttentionInterface.register(NAME, self._attend)
        AttentionMaskInterface.register(NAME, lambda *_, **__: None)
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation=NAME
        )
        self._model = model.eval()
        self.layers: dict[int, Attended] = {}

    @torch.inference_mode()
    def logprobs(self, ids: list[int], visible: torch.Tensor) -> torch.Tensor:
        """Reads a text at once.

        Args:
            ids: N tokens.
            visible: [Y, H, N, N] bool. Whether a token (third) attends to another one (last).

        Returns:
            [N, vocabulary]. Log-probabilities of what follows each token.
        """
        self._visible, self.layers = visible, {}
        logits = self._model(torch.tensor([ids]), use_cache=False).logits[0]
        assert sorted(self.layers) == list(range(len(visible))), "a layer went past the mask"
        return logits.log_softmax(-1)

    def _attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        _: torch.Tensor | None,
        scaling: float,
        **kwargs: Any,
    ) -> Any:
        self.layers[module.layer_idx] = Attended(query[0], key[0], value[0], scaling)
        visible = self._visible[module.layer_idx]
        visible = visible.repeat_interleave(query.shape[1] // key.shape[1], 0)[None]
        mask = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)
        eager = sys.modules[type(module).__module__].eager_attention_forward
        return eager(module, query, key, value, mask, scaling=scaling, **kwargs)
