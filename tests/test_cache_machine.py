"""A cache layer's whole life in random order, against the rules of docs/contract.md.

Hypothesis appends tokens in any pieces, attends or does not, rearranges the batch, crops, resets,
copies and moves, under codes with and without sinks, window and feedback. After every step the
layer must hold, to the bit, what the rules say of each token on its own: in which version it is,
with which planes, which value exponents have been written, which crops are possible. The rules
stand here once more, token by token; of the project they use the quantizer and the engine only.

Every run makes the same 2,000 steps or more. KVTQ_MACHINE_STEPS=20000 makes more.
"""

from __future__ import annotations

import copy
import io
import os
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from test_tiers import CONDITIONING, TINY

from golden.attend.attention import ternary_attention
from golden.attend.backends import GoldenBackend
from golden.cache.ternary_cache import TernaryCacheLayer
from golden.dequantizer import dequantize
from golden.engine import Attention, attend
from golden.output_rotator import output_rotator
from golden.planes import Planes
from golden.quantizer import FEEDBACK_RATIOS, quantize
from golden.queries import quantize_queries
from golden.query_conditioner import query_conditioner
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.errors import UserError

STEPS = int(os.environ.get("KVTQ_MACHINE_STEPS", "2000"))
STEPS_OF_A_LIFE = 40
PHASES = [Phase.generate]

CODES = [
    "balanced:3/2",
    "residual:2/3",
    "balanced:2/1,feedback",
    "balanced:1/2,sinks=2,feedback",
    "balanced:2/1,sinks=3,window=6,feedback",
    "balanced:4/5,window=5",
    "residual:2/2,sinks=1,window=4,tier=3",
    "balanced:3/2,sliding=7",
    "balanced:2/1,sinks=3,window=6,sliding=13,feedback",
    "residual:2/2,window=2,sliding=11",
]
FIELDS = ("digits", "unit", "fraction", "exponent")
MODULE = torch.nn.Module()
MODULE.layer_idx = 0


def deep(planes: Planes) -> Planes:
    """With absent planes up to five, so that versions can be compared and mixed."""

    def padded(x: torch.Tensor, trailing: int) -> torch.Tensor:
        missing = 5 - planes.unit.shape[-1]
        return torch.nn.functional.pad(x, (0, 0) * trailing + (0, missing))

    return Planes(*(padded(getattr(planes, name), name == "digits") for name in FIELDS))


def largest(planes: Planes) -> torch.Tensor:
    """Largest scale exponent of each token, int64 [batch, kv_heads, T]."""
    return torch.where(planes.unit, planes.exponent, 0).amax(-1)


class Rules:
    """What docs/contract.md says of the keys, or the values, of one layer.

    first, second : both versions of every token, as it comes and as it is in the body
    """

    def __init__(self, config, code: CacheCode, which: str) -> None:
        self.config, self.code, self.which = config, code, which
        self.first: Planes | None = None
        self.second: Planes | None = None

    def append(self, x: torch.Tensor) -> None:
        code = self.code
        key = self.which == "key"
        digits = code.key_digits if key else code.value_digits
        feedback = ratio = None
        if code.feedback:
            feedback = CONDITIONING.key_feedback if key else CONDITIONING.value_feedback
            ratio = FEEDBACK_RATIOS[self.which][digits - 1]
        high = quantize(self.config, x, "balanced", code.tier, "absmean")
        source = dequantize(self.config, high) if code.tiers.window else x
        body = quantize(
            self.config,
            source,
            code.kind,
            digits,
            code.scale_choice,
            ratio=ratio,
            feedback=feedback,
        )
        first = high if code.tiers.window or code.tiers.sinks else body
        pair = [deep(first), deep(body)]
        if self.first is not None:
            pair = [Planes.join(p) for p in zip((self.first, self.second), pair, strict=True)]
        self.first, self.second = pair

    def map(self, function) -> None:
        self.first, self.second = (
            planes.map_tokens(function) for planes in (self.first, self.second)
        )

    def high(self, tokens: int, context: int) -> torch.Tensor:
        """Which of the first tokens are in the tier while there are so many."""
        token = torch.arange(tokens)
        return (token < self.code.tiers.sinks) | (token >= context - self.code.tiers.window)

    def planes(self, context: int) -> Planes:
        """Every token as it is when there are so many, [batch, kv_heads, context, 5, D]."""
        high = self.high(context, context)

        def chosen(name: str) -> torch.Tensor:
            first, second = (getattr(x, name)[:, :, :context] for x in (self.first, self.second))
            return torch.where(high.reshape(-1, *[1] * (first.ndim - 3)), first, second)

        return Planes(*map(chosen, FIELDS))

    def order(self, context: int) -> list[int]:
        """The tokens that the newest of so many sees, in the order of the contract."""
        tiers = self.code.tiers
        seen = range(max(0, context - (tiers.sliding or context)), context)
        if tiers.sliding is None:
            return list(seen)
        window = min(tiers.window, tiers.sliding)
        ring = tiers.sliding - window
        recent = [t for t in seen if t >= max(tiers.sinks, context - window)]
        body = [t for t in seen if tiers.sinks <= t < context - window]
        start = (min(context, tiers.sliding) - window - tiers.sinks) % max(window, 1)
        return [
            *(t for t in seen if t < tiers.sinks),
            *sorted(body, key=lambda t: (t - tiers.sinks) % ring),
            *sorted(recent, key=lambda t: ((t - tiers.sinks) % window - start) % window),
        ]

    def exponents(self, real: torch.Tensor) -> torch.Tensor:
        """The largest written until each token came, of real [batch, T] tokens."""
        first, second = largest(self.first), largest(self.second)
        batch, kv_heads, tokens = first.shape
        result, running = [], torch.zeros(batch, kv_heads, dtype=torch.int64)
        for token in range(tokens):
            sink = token < self.code.tiers.sinks
            came = first if sink or self.code.tiers.window else second
            running = torch.maximum(running, came[:, :, token] * real[:, None, token])
            left = token - self.code.tiers.window
            if self.code.tiers.window and left >= self.code.tiers.sinks:
                running = torch.maximum(running, second[:, :, left] * real[:, None, left])
            result.append(running)
        return torch.stack(result, -1)


