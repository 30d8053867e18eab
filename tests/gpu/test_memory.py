"""`budget_bound`, `prompt_untouched`, `tree_purity` and `conservation` on the GPU."""

import pytest
import requests

from client import (
    EVICTING,
    FOREVER,
    assert_chain_right,
    assert_report,
    flush_cache,
    generate,
    problem,
    second_turns,
    together,
    token_ids,
)

pytestmark = pytest.mark.gpu


def settings(server) -> dict:
    return requests.get(server.url + "/server_info", timeout=60).json()


def test_budgets_hold(evicting_server):
    """Every policy at odd prompt lengths, around L, all in one batch."""
    ids = token_ids(evicting_server, problem(8).prompt)
    cases = [
        (policy, length, budget + past, budget)
        for policy in EVICTING
        for length in (1, 15, 16, 17, 40)
        for budget in (16, 64)
        for past in (-1, 0, 1, 2, 17, 300)
    ]
    calls = [
        lambda case=case: generate(
            evicting_server, ids[: case[1]], case[0], case[3], case[2], **FOREVER
        )
        for case in cases
    ]
    for (policy, length, tokens, budget), answer in zip(cases, together(calls), strict=True):
        assert_report(answer, policy, budget)
        info = answer["meta_info"]
        assert info["resident_tokens"] == length + min(info["logical_tokens"] - length, budget)
        assert tokens - 1 <= info["logical_tokens"] - length <= tokens


def assert_tree_pure(server, page_size: int) -> None:
    for ids, clean in second_turns(server, page_size):
        cached = generate(server, ids, "dense", tokens=1)["meta_info"]["cached_tokens"]
        assert cached == clean, len(ids)


def test_tree_purity(server):
    assert_tree_pure(server, 1)


def test_tree_purity_with_pages(paged_server):
    assert_tree_pure(paged_server, 16)


def test_prompt_untouched(evicting_server):
    """A shared prefix reads back bit-identical: attention over it gives the same bits."""
    shared = problem(60, seed=21)
    probe = {"tokens": 60, "return_logprob": True}
    generate(evicting_server, shared.prompt, "dense", **probe)
    before = generate(evicting_server, shared.prompt, "dense", **probe)["meta_info"]
    neighbours = [problem(60, seed=21, inputs=index) for index in range(100, 140)]
    calls = [
        lambda one=one, policy=policy: generate(
            evicting_server, one.prompt, policy, 32, 400, **FOREVER
        )
        for one, policy in zip(neighbours, EVICTING * 8, strict=True)
    ]
    for answer in together(calls):
        assert answer["meta_info"]["cached_tokens"] > len(shared.program_text.split()) - 17
        assert answer["meta_info"]["evicted_tokens"] > 360
    after = generate(evicting_server, shared.prompt, "dense", **probe)["meta_info"]
    assert after["cached_tokens"] == before["cached_tokens"]
    assert after["output_token_logprobs"] == before["output_token_logprobs"]


def test_prompts_longer_than_a_chunk(paged_server):
    """567 prompt tokens in chunks of 256, behind each other and beside decoding requests."""
    assert settings(paged_server)["chunked_prefill_size"] == 256
    asked = [problem(92, seed=index) for index in range(6)]
    calls = [
        lambda one=one, policy=policy: generate(paged_server, one.prompt, policy, 1024, 700)
        for one in asked
        for policy in ("dense", "raas")
    ]
    for index, answer in enumerate(together(calls)):
        assert_report(answer, *(("dense", None) if index % 2 == 0 else ("raas", 1024)))
        assert asked[index // 2].chain.startswith(answer["text"].strip())
        assert answer["meta_info"]["completion_tokens"] == 700


def test_float16_and_no_overlap(half_server):
    info = settings(half_server)
    assert info["dtype"] == "float16"
    assert info["disable_overlap_schedule"]
    asked = [problem(18, inputs=index) for index in range(20)]
    for budget in (256, None):
        policy = "dense" if budget is None else "raas"
        calls = [
            lambda one=one, policy=policy, budget=budget: generate(
                half_server, one.prompt, policy, budget, 300
            )
            for one in asked
        ]
        for one, answer in zip(asked, together(calls), strict=True):
            assert_chain_right(one, answer)
            assert_report(answer, policy, budget)


def test_a_quantised_cache_takes_half_of_the_memory(server, float8_server):
    """With scales of the checkpoint, which another cache is refused for."""
    sizes = []
    for each, dtype in ((server, "auto"), (float8_server, "fp8_e4m3")):
        info = settings(each)
        assert info["kv_cache_dtype"] == dtype
        assert info["max_total_num_tokens"] == 300000
        sizes.append(info["internal_states"][0]["memory_usage"]["kvcache"])
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.05)


@pytest.mark.parametrize("policy", ["raas", "raas-paper", "h2o"])
def test_what_matters_is_kept_of_a_quantised_cache(float8_server, policy):
    """Most of each answer is kept, so it is nearly always that of the dense cache."""
    asked = [problem(18, inputs=index) for index in range(20)]
    calls = [
        lambda one=one, choice=choice: generate(float8_server, one.prompt, *choice, 300)
        for choice in (("dense", None), (policy, 208))
        for one in asked
    ]
    answers = together(calls)
    for answer in answers[20:]:
        assert_report(answer, policy, 208)
        assert answer["meta_info"]["evicted_tokens"] > 0
    pairs = zip(answers[:20], answers[20:], strict=True)
    assert sum(dense["text"] == ours["text"] for dense, ours in pairs) >= 18
    right = [one.chain == a["text"].strip() for one, a in zip(asked, answers[:20], strict=True)]
    assert sum(right) >= 15, "it reasons with float8 as well"


@pytest.mark.parametrize("policy", ["raas", "raas-paper", "h2o"])
def test_what_matters_is_kept(server, policy):
    """Most of a chain of 238 tokens is kept, so what is given up matters little."""
    asked = [problem(18, inputs=index) for index in range(20)]
    calls = [lambda one=one: generate(server, one.prompt, policy, 208, 300) for one in asked]
    answers = together(calls)
    for one, answer in zip(asked, answers, strict=True):
        assert_report(answer, policy, 208)
        assert answer["meta_info"]["evicted_tokens"] > 0, one.chain
    assert sum(a["text"].strip() == o.chain for o, a in zip(asked, answers, strict=True)) >= 18


def test_conservation(evicting_server):
    """Finished, aborted and disconnected requests give everything back."""
    calls = [
        lambda i=i: generate(evicting_server, problem(6, seed=i).prompt, "raas", 16, 150, **FOREVER)
        for i in range(20)
    ]

    def leave() -> None:
        params = {"max_new_tokens": 12000, "temperature": 0, "ignore_eos": True}
        body = {"text": problem(6).prompt, "sampling_params": params, "stream": True}
        with requests.post(
            evicting_server.url + "/generate", json=body, stream=True, timeout=60
        ) as lines:
            for count, _ in enumerate(lines.iter_lines()):
                if count > 300:
                    return

    together([*calls, leave, leave])
    flush_cache(evicting_server)
    assert evicting_server.used_tokens() == 0
