"""Retraction and chunked prefill: the boundary P does not move."""

from client import assert_chain_right, assert_report, generate, problem, together

LONG = {"sampling_params": {"ignore_eos": True}}


def test_interrupted_requests_keep_their_budgets_and_their_answers(retracting_server):
    asked = [problem(18, inputs=index) for index in range(6)]
    choices = [("raas", 256), ("dense", None), ("raas", 64), ("window", 64), ("h2o", 32)]
    choices.append(("raas-paper", 32))
    calls = [
        lambda one=one, choice=choice: generate(retracting_server, one.prompt, *choice, tokens=300)
        for one in asked[:3]
        for choice in choices
    ]
    answers = together(calls)
    for answer, choice in zip(answers, choices * 3, strict=True):
        assert_report(answer, *choice)
    assert sum(answer["meta_info"]["num_retractions"] for answer in answers) > 3
    for index, one in enumerate(asked[:3]):
        assert_chain_right(one, answers[index * len(choices)])  # 256 tokens lose 0 of 238
        assert_chain_right(one, answers[index * len(choices) + 1])


def test_an_interrupted_window_is_the_window_it_was(retracting_server, server):
    """The last L tokens survive an interruption, so the window policy cannot tell."""
    asked = problem(18)
    quiet = generate(server, asked.prompt, "window", 64, 300)

    def run():
        return generate(retracting_server, asked.prompt, "window", 64, 300)

    answers = together([run] * 4)
    assert any(answer["meta_info"]["num_retractions"] for answer in answers)
    for answer in answers:
        assert answer["output_ids"][:60] == quiet["output_ids"][:60]
        assert_report(answer, "window", 64)


def test_prompts_longer_than_a_chunk(retracting_server):
    asked = problem(40)  # 255 prompt tokens, chunks of 64
    calls = [lambda: generate(retracting_server, asked.prompt, "raas", 64, 200, **LONG)] * 3
    for answer in together(calls):
        assert_report(answer, "raas", 64)
        assert answer["meta_info"]["resident_tokens"] == answer["meta_info"]["prompt_tokens"] + 64
