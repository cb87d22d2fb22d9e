"""Golden accelerator: one KV head in integers, from the host's vectors to the host's outputs.

One hardware job conditions and quantizes the new key and value, stores them, and requantizes the
token that leaves the window, for the body or as an anchor. It then attends with the host's queries
and rotates the outputs back. This module composes the golden blocks for one KV head without a model
around it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from golden.anchors import NO_DECISION, Decision, HeadAnchors, window_hits
from golden.cache.memory_image import MemoryImage
from golden.cache.tiered_store import TieredStore
from golden.conditioning import Conditioning
from golden.engine import Attention, attend
from golden.key_lanes import key_lanes
from golden.learned_sinks import LearnedSinks
from golden.output_rotator import output_rotator
from golden.plane_scaler import plane_scaler
from golden.planes import Planes
from golden.queries import Queries
from golden.query_conditioner import query_conditioner
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import VECTOR_MAX, EngineConfig
from kvtq_hw.contract.layout import Side

__all__ = ["KvHead"]


class KvHead:
    """Stores keys and values of one KV head and attends to them.

    Parameters
    ----------
    config, code : format and tiers
    conditioning : rotation, centre and feedback of one KV head
    anchor_threshold : hits from which on a token becomes an anchor

    Attributes
    ----------
    keys, values : the stored vectors; the batch and KV-head axes have size one
    anchors : number of anchors, and hits of the window's tokens
    decision : what the newest token decided about the token that left the window
    value_exponent : largest exponent of all value scales written so far
    """

    def __init__(
        self,
        config: EngineConfig,
        code: CacheCode,
        conditioning: Conditioning,
        anchor_threshold: int = 0,
    ) -> None:
        self._config = config
        self._tiers = code.tiers
        self._conditioning = conditioning
        self._threshold = anchor_threshold
        shape = 1, 1, torch.device("cpu")
        feedback = (
            (conditioning.key_feedback, conditioning.value_feedback)
            if code.feedback
            else (None, None)
        )
        self.keys = TieredStore(config, code, "key", feedback[0], *shape)
        self.values = TieredStore(config, code, "value", feedback[1], *shape)
        self.anchors = HeadAnchors()
        self.decision = NO_DECISION
        self.value_exponent = 0

    def append(self, key: Tensor, value: Tensor) -> None:
        """Store a token: key and value int64 [D] of 16 bits; -2**15 is read as -VECTOR_MAX."""
        condition = self._conditioning
        key, value = (x.clamp(min=-VECTOR_MAX)[None, None, None] for x in (key, value))
        if condition.key_centre is not None:
            key = key - condition.key_centre[:, None]
        self.keys.append(condition.rotated(key))
        written = self.values.append(condition.rotated(value))
        self.decision = self._decide()
        left = written.left_in_tier if self.decision.promoted else written.left
        largest = int(np.maximum(written.came, left).max())
        self.value_exponent = max(self.value_exponent, largest)

    def _decide(self) -> Decision:
        """Decide what becomes of the token that the newest token has pushed out of the window."""
        tiers, tokens = self._tiers, self.keys.tokens
        if not tiers.anchors:
            return NO_DECISION
        spread, leaving = tiers.spread(tokens), tiers.leaving(tokens)
        decision = self.anchors.decide(
            leaving=leaving,
            slot=spread.window_slot if spread.window else None,
            new=spread.body == leaving,
            anchors=tiers.anchors,
            threshold=self._threshold,
        )
        if leaving:
            newest = torch.tensor([[[decision.promoted]]])
            for stored in (self.keys, self.values):
                stored.anchored = torch.cat((stored.anchored, newest), -1)
        return decision

    def _count_hits(self, queries: Queries, keys: Planes) -> None:
        """Give hits to the tokens of the window."""
        spread = self._tiers.spread(self.keys.tokens)
        sums = key_lanes(keys.digits, queries.values)
        scores, _ = plane_scaler(self._config, sums, keys, queries.exponent)
        hits = window_hits(self._config, scores[:, 0].tolist(), spread.sinks, spread.window)
        self.anchors.add(hits, spread.window_start)

    def store(self, image: MemoryImage, layer: int, head: int) -> None:
        """Write all stored vectors into an image, at the place of KV head `head` of `layer`."""
        stores: dict[Side, TieredStore] = {"key": self.keys, "value": self.values}
        for side, vectors in stores.items():
            image.store(layer, head, side, vectors.view(), source=0)

    def attend(
        self, queries: Tensor, exponents: Tensor, learned_sinks: LearnedSinks | None = None
    ) -> Attention:
        """Compute attention of the host's queries, int64 [G, D] and exponents [G], over all tokens.

        Parameters
        ----------
        learned_sinks : [G], or None

        Returns
        -------
        Attention : values [G, 1, D] and exponent [1], as the hardware outputs them
        """
        rotate = self._conditioning.rotate
        symmetric = queries.clamp(min=-VECTOR_MAX)
        host = Queries(symmetric[:, None], exponents[:, None])
        keys, values = (
            stored.view().in_order(self._tiers)[0].map_tokens(lambda x, axis: x[0, 0])
            for stored in (self.keys, self.values)
        )
        conditioned = query_conditioner(self._config, host, rotate)
        if self._tiers.anchors:
            self._count_hits(conditioned, keys)
        attention = attend(
            self._config,
            conditioned,
            keys,
            values,
            exponent=torch.tensor([self.value_exponent]),
            learned_sinks=learned_sinks,
        )
        outputs, exponent = output_rotator(
            self._config, attention.values, attention.exponent, rotate
        )
        return Attention(outputs, exponent, attention.saturated)
