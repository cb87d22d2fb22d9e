"""Baselines: their number formats, tiers, spelling, and what they store."""

from __future__ import annotations

import pytest
import torch
from tiny_model import prompt, tiny_model

from golden.attend.backends import GoldenBackend
from golden.llm.calibration import calibrate
from golden.llm.models import LanguageModel
from golden.second_version import SecondVersion
from golden.study.baselines.bits import pack_bits, unpack_bits
from golden.study.baselines.codecs import ChannelCodec, FloatCodec, TokenCodec
from golden.study.baselines.layer import BASELINE_ATTENTION, BaselineLayer, LayerRules, TierRule
from golden.study.baselines.tiers import TieredVectors, WholeChunks
from golden.study.baselines.transformers_cache import resident_bytes
from golden.study.catalog import BASELINE_EXAMPLES, parse_format
from golden.study.formats import CacheFormat, FormatInputs
from golden.study.spectral import fit
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.tiers import Tiers

HALF = FloatCodec(torch.float16)


def vectors(tokens: int, head_dim: int = 16, seed: int = 0, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, tokens, head_dim, generator=generator)


# --- bits and number formats ----------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 8, 64])
def test_bits_come_back(bits, count):
    codes = torch.randint(1 << bits, (3, count), generator=torch.Generator().manual_seed(bits))
    packed = pack_bits(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (3, -(-count * bits // 8))
    assert torch.equal(unpack_bits(packed, bits, count).long(), codes)


def test_bits_are_in_order():
    assert pack_bits(torch.tensor([1, 2, 3, 0]), 2).tolist() == [0b00111001]
    assert pack_bits(torch.tensor([7, 0, 0, 0, 0, 0, 0, 1]), 3).tolist() == [7, 0, 0b00100000]
    assert pack_bits(torch.zeros(2, 0, 8, dtype=torch.int64), 3).shape == (2, 0, 3)


@pytest.mark.parametrize("code", [-1, 8])
def test_a_code_that_does_not_fit(code):
    with pytest.raises(ValueError, match=r"do not fit 3 bits; allowed are 0..7$"):
        pack_bits(torch.tensor([1, code]), 3)


@pytest.mark.parametrize("group", [None, 8])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_symmetric_integers_by_hand(bits, group):
    x = vectors(5)
    codec = TokenCodec(bits, True, group)
    found = codec.decode(codec.encode(x), 16)
    largest = 2 ** (bits - 1) - 1
    for piece, rounded in zip(x.split(group or 16, -1), found.split(group or 16, -1), strict=True):
        scale = (piece.abs().amax(-1, keepdim=True) / largest).half().float()
        expected = (piece / scale).round().clamp(-largest, largest) * scale
        torch.testing.assert_close(rounded, expected, rtol=0, atol=1e-5)


def test_clipping_takes_the_best_of_ten_tenths_to_three():
    """Each share of the range is the best one of some vectors with heavy tails."""
    x = torch.randn(2, 3, 400, 64, generator=torch.Generator().manual_seed(3)) ** 3
    codec = TokenCodec(2, True, clip=True)
    errors = []
    for tenths in range(3, 11):
        scale = (tenths / 10 * x.abs().amax(-1, keepdim=True)).half().float()
        rounded = (x / scale).round().clamp(-1, 1) * scale
        errors.append((x - rounded).square().sum(-1))
    least, best = torch.stack(errors).min(0)
    assert set(best.flatten().tolist()) == set(range(8))
    found = (x - codec.decode(codec.encode(x), 64)).square().sum(-1)
    torch.testing.assert_close(found, least)


@pytest.mark.parametrize("bits", [2, 4])
def test_asymmetric_integers_reach_both_ends(bits):
    x = vectors(5) + 3
    codec = TokenCodec(bits, False, 8)
    stored = codec.encode(x)
    found = codec.decode(stored, 16)
    assert set(unpack_bits(stored[0], bits, 16).unique().tolist()) == set(range(1 << bits))
    step = stored[1].float().repeat_interleave(8, -1)
    assert ((found - x).abs() <= step * 0.51).all()


def test_channel_groups_share_a_scale_over_tokens():
    x = vectors(8)
    x[..., 3] += 1000.0  # an outlier channel
    codec = ChannelCodec(2, 4)
    packed, scale, low = codec.encode(x)
    assert packed.shape == (2, 3, 2, 4, 4)
    assert scale.shape == low.shape == (2, 3, 2, 16)
    found = codec.decode((packed, scale, low), 16)
    others = [channel for channel in range(16) if channel != 3]
    ranges = x.unflatten(2, (2, 4)).amax(3) - x.unflatten(2, (2, 4)).amin(3)
    limit = (0.51 * ranges / 3).repeat_interleave(4, 2)
    assert ((found - x).abs()[..., others] <= limit[..., others]).all()


def test_feedback_carries_errors_forward():
    """By hand, for two elements: the second is rounded after adding the first one's error."""
    feedback = torch.zeros(1, 3, 3)
    feedback[0, 0, 1] = 0.5
    x = torch.tensor([0.4, 0.4, -7.0]).reshape(1, 1, 1, 3)  # the largest makes the scale one
    plain = TokenCodec(4, True)
    assert plain.decode(plain.encode(x), 3).flatten().tolist() == [0.0, 0.0, -7.0]
    fed = TokenCodec(4, True, feedback=feedback)
    assert fed.decode(fed.encode(x), 3).flatten().tolist() == [0.0, 1.0, -7.0]


def test_feedback_of_zeros_changes_nothing():
    x = vectors(9)
    plain, fed = TokenCodec(3, True), TokenCodec(3, True, feedback=torch.zeros(3, 16, 16))
    for expected, found in zip(plain.encode(x), fed.encode(x), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [None, 8])
def test_clipping_is_never_worse(symmetric, group):
    x = vectors(50)

    def errors(codec: TokenCodec) -> torch.Tensor:
        difference = codec.decode(codec.encode(x), 16) - x
        return difference.unflatten(-1, (-1, group or 16)).square().sum(-1)

    plain = errors(TokenCodec(2, symmetric, group))
    clipped = errors(TokenCodec(2, symmetric, group, clip=True))
    assert (clipped <= plain * (1 + 1e-5)).all()
    assert clipped.sum() < 0.9 * plain.sum()


def test_a_vector_of_zeros():
    for codec in (TokenCodec(4, True), TokenCodec(4, False)):
        assert not codec.decode(codec.encode(torch.zeros(1, 1, 2, 8)), 8).any()


# --- tiers ----------------------------------------------------------------------------------------

CPU = torch.device("cpu")
TIERS = {
    "everything short": lambda: TieredVectors(TokenCodec(4, True), HALF, 0, lambda n: n, 16, CPU),
    "window": lambda: TieredVectors(TokenCodec(2, False), HALF, 0, Tiers(window=5).body, 16, CPU),
    "sinks and window": lambda: TieredVectors(
        TokenCodec(3, True), TokenCodec(8, True), 2, Tiers(2, 5).body, 16, CPU
    ),
    "groups of tokens": lambda: TieredVectors(ChannelCodec(2, 4), HALF, 0, WholeChunks(4), 16, CPU),
    "residual of groups": lambda: TieredVectors(
        ChannelCodec(2, 4), HALF, 0, WholeChunks(8), 16, CPU
    ),
}


def seen_by(
    versions: tuple[torch.Tensor, SecondVersion[torch.Tensor] | None], query: int, tokens: int
) -> torch.Tensor:
    """The tokens up to a query's own as it sees them, [batch, heads, tokens, D]."""
    x, other = versions[0].clone(), versions[1]
    if other is not None:
        chosen = other.seen[query][:, None]
        x[:, :, other.span] = torch.where(chosen, other.vectors, x[:, :, other.span])
    return x[:, :, :tokens]


@pytest.mark.parametrize("kind", TIERS)
@pytest.mark.parametrize("chunks", [(24,), (1, 1, 9, 13), (7, 17), (3, 1, 20)], ids=str)
def test_each_query_sees_what_it_would_see_token_by_token(kind, chunks):
    x = vectors(24)
    single, expected = TIERS[kind](), []
    for token in range(24):
        versions = single.append(x[:, :, token : token + 1]).read()
        expected.append(seen_by(versions, 0, token + 1))
    chunked, start = TIERS[kind](), 0
    for length in chunks:
        stored = chunked.append(x[:, :, start : start + length])
        assert chunked.stored_elements() == 6 * 16 * (start + length)
        versions = stored.read()
        for query in range(length):
            token = start + query
            assert torch.equal(seen_by(versions, query, token + 1), expected[token]), token
        start += length
    assert chunked.stored_bytes() == single.stored_bytes()
    assert chunked.stored_elements() == single.stored_elements() == x.numel()


def test_tiers_hold_what_they_say():
    """Sinks and window in 8 bits, the rest rounded to 3 bits from those 8."""
    x = vectors(24)
    store = TIERS["sinks and window"]()
    found = store.append(x).read()
    fine = TokenCodec(8, True).decode(TokenCodec(8, True).encode(x), 16)
    coarse = TokenCodec(3, True).decode(TokenCodec(3, True).encode(fine), 16)
    expected = torch.cat((fine[:, :, :2], coarse[:, :, 2:19], fine[:, :, 19:]), 2)
    assert torch.equal(seen_by(found, 23, 24), expected)
    assert store.stored_bytes() == 2 * 3 * (17 * (6 + 2) + 7 * (16 + 2))


def test_batches_are_rearranged():
    store, again = TIERS["window"](), TIERS["window"]()
    x = vectors(9)
    for part in (x[:, :, :6], x[:, :, 6:]):
        store.append(part)
        again.append(part[[1, 1, 0]])
    store.map_batch(lambda y: y.index_select(0, torch.tensor([1, 1, 0])))
    more = x[:, :, :1]
    found, expected = store.append(more[[1, 1, 0]]).read(), again.append(more[[1, 1, 0]]).read()
    assert torch.equal(seen_by(found, 0, 10), seen_by(expected, 0, 10))


# --- layers ---------------------------------------------------------------------------------------


def test_a_layer_attends_like_any_attention():
    """fp16 keys and values: the result is that of torch's own attention over them."""
    rule = TierRule(HALF, HALF, lambda tokens: 0)
    layer = BaselineLayer(LayerRules(rule, rule))
    keys, values, queries = vectors(7, 8), vectors(7, 8, 1), vectors(12, 8, 2).reshape(2, 6, 6, 8)
    stored, _ = layer.update(keys, values)
    found = stored.attend(queries[:, :, -3:] / 8**0.5, None)
    keys, values = (x.half().float().repeat_interleave(2, 1) for x in (keys, values))
    mask = torch.ones(3, 7, dtype=torch.bool).tril(4)
    expected = torch.nn.functional.scaled_dot_product_attention(
        queries[:, :, -3:], keys, values, attn_mask=mask
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_attention_needs_a_layer_of_its_own():
    model = tiny_model().model
    model.set_attn_implementation(BASELINE_ATTENTION)
    message = r"^the model's cache gave the attention a Tensor; 'kvtq_baseline' needs a BaselineCac"
    with pytest.raises(TypeError, match=message):
        model(torch.tensor([[5, 6, 7]]))


# --- spelling and sizes ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs() -> FormatInputs:
    language_model = tiny_model(head_dim=32)
    calibration = calibrate(language_model, prompt(60), tokens=50)
    return FormatInputs(
        language_model,
        language_model.engine_config(64),
        lambda: calibration,
        lambda model: fit(model, 60),
    )


def parse(text: str, inputs: FormatInputs) -> CacheFormat:
    return parse_format(text, inputs, GoldenBackend())


def fed(cache_format: CacheFormat, language_model: LanguageModel, tokens: int):
    cache = cache_format.make_cache()
    ids = torch.randint(2, 128, (1, tokens), generator=torch.Generator().manual_seed(5))
    with language_model.attending_with(cache_format.attention), torch.inference_mode():
        language_model.model(ids, past_key_values=cache)
    return cache


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("fp16", 16),
        ("bf16", 16),
        ("int8", 8 + 16 / 32),
        ("int4", 4 + 16 / 32),
        ("int3,group=8", 3 + 16 / 8),
        ("int2,asymmetric", 2 + 2 * 16 / 32),
        ("int2,asymmetric,group=16", 2 + 2 * 16 / 16),
        ("int4,conditioned", 4 + 16 / 32),
        ("int4,conditioned,feedback", 4 + 16 / 32),
        # of 40 tokens 4 and 6 are in 8 bits
        ("int2,sinks=4,window=6", (30 * (2 + 16 / 32) + 10 * (8 + 16 / 32)) / 40),
        # keys: one group of 32 in 2 bits with 2 numbers per channel, 8 in fp16; values: 8 in 2 bits
        (
            "kivi:2",
            ((32 * 2 + 2 * 16 + 8 * 16) + (8 * (2 + 2 * 16 / 32) + 32 * 16)) / 80,
        ),
        # of 40 tokens all, and 10, are in bf16; 10 in 8 bits
        ("oscar", 16),
        ("oscar,sinks=4,window=6", (30 * (2 + 2 * 16 / 32) + 10 * 16) / 40),
        ("oscar,sinks=4,window=6,tier=bf16", (30 * (2 + 2 * 16 / 32) + 10 * 16) / 40),
        ("oscar,sinks=4,window=6,tier=int8", (30 * (2 + 2 * 16 / 32) + 10 * (8 + 16 / 32)) / 40),
        ("oscar,group=16,sinks=0,window=0", 2 + 2 * 16 / 16),
    ],
)
def test_true_bits(inputs, text, bits):
    cache_format = parse(text, inputs)
    assert cache_format.name == text
    assert cache_format.arithmetic == "float"
    cache = fed(cache_format, inputs.language_model, 40)
    stored_bytes, stored_elements = cache_format.stored(cache)
    assert stored_elements == 2 * 2 * 2 * 40 * 32
    assert 8 * stored_bytes / stored_elements == pytest.approx(bits, abs=1e-12)


def test_kvtq_is_the_residual_code_without_conditioning(inputs):
    cache_format = parse("kvtq:4/3", inputs)
    cache = fed(cache_format, inputs.language_model, 10)
    assert cache_format.arithmetic == "integer"
    for layer in cache.layers:
        assert str(layer.code) == "residual:4/3"
        assert layer.code.scale_choice == "max"
        assert layer.conditioning.key_centre is None
        assert layer.conditioning.rotate is False


@pytest.mark.parametrize("text", BASELINE_EXAMPLES)
def test_examples_are_formats(inputs, text):
    if text.startswith("transformers:"):
        pytest.importorskip("optimum.quanto")
    assert parse(text, inputs).name == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int5", "or a baseline, as fp16, bf16, int4"),
        ("int4,groups=8", "setting 'groups=8' is not allowed; allowed are, once each: asymmetric"),
        ("int4,group", "setting 'group' is not allowed"),
        ("int4,group=8,group=8", "setting 'group=8' is not allowed; allowed are, once each"),
        ("int4,asymmetric=1", "setting 'asymmetric=1' is not allowed"),
        ("int4,group=0", "group=0 is not allowed; must be a whole number from 1 on"),
        ("int4,window=x", "window=x is not allowed; must be a whole number from 1 on"),
        ("int4,group=12", "group=12 does not divide the model's head dimension 32"),
        ("int4,feedback", "setting 'feedback' needs 'conditioned' as well"),
        ("fp16,group=8", "setting 'group=8' is not allowed; allowed are, once each: none"),
        ("kivi:3", "is not a KIVI code; allowed are kivi:2 and kivi:4"),
        ("kivi:2,window=33", "window=33 is not a multiple of group=32"),
        ("oscar:2", "or a baseline, as fp16"),
        ("oscar,clip", "setting 'clip' is not allowed; allowed are, once each: clip=, group="),
        ("oscar,clip=0/90", "clip=0/90 is not allowed; must be two percentiles 1..100, as 96/92"),
        ("oscar,clip=101/9", "clip=101/9 is not allowed; must be two percentiles 1..100"),
        ("oscar,clip=90", "clip=90 is not allowed; must be two percentiles 1..100"),
        ("oscar,clip=", "clip= is not allowed; must be two percentiles 1..100"),
        ("oscar,group=12", "group=12 does not divide the model's head dimension 32"),
        ("oscar,window=-1", "window=-1 is not allowed; must be a whole number from 0 on"),
        ("oscar,tier=fp16", "tier=fp16 is not allowed; allowed are bf16 and int8"),
        ("transformers:3", "allowed are transformers:4 and transformers:2"),
        ("kvtq:9/9", "or a baseline, as fp16"),
        ("quantum", "or a baseline, as fp16"),
    ],
)
def test_codes_that_are_not_allowed(inputs, text, message):
    with pytest.raises(UserError) as caught:
        parse(text, inputs)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_digits_than_the_configuration_has(inputs):
    config = inputs.config.replace(max_planes=2)
    few = FormatInputs(inputs.language_model, config, inputs.calibration)
    with pytest.raises(
        UserError, match=r"max_planes is 2, must be at least 3 for code 'balanced:3/2'$"
    ):
        parse("balanced:3/2", few)


def test_transformers_cache_is_counted_with_everything_it_holds():
    pytest.importorskip("optimum.quanto")
    language_model = tiny_model(head_dim=32)
    inputs = FormatInputs(language_model, load_config("tiny"), lambda: pytest.fail("not needed"))
    cache_format = parse("transformers:4", inputs)
    assert cache_format.longest_chunk == 128
    cache = cache_format.make_cache()
    ids = torch.randint(2, 128, (1, 64), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        language_model.model(ids, past_key_values=cache)
        language_model.model(ids[:, :3], past_key_values=cache)
    stored_bytes, elements = cache_format.stored(cache)
    assert elements == 2 * 2 * 2 * 67 * 32
    # 64 tokens in half a byte, a float32 scale and zero point for every 64; 3 tokens in float32
    quantized = 2 * 2 * 2 * 64 * 32
    assert stored_bytes == quantized // 2 + quantized // 64 * 8 + 2 * 2 * 2 * 3 * 32 * 4


def test_resident_bytes_looks_into_everything():
    x = torch.zeros(3, dtype=torch.float16)
    assert resident_bytes({"a": x, "b": [x, (x, 4)], "c": "text"}) == 18
