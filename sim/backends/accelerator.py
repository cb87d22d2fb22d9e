"""The verilated accelerator as a backend: a model's attention and KV cache on the RTL.

Only vectors and memory cross the boundary. The golden model computes the prefill; afterwards the
cache's image is written into the memory. From then on the hardware quantizes, stores, requantizes
and fetches the tokens of every decode step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from golden.attend.backends import IntegerBackend
from golden.cache.anchor_history import thresholds_of_window
from golden.cache.attention_job import AttentionJob, Revision
from golden.cache.memory_image import MemoryImage
from golden.cache.ternary_cache import TernaryCache, TernaryCacheLayer
from golden.cache.tiered_store import TieredView
from golden.conditioning import Conditioning
from golden.engine import Attention
from golden.feedback import Feedback
from golden.tables import anchor_words, load_words
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.layout import MemoryLayout
from kvtq_hw.contract.tiers import Tiers
from sim.host.descriptors import HeadDescriptors
from sim.verilated.accelerator import IDEAL, AcceleratorJob, MemorySettings
from sim.verilated.side_by_side import SideBySide

__all__ = ["AcceleratorBackend", "LoadingBackend", "store_layer", "tables_of_layers"]


@dataclass
class _LayerState:
    """State of one layer in the accelerator's memory.

    tokens, revision : of the mirrored cache layer; `revision` is None while the layer is empty
    floors : value exponents of the layer's heads, until the hardware knows them; None afterwards
    """

    tokens: int = 0
    revision: Revision | None = None
    floors: list[int] | None = None


class AcceleratorBackend:
    """Computes decode steps on the verilated accelerator, one job per KV head.

    Parameters
    ----------
    config : the configuration of the hardware and of the cache
    codes, conditioning : the code and the conditioning of each layer
    kv_heads : KV heads of a layer
    settings : timing of the memory
    accelerators : accelerators that are simulated side by side, each for its share of the KV heads
    quick : simulate a quicker text than the generated Verilog (`sim.verilated.quick_verilog`)

    Attributes
    ----------
    cycles : clock cycles with a job in flight; None when there are several accelerators, since one
        accelerator, which overlaps its jobs, takes fewer cycles than they do together
    jobs : KV heads attended

    Raises
    ------
    UserError
        For a code that the hardware does not compute, or a model with more heads than the
        hardware's tables hold.
    """

    def __init__(
        self,
        config: EngineConfig,
        codes: Sequence[CacheCode],
        conditioning: Sequence[Conditioning],
        kv_heads: int,
        settings: MemorySettings = IDEAL,
        accelerators: int = 1,
        quick: bool = False,
    ) -> None:
        tables = len(codes) * kv_heads
        if tables > config.table_heads:
            raise UserError(
                f"table_heads: {config.table_heads} of configuration {config.name!r} is not "
                f"enough; the model has {tables} KV heads in all layers"
            )
        layout = MemoryLayout(config, codes, kv_heads, config.max_context)
        memory = np.zeros(layout.bytes, np.uint8)
        self._image = MemoryImage(layout, torch.from_numpy(memory))
        self._descriptors = [
            [
                HeadDescriptors(
                    layout,
                    layer,
                    head,
                    table=layer * kv_heads + head,
                    rotate=entry.rotate,
                    centre=entry.key_centre is not None,
                    anchor_threshold=threshold,
                )
                for head, threshold in enumerate(_thresholds(code, entry, kv_heads))
            ]
            for layer, (code, entry) in enumerate(zip(codes, conditioning, strict=True))
        ]
        self._layers = [_LayerState(floors=[0] * kv_heads) for _ in codes]
        self._accelerators = SideBySide(
            config, memory, accelerators, base=layout.base, settings=settings, quick=quick
        )
        packets = load_words(config, *tables_of_layers(conditioning))
        self._accelerators.load_tables([np.array(packet, np.uint32) for packet in packets])
        self.cycles: int | None = 0 if accelerators == 1 else None
        self.jobs = 0

    def attend(self, job: AttentionJob) -> Attention:
        """Append the newest token of one layer and attend, an accelerator's KV heads back to back.

        Raises
        ------
        ValueError
            When the job is not a decode step of one sequence.
        """
        if not job.is_decode_step:
            raise ValueError("the accelerator computes decode steps of one sequence only")
        state = self._layers[job.layer_index]
        tokens = job.cache.tokens
        append = state.tokens == tokens - 1 and state.revision in (None, job.cache.revision)
        if not append:
            self.load(job, attended=False)
            state = self._layers[job.layer_index]
        state.revision = job.cache.revision
        queries, floors, sinks = job.host_queries, state.floors, job.learned_sinks
        jobs = []
        for head, descriptors in enumerate(self._descriptors[job.layer_index]):
            descriptor = descriptors.job(
                tokens,
                append=append,
                query_exponent=queries.exponent[0, head, :, 0].tolist(),
                first=floors is not None,
                value_exponent=floors[head] if floors else 0,
                learned_sinks=None if sinks is None else sinks.of_kv_head(head),
            )
            vectors = None
            if append:
                vectors = torch.stack([x[0, head, 0] for x in job.cache.vectors]).numpy()
            jobs.append(AcceleratorJob(descriptor, vectors, queries.values[0, head, :, 0].numpy()))
        run = self._accelerators.run(jobs)
        state.tokens, state.floors = tokens, None
        if self.cycles is not None:
            self.cycles += run.counters["busy_cycles"]
        self.jobs += len(jobs)
        return Attention(
            torch.from_numpy(run.outputs.copy())[None, :, :, None],
            torch.from_numpy(run.exponents.copy())[None, :, None],
            torch.tensor(run.counters["saturated_scores"]),
        )

    def load(self, job: AttentionJob, *, attended: bool) -> None:
        """Write what the golden model has stored of a job's layer into the memory.

        Of a prefill's tokens, those that have left the sliding window are no longer stored. The
        hardware's state of anchors is loaded too.

        Parameters
        ----------
        attended : the job's newest query has been attended to, and its hits count
        """
        cache = job.cache
        kept = cache.code.tiers.spread(cache.tokens).tokens
        stored = cache.keys.newest(kept), cache.values.newest(kept)
        store_layer(self._image, job.layer_index, *stored)
        if cache.hits is not None and cache.keys.anchored is not None:
            heads = len(self._descriptors[job.layer_index])
            counts = cache.keys.anchored[0].sum(-1).tolist()
            hits = _by_slot(cache.code.tiers, cache.tokens, cache.hits[attended][0])
            for head, (count, row) in enumerate(zip(counts, hits, strict=True)):
                packet = anchor_words(job.layer_index * heads + head, count, row)
                self._accelerators.load_tables([np.array(packet, np.uint32)], head)
        floors = job.value_exponent[0, :, -1].tolist()
        self._layers[job.layer_index] = _LayerState(cache.tokens, cache.revision, floors)

    def compare_memory(self, cache: TernaryCache) -> tuple[int, int]:
        """Compare the memory with the image of a cache: bytes compared, and how many differ."""
        expected = MemoryImage(self._image.layout)
        for layer, stored in enumerate(cache.layers):
            if isinstance(stored, TernaryCacheLayer):
                store_layer(expected, layer, stored.keys.view(), stored.values.view())
                for head in range(len(expected.layout.heads[layer])):
                    expected.copy_forgotten(self._image.data, layer, head, stored.get_seq_length())
        different = int((expected.data != self._image.data).sum())
        return sum(layer.stored_bytes() for layer in cache.layers), different

    def close(self) -> None:
        """End the simulations."""
        self._accelerators.close()


class LoadingBackend:
    """A backend for prefills, after which the accelerator's memory is what the cache is."""

    def __init__(self, reference: IntegerBackend, accelerator: AcceleratorBackend) -> None:
        self._reference = reference
        self._accelerator = accelerator

    def attend(self, job: AttentionJob) -> Attention:
        """Compute the job on the reference, and load the layer into the accelerator's memory."""
        result = self._reference.attend(job)
        self._accelerator.load(job, attended=True)
        return result


