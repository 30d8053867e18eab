"""SGLang's radix tree under watch."""

from sglang.srt.mem_cache.base_prefix_cache import InsertParams, InsertResult
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from memory_model import hashes, require


class WatchedTree(UnifiedRadixCache):
    """SGLang's tree, which remembers the text that each of its slots was given for."""

    def __init__(self, params: CacheInitParams) -> None:
        super().__init__(params)
        self._given: dict[int, int] = {}

    def insert(self, params: InsertParams) -> InsertResult:
        result = super().insert(params)
        names = hashes(params.key.token_ids[: len(params.key)])
        slots = self.path_device_indices(result.last_device_node).tolist()
        self._given.update(zip(slots, names, strict=True))
        self._given = self.texts()
        return result

    def texts(self) -> dict[int, int]:
        """The name of the text that each slot of the tree stands for."""
        slots = self.all_values_flatten().tolist()
        require(len(set(slots)) == len(slots), "conservation", "a slot is in the tree twice")
        return {slot: self._given[slot] for slot in slots}
