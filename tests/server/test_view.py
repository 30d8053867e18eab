"""The page of `raas_sglang view`, in a real browser beside a real server."""

import socket
import threading
import time
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from benchmarks.harness.server import free_port
from browser import ViewProcess, chromium, open_page
from client import FOREVER, generate, post, problem, request, together
from conftest import trace_endpoint
from made_up_trace import MadeUpRequest, sampled
from raas_sglang.trace import TokenTrace, listen, token_table
from raas_sglang.trace.publisher import TracePublisher
from stand_in import StandIn

BUDGET = 32


class Seen(NamedTuple):
    """What a page shows of requests that have ended, and the trace itself."""

    page: Page
    prompt: str
    answers: dict[str, dict]
    events: dict[str, dict[int, TokenTrace]]


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def seen(traced_server, browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("view")
    view = ViewProcess(
        *("--server", traced_server.url, "--record", str(folder / "trace")), log=folder / "log"
    )
    events: dict[str, dict[int, TokenTrace]] = defaultdict(dict)
    done = threading.Event()

    def subscribe():
        while not done.is_set():
            for message in listen([trace_endpoint(traced_server)], timeout_s=2):
                for event in message.batch.events:
                    events[event.rid][event.step] = event

    thread = threading.Thread(target=subscribe, daemon=True)
    thread.start()
    with view:
        page = open_page(browser, view.url)
        expect(page.locator("#status")).to_contain_text("listening to")
        prompt = problem(8).prompt
        answers = ask(traced_server, prompt)
        expect(page.locator("#list li", has_text="ended")).to_have_count(2)
        done.set()
        thread.join()
        yield Seen(page, prompt, answers, events)


def ask(server, prompt):
    """A raas request beside a dense one, and one that nobody may see."""

    def hidden():
        body = request(prompt, "raas", BUDGET, 60, rid="hidden", **FOREVER)
        body["sampling_params"]["custom_params"]["kv_trace"] = False
        return post(server, "/generate", body).json()

    raas, dense, unseen = together(
        [
            lambda: generate(server, prompt, "raas", BUDGET, 150, rid="watched", **FOREVER),
            lambda: generate(server, prompt, "dense", None, 90, rid="beside", **FOREVER),
            hidden,
        ]
    )
    assert unseen["meta_info"]["evicted_tokens"] > 0
    return {"watched": raas, "beside": dense}


def choose(page, rid):
    page.locator("#list li", has_text=rid).click()
    expect(page.locator("#rid")).to_have_text(rid)


def go_to(page, step):
    """Moves the slider as a hand does, and waits until the page shows that step."""
    page.locator("#step").evaluate(
        "(slider, step) => { slider.value = step; slider.dispatchEvent(new Event('input')); }", step
    )
    last = page.locator("#step").get_attribute("max")
    expect(page.locator("#at")).to_have_text(f"{step} of {last}")


def shown(page):
    """The classes of all generated tokens."""
    return page.locator("#words > span").evaluate_all("all => all.map(one => one.classList[1])")


def expected(event):
    """The classes that the trace asks for, from the births themselves."""
    births = token_table(event).births
    held = np.bincount(births.ravel(), minlength=event.step + 1)
    share = held / (births.shape[0] * births.shape[1])
    is_old = event.step - np.arange(event.step + 1) >= event.budget
    return [
        f"{'m' if old and part >= 0.25 else 'l'}{max(int(8 * part), int(part > 0))}"
        for old, part in zip(is_old, share, strict=True)
    ]


def test_both_requests_are_listed_and_the_hidden_one_is_not(seen):
    rows = seen.page.locator("#list li")
    expect(rows).to_have_count(2)
    for rid, name in (("watched", f"raas {BUDGET}"), ("beside", "dense")):
        info = seen.answers[rid]["meta_info"]
        row = rows.filter(has_text=rid)
        expect(row).to_contain_text(name)
        expect(row).to_contain_text(f"{info['resident_tokens']} of {info['logical_tokens']}")


@pytest.mark.parametrize("rid", ["watched", "beside"])
def test_the_text_is_the_prompt_and_the_answer(seen, rid):
    choose(seen.page, rid)
    words = seen.page.locator("#words")
    answer = seen.answers[rid]
    expect(seen.page.locator("#words > span")).to_have_count(len(answer["output_ids"]))
    # The page shows special tokens as well.
    assert words.text_content().replace("<eos>", " ").split() == answer["text"].split()
    assert seen.page.locator("#prompt").text_content().split() == seen.prompt.split()


def test_the_slider_shows_what_the_trace_said_at_each_step(seen):
    choose(seen.page, "watched")
    steps = sorted(seen.events["watched"])
    for step in (steps[-1], steps[len(steps) // 2], steps[40], steps[3], steps[-2]):
        go_to(seen.page, step)
        classes = shown(seen.page)
        assert classes[: step + 1] == expected(seen.events["watched"][step]), step
        # The last token of an answer is never computed, so no sample has it.
        assert set(classes[step + 1 :]) <= ({"later"} if step < steps[-1] else {"lu"})
    assert {"l0", "l8"} < set(expected(seen.events["watched"][steps[-1]]))
    seen.page.keyboard.press("l")
    expect(seen.page.locator("#latest")).to_have_attribute("aria-pressed", "true")
    assert "later" not in shown(seen.page)


def test_a_dense_request_holds_every_token(seen):
    choose(seen.page, "beside")
    assert set(shown(seen.page)) <= {"l8", "lu"}
    expect(seen.page.locator("#lives-note")).to_contain_text("Nothing was given up")


def test_a_token_says_what_each_head_did_with_it(seen):
    page = seen.page
    choose(page, "watched")
    step = sorted(seen.events["watched"])[-1]
    go_to(page, step)
    births = token_table(seen.events["watched"][step]).births
    page.locator("#token-20").hover()
    for token in (20, 21):
        holds = (births == token).any(2)
        expect(page.locator("#token-numbers")).to_contain_text(f"generated token{token}")
        held = f"held by{int(holds.sum())} of {holds.size} heads"
        expect(page.locator("#token-numbers")).to_contain_text(held)
        cells = page.locator("#token-heads i").evaluate_all(
            "all => all.map(one => !one.classList.contains('gone'))"
        )
        assert cells == holds.T.ravel().tolist()
        page.locator("#text").press("ArrowRight")
    page.locator("#token-30").hover()
    expect(page.locator("#token-22")).to_contain_class("at")  # what was chosen stays
    page.keyboard.press("Escape")
    expect(page.locator("#token-facts")).to_be_hidden()


def test_the_lives_are_drawn_and_a_click_goes_to_their_step(seen):
    page = seen.page
    choose(page, "watched")
    expect(page.locator("#lives")).to_have_attribute("data-step", "148")
    box = page.locator("#lives").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 20)
    expect(page.locator("#latest")).to_have_attribute("aria-pressed", "false")
    at = int(page.locator("#at").text_content().split()[0])
    assert 70 <= at <= 80
    expect(page.locator("#token-facts")).to_be_visible()


@pytest.mark.parametrize(("scheme", "width"), [("dark", 1280), ("light", 390), ("dark", 390)])
def test_it_fits_a_phone_and_the_dark(seen, browser, scheme, width):
    size = {"width": width, "height": 800}
    page = open_page(browser, seen.page.url, viewport=size, color_scheme=scheme)
    page.locator("#list li", has_text="watched").click()
    expect(page.locator("#words > span")).to_have_count(150)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    lightness = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    )
    assert (max(lightness) < 64) is (scheme == "dark")
    page.close()


def test_the_page_is_for_this_machine_alone(seen):
    port = int(seen.page.url.rstrip("/").rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port))


