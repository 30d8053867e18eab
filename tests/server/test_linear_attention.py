"""A model some of whose layers have linear attention: their state is that of the whole text.

What is given up, and what is attended to after that, `test_families` compares with transformers.
"""

import pytest

from client import (
    EVICTING,
    FOREVER,
    assert_report,
    assert_same_answer,
    flush_cache,
    generate,
    post,
    request,
    retracted_events,
    together,
)
from conftest import beside, start_server
from families import make_model

BUDGET, POOL, GRID = 64, 1000, 64
CHUNKS = {"qwen3-next": 64, "nemotron-h": 32}  # tokens between two states of a prefill
TOKENS = 150  # past several states, and twice the budget
MOST = 512 - 2 * GRID  # that the context has room for, so that a pause comes in time
FLAGS = (
    *("--dtype", "float32", "--grammar-backend", "none", "--skip-tokenizer-init"),
    *("--max-total-tokens", str(POOL), "--mamba-track-interval", str(GRID)),
    *("--max-mamba-cache-size", "200"),  # states; or they take most of the host's memory
)
RAAS = ("--kv-policy", "raas", "--kv-budget", "64", "--kv-max-budget", "256")
# Where the tree keeps states: at multiples of the grid, or at the ends of prompts and texts.
STRATEGIES = {
    "extra_buffer": (),
    "no_buffer": ("--mamba-radix-cache-strategy", "no_buffer", "--disable-overlap-schedule"),
}
# Of each kind of linear attention one model: gated delta net and Mamba2.
pytestmark = pytest.mark.parametrize(
    ("model", "hybrid"),
    [("qwen3-next", "extra_buffer"), ("qwen3-next", "no_buffer"), ("nemotron-h", "extra_buffer")],
    indirect=True,
    scope="module",
)
# With a budget more, the first step that overwrites would keep a state; with one more token before
# it, the last that does not keeps one.
PROMPT = [(index * index + 5) % 128 for index in range(2 * GRID - 1)]
QUESTION = [(29 * index + 1) % 128 for index in range(20)]


