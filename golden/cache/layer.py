"""What caches of all formats share: refusing what does not fit, copies, rearranging the batch.

A layer holds its keys and its values in a store each. What a format does when tokens come, and how
its attention reads them, is its own.
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
    """The keys, or the values, of a layer."""

    @property
    def tokens(self) -> int:
        """Stored tokens."""
        ...

    @property
    def device(self) -> torch.device:
        """Where they are."""
        ...

    def to(self, device: torch.device | str, non_blocking: bool = False) -> VectorStore:
        """Move them; returns this store."""
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
Layer = TypeVar("Layer", bound="StoredLayer[Any]")


class _Form(NamedTuple):
    """What all tokens of a layer have in common; the names are those of messages."""

    batch: int
    kv_heads: int
    key_dimension: int
    value_dimension: int
    dtype: torch.dtype
    device: torch.device


class StoredLayer(CacheLayerMixin, Generic[Store]):
    """A layer over a store of keys and one of values, which the first tokens make."""

    # of the base class, where they are tensors
    keys: Store
    values: Store
    _form: _Form

    def __deepcopy__(self: Layer, memo: dict[int, Any]) -> Layer:
        """An independent copy: stores are copied, what never changes is shared."""
        memo |= {id(shared): shared for shared in self._shared()}
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__ |= {name: copy.deepcopy(x, memo) for name, x in vars(self).items()}
        return copied

    def __copy__(self: Layer) -> Layer:
        """An independent copy: two layers never share a store."""
        return copy.deepcopy(self)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make empty stores for tokens of this form."""
        self._form = _form(key_states, value_states)
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = self._empty_stores(key_states, value_states)
        self.is_initialized = True

    def admit(self, key_states: Tensor, value_states: Tensor) -> None:
        """Look at new tokens [batch, kv_heads, tokens, D] before anything is done with them.

        Stores are made if there are none, or nothing is in them, and brought back to the device of
        the tokens if they were moved away.

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
        """Tokens that a forward of `query_length` tokens attends to, and the first one's index."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """Stored tokens."""
        return self.keys.tokens if self.is_initialized else 0

    def reset(self) -> None:
        """Forget everything; tokens of any form may come next."""
        # None of the base class; nobody looks at them before the next tokens have made stores
        self.keys = self.values = None  # type: ignore[assignment]
        self.is_initialized = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rearrange the batch for beam search."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence of the batch."""
        self.map_batch(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences of the batch, in this order.

        Raises
        ------
        ValueError
            When the indices, or the truth values, are not a vector.
        """
        if indices.ndim != 1:
            raise ValueError(f"indices have {indices.ndim} axes; must have one")
        self.map_batch(lambda x: x[indices.to(x.device)])

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function that rearranges axis 0 to what is stored, if anything is."""
        if self.is_initialized:
            batch = function(torch.empty(self._form.batch, 0)).shape[0]
            for store in self._stores():
                store.map_batch(function)
            self._form = self._form._replace(batch=batch)

    def stored_bytes(self) -> int:
        """Bytes of keys and values, everything included."""
        return sum(store.stored_bytes() for store in self._stores())

    def stored_elements(self) -> int:
        """Numbers that those bytes stand for."""
        return sum(store.stored_elements() for store in self._stores())

    def _empty_stores(self, key_states: Tensor, value_states: Tensor) -> tuple[Store, Store]:
        """Stores for keys and values of this form."""
        raise NotImplementedError

    def _shared(self) -> tuple[object, ...]:
        """What copies of this layer have in common with it, because it never changes."""
        raise NotImplementedError

    def _stores(self) -> tuple[Store, ...]:
        return (self.keys, self.values) if self.is_initialized else ()


class StoredCache(Cache):
    """A whole model's cache of such layers. A copy of any kind is an independent one."""

    def __copy__(self) -> StoredCache:
        """An independent copy: two caches never share a layer."""
        return copy.deepcopy(self)


def _form(key_states: Tensor, value_states: Tensor) -> _Form:
    """What keys and values [batch, kv_heads, tokens, D] have in common.

    Raises
    ------
    ValueError
        When they do not fit each other.
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