class CacheMachine(RuleBasedStateMachine):
    """One layer of a code, and what it must hold."""

    steps = 0
    code: CacheCode

    @initialize(packing=st.sampled_from(["5in8", "2bit"]))
    def begin(self, packing: str) -> None:
        self.config = TINY.replace(packing=packing)
        self.layer = TernaryCacheLayer(self.config, self.code, CONDITIONING, GoldenBackend())
        self.shown: list[tuple] = []
        self.forget()

    def forget(self) -> None:
        self.keys, self.values = (Rules(self.config, self.code, x) for x in ("key", "value"))
        self.real: torch.Tensor | None = None  # [batch, T]
        self.behind = self.left = self.saturated = 0

    @property
    def tokens(self) -> int:
        return 0 if self.real is None else self.real.shape[1]

    # --- what can happen

    def step(self) -> None:
        """Count, and put something in: Hypothesis leaves rules out of some lives."""
        CacheMachine.steps += 1
        if not self.tokens:
            self.append(2, 7, CacheMachine.steps, 1.0, [0, 3, 1], True)

    @rule(
        batch=st.integers(1, 3),
        tokens=st.integers(0, 9),
        seed=st.integers(0, 99),
        size=st.sampled_from([1.0, 0.01, 4.0]),
        padding=st.lists(st.integers(0, 4), min_size=3, max_size=3),
        attends=st.sampled_from([True, False, False]),
    )
    def append(self, batch, tokens, seed, size, padding, attends) -> None:
        CacheMachine.steps += 1
        if self.tokens:
            batch = self.real.shape[0]
        generator = torch.Generator().manual_seed(seed)
        states = size * torch.randn(2, batch, 2, tokens, 8, generator=generator)
        if self.tokens + tokens > self.config.max_context:
            with pytest.raises(UserError, match=r"^context: "):
                self.layer.update(*states)
            return
        revision = self.layer.revision
        stored, same = self.layer.update(*states)
        assert stored is same
        assert stored.revision is self.layer.revision is revision
        if not tokens:
            return
        padded = not (self.tokens or self.code.tiers.sinks or self.code.tiers.sliding)
        self.write(states, padding if padded else [0] * batch)
        self.check_pass(stored, tokens)
        if attends:
            self.attend(stored, tokens, generator)
        self.shown = [*self.shown[-1:], (stored, *map(self.read, (stored.keys, stored.values)))]

    def write(self, states: torch.Tensor, padding: list[int]) -> None:
        """The same by the rules."""
        tokens = states.shape[-2]
        conditioned = (
            CONDITIONING.condition_keys(states[0]),
            CONDITIONING.condition_values(states[1]),
        )
        self.saturated += sum(count for _, count in conditioned)
        for part, (x, _) in zip((self.keys, self.values), conditioned, strict=True):
            part.append(x)
        pads = torch.tensor(padding[: states.shape[1]]).clamp(max=tokens - 1)
        real = torch.arange(tokens) >= pads[:, None]
        before = self.tokens
        self.real = real if self.real is None else torch.cat((self.real, real), 1)
        body = [
            max(0, n - self.code.tiers.sinks - self.code.tiers.window)
            if self.code.tiers.window
            else 0
            for n in (before, self.tokens)
        ]
        self.behind = min(body[1] - body[0], self.code.tiers.window)
        self.left = self.unseen(self.tokens) - self.unseen(before)

    def unseen(self, context: int) -> int:
        """How many tokens have left the sliding window when there are so many."""
        return max(0, context - (self.code.tiers.sliding or context))

    def visible(self, tokens: int) -> torch.Tensor:
        causal = torch.ones(tokens, self.tokens, dtype=torch.bool).tril(self.tokens - tokens)
        if self.code.tiers.sliding:
            causal = causal.triu(self.tokens - tokens - self.code.tiers.sliding + 1)
        seen = causal & self.real[:, None]
        return seen[..., self.unseen(self.tokens - tokens + 1) :][:, None]

    def check_pass(self, stored, tokens: int) -> None:
        assert (stored.tokens, stored.new_tokens) == (self.tokens, tokens)
        expected = self.values.exponents(self.real)[..., -tokens:]
        assert torch.equal(stored.value_exponent(self.visible(tokens)), expected)
        assert all(x.shape[-2] == tokens for x in stored.vectors)

    def attend(self, stored, tokens: int, generator: torch.Generator) -> None:
        """Attention of some tokens of each sequence, one by one, over its own real tokens."""
        batch = len(self.real)
        query = 3 * torch.randn(batch, 4, tokens, 8, generator=generator)
        visible = self.visible(tokens)
        mask = None if self.real.all() else visible
        outputs, _ = ternary_attention(MODULE, query, stored, stored, mask)
        scaled = CONDITIONING.scale_queries(query.unflatten(1, (2, 2)))
        queries = query_conditioner(self.config, quantize_queries(self.config, scaled), True)
        exponents = self.values.exponents(self.real)
        for new in {0, tokens // 2, tokens - 1}:  # the engine's time is most of a step's
            context = self.tokens - tokens + new + 1
            keys, values = (part.planes(context) for part in (self.keys, self.values))
            for row in range(batch):
                if not self.real[row, context - 1]:
                    assert not outputs[row, new].any()
                    continue
                order = self.keys.order(context)
                used = torch.tensor([t for t in order if self.real[row, t]])
                one = replace(
                    queries,
                    values=queries.values[row, ..., new, None, :],
                    exponent=queries.exponent[row, ..., new, None],
                )
                found = attend(
                    self.config,
                    one,
                    *(
                        planes.map_tokens(lambda x, axis: x[row].index_select(axis, used))  # noqa: B023
                        for planes in (keys, values)
                    ),
                    exponent=exponents[row, :, context - 1, None],
                )
                rotated, point = output_rotator(self.config, found.values, found.exponent, True)
                real = CONDITIONING.real_outputs(
                    Attention(rotated, point, found.saturated).to_float()
                )
                assert torch.equal(outputs[row, new], real.flatten(0, 1)[:, 0].float())

    @rule(batch=st.integers(1, 4))
    def another_batch(self, batch) -> None:
        self.step()
        if batch != len(self.real):
            states = torch.zeros(2, batch, 2, 1, 8)
            with pytest.raises(ValueError, match=r"^batch: \d of new keys and values is not that"):
                self.layer.update(*states)

    @rule(seed=st.integers(0, 99), how=st.sampled_from(["reorder", "select", "truth", "repeat"]))
    def rearrange(self, seed, how) -> None:
        self.step()
        batch = len(self.real)
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(batch, (1 + seed % 3,), generator=generator)
        before = self.layer.revision
        if how == "reorder":
            self.layer.reorder_cache(rows)
        elif how == "select":
            self.layer.batch_select_indices(rows)
        elif how == "truth":
            truth = torch.zeros(batch, dtype=torch.bool).index_fill(0, rows, True)
            self.layer.batch_select_indices(truth)
            rows = truth.nonzero()[:, 0]
        elif batch < 3:
            self.layer.batch_repeat_interleave(2)
            rows = torch.arange(batch).repeat_interleave(2)
        else:
            return
        assert self.layer.revision is not before
        self.real = self.real[rows]
        for part in (self.keys, self.values):
            part.map(lambda x, axis: x[rows])

    @rule(tokens=st.integers(0, 9))
    def crop(self, tokens) -> None:
        self.step()
        before, kept = self.layer.revision, self.tokens - tokens
        needed = self.unseen(self.tokens) - self.unseen(max(kept, 0))
        if kept > 0 and needed > self.left:
            with pytest.raises(ValueError, match=r"^tokens_to_remove: .* or reset\(\)$"):
                self.layer.crop(-tokens)
            assert self.layer.revision is before
            return
        if tokens and kept > 0 and self.code.tiers.window:
            body = [
                max(0, n - self.code.tiers.sinks - self.code.tiers.window)
                for n in (kept, self.tokens)
            ]
            back = body[1] - body[0] if kept > self.code.tiers.sinks else 0
            if back > self.behind:
                with pytest.raises(ValueError, match=r"^tokens_to_remove: .* or reset\(\)$"):
                    self.layer.crop(-tokens)
                assert self.layer.revision is before
                return
            self.behind -= back
        self.left -= needed
        self.layer.crop(-tokens)
        if self.tokens:
            assert (self.layer.revision is before) == (tokens == 0)
        if self.tokens and kept <= 0:
            self.forget()
        elif self.tokens and tokens:
            self.real = self.real[:, :kept]
            for part in (self.keys, self.values):
                part.map(lambda x, axis: x.narrow(axis, 0, kept))

    @rule(forgotten=st.integers(1, 5), tokens=st.integers(1, 5), seed=st.integers(0, 99))
    def go_another_way(self, forgotten, tokens, seed) -> None:
        """What is written now lies where the forgotten tokens were, which passes still show."""
        self.crop(forgotten)
        self.append(2, tokens, seed, 1.0, [0, 0, 0, 0], False)

    @rule()
    def reset(self) -> None:
        self.step()
        self.layer.reset()
        self.forget()

    @rule(how=st.sampled_from(["copy", "deepcopy", "pickle", "save"]), spoil=st.booleans())
    def go_on_with_a_copy(self, how, spoil) -> None:
        """The original goes another way; nothing of that may be seen."""
        self.step()
        original = self.layer
        if how == "copy":
            self.layer = copy.copy(original)
        elif how == "deepcopy":
            self.layer = copy.deepcopy(original)
        elif how == "pickle":
            self.layer = pickle.loads(pickle.dumps(original))
        else:
            file = io.BytesIO()
            torch.save(original, file)
            file.seek(0)
            self.layer = torch.load(file, weights_only=False)
        assert self.layer.revision is not original.revision
        if spoil:
            batch = len(self.real) if self.tokens else 2
            if self.tokens:
                original.batch_select_indices(torch.zeros(batch, dtype=torch.int64))
            if self.tokens + 3 <= self.config.max_context:
                original.update(*torch.full((2, batch, 2, 3, 8), 7.0))

    @rule(how=st.sampled_from(["offload", "prefetch", "to"]))
    def move(self, how) -> None:
        self.step()
        if how == "to":
            for store in (self.layer.keys, self.layer.values) if self.tokens else ():
                assert store.to("cpu", non_blocking=True) is store
        else:
            getattr(self.layer, how)()

    # --- what must be so

    def read(self, view) -> torch.Tensor:
        return dequantize(self.config, view.planes())

    @invariant()
    def holds_what_the_rules_say(self) -> None:
        if not hasattr(self, "layer"):
            return
        assert self.layer.get_seq_length() == self.tokens
        assert self.layer.saturated == self.saturated
        if not self.tokens:
            assert self.layer.stored_elements() == self.layer.stored_bytes() == 0
            return
        parts = zip((self.layer.keys, self.layer.values), (self.keys, self.values), strict=True)
        for store, rules in parts:
            gone = self.unseen(self.tokens)
            found, expected = deep(store.planes()), rules.planes(self.tokens)
            for name in FIELDS:
                assert torch.equal(getattr(found, name), getattr(expected, name)[:, :, gone:]), name
            high = rules.high(self.tokens, self.tokens)[gone:]
            digits = self.code.key_digits if rules is self.keys else self.code.value_digits
            assert store.view().depths()[0, 0].tolist() == [
                self.code.tier if x else digits for x in high
            ]

    @invariant()
    def passes_show_what_they_showed(self) -> None:
        for stored, keys, values in getattr(self, "shown", ()):
            assert torch.equal(self.read(stored.keys), keys)
            assert torch.equal(self.read(stored.values), values)


@pytest.mark.parametrize("code", CODES)
def test_any_life_of_a_cache_follows_the_rules(code):
    """At least so many steps: a run that Hypothesis cut short would prove less."""
    steps = -(-STEPS // len(CODES))
    CacheMachine.steps = 0
    run_machine(
        type("OfCode", (CacheMachine,), {"code": CacheCode.parse(code)}),
        settings=settings(
            max_examples=-(-steps // (STEPS_OF_A_LIFE - 8)),
            stateful_step_count=STEPS_OF_A_LIFE,
            derandomize=True,
            database=None,
            phases=PHASES,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert CacheMachine.steps >= steps
