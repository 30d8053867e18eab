"""Tables and plots say what the stored rows say, and a document that does not is found."""

import json

import pytest

from benchmarks.report import build, decode, online, plots, store, throughput

ABOUT = {
    "gpu": "NVIDIA H100",
    "commit": "c1",
    "command": "python bench.py",
    "versions": {"sglang": "0.5.17"},
    "repeats": 3,
}
HELD_BY_THROUGHPUT = ["docs/plots/headline.svg", "docs/plots/throughput.svg"]


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Stores rows where tables and plots look for them."""
    monkeypatch.setattr(store, "RESULTS", tmp_path)

    def add(name, *rows):
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    return add


def decode_row(arm, batch, value, result=decode.AT_ONE_LENGTH, **about):
    config = {"shape": "qwen2.5-7b", "arm": arm, "batch": batch, "prompt": 256, "budget": 1024}
    return {"result": result, "value": value, "config": config, **ABOUT, **about}


def throughput_row(arm, output, value, queue="full", budget=None):
    config = {"shape": "qwen2.5-7b", "arm": arm, "prompt": 256, "output": output, "budget": budget}
    config |= {"state": "steady state", "queue": queue}
    seen = {"value": value, "running": 9.6, "steps": 1000}
    return {"result": "throughput", "config": config, **seen, **ABOUT}


def test_without_rows_a_table_says_so(results):
    assert {make() for make in build.TABLES.values()} == {"Not measured yet."}
    assert not any(plot().lines for plot in build.PLOTS.values())


def test_the_newest_row_counts_against_the_default_of_its_own_run(results):
    results("decode", decode_row("default", 16, 4.0), decode_row("raas", 16, 8.0))
    results(
        "decode",
        decode_row("default", 16, 5.0, commit="c2"),
        decode_row("raas", 16, 5.5, commit="c2"),
    )
    text = decode.decode()
    assert "| Qwen2.5-7B `default` | 5.00 |" in text
    assert "| Qwen2.5-7B `raas` | 5.50 (1.10) |" in text
    assert "`c2`" in text
    assert "`c1`" not in text


def test_a_row_where_raas_loses_stays_and_other_devices_have_their_own_table(results):
    results("decode", decode_row("default", 1, 1.0), decode_row("raas", 1, 2.0))
    results(
        "decode",
        decode_row("default", 1, 1.0, gpu="NVIDIA H200"),
        decode_row("raas", 1, 0.5, gpu="NVIDIA H200"),
    )
    h100, h200 = decode.decode().split("| NVIDIA H200")
    assert "2.00 (2.00)" in h100
    assert "0.500 (0.50)" in h200


def test_an_arm_without_default_in_its_run_has_no_ratio_and_no_row(results):
    results("decode", decode_row("default", 1, 1.0), decode_row("raas", 1, 2.0, commit="c2"))
    assert "raas" not in decode.decode()


def test_memory_of_a_request_is_counted_in_the_pool(results):
    result = "inter-token latency at 32768 logical tokens"
    results("decode", decode_row("raas", 16, 5.0, result, pool_tokens=[20480, 20480]))
    # 28 layers, 4 KV heads of 128, keys and values of 2 bytes: 57,344 bytes a token.
    assert "| 1,280 (70.0 MiB) |" in decode.memory()
    assert "| 5.00 |" in decode.latency()
    (line,) = plots.memory().lines
    assert line.points == [(32768.0, 70.0)]
    results("decode", decode_row("default", 16, 12.5, result, pool_tokens=[524288]))
    assert "| 1,280 (70.0 MiB, 1/25.6) |" in decode.memory()
    assert "| 5.00 (0.40) |" in decode.latency()


def test_throughput_is_held_against_the_better_default(results):
    results(
        "throughput",
        throughput_row("default", 8192, 1000.0),
        throughput_row("default", 8192, 1250.0, queue="fits"),
        throughput_row("raas", 8192, 2500.0, budget=1024),
        throughput_row("raas", 16384, 2400.0, budget=1024),
    )
    text = throughput.throughput()
    assert "| Qwen2.5-7B `raas`, L = 1,024 | 2,500 (2.00x, 10) | 2,400 (10) |" in text
    assert "| Qwen2.5-7B `default`, as many as fit | 1,250 (10) |  |" in text
    assert [line.name for line in plots.throughput().lines] == [
        "qwen2.5-7b, default, H100",
        "qwen2.5-7b, default, as many as fit, H100",
        "qwen2.5-7b, raas, L 1024, H100",
    ]


def test_the_front_page_shows_one_budget_against_the_better_queue_and_names_the_weights(results):
    dummy = {"flags": ["--load-format", "dummy"]}
    results(
        "throughput",
        {**throughput_row("default", 8192, 1000.0), **dummy},
        {**throughput_row("default", 8192, 1250.0, queue="fits"), **dummy},
        {**throughput_row("raas", 8192, 2500.0, budget=1024), **dummy},
        {**throughput_row("raas", 8192, 3500.0, budget=512), **dummy},
    )
    text = build.TABLES["headline"]()
    assert "| H100, default runtime | 1,250 |" in text
    assert "| H100, `raas`, L = 1,024 | 2,500 (2.00x) |" in text
    assert "3,500" not in text
    assert "**dummy weights**" in text
    assert [line.points for line in plots.headline().lines] == [[(8192, 1250)], [(8192, 2500)]]


def test_a_window_that_was_cut_says_so(results):
    results("throughput", {**throughput_row("raas", 8192, 2500.0, budget=1024), "steps": 240})
    assert "| 2,500 (10, 240 steps) |" in throughput.throughput()


def test_a_full_run_stands_beside_the_shortcut(results):
    small = {"flags": ["--max-total-tokens", "100000"]}
    put_together = throughput_row("default", 2048, 1000.0)
    run = {**put_together, "value": 900.0}
    run["config"] = {**put_together["config"], "state": "full run"}
    results("throughput", put_together, {**put_together, **small}, {**run, **small})
    text = throughput.shortcut()
    assert "| NVIDIA H100, prompt 256, a pool of 100,000 tokens: " in text
    assert "| Qwen2.5-7B `default` | 1,000 (10) |" in text
    assert "| Qwen2.5-7B `default`, full run | 900 (10) |" in text
    assert "NVIDIA H100, prompt 256: " not in text
    assert "pool of" not in throughput.throughput()
    assert len(plots.throughput().lines) == 1


def test_a_model_on_two_gpus_is_another_table_and_another_line(results):
    row = throughput_row("default", 8192, 1000.0)
    results("throughput", row, {**row, "flags": ["--tp-size", "2"]}, {**row, "flags": ["--tp=1"]})
    text = throughput.throughput()
    assert "| 2 x NVIDIA H100, prompt 256: " in text
    assert text.count("| NVIDIA H100, prompt 256: ") == 1
    names = [line.name for line in plots.throughput().lines]
    assert names == ["qwen2.5-7b, default, H100", "qwen2.5-7b, default, 2 x H100"]


def test_a_quantised_cache_is_held_against_the_default_runtime_with_the_same_cache(results):
    default = throughput_row("default", 8192, 1000.0)
    rows = default, throughput_row("raas", 8192, 2500.0, budget=1024)
    fp8 = {"flags": ["--kv-cache-dtype", "fp8_e4m3"]}
    results("throughput", *rows, *({**row, **fp8, "value": 2 * row["value"]} for row in rows))
    text = throughput.throughput()
    assert "| NVIDIA H100, fp8_e4m3 KV cache, prompt 256: " in text
    assert text.count("(2.50x, 10)") == 2
    assert "| H100, fp8_e4m3 KV cache, `raas`, L = 1,024 | 5,000 (2.50x) |" in throughput.headline()
    results("throughput", {**default, "value": 1111.0, "flags": ["--kv-cache-dtype=bfloat16"]})
    assert "| Qwen2.5-7B `default` | 1,111 (10) |" in throughput.throughput()
    assert "bfloat16 KV cache" not in throughput.throughput()


def test_rows_of_a_cpu_make_tables_and_plots_too(results):
    result = "inter-token latency at 2048 logical tokens"
    results("decode", decode_row("raas", 16, 5.0, result, pool_tokens=[20480], gpu=None))
    results("throughput", {**throughput_row("raas", 8192, 2500.0, budget=1024), "gpu": None})
    assert "| CPU, prompt 256, L = 1,024: " in decode.latency()
    assert "| CPU, prompt 256: " in throughput.throughput()
    assert plots.latency().title == "Time between two tokens (CPU)"
    assert [line.name for line in plots.throughput().lines] == ["qwen2.5-7b, raas, L 1024, CPU"]


def test_online_load_and_prefix_say_each_result_of_each_arm(results):
    config = {"shape": "qwen2.5-7b", "arm": "raas", "prompt": 256, "output": 2048, "budget": 1024}
    config |= {"ttft_ms": 500.0, "itl_ms": 25.0, "rate": 4.0}
    row = {"result": "goodput", "value": 3.9, "unit": "requests/s", "config": config, **ABOUT}
    results("serving", {**row, "spread": [3.5, 4.1]})
    results("serving", {**row, "spread": [3.9, 3.9], "flags": ["--max-total-tokens", "380000"]})
    text = online.serving()
    assert "NVIDIA H100, prompt 256, a pool of 380,000 tokens, output 2048, L = 1,024" in text
    assert "NVIDIA H100, prompt 256, output 2048, L = 1,024, targets 500 ms and 25 ms" in text
    assert "| Qwen2.5-7B `raas`: goodput | 3.90 (3.50 to 4.10) requests/s |" in text
    config = {"shape": "qwen2.5-7b", "arm": "raas", "prompt": 8192, "requests": 64}
    row = {"result": "slots in use", "value": 77000, "unit": "slots", "config": config, **ABOUT}
    results("prefix", {**row, "held_once": 77824, "spread": [77000, 77000]})
    assert "| Qwen2.5-7B `raas`: slots in use | 77,000 slots (once: 77,824) |" in online.prefix()


def test_another_budget_is_another_table(results):
    row = decode_row("raas", 16, 5.0, "inter-token latency at 2048 logical tokens", pool_tokens=[1])
    results("decode", row, {**row, "config": {**row["config"], "budget": 512}})
    text = decode.latency()
    assert "| NVIDIA H100, prompt 256, L = 1,024: " in text
    assert "| NVIDIA H100, prompt 256, L = 512: " in text


def test_a_table_is_put_between_its_markers(results):
    text = "before\n<!-- report: decode -->\nold\n<!-- end of report -->\nafter\n"
    made = build.filled(text, "README.md")
    assert made == text.replace("old", "Not measured yet.")
    assert build.filled(made, "README.md") == made


@pytest.mark.parametrize(
    "text", ["<!-- report: nothing -->\n<!-- end of report -->", "<!-- report: decode -->\n"]
)
def test_a_wrong_or_open_marker_is_refused(results, text):
    with pytest.raises(ValueError, match=r"README\.md must"):
        build.filled(text, "README.md")


def test_a_document_or_drawing_that_differs_is_found(results, tmp_path):
    for name in build.DOCUMENTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("<!-- report: throughput -->\n<!-- end of report -->\n")
    for name in build.DOCUMENTS:
        build.write(tmp_path, name)
    assert build.stale_documents(tmp_path) == []
    assert build.stale_plots(tmp_path) == []
    results("throughput", throughput_row("raas", 8192, 2500.0, budget=1024))
    assert build.stale_documents(tmp_path) == list(build.DOCUMENTS)
    assert build.stale_plots(tmp_path) == HELD_BY_THROUGHPUT


def test_a_drawing_is_held_against_the_data_that_it_carries(results, tmp_path):
    results("throughput", throughput_row("raas", 8192, 2500.0, budget=1024))
    drawing = tmp_path / build.plot_path("throughput")
    drawing.parent.mkdir(parents=True)
    description = f"<dc:description>{plots.throughput().data()}</dc:description>"
    namespace = 'xmlns:dc="http://purl.org/dc/elements/1.1/"'
    drawing.write_text(f"<svg {namespace}>{description}</svg>")
    assert build.stale_plots(tmp_path) == HELD_BY_THROUGHPUT[:1]
    drawing.write_text(drawing.read_text().replace("2500", "2600"))
    assert build.stale_plots(tmp_path) == HELD_BY_THROUGHPUT
