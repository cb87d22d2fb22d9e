"""The verilated engine as a backend of `golden.attend`: a model's attention on the RTL."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from golden.attend.backends import rotated_back
from golden.cache.attention_job import AttentionJob, CachePass, Revision
from golden.cache.tiered_store import TieredView
from golden.engine import Attention
from golden.planes import Planes
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.layout import Side
from kvtq_hw.contract.tiers import Tiers
from sim.verilated.engine import Job, VerilatedEngine
from sim.verilated.slices import SliceBuffer, pack_slices

__all__ = ["EngineBackend"]


@dataclass
class _HeadMemory:
    """One KV head's cache as slices for the engine's streams."""

    keys: SliceBuffer
    values: SliceBuffer

    def truncate(self, tokens: int) -> None:
        """Keep only the first `tokens` tokens."""
        self.keys.truncate(tokens)
        self.values.truncate(tokens)


@dataclass
class _LayerMemory:
    """One layer's KV heads, and the number of tokens that stay as they were packed."""

    heads: list[_HeadMemory]
    settled: int = 0


class EngineBackend:
    """Computes decode steps on the verilated engine, one job per KV head.

    Queries are quantized by the job. A token's planes are packed for the streams when the token is
    new, and once more when it leaves the window. `SplitBackend` takes this class as the backend of
    decode steps.

    Parameters
    ----------
    config : the configuration of the engine and of the cache

    Attributes
    ----------
    cycles : clock cycles with a job in flight
    bound_cycles : slices streamed, which is the bound of an engine with one slice per cycle
    jobs : KV heads attended
    """

    def __init__(self, config: EngineConfig) -> None:
        self._engine = VerilatedEngine(config)
        self._layers: WeakKeyDictionary[Revision, _LayerMemory] = WeakKeyDictionary()
        self.cycles = 0
        self.bound_cycles = 0
        self.jobs = 0

    def attend(self, job: AttentionJob) -> Attention:
        """Run one layer's KV heads back to back.

        Raises
        ------
        ValueError
            When the job is not a decode step of one sequence.
        """
        if not job.is_decode_step:
            raise ValueError("the engine computes decode steps of one sequence only")
        memory = self._updated(job.cache)
        values = job.queries.values[0, :, :, 0]  # [kv_heads, G, D]
        exponents = job.queries.exponent[0, :, :, 0]
        value_exponent = job.value_exponent[0, :, 0]
        sinks = job.learned_sinks
        run = self._engine.run(
            [
                Job(
                    queries=values[index].numpy(),
                    query_exponent=exponents[index].numpy(),
                    value_exponent=int(value_exponent[index]),
                    keys=head.keys,
                    values=head.values,
                    learned_sinks=None if sinks is None else sinks.of_kv_head(index).array(),
                )
                for index, head in enumerate(memory.heads)
            ]
        )
        self.cycles += run.cycles
        self.bound_cycles += run.counters["key_slices"] + run.counters["value_slices"]
        self.jobs += len(memory.heads)
        config = self._engine.config
        point = config.scale_fraction_bits - config.output_fraction_bits
        attention = Attention(
            torch.from_numpy(run.outputs.copy())[None, :, :, None],
            (value_exponent + point)[None, :, None],
            torch.tensor(run.counters["saturated_scores"]),
        )
        return rotated_back(job, attention)

    def close(self) -> None:
        """End the simulation."""
        self._engine.close()

    def _updated(self, stored: CachePass) -> _LayerMemory:
        """Pack the tokens that were not settled at the last call; return the layer's memory."""
        config = self._engine.config
        memory = self._layers.get(stored.revision)
        if memory is None:
            heads = [
                _HeadMemory(SliceBuffer(config, "key"), SliceBuffer(config, "value"))
                for _ in range(stored.kv_heads)
            ]
            memory = self._layers[stored.revision] = _LayerMemory(heads)
        # tokens packed once may have other places, or have gone, once a sliding window is full
        kept = min(memory.settled, stored.settled)
        keys, key_depths = _unsettled(stored.keys, stored.code.tiers, kept)
        values, value_depths = _unsettled(stored.values, stored.code.tiers, kept)
        packed_keys = _pack_heads(config, "key", keys, key_depths.numpy())
        packed_values = _pack_heads(config, "value", values, value_depths.numpy())
        for index, head in enumerate(memory.heads):
            head.truncate(kept)
            head.keys.extend(*packed_keys[index])
            head.values.extend(*packed_values[index])
        memory.settled = stored.settled
        return memory


def _unsettled(stored: TieredView, tiers: Tiers, settled: int) -> tuple[Planes, Tensor]:
    """Return the planes and depths of tokens from `settled` on, in the engine's order."""
    if settled:  # nothing has left a sliding window: the order is that of arrival
        return stored.planes(settled), stored.depths(settled)
    return stored.in_order(tiers)


def _pack_heads(
    config: EngineConfig, side: Side, planes: Planes, depths: NDArray[np.int64]
) -> list[tuple[NDArray[np.uint32], NDArray[np.int64]]]:
    """Pack all KV heads of the only sequence at once; return `pack_slices`' result per head.

    Parameters
    ----------
    depths : number of planes of each token [1, kv_heads, tokens]
    """
    heads = planes.unit.shape[1]
    flat = planes.map_tokens(lambda x, axis: x[0].flatten(0, 1))
    words, slices = pack_slices(config, side, flat, depths[0].flatten())
    of_heads = slices.reshape(heads, -1)
    ends = of_heads.sum(1).cumsum()[:-1]
    return list(zip(np.split(words, ends), of_heads, strict=True))
