"""Failing closed: a missing or changed seam, a wrong version, a plugin that was not loaded."""

import pkgutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from sglang.srt.managers.data_parallel_controller import SCHEDULER_PIDS_ARG
from sglang.srt.managers.io_struct import AttachHiCacheStorageReqInput
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.mem_cache import allocation
from sglang.srt.model_executor.cuda_graph_config import (
    Backend,
    Phase,
    default_cuda_graph_config,
    with_phase,
)
from sglang.srt.plugins.hook_registry import HookRegistry, HookSource, HookType
from sglang.srt.server_args import ServerArgs

import raas_patches.seam
from conftest import refusal
from raas_patches import installation, scheduler, tested
from raas_patches.active import pool_tokens_of
from raas_patches.engine import set_startup_time
from raas_patches.fingerprint import fingerprint
from raas_patches.seam import Seam
from raas_sglang.__main__ import main
from raas_sglang.support.settings import REFUSALS, refused_settings

ROOT = Path(__file__).parents[2]
EVERY = installation.ALWAYS + installation.WITH_POLICY + installation.WITH_TRACE + ("lang",)
KNOWN = "sglang.srt.managers.schedule_batch.Req.owned_kv_len"


def seam(target, parameters=("self",)):
    return Seam(target, HookType.AFTER, lambda *_: None, parameters, "a test", "never", "this")


def test_every_seam_is_as_tested():
    assert [v for v in installation.verify() if v.problem] == []


@pytest.mark.parametrize("each", installation.seams(EVERY), ids=lambda each: each.name)
def test_the_test_of_a_seam_exists(each):
    path, _, name = each.test.partition("::")
    assert f"def {name}(" in (ROOT / path).read_text()


def test_a_missing_seam_is_named():
    assert "missing" in seam(KNOWN + "_gone").problem()
    assert "missing" in seam("sglang.srt.gone.f").problem()


def test_a_seam_with_other_parameters_than_the_hook_is_for_is_named():
    assert seam(KNOWN).problem() is None
    problem = seam(KNOWN, ("self", "more")).problem()
    assert "changed" in problem
    assert "('self',)" in problem


def test_a_seam_that_was_never_recorded_is_named():
    assert (
        "run python tools/generate.py" in seam("sglang.srt.utils.common.ceil_align", None).problem()
    )


def test_a_constructor_that_nobody_calls_cannot_be_hooked():
    assert "never be called" in seam("sglang.srt.server_args.ServerArgs.__init__", None).problem()


def test_a_seam_with_a_problem_refuses_the_policy(monkeypatch):
    broken = seam(KNOWN + "_gone")
    everything = installation.seams
    monkeypatch.setattr(installation, "seams", lambda names: [*everything(names), broken])
    with pytest.raises(RuntimeError, match=r"owned_kv_len_gone is missing.*raas_sglang check"):
        installation.require_seams()


def test_the_trace_is_hooked_only_where_it_was_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(installation, "seams", lambda names: asked.append(names) or [])
    monkeypatch.setattr(installation, "WATCHED", ())
    monkeypatch.setattr(installation, "uses", dict)
    monkeypatch.setattr(installation.HookRegistry, "apply_hooks", lambda: None)
    installation.require_seams()
    installation.require_seams(traced=True)
    verified, installed = asked[::2], asked[1::2]
    assert ["tp_worker" in names for names in verified] == [True, True]
    assert ["tp_worker" in names for names in installed] == [False, True]


def test_another_version_refuses_the_policy(monkeypatch):
    monkeypatch.setattr(raas_patches.seam.sglang, "__version__", "0.5.24")
    with pytest.raises(RuntimeError, match=r"must run on sglang==0.5.23.*got 0.5.24"):
        installation.require_seams()


@pytest.fixture
def target(monkeypatch):
    """A function that nobody has hooked yet."""
    module = ModuleType("module_of_a_test")
    module.double = lambda number: 2 * number
    monkeypatch.setitem(sys.modules, module.__name__, module)
    name = "module_of_a_test.double"
    monkeypatch.setitem(tested.functions(), name, fingerprint(name))
    yield name
    HookRegistry._hooks.pop("module_of_a_test.double", None)
    HookRegistry._patched.discard("module_of_a_test.double")


def add(much):
    """A hook that can be told from others; it is called on what the others leave."""
    return lambda original, number: original(number) + much


def call(target, number):
    return pkgutil.resolve_name(target)(number)


