"""Frontend programs choose a policy and a budget for each `gen` call."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sglang as sgl
from sglang.lang.backend import runtime_endpoint
from sglang.lang.backend.base_backend import BaseBackend
from sglang.lang.chat_template import get_chat_template

import raas_patches.lang
from raas_sglang import lang as raas
from raas_sglang.cpu import cpu_environment
from reasoner import reasoner_environment
from reasoner.problem import make_problem

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:Error in stream_executor")  # expected refusals

PROMPT = make_problem("milestone", 10, program_seed=1, input_seed=1).prompt


@pytest.fixture(scope="module")
def backend(server: Any) -> sgl.RuntimeEndpoint:
    return sgl.RuntimeEndpoint(server.url)


@sgl.function
def one_gen(s: Any, gen: Callable[..., Any], options: dict[str, Any]) -> None:
    s += PROMPT + gen("text", **options)


@sgl.function
def thought_and_answer(s: Any, policy: str = "raas") -> None:
    s += PROMPT + raas.gen("thought", max_tokens=40, kv_policy=policy, kv_budget=32)
    s += " answer" + raas.gen("answer", max_tokens=2, kv_policy="dense")


@sgl.function
def forked(s: Any, budgets: tuple[int, ...]) -> list[Any]:
    s += PROMPT
    forks = s.fork(len(budgets))
    for fork, budget in zip(forks, budgets, strict=True):
        fork += raas.gen("thought", max_tokens=52, kv_policy="window", kv_budget=budget)
    forks.join()
    return list(forks)


def choice_of(state: Any, name: str) -> tuple[str, int | None]:
    assert state.error() is None
    meta_info = state.get_meta_info(name)
    return meta_info["kv_policy"], meta_info["kv_budget"]


def test_each_call_of_a_program_has_its_own_choice(backend: Any) -> None:
    state = thought_and_answer.run(backend=backend, ignore_eos=True)
    assert choice_of(state, "thought") == ("raas", 32)
    assert choice_of(state, "answer") == ("dense", None)
    thought, answer = state.get_meta_info("thought"), state.get_meta_info("answer")
    assert thought["evicted_tokens"] > 0
    assert thought["resident_tokens"] == thought["prompt_tokens"] + 32
    assert answer["resident_tokens"] == answer["logical_tokens"] >= thought["logical_tokens"]


def test_forks_keep_their_own_choice(backend: Any) -> None:
    state = forked.run((16, 48, 32), backend=backend, ignore_eos=True)
    choices = [choice_of(fork, "thought") for fork in state.ret_value]
    assert choices == [("window", 16), ("window", 48), ("window", 32)]


@pytest.mark.parametrize(
    ("gen", "options", "expected"),
    [
        (sgl.gen, {}, ("raas", 64)),
        (raas.gen, {}, ("raas", 64)),
        (raas.gen, {"kv_budget": 16}, ("raas", 16)),
        (raas.gen, {"kv_policy": "random"}, ("random", 64)),
    ],
)
def test_what_a_call_leaves_out_is_the_servers(
    backend: Any, gen: Any, options: dict[str, Any], expected: tuple[str, int]
) -> None:
    state = one_gen.run(gen, options, backend=backend, max_new_tokens=4)
    assert choice_of(state, "text") == expected


def test_all_other_parameters_arrive_as_those_of_sgl_gen(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    send = runtime_endpoint.http_request

    def record(url: str, json: dict[str, Any], **options: Any) -> Any:
        sent.append(json["sampling_params"])
        return send(url, json=json, **options)

    monkeypatch.setattr(runtime_endpoint, "http_request", record)
    options = {
        "max_tokens": 3,
        "stop": [" answer"],
        "stop_token_ids": [1],
        "top_k": 7,
        "min_p": 0.1,
    }
    run = {"temperature": 0.3, "top_p": 0.8, "ignore_eos": True, "backend": backend}
    for gen, choice in ((sgl.gen, {}), (raas.gen, {"kv_policy": "dense"})):
        one_gen.run(gen, {**options, **choice}, **run).sync()
    plain, ours = sent
    assert ours == {**plain, "custom_params": {"kv_policy": "dense"}}
    assert ours["temperature"] == 0.3
    assert ours["max_new_tokens"] == 3


def test_parameters_take_effect_beside_a_choice(backend: Any) -> None:
    options = {"kv_policy": "raas", "kv_budget": 16}
    run = {"backend": backend, "temperature": 0, "ignore_eos": True, "max_new_tokens": 20}
    texts = []
    for _ in range(2):
        state = one_gen.run(raas.gen, options, **run)
        assert state.get_meta_info("text")["completion_tokens"] == 20
        texts.append(state["text"])
    assert texts[0] == texts[1]
    first_word = texts[0].split()[0]
    state = one_gen.run(raas.gen, {**options, "max_tokens": 5, "stop": first_word}, **run)
    assert state.get_meta_info("text")["finish_reason"] == {"type": "stop", "matched": first_word}


def test_regex_beside_a_choice(backend: Any) -> None:
    # Without a GPU, SGLang's xgrammar backend would end the server: it allocates pinned memory.
    assert backend.get_server_info()["grammar_backend"] != "xgrammar"
    options = {"regex": " [0-9]", "max_tokens": 4, "kv_policy": "raas", "kv_budget": 16}
    state = one_gen.run(raas.gen, options, backend=backend)
    assert choice_of(state, "text") == ("raas", 16)
    assert re.fullmatch(" [0-9]", state["text"])


def test_run_batch(backend: Any) -> None:
    states = thought_and_answer.run_batch(
        [{"policy": "raas"}, {"policy": "random"}], backend=backend, ignore_eos=True
    )
    assert [choice_of(s, "thought") for s in states] == [("raas", 32), ("random", 32)]
    assert {choice_of(s, "answer") for s in states} == {("dense", None)}


def test_streaming_program(backend: Any) -> None:
    for _ in range(5):  # a reader that comes late is given all that has come as one piece
        state = thought_and_answer.run(backend=backend, stream=True, ignore_eos=True)
        chunks = list(state.text_iter("thought"))
        if len(chunks) > 1:
            break
    assert len(chunks) > 1
    assert "".join(chunks) == state["thought"]
    assert choice_of(state, "thought") == ("raas", 32)
    assert state.get_meta_info("thought")["evicted_tokens"] > 0
    assert choice_of(state, "answer") == ("dense", None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kv_budget": 21}, "must be a multiple of"),
        ({"kv_budget": 1024}, "--kv-max-budget"),
        ({"kv_policy": "best"}, "kv_policy must be one of"),
    ],
)
def test_the_servers_refusal_reaches_the_program(
    backend: Any, options: dict[str, Any], words: str
) -> None:
    call = (raas.gen, {"max_tokens": 2000, **options})
    with pytest.raises(RuntimeError, match=words):
        one_gen.run(*call, backend=backend, use_thread=False)
    assert words in str(one_gen.run(*call, backend=backend).error())


def test_choices_take_no_policy() -> None:
    with pytest.raises(ValueError, match=r"kv_policy must be used with generated text.*choices"):
        raas.gen("pick", choices=["a", "b"], kv_policy="raas")
    assert raas.gen("pick", choices=["a", "b"]).choices == ["a", "b"]


def test_a_missing_seam_refuses_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    good = raas_patches.lang.SEAMS
    gone = replace(good[0], target=good[0].target + "_gone")
    unhooked = replace(good[1], hook=lambda *_: None)
    monkeypatch.setattr(raas_patches.lang, "SEAMS", (gone, unhooked))
    with pytest.raises(RuntimeError, match=r"params_gone is missing.*to_srt_kwargs is not hooked"):
        raas.gen("thought", kv_policy="raas")
    raas.gen("thought")


class OtherBackend(BaseBackend):
    def get_chat_template(self) -> Any:
        return get_chat_template("default")


def test_a_backend_that_cannot_send_a_choice_refuses_it() -> None:
    with pytest.raises(RuntimeError, match=r"kv_policy='raas'.*got OtherBackend"):
        one_gen.run(raas.gen, {"kv_policy": "raas"}, backend=OtherBackend(), use_thread=False)


def test_speculative_calls_refuse_a_choice(backend: Any) -> None:
    program = sgl.function(one_gen.func, num_api_spec_tokens=8)
    state = program.run(raas.gen, {"kv_policy": "raas"}, backend=backend)
    assert "num_api_spec_tokens" in str(state.error())


def run_example(*where: str) -> list[str]:
    arguments = [*where, "--thoughts", "3", "--kv-budget", "16", "--lines", "4"]
    command = [sys.executable, ROOT / "examples" / "forked_thoughts.py", *arguments]
    environment = reasoner_environment(cpu_environment())
    paths = [str(ROOT), environment["PYTHONPATH"]]
    done = subprocess.run(
        command,
        env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def assert_three_thoughts_voted(lines: list[str]) -> None:
    thoughts = [line for line in lines if line.startswith("raas 16: ")]
    assert len(thoughts) == 3
    assert all(re.search(r"\d+ logical .* \d+ resident .* \d+ evicted", line) for line in thoughts)
    assert re.fullmatch(r"vote: \S+ \(\d of 3\), right answer: \d", lines[-1])


def test_example_on_a_server(server: Any) -> None:
    assert_three_thoughts_voted(run_example("--base-url", server.url))


def test_example_on_its_own_runtime() -> None:
    model = str(ROOT / "reasoner" / "model")
    assert_three_thoughts_voted(run_example("--model-path", model, "--device", "cpu"))
