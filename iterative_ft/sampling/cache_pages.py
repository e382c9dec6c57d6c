"""Memory of the KV cache of a CPU's engine, given back while the engine rests: a gigabyte that training has a use for.

`CachePages` is added to vLLM's workers, which hold the cache.
"""

from __future__ import annotations

from typing import Any

from iterative_ft.machine.device import give_pages_back

EXTENSION = "iterative_ft.sampling.cache_pages.CachePages"


class CachePages:
    """What a worker of vLLM is asked."""

    model_runner: Any

    def give_cache_back(self) -> None:
        """Zero the cache; the system has its memory until it is next written to. The engine must have nothing to do."""
        storages = {cache.untyped_storage().data_ptr(): cache.untyped_storage() for cache in self.model_runner.kv_caches}
        for address, storage in storages.items():
            give_pages_back(address, storage.nbytes())