@pytest.mark.parametrize("applied", [False, True])
def test_a_hook_is_put_in_beside_that_of_another_plugin(target, applied):
    HookRegistry.register(target, add(100), HookType.AROUND)
    if applied:  # as is whatever plugins hooked before a policy was asked for
        HookRegistry.apply_hooks()
    ours = Seam(target, HookType.AROUND, add(1), ("number",), "a test", "never", "this")
    assert ours.problem() is None
    assert not ours.is_installed()
    for _ in range(2):
        ours.install()
        HookRegistry.apply_hooks()
        assert ours.is_installed()
        assert call(target, 5) == 111


def test_a_plugin_that_hooks_later_leaves_ours_in(target):
    ours = Seam(target, HookType.AROUND, add(1), ("number",), "a test", "never", "this")
    ours.install()
    HookRegistry.register(target, add(100), HookType.AROUND)
    HookRegistry.apply_hooks()
    assert ours.is_installed()
    assert call(target, 5) == 111


def test_a_function_that_another_plugin_replaced_is_named(target):
    source = HookSource("other", "other-plugin")
    HookRegistry.register(target, lambda number: 0, HookType.REPLACE, source=source)
    ours = Seam(target, HookType.AROUND, add(1), ("number",), "a test", "never", "this")
    assert ours.problem() == "replaced by other"


def test_a_hook_that_is_not_in_is_noticed():
    assert not seam("sglang.srt.managers.schedule_batch.ScheduleBatch.copy").is_installed()


def arguments(**changes):
    """Arguments of a server that RaaS supports, but for the changes."""
    return ServerArgs(
        **{"model_path": "", "device": "cpu", "attention_backend": "torch_native", **changes}
    )


GPU = {"device": "cuda", "attention_backend": "flashinfer"}


def test_supported_settings_are_not_refused():
    assert refused_settings(arguments()) == []
    assert refused_settings(arguments(**GPU)) == []
    assert refused_settings(arguments(**GPU, kv_cache_dtype="fp8_e4m3")) == []
    for policy in ("write_through", "write_back"):
        chosen = {"enable_hierarchical_cache": True, "hicache_write_policy": policy}
        assert refused_settings(arguments(**GPU, **chosen)) == []
    chosen["hicache_write_policy"] = "write_through_selective"
    (text,) = refused_settings(arguments(**GPU, **chosen))
    assert text.endswith("--hicache-write-policy; use write_through or write_back")


def test_scales_that_attention_does_not_know_are_refused():
    scales = {"kv_cache_dtype": "fp8_e4m3", "quantization_param_path": "scales.json"}
    assert any(
        text.startswith("--kv-policy does not work together with --quantization-param-path; ")
        for text in refused_settings(arguments(**GPU, **scales))
    )
    # SGLang reads them for no other cache.
    assert refused_settings(arguments(quantization_param_path="scales.json")) == []


BROKEN = with_phase(default_cuda_graph_config(), Phase.DECODE, backend=Backend.BREAKABLE)
HIERARCHICAL = {**GPU, "enable_hierarchical_cache": True}
FP8_ON_GPU = {**GPU, "kv_cache_dtype": "fp8_e4m3"}
# Arguments with which a setting is refused, where they are more than that it is set.
REFUSED = {
    "--speculative-algorithm": [{"speculative_algorithm": "EAGLE"}],
    "--disaggregation-mode": [{"disaggregation_mode": "prefill"}],
    "--kv-cache-dtype": [
        {"kv_cache_dtype": "fp8_e4m3"},
        *({**GPU, "kv_cache_dtype": name} for name in ("fp8_e5m2", "mxfp8", "nvfp4")),
    ],
    # SGLang's default for Qwen3-VL on an H100 or H200, and what a user may ask for.
    "--prefill-decode-interval": [{"prefill_decode_interval": steps} for steps in (22, 1)],
    "--quantization-param-path": [{**FP8_ON_GPU, "quantization_param_path": "scales.json"}],
    "--mamba-radix-cache-strategy": [{"mamba_radix_cache_strategy": "extra_buffer_lazy"}],
    "--hicache-write-policy": [{**HIERARCHICAL, "hicache_write_policy": "write_through_selective"}],
    "--hicache-storage-backend": [{"hicache_storage_backend": "file"}],
    "--moe-a2a-backend": [{"moe_a2a_backend": "deepep", "tp_size": 2}],
    "--moe-dense-tp-size": [{"moe_dense_tp_size": 1, "tp_size": 2}],
    "--cuda-graph-backend-decode": [{"cuda_graph_config": BROKEN}],
    "--kv-canary": [{"kv_canary": "log"}],
    "--attention-backend": [{"attention_backend": "intel_amx"}],
    "--decode-attention-backend": [{**GPU, "decode_attention_backend": "fa3"}],
    "--device": [{"device": "xpu"}],
}