def test_a_wish_that_is_neither_yes_nor_no_is_refused(traced_server):
    body = request("solve", "raas", BUDGET, 4)
    body["sampling_params"]["custom_params"]["kv_trace"] = "no"
    answer = post(traced_server, "/generate", body)
    assert answer.status_code == 400
    assert "kv_trace must be true or false, got 'no'" in answer.text


def publish(page, endpoint, request, name):
    """Publishes as a new server does until the page shows the request, and some steps more."""
    publisher, server = TracePublisher(endpoint), time.time_ns()
    row = page.locator("#list li", has_text=name)
    number, began = 0, time.monotonic()
    while row.count() == 0 or number < 40:
        batch = sampled(request.advance(1), ts=time.time(), server=server)
        publisher.publish(number, lambda batch=batch: batch)
        number += 1
        assert time.monotonic() - began < 60
        time.sleep(0.02)
    expect(row).to_contain_text(f"of {5 + request.step + 1}")
    publisher.close()


def test_words_that_come_late_are_shown(browser, tmp_path):
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    told = MadeUpRequest("late", seed=3)
    with StandIn(endpoint) as server:
        view = ViewProcess("--server", server.url, log=tmp_path / "log")
        with view:
            page = open_page(browser, view.url)
            server.speaks.clear()
            publish(page, endpoint, told, "late")
            choose(page, "late")
            expect(page.locator("#at")).to_have_text(f"{told.step} of {told.step}")
            expect(page.locator("#words > span")).to_have_count(0)
            server.speaks.set()
            expect(page.locator("#words > span")).to_have_count(told.step + 1)
            page.close()


def test_what_was_recorded_outlives_the_server_and_the_viewer(browser, tmp_path):
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    first, second = MadeUpRequest("before", seed=1), MadeUpRequest("after", seed=2)
    with StandIn(endpoint) as server:
        arguments = ("--server", server.url, "--record", str(tmp_path / "trace"))
        view = ViewProcess(*arguments, log=tmp_path / "log")
        with view:
            page = open_page(browser, view.url)
            publish(page, endpoint, first, "before")
            choose(page, "before")
            expect(page.locator("#words > span")).to_have_count(first.step + 1)
            held = shown(page)
            publish(page, endpoint, second, "after")
            expect(page.locator("#list li", has_text="before")).to_contain_text("lost")
            assert shown(page) == held
        expect(page.locator("#status")).to_contain_text("trying again")
        page.evaluate("document.body.dataset.loaded = 'before'")
        with view:
            expect(page.locator("body")).not_to_have_attribute("data-loaded", "before")
            expect(page.locator("#status")).to_contain_text("listening to")
            expect(page.locator("#list li")).to_have_count(2)
            for request in (first, second):
                choose(page, request.rid)
                expect(page.locator("#words > span")).to_have_count(request.step + 1)
                assert request is second or shown(page) == held
        page.close()
