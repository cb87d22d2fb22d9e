"""What cache layers of all formats share: their size, and rearranging the batch.

A layer holds its keys and its values in a store each. What a format does when tokens come, and how
its attention reads them, is its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

__all__ = ["StoredLayer", "VectorStore"]


class VectorStore(Protocol):
    """The keys, or the values, of a layer."""

    @property
    def tokens(self) -> int:
        """Stored tokens."""
        ...

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function that rearranges axis 0 to what is stored."""
        ...

    def stored_bytes(self) -> int:
        """Bytes of the stored tokens, everything included; room for tokens to come is not."""
        ...

    def stored_elements(self) -> int:
        """Numbers that those bytes stand for."""
        ...


Store = TypeVar("Store", bound=VectorStore)


class StoredLayer(CacheLayerMixin, Generic[Store]):
    """A layer over a store of keys and one of values, which the first tokens make."""

    # of the base class, where they are tensors
    keys: Store
    values: Store

    def get_mask_sizes(self, query_length: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Tokens that a forward of `query_length` tokens attends to, and the first one's index."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """Stored tokens."""
        return self.keys.tokens if self.is_initialized else 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rearrange the batch for beam search."""
        self.map_batch(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence of the batch."""
        self.map_batch(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences of the batch."""
        self.map_batch(lambda x: x[indices])

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function that rearranges axis 0 to what is stored, if anything is."""
        for store in self._stores():
            store.map_batch(function)

    def stored_bytes(self) -> int:
        """Bytes of keys and values, everything included."""
        return sum(store.stored_bytes() for store in self._stores())

    def stored_elements(self) -> int:
        """Numbers that those bytes stand for."""
        return sum(store.stored_elements() for store in self._stores())

    def _stores(self) -> tuple[Store, ...]:
        return (self.keys, self.values) if self.is_initialized else ()
