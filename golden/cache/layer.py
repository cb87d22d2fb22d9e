"""Base classes of the caches of all formats: shape checks, copies, rearranging the batch.

A layer has one store for keys and one for values. Subclasses define how new tokens are stored and
how attention reads them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

__all__ = ["StoredCache", "StoredLayer", "VectorStore"]


class VectorStore(Protocol):
    """Stores the keys, or the values, of a layer."""

    @property
    def tokens(self) -> int:
        """Stored tokens."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the stored vectors."""
        ...

    def to(self, device: torch.device | str, non_blocking: bool = False) -> VectorStore:
        """Move the stored vectors; return this store."""
        ...

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function that rearranges axis 0 (the batch) to the stored tensors."""
        ...

    def stored_bytes(self) -> int:
        """Return the bytes of the stored tokens, all overhead included, spare room excluded."""
        ...

    def stored_elements(self) -> int:
        """Return the number of vector elements that `stored_bytes` represents."""
        ...


Store = TypeVar("Store", bound=VectorStore)
Layer = TypeVar("Layer", bound="StoredLayer[Any]")


class _Form(NamedTuple):
    """The properties that all tokens of a layer share; error messages use the field names."""

    batch: int
    kv_heads: int
    key_dimension: int
    value_dimension: int
    dtype: torch.dtype
    device: torch.device


class StoredLayer(CacheLayerMixin, Generic[Store]):
    """A layer with a store for keys and a store for values, created by the first tokens."""

    # attributes of the base class, where both are tensors
    keys: Store
    values: Store
    _form: _Form

    def __deepcopy__(self: Layer, memo: dict[int, Any]) -> Layer:
        """Make an independent copy: stores are copied, immutable objects are shared."""
        memo |= {id(shared): shared for shared in self._shared()}
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__ |= {name: copy.deepcopy(x, memo) for name, x in vars(self).items()}
        return copied

    def __copy__(self: Layer) -> Layer:
        """Make an independent copy: two layers never share a store."""
        return copy.deepcopy(self)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make empty stores for tokens of this shape, dtype and device."""
        self._form = _form(key_states, value_states)
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = self._empty_stores(key_states, value_states)
        self.is_initialized = True

    def admit(self, key_states: Tensor, value_states: Tensor) -> None:
        """Check new tokens [batch, kv_heads, tokens, D] and prepare the stores for them.

        Stores are created if there are none or they are empty, and moved back to the device of the
        tokens if they were offloaded.

        Raises
        ------
        ValueError
            When keys and values do not fit each other, or do not fit what is stored.
        """
        form = _form(key_states, value_states)
        if not self.get_seq_length():
            self.lazy_initialization(key_states, value_states)
        if form != self._form:
            name, found, stored = next(
                (name, found, stored)
                for name, found, stored in zip(form._fields, form, self._form, strict=True)
                if found != stored
            )
            raise ValueError(
                f"{name.replace('_', ' ')}: {found} of new keys and values is not that of the "
                f"stored ones, {stored}; call reset() first, or use a fresh cache"
            )
        self.prefetch()

    def get_mask_sizes(self, query_length: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Return the number of tokens that `query_length` new tokens attend to, and an offset of 0.

        The offset is the index of the first token attended to.
        """
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """Return the number of stored tokens."""
        return self.keys.tokens if self.is_initialized else 0

    def reset(self) -> None:
        """Remove all tokens; the next tokens may have another shape, dtype or device."""
        # None, which the base class does not allow; nothing reads the stores until they are remade
        self.keys = self.values = None  # type: ignore[assignment]
        self.is_initialized = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rearrange the batch for beam search."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence of the batch."""
        self.map_batch(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences of the batch that `indices` select, in the order of `indices`.

        Raises
        ------
        ValueError
            When `indices` (integers or booleans) is not a vector.
        """
        if indices.ndim != 1:
            raise ValueError(f"indices have {indices.ndim} axes; must have one")
        self.map_batch(lambda x: x[indices.to(x.device)])

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function that rearranges axis 0 (the batch) to the stores, if there are any."""
        if self.is_initialized:
            batch = function(torch.empty(self._form.batch, 0)).shape[0]
            for store in self._stores():
                store.map_batch(function)
            self._form = self._form._replace(batch=batch)

    def stored_bytes(self) -> int:
        """Return the bytes of keys and values, all overhead included."""
        return sum(store.stored_bytes() for store in self._stores())

    def stored_elements(self) -> int:
        """Return the number of vector elements that `stored_bytes` represents."""
        return sum(store.stored_elements() for store in self._stores())

    def _empty_stores(self, key_states: Tensor, value_states: Tensor) -> tuple[Store, Store]:
        """Return empty stores for keys and values of this shape, dtype and device."""
        raise NotImplementedError

    def _shared(self) -> tuple[object, ...]:
        """Return the immutable objects that copies of this layer share with it."""
        raise NotImplementedError

    def _stores(self) -> tuple[Store, ...]:
        return (self.keys, self.values) if self.is_initialized else ()


class StoredCache(Cache):
    """A whole model's cache of `StoredLayer` layers. Shallow copies are independent too."""

    def __copy__(self) -> StoredCache:
        """Make an independent copy: two caches never share a layer."""
        return copy.deepcopy(self)


def _form(key_states: Tensor, value_states: Tensor) -> _Form:
    """Return the shape, dtype and device of keys and values [batch, kv_heads, tokens, D].

    Raises
    ------
    ValueError
        When keys and values do not fit each other.
    """
    keys, values = key_states.shape, value_states.shape
    if len(keys) != 4 or keys[:3] != values[:3] or len(values) != 4:
        raise ValueError(
            f"keys {tuple(keys)} and values {tuple(values)} do not fit each other; must be [batch, "
            "KV heads, tokens, dimension], equal but for the last"
        )
    if (key_states.dtype, key_states.device) != (value_states.dtype, value_states.device):
        raise ValueError(
            f"keys are {key_states.dtype} on {key_states.device}, values {value_states.dtype} on "
            f"{value_states.device}; must be alike"
        )
    return _Form(keys[0], keys[1], keys[3], values[3], key_states.dtype, key_states.device)
