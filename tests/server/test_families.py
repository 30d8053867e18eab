"""Families of models, one by one: engines against SGLang alone and against transformers.

An engine notes which token each layer and KV head gives up at each step. transformers' own model
then reads prompt and answer at once, under a mask of what was still kept. A row of the mask is what
one token's query saw, so every step is compared: positions, RoPE, norms, scaling, and what is
attended after saturation. The queries, keys and values of that reading are what the naive rule is
given.

Not every family can be compared like that. On a CPU, SGLang needs CUDA for Qwen2-MoE (a Triton
kernel gates the shared expert) and MiniMax-M2 (its norm of queries and keys), wants another
attention backend for EXAONE 4, and fails in Hunyuan's attention. With or without RaaS, SGLang's
Gemma has the exact GELU where transformers' has tanh, and its Phi-2 and Apertus are further from
transformers' than rounding.
"""

import re
from dataclasses import dataclass

import pytest
import torch

from families import FAMILIES, REFUSED_FAMILIES, make_model
from forked_engine import Answer, ForkedEngines, Request
from masked_model import MaskedModel, kept_tokens
from raas_kernels import Policy
from raas_sglang.policies import POLICIES

BUDGET = 32
TOKENS = 80
STEPS = TOKENS - 1  # the last token is not computed
PROMPTS = {
    "window": [(i * i + 5) % 128 for i in range(25)],
    "raas": [(29 * i + 1) % 128 for i in range(13)],
}
REFUSALS = {
    "olmo3": "Olmo2ForCausalLM with a sliding window (sliding_window_size 31) in layer 0",
    "llama4": "Llama4ForCausalLM with chunked local attention (use_irope True) in layers 0, 1",
    "smollm3": "TransformersForCausalLM with not one attention for each KV cache in layers 0, 1",
}
# Nats; both sides compute in float32, and differ by 0.00003 at most, 0.0002 with linear attention.
TOLERANCE = 5e-4


@dataclass
class Case:
    """A model of transformers, and what engines answered with the same weights."""

    model: MaskedModel
    plain: list[Answer]
    complete: list[Answer]
    evicted: dict[str, Answer]


@pytest.fixture(scope="module")
def engines():
    both = ForkedEngines(with_raas=False), ForkedEngines(with_raas=True)
    yield both
    for each in both:
        each.close()


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, engines, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    make_model(request.param, path)
    plain, ours = engines
    first, second = PROMPTS.values()
    asked = [Request(first, BUDGET), Request(second, BUDGET)]
    of_plain = plain.ask(path, [[one] for one in asked])
    asked = [Request(first, BUDGET, "dense"), Request(second, BUDGET, "raas", BUDGET)]
    evicting = [Request(prompt, TOKENS, name, BUDGET) for name, prompt in PROMPTS.items()]
    *complete, evicted = ours.ask(path, [*([one] for one in asked), evicting])
    return Case(
        MaskedModel(path),
        [answer for (answer,) in of_plain],
        [answer for (answer,) in complete],
        dict(zip(PROMPTS, evicted, strict=True)),
    )


def test_dense_identity(case):
    """Of a dense request, and of one that stays within its budget."""
    for ours, plain in zip(case.complete, case.plain, strict=True):
        assert ours.output_ids == plain.output_ids
        assert ours.logprobs == plain.logprobs, "bit for bit"
        assert ours.meta_info["evicted_tokens"] == 0
        assert "kv_policy" not in plain.meta_info


@pytest.mark.parametrize("policy", PROMPTS)
def test_attention_sees_what_is_kept(case, policy):
    answer = case.evicted[policy]
    assert answer.meta_info["evicted_tokens"] == STEPS - BUDGET
    kept = kept_tokens(places_of(answer), BUDGET)
    if policy == "window":
        age = torch.arange(STEPS)[:, None] - torch.arange(STEPS)
        assert torch.equal(kept, ((age >= 0) & (age < BUDGET)).expand_as(kept))
    wanted, found = read(case, policy, kept), torch.tensor(answer.logprobs)
    output_ids = torch.tensor(answer.output_ids)
    of_output = wanted.gather(1, output_ids[:, None])[:, 0]
    torch.testing.assert_close(found, of_output, rtol=0, atol=TOLERANCE)
    assert (of_output > wanted.amax(1) - TOLERANCE).all(), "greedy"
    # Or else nothing of the above says that anything was given up.
    apart = (read(case, policy, torch.ones_like(kept).tril()) - wanted).abs().amax(1)
    assert (apart[: BUDGET + 1] < TOLERANCE).all()
    assert (apart[BUDGET + 1 :] > 10 * TOLERANCE).float().mean() > 0.9
    assert len(output_ids.unique()) > 3


def test_raas_gives_up_what_the_naive_rule_gives_up(case):
    """Of tokens that are worth the same within rounding either may go; the rule follows."""
    places, prompt_len = places_of(case.evicted["raas"]), len(PROMPTS["raas"])
    read(case, "raas", kept_tokens(places, BUDGET))
    for layer, attended in case.model.layers.items():
        queries = attended.queries.unflatten(0, (len(attended.keys), -1)).transpose(1, 2)
        for head, tensors in enumerate(zip(queries, attended.keys, attended.values, strict=True)):
            naive = POLICIES["raas"].rule(BUDGET, (layer, head), attended.scaling, [])
            generated = [tensor[prompt_len:].tolist() for tensor in tensors]
            follow(naive, zip(*generated, strict=True), places[:, layer, head].tolist())


@pytest.mark.parametrize("family", REFUSED_FAMILIES)
def test_layers_of_another_kind_are_refused_when_the_model_is_loaded(engines, family, tmp_path):
    """SGLang's pool for these is a plain one, so nothing but the layers tells."""
    make_model(family, tmp_path)
    words = f"got {REFUSALS[family]}; remove --kv-policy for this model"
    with pytest.raises(RuntimeError, match=re.escape(words)):
        engines[1].ask(tmp_path, [[Request([1], 1)]])


def follow(naive, generated, places):
    """Holds the place of each step against the rule.

    Args:
        naive: The rule for one KV head.
        generated: Queries, key and value of each step.
        places: Where it was stored.
    """
    for step, (queries, key, value) in enumerate(generated):
        assert naive.store(step, key, value) == places[step], step
        naive.attend(step, queries)
        if choices := naive.choices(step):
            worth = {place: value for value, place in choices}
            chosen = places[step + 1 :][: Policy.RAAS.period(BUDGET)]
            wanted = [value for value, _ in choices[: len(chosen)]]
            assert [worth[place] for place in chosen] == pytest.approx(wanted, abs=1e-3), step
            assert choices[-1][0] - choices[0][0] > 0.1, "any choice would do"
            naive.adopt(chosen)
    assert step == STEPS - 1


def places_of(answer: Answer) -> torch.Tensor:
    places = torch.from_numpy(answer.places).long()
    assert len(places) == STEPS
    return places


def read(case: Case, policy: str, kept: torch.Tensor) -> torch.Tensor:
    return case.model.logprobs(PROMPTS[policy], case.evicted[policy].output_ids, kept)
