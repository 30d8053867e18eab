"""Made-up token tables, and a publisher that keeps what it is given."""

from array import array

import msgspec
import torch

from raas_kernels import EvictionBuffers, Policy
from raas_sglang.config import RaasConfig
from raas_sglang.life.options import RequestOptions
from raas_sglang.life.request import RequestState
from raas_sglang.trace import TraceBatch
from raas_sglang.trace.sampler import TracedRequest

LAYERS, SLOTS, HEADS, TOKENS = 3, 5, 2, 64
CONFIG = RaasConfig(
    kv_policy="raas",
    kv_budget=64,
    kv_trace_endpoint="tcp://127.0.0.1:1",
    kv_trace_interval=3,
)


class Kept:
    """Stands for the publisher; packs a sample when told to."""

    def __init__(self):
        self.samples = []

    def publish(self, sequence, sample):
        self.samples.append((sequence, sample))

    def arrive(self):
        sequence, sample = self.samples.pop(0)
        payload = msgspec.msgpack.encode(sample())
        return sequence, msgspec.msgpack.decode(payload, type=TraceBatch)


def buffers():
    shape, unused = (LAYERS, SLOTS, HEADS, TOKENS), torch.empty(0)
    names = (
        "value_norms",
        "victims",
        "query_means",
        "query_variances",
        "key_means",
        "key_variances",
    )
    return EvictionBuffers(
        births=torch.randint(0, 1000, shape, dtype=torch.int32),
        weights=torch.rand(shape),
        **dict.fromkeys(names, unused),
    )


def request(rid, generated, policy=Policy.RAAS, traced=True):
    """A prompt of tokens 100 to 109, and tokens 0, 1, ... after it."""
    options = RequestOptions(policy, 64, evicts=policy is not Policy.DENSE, traced=traced)
    state = RequestState(options, 10)
    kept = min(generated, 64) if options.evicts else generated
    state.logical_len, state.resident_len = 10 + generated, 10 + kept
    return TracedRequest(rid, state, array("q", range(100, 110)), array("q", range(generated)))