def triggers(refusal):
    """Arguments that are refused for the setting: those above, or the flag itself."""
    name = refusal.flag.removeprefix("--").replace("-", "_")
    return REFUSED.get(refusal.flag, [{name: 2 if name.endswith(COUNTS) else True}])


COUNTS = ("_size", "_num", "nnodes", "_port")


@pytest.mark.parametrize(
    ("flag", "changes"),
    [
        pytest.param(flag, changes, id=f"{flag} {i}")
        for flag, found in {
            refusal.flag: triggers(refusal) for refusal in REFUSALS if refusal.flag.startswith("--")
        }.items()
        for i, changes in enumerate(found)
    ],
)
def test_an_unsupported_setting_is_refused_by_name(flag, changes):
    (text,) = refused_settings(arguments(**changes))
    assert text.startswith(f"--kv-policy does not work together with {flag}; ")


@pytest.mark.parametrize("value", ["1", "True", "yes", "Y"])
def test_an_unsupported_variable_is_refused_however_sglang_lets_it_be_set(value, monkeypatch):
    monkeypatch.setenv("SGLANG_ENABLE_POST_CAPTURE_KV_SIZING", value)
    (text,) = refused_settings(arguments())
    assert text.endswith("SGLANG_ENABLE_POST_CAPTURE_KV_SIZING; unset it")


def test_no_storage_backend_can_be_attached_later():
    asked = AttachHiCacheStorageReqInput(hicache_storage_backend="file")
    answer = scheduler.attach_hicache_storage_wrapped(
        Scheduler.attach_hicache_storage_wrapped, SimpleNamespace(), asked
    )
    assert not answer.success
    assert "supported with the host's memory alone" in answer.message


def test_a_setting_that_nobody_made_is_refused_with_how_to_unset_it():
    (text,) = refused_settings(arguments(prefill_decode_interval=22))
    assert "set it to 0" in text
    assert refused_settings(arguments(prefill_decode_interval=0)) == []


def test_every_refused_setting_exists_in_sglang():
    for each in REFUSALS:
        if each.flag.startswith("--"):
            assert each.flag[2:].replace("-", "_") in ServerArgs.__struct_fields__, each.flag


def test_check_prints_every_seam_and_exits_0(capsys):
    assert main(["check"]) == 0
    printed = capsys.readouterr().out
    assert "--kv-policy can start" in printed
    for each in installation.verify():
        assert each.seam.name in printed


def test_check_exits_1_and_names_what_changed(capsys, monkeypatch):
    monkeypatch.setattr(allocation, "alloc_for_decode", lambda other: 0)
    assert main(["check"]) == 1
    printed = capsys.readouterr().out
    assert "WRONG" in printed
    assert "changed: parameters are ('other',)" in printed
    assert "--kv-policy will refuse to start" in printed


def test_without_the_plugin_the_flag_does_not_exist():
    said = refusal("--kv-policy", "raas", SGLANG_PLUGINS="none")
    assert "unrecognized arguments: --kv-policy raas" in said


def test_the_server_refuses_to_start_with_one_sentence():
    *_, last = refusal("--kv-policy", "raas", "--enable-mixed-chunk").splitlines()
    assert last.startswith("error: --kv-policy does not work together with --enable-mixed-chunk; ")


def started(*infos, kv_policy="raas"):
    """A tokenizer manager whose schedulers have reported."""
    manager = SimpleNamespace(server_args=SimpleNamespace(kv_policy=kv_policy))
    ready = [{"status": "ready", "max_total_num_tokens": 99, **info} for info in infos]
    set_startup_time(manager, SimpleNamespace(scheduler_infos=ready), 0.0)
    return manager


def test_a_scheduler_without_the_plugin_is_refused():
    infos = {"kv_policy": "raas"}, {SCHEDULER_PIDS_ARG: []}
    assert pool_tokens_of(started(*infos)) == 99
    with pytest.raises(RuntimeError, match="scheduler 2 did not load the plugin"):
        started(*infos, {})


def test_an_engine_without_a_policy_needs_no_plugin_in_its_schedulers():
    """The hooks of an engine before it in the process are still there."""
    started({}, kv_policy=None)
