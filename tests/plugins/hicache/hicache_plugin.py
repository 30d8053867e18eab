"""Lets SGLang's hierarchical cache run without a GPU, with a second pool for the host.

What SGLang does with kernels, streams and events is done here with copies. A load is put off until
somebody waits for its layer, and its slots hold nonsense until then.
"""

from collections.abc import Callable
from typing import Any

import torch

_late: list[tuple[int, Callable[[], None]]] = []


class Event:
    """Has come once every load was waited for."""

    def __init__(self, enable_timing: bool = False) -> None:
        if enable_timing:
            raise TypeError("no timing")

    def record(self, stream: Any = None) -> None:
        """There is one stream."""

    def wait(self, stream: Any = None) -> None:
        """There is one stream."""

    def query(self) -> bool:
        return not _late

    def synchronize(self) -> None:
        _load(torch.inf)


def _load(last: float) -> None:
    for each in [each for each in _late if each[0] <= last]:
        _late.remove(each)
        each[1]()


def _wait(self: Any, layer_index: int) -> None:
    _load(layer_index)


def _load_layer(
    self: Any, _: Any, host: torch.Tensor, device: torch.Tensor, layer: int, *args: Any, **more: Any
) -> None:
    pairs = (
        (self.device_k_buffers[layer], self.k_buffer[layer]),
        (self.device_v_buffers[layer], self.v_buffer[layer]),
    )
    for to, _source in pairs:
        to[device] = 1000.0

    def load() -> None:
        for to, source in pairs:
            to[device] = source[host]

    _late.append((layer, load))


def _back_up(self: Any, _: Any, host: torch.Tensor, device: torch.Tensor, *args: Any) -> None:
    for layer in range(self.layer_num):
        self.k_buffer[layer][host] = self.device_k_buffers[layer][device]
        self.v_buffer[layer][host] = self.device_v_buffers[layer][device]


def register() -> None:
    """Puts copies in place of SGLang's, before a server reads its settings."""
    torch.cpu.Event = Event  # type: ignore[misc,assignment]
    from sglang.srt.managers.cache_controller import LayerLoadingEvent
    from sglang.srt.mem_cache.pool_host import base, common, mha

    from raas_sglang.support import settings

    settings.REFUSALS = tuple(
        each for each in settings.REFUSALS if each.flag != "--enable-hierarchical-cache"
    )
    LayerLoadingEvent.wait = _wait  # type: ignore[method-assign]
    base.HICACHE_HOST_MEMORY_RESERVE_BYTES = 0  # of 10 GiB
    common._cuda_host_register = lambda *_: None
    mha.make_kernel_ptr_table = lambda *_, **__: None
    mha.MHATokenToKVPoolHost.load_to_device_per_layer = _load_layer
    mha.MHATokenToKVPoolHost.backup_from_device_all_layer = _back_up
