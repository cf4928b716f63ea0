"""A least-recently-used cache of tensors in host memory."""

import threading
from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor


class TensorCache:
    """At most `entries` tensors and `size` bytes, stored on the CPU. Safe to use from several threads."""

    def __init__(self, entries: int = 32, size: int = 32 * 2**20):
        self.entries, self.size = entries, size
        self._cached: OrderedDict[tuple, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._cached.values())

    def __len__(self) -> int:
        return len(self._cached)

    def __contains__(self, key: tuple) -> bool:
        return key in self._cached

    def get(self, key: tuple) -> Tensor | None:
        """A copy of the cached tensor, which the caller may modify; None if there is none."""
        with self._lock:
            if key not in self._cached:
                return None
            self._cached.move_to_end(key)
            return self._cached[key].clone()

    def store(self, key: tuple, tensor: Tensor) -> None:
        """Cache a copy of `tensor` and evict the least recently used ones. A tensor larger than the cache is ignored."""
        if tensor.nbytes > self.size:
            return
        with self._lock:
            self._cached[key] = tensor.detach().to("cpu", copy=True)
            while len(self._cached) > self.entries or self.nbytes > self.size:
                self._cached.popitem(last=False)

    def discard(self, condition: Callable[[tuple], bool] = lambda key: True) -> None:
        """Remove the entries whose key meets the condition; all by default."""
        with self._lock:
            for key in list(filter(condition, self._cached)):
                del self._cached[key]
