"""Two requests with one prompt: what becomes of the one when the other is aborted."""

import threading

from client import (
    FOREVER,
    assert_chain_right,
    assert_report,
    events,
    flush_cache,
    generate,
    post,
    problem,
    request,
)


def assert_the_other_is_spared(server, budget: int) -> None:
    """One is aborted at its first overwrite; the other is dense and reads the prompt to its end."""
    asked = problem(24)  # a prompt of several chunks
    answers = []
    thread = threading.Thread(
        target=lambda: answers.append(
            generate(server, asked.prompt, "dense", tokens=asked.generated_tokens + 20)
        )
    )
    body = request(asked.prompt, "raas", budget, 4000, rid="twin", **FOREVER)
    is_aborted = False
    for event in events(server, body):
        if not answers and not thread.is_alive():
            thread.start()
        if event["meta_info"]["evicted_tokens"] and not is_aborted:
            is_aborted = True
            post(server, "/abort_request", {"rid": "twin"})
    thread.join()
    assert_report(event, "raas", budget)
    assert event["meta_info"]["finish_reason"]["type"] == "abort"
    assert_report(answers[0], "dense", None)
    assert_chain_right(asked, answers[0])
    flush_cache(server)
    assert server.used_tokens() == 0
