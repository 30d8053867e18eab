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
        layers: What each layer that has keys and values was given when a text was read last.
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
    def logprobs(
        self, prompt: list[int], output_ids: list[int], kept: torch.Tensor
    ) -> torch.Tensor:
        """Reads a prompt and its answer at once.

        Args:
            prompt: P tokens, of which each attends to all before it, and is attended to by all
                after it.
            output_ids: The answer; its last token is not computed.
            kept: [Y, H, steps, steps] bool, as of `kept_tokens`.

        Returns:
            [steps + 1, vocabulary]. Log-probabilities of each token of the answer and its rivals.
        """
        ids = [*prompt, *output_ids[:-1]]
        visible = torch.ones(*kept.shape[:2], len(ids), len(ids), dtype=torch.bool).tril()
        visible[..., len(prompt) :, len(prompt) :] = kept
        self._visible, self.layers = visible, {}
        logits = self._model(torch.tensor([ids]), use_cache=False).logits[0]
        assert len(self.layers) == len(kept), "a layer went past the mask"
        return logits[len(prompt) - 1 :].log_softmax(-1)

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
        visible = self._visible[len(self.layers)]
        self.layers[len(self.layers)] = Attended(query[0], key[0], value[0], scaling)
        visible = visible.repeat_interleave(query.shape[1] // key.shape[1], 0)[None]
        mask = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)
        eager = sys.modules[type(module).__module__].eager_attention_forward
        return eager(module, query, key, value, mask, scaling=scaling, **kwargs)


def kept_tokens(places: torch.Tensor, budget: int) -> torch.Tensor:
    """Which generated tokens a step attends to, when each step takes the place of an old one.

    Args:
        places: [steps, Y, H] int64. Place in the budget that each step stores to.
        budget: L in tokens.

    Returns:
        [Y, H, steps, steps] bool. Whether a step (third) attends to the token of another (last).
    """
    steps, *heads = places.shape
    kept = torch.zeros(*heads, steps, steps, dtype=torch.bool)
    births = torch.zeros(*heads, budget, dtype=torch.int64)
    for step, of_step in enumerate(places):
        births.scatter_(2, of_step[..., None], step)
        kept[:, :, step].scatter_(2, births[..., : step + 1], True)
    return kept
