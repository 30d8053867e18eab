"""Greedy decoding of a Qwen2 model in plain torch, with a say in what each head attends."""

import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from accuracy.retention import Retention, Rule


class Decoder:
    """A batch of prompts of one length, a static cache of all tokens, one step in a CUDA graph.

    Args:
        model: The model, in the precision to compute in.
        prompts: int64 [rows, prompt].
        rule: Which tokens are attended.
        budgets: int64 [rows] tokens.
        steps: Most tokens to generate.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: Tensor, rule: Rule, budgets: Tensor, steps: int
    ) -> None:
        config = model.config
        self.model, self.steps = model, math.ceil(steps / rule.page) * rule.page
        self.heads, self.size = config.num_key_value_heads, config.head_dim
        rows, self.prompt_len = prompts.shape
        shape = (config.num_hidden_layers, self.heads, self.size)
        self.paged_prompt = self.prompt_len if rule.prompt == "paged" else 0
        self.pinned = self.prompt_len - self.paged_prompt
        paged = self.paged_prompt + self.steps
        self.retention = Retention(rule, budgets, shape, self.pinned, paged)
        length = self.prompt_len + self.steps
        cache = (2, shape[0], rows, self.heads, length, self.size)
        self.keys, self.values = torch.zeros(cache, dtype=model.dtype, device=model.device)
        self.places = torch.arange(length, device=model.device)
        self.reach = length  # keys that a step reads; all of them in a graph, which cannot grow
        self.step = torch.zeros(1, dtype=torch.long, device=model.device)
        self.output = torch.full((rows, self.steps), config.pad_token_id, device=model.device)
        hidden = self._layers(prompts, torch.arange(self.prompt_len, device=model.device)[None])
        if self.paged_prompt:
            self.retention.add_prompt(self.keys[..., : self.prompt_len, :])
        self.token = model.lm_head(hidden[:, -1:]).argmax(-1)
        self.output[:, :1] = self.token
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}

    def run(self) -> Tensor:
        """Returns int64 [rows, steps]; what follows a row's end is padding."""
        config = self.model.config
        for step in range(self.steps - 1):
            self._advance((self.paged_prompt + step) % self.retention.rule.page == 0, step)
            if step % 64 == 63 and (self.output == config.eos_token_id).any(1).all():
                break
        ended = self.output == config.eos_token_id
        after = ended.cumsum(1) - ended.long() > 0
        return self.output.masked_fill(after, config.pad_token_id)

    def _advance(self, begins: bool, step: int) -> None:
        if self.token.is_cuda and step >= 2 * self.retention.rule.page:
            if begins not in self._graphs:  # both kinds of step have run by now
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    self._one_step(begins)
                self._graphs[begins] = graph
            self._graphs[begins].replay()
        else:
            if not self.token.is_cuda:
                self.reach = self.prompt_len + step + 1
            self._one_step(begins)

    def _one_step(self, begins: bool) -> None:
        """Feeds the last token of every row and picks the next; changes tensors in place only."""
        if begins:
            self.retention.begin_page(self.step + self.paged_prompt)
        position = (self.step + self.prompt_len)[None]
        hidden = self._layers(self.token, position)
        self.token.copy_(self.model.lm_head(hidden).argmax(-1))
        self.step.add_(1)
        self.output.index_copy_(1, self.step, self.token)

    def _layers(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Runs tokens [rows, count] at positions [1, count]; returns their last hidden states."""
        inner = self.model.model
        hidden = inner.embed_tokens(tokens)
        turn = inner.rotary_emb(hidden, positions)
        for index, layer in enumerate(inner.layers):
            x = layer.input_layernorm(hidden)
            part = layer.self_attn
            q, k, v = (
                project(x).view(*tokens.shape, -1, self.size).transpose(1, 2)
                for project in (part.q_proj, part.k_proj, part.v_proj)
            )
            q, k = apply_rotary_pos_emb(q, k, *turn)
            self.keys[index].index_copy_(2, positions[0], k)
            self.values[index].index_copy_(2, positions[0], v)
            if tokens.shape[1] > 1:
                mixed = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            else:
                mixed = self._attend(index, q, k)
            mixed = mixed.transpose(1, 2).reshape(*tokens.shape, -1)
            hidden = hidden + part.o_proj(mixed)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return inner.norm(hidden)

    def _attend(self, layer: int, q: Tensor, k: Tensor) -> Tensor:
        """One query of each row against what the rule lets it see."""
        rows, pinned, retention = len(q), self.pinned, self.retention
        step = self.step + self.paged_prompt
        q = q.view(rows, self.heads, -1, self.size)
        retention.add_key(layer, k[:, :, 0], step)
        keys, values = (x[layer][:, :, : self.reach] for x in (self.keys, self.values))
        logits = (q @ keys.transpose(2, 3)).float() / math.sqrt(self.size)
        logits.masked_fill_(self.places[: self.reach] > pinned + step, -math.inf)
        seen = retention.visible(layer, q, logits, step)
        unseen = ~seen[:, :, : self.reach - pinned]
        logits[..., pinned:].masked_fill_(unseen[:, :, None], -math.inf)
        shares = logits.softmax(-1)
        retention.observe(layer, q, shares, step)
        return (shares.to(q.dtype) @ values).view(rows, -1, 1, self.size)
