"""The next turn of a conversation: prompt, answer and a question, as text or in a session."""

import threading
import time

import pytest

from client import FOREVER, assert_report, flush_cache, generate, post, problem, request, token_ids

BUDGET = 64


@pytest.mark.parametrize("tokens", [40, 150])
def test_the_next_turn_is_the_same_on_a_cold_and_a_warm_tree(server, tokens):
    """Not saturated, the tree has the whole first turn; saturated, its prompt."""
    flush_cache(server)
    ids = token_ids(server, problem(8).prompt)
    question = token_ids(server, problem(6, inputs=3).prompt)
    first = generate(server, ids, "raas", BUDGET, tokens, **FOREVER)
    turn = [*ids, *first["output_ids"], *question]
    warm = generate(server, turn, "raas", BUDGET, 100, **FOREVER)
    flush_cache(server)
    cold = generate(server, turn, "raas", BUDGET, 100, **FOREVER)
    # The last token of an answer is never computed.
    cached = len(ids) + (tokens - 1 if tokens <= BUDGET else 0)
    assert warm["meta_info"]["cached_tokens"] == cached
    assert cold["meta_info"]["cached_tokens"] == 0
    assert warm["output_ids"] == cold["output_ids"]
    for answer in (warm, cold):
        assert_report(answer, "raas", BUDGET)
        assert answer["meta_info"]["resident_tokens"] == len(turn) + BUDGET


@pytest.fixture
def session(server):
    """The id of an open session."""
    opened = post(server, "/open_session", {"capacity_of_str_len": 100_000}).json()
    yield opened
    assert post(server, "/close_session", {"session_id": opened}).ok


def ask(server, session, ids, tokens=90, **params) -> dict:
    """One turn of a session, greedy and saturated."""
    extra = {"session_params": {"id": session, **params}, **FOREVER}
    answer = generate(server, ids, "raas", BUDGET, tokens, **extra)
    assert_report(answer, "raas", BUDGET)
    return answer


def test_three_turns_of_a_session_are_what_their_text_is(server, session):
    ids = token_ids(server, problem(8).prompt)
    text: list[int] = []
    rid = None
    for turn in range(3):
        question = [*ids[: 20 + turn], 40 + turn]
        answer = ask(server, session, question, rid=rid)
        text += question
        info = answer["meta_info"]
        assert info["prompt_tokens"] == len(text)
        assert info["resident_tokens"] == len(text) + BUDGET
        alone = generate(server, text, "raas", BUDGET, 90, **FOREVER)
        assert answer["output_ids"] == alone["output_ids"], turn
        text += answer["output_ids"]
        rid = info["id"]


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"replace": True}, lambda prompt, output: [*prompt, *output]),
        ({"offset": 10}, lambda prompt, output: prompt[:10]),
        ({"offset": -5}, lambda prompt, output: [*prompt, *output][:-5]),
        ({"drop_previous_output": True}, lambda prompt, output: prompt),
    ],
)
def test_a_turn_that_takes_back_a_part_of_the_session(server, session, params, kept):
    """`replace` drops the turns after the one named; the others cut its text."""
    ids = token_ids(server, problem(8).prompt)
    first = ask(server, session, ids)
    dropped = ask(server, session, ids[:9], 2, rid=first["meta_info"]["id"])
    assert dropped["meta_info"]["prompt_tokens"] == len(ids) + 90 + 9
    question = ids[:15]
    answer = ask(server, session, question, rid=first["meta_info"]["id"], **params)
    alone = generate(
        server, [*kept(ids, first["output_ids"]), *question], "raas", BUDGET, 90, **FOREVER
    )
    assert answer["meta_info"]["prompt_tokens"] == alone["meta_info"]["prompt_tokens"]
    assert answer["output_ids"] == alone["output_ids"]


def test_a_turn_that_is_refused_twice_has_the_first_reason(server, session):
    """First for its place in the session, then for its grammar."""
    place = {"session_params": {"id": session, "rid": "nobody"}}
    grammar = {"sampling_params": {"regex": "(["}}
    answer = post(server, "/generate", request([5, 6, 7], "raas", BUDGET, 8, **place, **grammar))
    assert answer.status_code == 400, answer.text
    assert "Invalid request session id" in answer.text
    assert len(generate(server, [5, 6, 7], tokens=4, **FOREVER)["output_ids"]) == 4


def test_a_turn_while_the_last_one_runs_is_a_400(server, session):
    ids = token_ids(server, problem(8).prompt)
    body = request(ids, "raas", BUDGET, 4000, rid="runs", session_params={"id": session}, **FOREVER)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(post(server, "/generate", body).json()))
    thread.start()
    while server.running_and_waiting() != (1, 0):
        assert thread.is_alive()
        time.sleep(0.05)
    following = request([5], session_params={"id": session, "rid": "runs"})
    for stream in (False, True):
        response = post(server, "/generate", {**following, "stream": stream})
        assert response.status_code == 400, response.text
        assert "hasn't finished" in response.text
    post(server, "/abort_request", {"rid": "runs"})
    thread.join()
    assert_report(answers[0], "raas", BUDGET)
    assert answers[0]["meta_info"]["finish_reason"]["type"] == "abort"