@pytest.fixture(scope="module")
def model(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    make_model(request.param, path)
    return path, CHUNKS[request.param]


@pytest.fixture(scope="module")
def plain(model):
    """What SGLang answers without RaaS."""
    environment = {**beside("linear"), "SGLANG_PLUGINS": "linear"}
    with start_server(*FLAGS, model_path=model[0], **environment) as running:
        return cold(running, PROMPT, tokens=TOKENS, return_logprob=True)


@pytest.fixture(scope="module")
def hybrid(request, model):
    flags = (*FLAGS, *RAAS, *STRATEGIES[request.param])
    with start_server(*flags, model_path=model[0], **beside("linear")) as running:
        running.keeps_ends, running.chunk = request.param == "no_buffer", model[1]
        yield running
        assert running.is_alive(), running.log_end()


def cold(server, *args, **extra) -> dict:
    """An answer of which the tree knows nothing."""
    flush_cache(server)
    answer = generate(server, *args, **FOREVER, **extra)
    assert answer["meta_info"]["cached_tokens"] == 0
    return answer


@pytest.mark.parametrize(("policy", "budget"), [("dense", None), ("raas", 256), ("raas", BUDGET)])
def test_dense_identity(plain, hybrid, policy, budget):
    """To the end, or to where a budget is full; the others go on past several states."""
    same = BUDGET if budget == BUDGET else TOKENS
    found = cold(hybrid, PROMPT, policy, budget, TOKENS, return_logprob=True)
    assert_report(found, policy, budget)
    assert_same_answer(found, plain, same)
    assert budget != BUDGET or found["output_ids"] != plain["output_ids"]


@pytest.mark.parametrize("tokens", [BUDGET + 1, 150])
def test_the_next_turn_is_the_same_on_a_cold_and_a_warm_tree(hybrid, tokens):
    """Not saturated, the tree has the whole first turn; saturated, its prompt."""
    first = cold(hybrid, PROMPT, "raas", BUDGET, tokens)
    turn = [*PROMPT, *first["output_ids"], *QUESTION]
    warm = generate(hybrid, turn, "raas", BUDGET, 100, **FOREVER)
    # Of a prefill one is kept at the end of a chunk, of decoding at multiples of the grid.
    known, each = len(PROMPT), hybrid.chunk
    if tokens == BUDGET + 1:
        known, each = known + BUDGET, GRID
    assert warm["meta_info"]["cached_tokens"] == (
        known if hybrid.keeps_ends else known // each * each
    )
    assert_report(warm, "raas", BUDGET)
    assert warm["output_ids"] == cold(hybrid, turn, "raas", BUDGET, 100)["output_ids"]


def test_the_state_after_an_answer_is_not_kept_for_its_prompt(hybrid):
    """Prompt and answer are prefilled at once, so the tree knows no state in between."""
    sent, prompt_len = [*PROMPT, *QUESTION], 110
    cold(hybrid, sent, "raas", BUDGET, 100, prompt_len=prompt_len)
    turn = [*PROMPT[:prompt_len], *QUESTION]
    warm = generate(hybrid, turn, "raas", BUDGET, 100, **FOREVER)
    assert warm["output_ids"] == cold(hybrid, turn, "raas", BUDGET, 100)["output_ids"]


def test_more_is_generated_than_the_pool_holds(hybrid):
    """By every policy, from one prompt, which all share."""
    choices = [*((policy, 32) for policy in EVICTING), ("raas", BUDGET), ("dense", None)]
    prompts = [PROMPT, [*PROMPT, 1]]
    calls = [
        lambda ids=ids, choice=choice: generate(hybrid, ids, *choice, 120, **FOREVER)
        for ids in prompts
        for choice in choices
    ]
    answers = together(calls)
    for place, answer in enumerate(answers):
        assert_report(answer, *choices[place % len(choices)])
        assert answer["meta_info"]["num_retractions"] == 0
        dense = answers[place // len(choices) * len(choices) + len(choices) - 1]
        assert answer["output_ids"][:32] == dense["output_ids"][:32]
    flush_cache(hybrid)
    assert hybrid.used_tokens() == 0


def retracted(server, budget: int, at: int, tokens: int) -> dict:
    """The last event of an answer that was retracted once, when it had so many tokens."""
    body = request(PROMPT, "window", budget, tokens, **FOREVER)
    *_, event = retracted_events(server, body, at)
    return event


def test_retracted_before_it_is_saturated_it_goes_on(hybrid):
    quiet = cold(hybrid, PROMPT, "window", 2 * BUDGET, TOKENS)
    answer = retracted(hybrid, 2 * BUDGET, at=5, tokens=TOKENS)
    assert answer["meta_info"]["num_retractions"] == 1
    assert answer["output_ids"] == quiet["output_ids"]
    assert_report(answer, "window", 2 * BUDGET)
    assert answer["meta_info"]["evicted_tokens"] > 0


def test_retracted_once_it_is_saturated_it_ends_with_what_it_has(hybrid):
    quiet = cold(hybrid, PROMPT, "window", BUDGET, TOKENS)
    answer = retracted(hybrid, BUDGET, at=BUDGET + 20, tokens=MOST)
    reason, ids = answer["meta_info"]["finish_reason"], answer["output_ids"]
    assert reason["type"] == "abort"
    assert f"generated tokens beyond a budget of {BUDGET}, which" in reason["message"]
    assert ids[:TOKENS] == quiet["output_ids"][: len(ids)]
    assert len(ids) == answer["meta_info"]["completion_tokens"] >= BUDGET + 20
    flush_cache(hybrid)
    assert hybrid.used_tokens() == 0


def test_an_answer_that_outgrew_its_budget_is_not_taken_back(hybrid):
    body = request(PROMPT, "raas", 32, 100, prompt_len=90)
    for stream in (False, True):
        response = post(hybrid, "/generate", {**body, "stream": stream})
        assert response.status_code == 400, response.text
        assert "send the text so far as a prompt, without kv_prompt_len" in response.text
    taken = generate(hybrid, PROMPT, "raas", 32, 100, prompt_len=98, **FOREVER)
    assert taken["meta_info"]["resident_tokens"] == 98 + 32
