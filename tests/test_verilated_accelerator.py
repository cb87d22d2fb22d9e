"""The verilated accelerator as a Python object: KV heads on memories of several speeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bench_matrix import PLANES_CONFIGS, TINY

from golden.accelerator import KvHead
from golden.cache.memory_image import MemoryImage
from golden.conditioning import Conditioning
from golden.feedback import Feedback
from golden.learned_sinks import LearnedSinks
from golden.tables import anchor_words, load_words
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.cycle_model import code_bound
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.layout import MemoryLayout
from sim.bench.stimulus import random_learned_sinks
from sim.host.descriptors import HeadDescriptors
from sim.verilated.accelerator import (
    DDR4,
    IDEAL,
    LPDDR4,
    AcceleratorJob,
    MemorySettings,
    VerilatedAccelerator,
)
from sim.verilated.interface import AccessKind
from sim.verilated.library import SimulationError

SLOW = MemorySettings(7, 0.3, refresh_interval=50, refresh_cycles=11, outstanding=1)
CODES = [
    "balanced:2/1,sinks=2,window=3,feedback",
    "balanced:3/2",
    "residual:2/2,scale=absmean,sinks=3,window=1",
]
#: A code with anchors, and the hits from which on a token becomes one.
ANCHORED, THRESHOLD = "balanced:2/1,sinks=2,window=4,anchors=3,feedback", 3


class Heads:
    """Golden KV heads beside those of an accelerator."""

    def __init__(
        self,
        code: str,
        settings: MemorySettings,
        config: EngineConfig = TINY,
        count: int = 2,
        threshold: int = 0,
    ) -> None:
        self.config, self.code = config, code
        self.random = torch.Generator().manual_seed(5)
        self.numbers = np.random.default_rng(5)
        parsed = CacheCode.parse(code)
        self.layout = MemoryLayout(config, [parsed], count, 20, base=0x100)
        self.memory = np.zeros(self.layout.bytes, np.uint8)
        centres = self.integers((count, config.head_dim))
        feedback = [
            Feedback(
                torch.randint(-4, 5, (count, *[config.head_dim] * 2), generator=self.random)
                .to(torch.int8)
                .triu(1),
                torch.randint(0, 8, (count, config.head_dim), generator=self.random),
            )
            for _ in range(2)
        ]
        self.golden = [
            KvHead(
                config,
                parsed,
                Conditioning(
                    True,
                    centres[head : head + 1],
                    0,
                    0,
                    *(
                        Feedback(f.factors[head : head + 1], f.shift[head : head + 1])
                        for f in feedback
                    ),
                ),
                threshold,
            )
            for head in range(count)
        ]
        self.descriptors = [
            HeadDescriptors(
                self.layout,
                0,
                head,
                table=head,
                rotate=True,
                centre=True,
                anchor_threshold=threshold,
            )
            for head in range(count)
        ]
        self.accelerator = VerilatedAccelerator(
            config, self.memory, base=self.layout.base, settings=settings
        )
        packets = load_words(config, centres, feedback[0], feedback[1])
        self.tables = [np.array(packet, np.uint32) for packet in packets]
        self.accelerator.load_tables(self.tables)

    def integers(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randint(-15000, 15001, shape, generator=self.random)

    def steps(self, first: int, last: int):
        """Jobs of the tokens from `first` to `last`, all heads in turn, and what must come out.

        Notes the nonzero digits that they read.
        """
        jobs, expected = [], []
        dim, group = self.config.head_dim, self.config.query_group
        self.nonzeros = 0
        for tokens in range(first, last + 1):
            for head, descriptors in zip(self.golden, self.descriptors, strict=True):
                vectors, queries = self.integers((2, dim)), self.integers((group, dim))
                exponents = torch.randint(20, 28, (group,), generator=self.random)
                head.append(*vectors)
                for vectors_of in (head.keys, head.values):
                    self.nonzeros += int(vectors_of.planes().digits.count_nonzero())
                sinks = random_learned_sinks(self.numbers, self.config)
                learned_sinks = LearnedSinks(*torch.from_numpy(sinks))
                expected.append(head.attend(queries, exponents, learned_sinks))
                descriptor = descriptors.job(
                    tokens,
                    append=True,
                    query_exponent=exponents.tolist(),
                    first=tokens == 1,
                    learned_sinks=learned_sinks,
                )
                jobs.append(AcceleratorJob(descriptor, vectors.numpy(), queries.numpy()))
        return jobs, expected

    def memory_differences(self) -> int:
        image = MemoryImage(self.layout)
        for index, head in enumerate(self.golden):
            head.store(image, 0, index)
        return int((image.data.numpy() != self.memory).sum())


@pytest.mark.parametrize(
    "settings", [IDEAL, DDR4, LPDDR4, SLOW], ids=["ideal", "ddr4", "lpddr4", "slow"]
)
@pytest.mark.parametrize("code", CODES)
def test_heads_live(code, settings):
    """Jobs back to back and one after the other: outputs, exponents and memory, to the bit."""
    live(Heads(code, settings))


@pytest.mark.parametrize("settings", [IDEAL, SLOW], ids=["ideal", "slow"])
@pytest.mark.parametrize("code", CODES)
def test_heads_live_on_several_planes_a_slice(code, settings):
    live(Heads(code, settings, PLANES_CONFIGS["planes-3-2"]))


def live(heads: Heads) -> None:
    """Run a few steps; everything must be as the golden heads have it, counters of digits too."""
    config, code = heads.config, CacheCode.parse(heads.code)
    for first, last in ((1, 1), (2, 2), (3, 12), (13, 16)):
        jobs, expected = heads.steps(first, last)
        run = heads.accelerator.run(jobs)
        outputs = np.stack([attention.values[:, 0].numpy() for attention in expected])
        exponents = [int(attention.exponent[0]) for attention in expected]
        assert np.array_equal(run.outputs, outputs)
        assert run.exponents.tolist() == exponents
        assert heads.memory_differences() == 0
        counters = run.counters
        assert counters["saturated_scores"] == sum(int(a.saturated) for a in expected)
        slices = counters["key_slices"] + counters["value_slices"]
        bound = sum(code_bound(config, code, tokens) for tokens in range(first, last + 1))
        assert slices == len(heads.golden) * bound
        digits = config.lanes * (
            counters["key_slices"] * config.key_planes_per_cycle
            + counters["value_slices"] * config.value_planes_per_cycle
        )
        assert counters["zero_digits"] == digits - heads.nonzeros


@pytest.mark.parametrize("settings", [IDEAL, SLOW], ids=["ideal", "slow"])
@pytest.mark.parametrize("count", [1, 2], ids=["one head", "two heads"])
def test_heads_with_anchors_live(count, settings):
    """Outputs and memory to the bit, where every job of a single head waits for the one before."""
    heads = Heads(ANCHORED, settings, count=count, threshold=THRESHOLD)
    new = 0
    for first, last in ((1, 1), (2, 9), (10, 20)):
        jobs, expected = heads.steps(first, last)
        run = heads.accelerator.run(jobs)
        outputs = np.stack([attention.values[:, 0].numpy() for attention in expected])
        assert np.array_equal(run.outputs, outputs)
        assert heads.memory_differences() == 0
        new += run.counters["new_anchors"]
    assert new == sum(head.anchors.count for head in heads.golden)
    assert 0 < new < 3 * count + 1


def test_a_loaded_head_goes_on_with_its_hits_and_anchors():
    """A head in another accelerator, with memory and anchors loaded, is the same head."""
    code = ANCHORED.replace("anchors=3", "anchors=9")
    first = Heads(code, IDEAL, count=1, threshold=THRESHOLD)
    first.accelerator.run(first.steps(1, 13)[0])
    second = Heads(code, IDEAL, count=1, threshold=THRESHOLD)
    (head,) = second.golden = first.golden
    second.memory[:] = first.memory
    state = head.anchors
    packet = anchor_words(0, state.count, [state.hits[slot] for slot in range(4)])
    assert state.count
    second.accelerator.load_tables([np.array(packet, np.uint32)])
    floor = {"value_exponent": head.value_exponent, "first": True}
    jobs, expected = second.steps(14, 20)
    jobs[0] = replace(jobs[0], descriptor={**jobs[0].descriptor, **floor})
    run = second.accelerator.run(jobs)
    assert np.array_equal(run.outputs, np.stack([x.values[:, 0].numpy() for x in expected]))
    assert second.memory_differences() == 0
    assert state.count > packet[1]


def test_anchors_behind_a_window_that_is_too_long_are_refused():
    config = TINY.replace(anchor_slots=3)
    with pytest.raises(
        UserError, match=r"a window of 4 tokens; anchor_slots of .* allows up to 3$"
    ):
        Heads(ANCHORED, IDEAL, config)


def test_a_job_that_ends_badly_is_an_error():
    heads = Heads(CODES[0], IDEAL)
    jobs, _ = heads.steps(1, 1)
    wrong = AcceleratorJob({**jobs[0].descriptor, "attend": False, "append": False, "tokens": 0})
    with pytest.raises(SimulationError, match=r"^job 0 ended with status NO_TOKENS$"):
        heads.accelerator.run([wrong])


def test_outputs_of_jobs_that_nobody_started_are_missing():
    heads = Heads(CODES[0], IDEAL, count=1)
    with pytest.raises(ValueError, match=r"^no jobs are armed; arm jobs first$"):
        heads.accelerator.collect()
    heads.accelerator.arm(heads.steps(1, 1)[0])
    assert heads.accelerator.access(AccessKind.READ, 0) == int.from_bytes(b"KVTQ", "little")
    with pytest.raises(SimulationError, match=r"key_value 0 of 8, query 0 of 8, output 0 of 8$"):
        heads.accelerator.collect()


def test_memory_of_another_type_is_refused():
    with pytest.raises(TypeError, match="memory must be a contiguous array of uint8 with one axis"):
        VerilatedAccelerator(TINY, np.zeros(64, np.int64))
