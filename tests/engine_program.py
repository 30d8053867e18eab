"""A program on `sgl.Engine`, run by `server/test_engine.py`; its last line is JSON."""

import json

import sglang as sgl

from client import problem
from reasoner import REASONER


def main() -> None:
    asked = problem(18)
    common = {
        "model_path": str(REASONER),
        "device": "cpu",
        "attention_backend": "torch_native",
        "dtype": "bfloat16",
        "max_total_tokens": 8000,
        "max_running_requests": 4,
        "skip_server_warmup": True,
    }
    plain = sgl.Engine(**common)
    engine = sgl.Engine(**common, kv_policy="raas", kv_budget=64, kv_max_budget=256)
    params = {"temperature": 0, "max_new_tokens": 300}
    choices = ({}, {"kv_policy": "dense"}, {"kv_budget": 256}, {"kv_policy": "window"})
    answers = engine.generate(
        [asked.prompt] * len(choices),
        [{**params, "custom_params": choice} for choice in choices],
    )
    refusal = ""
    try:
        engine.generate(asked.prompt, {**params, "custom_params": {"kv_budget": 101}})
    except ValueError as error:
        refusal = str(error)
    after = engine.generate(asked.prompt, {**params, "custom_params": choices[1]})
    without = plain.generate(asked.prompt, params)
    for each in (engine, plain):
        each.shutdown()
    said = {"answers": answers, "refusal": refusal, "after": after["text"], "without": without}
    print(json.dumps(said))


if __name__ == "__main__":  # the engine starts processes that import this file
    main()
