"""Golden accelerator: a KV head's life in integers, from the host's vectors to the host's outputs.

What the hardware does in one job: condition and quantize the new key and value, store them, and
requantize the token that leaves the window; then attend with the host's queries and rotate the
outputs back. It is the composition of the golden blocks, for one KV head without a model around it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from golden.cache.memory_image import MemoryImage
from golden.cache.tiered_store import TieredStore
from golden.conditioning import Conditioning
from golden.engine import Attention, attend
from golden.output_rotator import output_rotator
from golden.queries import Queries
from golden.query_conditioner import query_conditioner
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import VECTOR_MAX, EngineConfig
from kvtq_hw.contract.layout import Side

__all__ = ["KvHead"]


class KvHead:
    """One KV head: what is stored of it, and its value exponent.

    Parameters
    ----------
    config, code : format and tiers
    conditioning : rotation, centre and feedback of one KV head

    Attributes
    ----------
    keys, values : the stored vectors, batch and KV heads being one
    value_exponent : largest exponent of any value scale that was written
    """

    def __init__(self, config: EngineConfig, code: CacheCode, conditioning: Conditioning) -> None:
        self._config = config
        self._conditioning = conditioning
        shape = 1, 1, torch.device("cpu")
        feedback = (
            (conditioning.key_feedback, conditioning.value_feedback)
            if code.feedback
            else (None, None)
        )
        self.keys = TieredStore(config, code, "key", feedback[0], *shape)
        self.values = TieredStore(config, code, "value", feedback[1], *shape)
        self.value_exponent = 0

    def append(self, key: Tensor, value: Tensor) -> None:
        """Store a token: int64 [D] each, 16-bit, -2**15 read as -VECTOR_MAX."""
        condition = self._conditioning
        key, value = (x.clamp(min=-VECTOR_MAX)[None, None, None] for x in (key, value))
        if condition.key_centre is not None:
            key = key - condition.key_centre[:, None]
        self.keys.append(condition.rotated(key))
        written = self.values.append(condition.rotated(value))
        largest = int(np.maximum(written.came, written.left).max())
        self.value_exponent = max(self.value_exponent, largest)

    def store(self, image: MemoryImage, layer: int, head: int) -> None:
        """Write everything that is stored into an image, as this KV head."""
        stores: dict[Side, TieredStore] = {"key": self.keys, "value": self.values}
        for side, vectors in stores.items():
            for tier in ("sinks", "body", "window"):
                part = getattr(vectors, tier).planes().map_tokens(lambda x, axis: x[0, 0])
                image.write(layer, head, side, tier, part, vectors.tokens)

    def attend(self, queries: Tensor, exponents: Tensor) -> Attention:
        """Attention of the host's queries, int64 [G, D] with exponents [G], over all tokens.

        Returns
        -------
        Attention : values [G, 1, D] and exponent [1], as they leave the hardware
        """
        rotate = self._conditioning.rotate
        symmetric = queries.clamp(min=-VECTOR_MAX)
        host = Queries(symmetric[:, None], exponents[:, None])
        keys, values = (
            part.planes().map_tokens(lambda x, axis: x[0, 0]) for part in (self.keys, self.values)
        )
        attention = attend(
            self._config,
            query_conditioner(self._config, host, rotate),
            keys,
            values,
            exponent=torch.tensor([self.value_exponent]),
        )
        outputs, exponent = output_rotator(
            self._config, attention.values, attention.exponent, rotate
        )
        return Attention(outputs, exponent, attention.saturated)