def store_layer(image: MemoryImage, layer: int, keys: TieredView, values: TieredView) -> None:
    """Write all vectors of sequence 0 in a layer's cache into an image."""
    for head in range(len(image.layout.heads[layer])):
        image.store(layer, head, "key", keys)
        image.store(layer, head, "value", values)


def _thresholds(code: CacheCode, conditioning: Conditioning, kv_heads: int) -> list[int]:
    """Return the threshold of anchors of each KV head; 0 where there are none."""
    thresholds = conditioning.anchor_thresholds
    if not code.tiers.anchors or thresholds is None:
        return [0] * kv_heads
    return thresholds_of_window(thresholds, code.tiers.window).tolist()


def _by_slot(tiers: Tiers, tokens: int, hits: Tensor) -> list[list[int]]:
    """Arrange the hits of the tokens in the window, [kv_heads, n], by the slots of its ring."""
    slots = [tiers.window_slot(token) for token in range(tokens - hits.shape[-1], tokens)]
    arranged = hits.new_zeros(len(hits), tiers.window)
    arranged[:, slots] = hits
    return arranged.tolist()


def tables_of_layers(
    conditioning: Sequence[Conditioning],
) -> tuple[Tensor | None, Feedback | None, Feedback | None]:
    """Return centres, key feedback and value feedback of all heads, layer after layer.

    Each is None if any layer has none.
    """
    centres = [entry.key_centre for entry in conditioning if entry.key_centre is not None]
    keys = [entry.key_feedback for entry in conditioning if entry.key_feedback is not None]
    values = [entry.value_feedback for entry in conditioning if entry.value_feedback is not None]
    return (
        torch.cat(centres) if len(centres) == len(conditioning) else None,
        _joined(keys) if len(keys) == len(conditioning) else None,
        _joined(values) if len(values) == len(conditioning) else None,
    )


def _joined(parts: Sequence[Feedback]) -> Feedback:
    return Feedback(
        torch.cat([part.factors for part in parts]), torch.cat([part.shift for part in parts])
    )
