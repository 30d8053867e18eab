"""Plays the probe's scenarios with and without a fault; prints which of them fail, as JSON."""

# ruff: noqa: E402 - the GPU is hidden before SGLang is imported
import json
from unittest import mock

from raas_sglang.cpu import hide_gpu

hide_gpu()

from sglang.srt.managers.schedule_batch import Req

from raas_patches.probe.process import become_scheduler
from raas_patches.probe.scenarios import play
from raas_sglang.life import admission
from raas_sglang.life.request import RequestState
from raas_sglang.pool import RaasTokenToKVPool

SERVER_ARGS = become_scheduler()
refresh = Req.refresh_fill_ids


def refresh_for_all(self):
    """Leaves out what a retracted request would, of a request that ends as well."""
    self.raas.retract(len(self.origin_input_ids) + len(self.output_ids))
    refresh(self)


def one_too_late(self):
    return self.logical_len > self.capacity


def in_results_alone(self):
    """Whether it overwrote in a step whose result came; none of the step in flight."""
    return self.logical_len > self.resident_len + 1


FAULTS = {
    "none": {},
    "fill ids of a request that ends": {(Req, "refresh_fill_ids"): refresh_for_all},
    "saturated one token late": {(RequestState, "is_saturated"): property(one_too_late)},
    "all of it is shared": {(RequestState, "finish"): lambda self, end: end},
    "what it will overwrite is shared": {(RequestState, "shareable_len"): lambda self, end: end},
    "nothing of it is shared": {(RequestState, "finish"): lambda *_: 0},
    "a step in flight is forgotten": {
        (RequestState, "has_overwritten"): property(in_results_alone)
    },
    "prefilled in full": {(RequestState, "retract"): lambda self, text_len: None},
    "not laid out again": {(RaasTokenToKVPool, "resume"): lambda *_: None},
    "reserves too little": {(admission, "slots_to_admit"): lambda req, page_size: 1},
    "reserves as a dense one": {(admission, "is_bounded"): lambda req: False},
}


def failed() -> dict[str, str]:
    return {name: problem for name, problem, _ in play(SERVER_ARGS) if problem}


found = {}
for fault, changes in FAULTS.items():
    patches = [mock.patch.object(*place, change) for place, change in changes.items()]
    for patch in patches:
        patch.start()
    found[fault] = failed()
    for patch in patches:
        patch.stop()
print(json.dumps(found))
