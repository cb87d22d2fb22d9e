"""What users of transformers do with a cache: equal to a fresh one to the bit, or refused.

Every test makes the same forward passes on a cache that has been through something and on a fresh
one. Float results depend on how tokens are cut into passes, so both get the same pieces.
"""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable

import pytest
import torch
from test_families import Bench, ids
from transformers import Cache

from golden.attend.attention import ATTENTION
from golden.attend.backends import GoldenBackend
from golden.llm.models import LanguageModel
from golden.study.baselines.layer import BASELINE_ATTENTION
from golden.study.catalog import parse_format
from golden.study.formats import FormatInputs
from golden.study.spectral import SpectralRotations, fit
from kvtq_hw.contract.codes import CacheCode

TERNARY = ["residual:3/3", "balanced:2/1,sinks=2,window=5,feedback"]
BASELINES = ["int4,sinks=2,window=4", "kivi:2,group=4", "oscar,sinks=2,window=4"]


def rotations(language_model: LanguageModel) -> SpectralRotations:
    """Rotations of a model that may already have the attention of a cache."""
    with language_model.attending_with("sdpa"):
        return fit(language_model, 40)


class Use:
    """The tiny Llama under one cache format."""

    def __init__(self, code: str) -> None:
        self.bench = Bench("llama", CacheCode.parse(code if code in TERNARY else "balanced:3/2"))
        self.model = self.bench.language_model.model
        bench = self.bench
        inputs = FormatInputs(
            bench.language_model, bench.config, lambda: bench.calibration, rotations
        )
        self.format = parse_format(code, inputs, GoldenBackend())
        self.model.set_attn_implementation(self.format.attention)

    def cache(self) -> Cache:
        return self.format.make_cache()

    def fed(self, cache: Cache, *pieces: torch.Tensor, model: torch.nn.Module | None = None):
        """Logits of the newest token of the last of several passes, as generate() has them."""
        with torch.inference_mode():
            for piece in pieces:
                options = {"past_key_values": cache, "logits_to_keep": 1}
                logits = (self.model if model is None else model)(piece, **options).logits
        return logits

    def generate(self, tokens: torch.Tensor, cache: Cache, **options: object):
        options = {"max_new_tokens": 6, "do_sample": False} | options
        with torch.inference_mode():
            return self.model.generate(
                tokens,
                attention_mask=(tokens != 0).long(),
                past_key_values=cache,
                return_dict_in_generate=True,
                output_logits=True,
                **options,
            )


@pytest.fixture(scope="module")
def use_of() -> Callable[[str], Use]:
    made: dict[str, Use] = {}

    def use(code: str) -> Use:
        if code not in made:
            made[code] = Use(code)
        return made[code]

    return use


@pytest.fixture(params=TERNARY)
def ternary(request: pytest.FixtureRequest, use_of: Callable[[str], Use]) -> Use:
    return use_of(request.param)


@pytest.fixture(params=TERNARY + BASELINES)
def use(request: pytest.FixtureRequest, use_of: Callable[[str], Use]) -> Use:
    return use_of(request.param)


def saved(cache: Cache) -> Cache:
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda cache: pickle.loads(pickle.dumps(cache)),
    "torch.save": saved,
}
FIRST, MORE, OTHER = ids(13), ids(4, 1), ids(5, 2)


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_goes_on_as_a_fresh_cache_and_alone(use, name):
    cache = use.cache()
    use.fed(cache, FIRST, ids(1, 4))
    copied = COPIES[name](cache)
    expected = use.fed(use.cache(), FIRST, ids(1, 4), MORE, OTHER)
    assert torch.equal(use.fed(copied, MORE, OTHER), expected)
    assert cache.get_seq_length() == 14
    assert torch.equal(use.fed(cache, MORE, OTHER), expected)  # nothing came through the copy
    assert torch.equal(
        use.fed(COPIES[name](cache), MORE), use.fed(copied, MORE)
    )  # a copy of a copy's equal


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_of_a_layer_is_independent(use, name):
    cache = use.cache()
    use.fed(cache, FIRST)
    before = cache.layers[0].stored_bytes()
    copied = COPIES[name](cache.layers[0])
    states = torch.ones(1, 2, 3, 8)
    copied.update(states, states)
    assert copied.get_seq_length() == 16
    assert cache.layers[0].get_seq_length() == 13
    assert cache.layers[0].stored_bytes() == before


def test_a_copy_shares_what_never_changes(ternary):
    layer = ternary.cache().layers[0]
    copied = copy.deepcopy(layer)
    for name in ("config", "code", "conditioning", "backend"):
        assert getattr(copied, name) is getattr(layer, name)
    assert copied.revision is not layer.revision


def test_a_prefix_is_read_once_for_several_prompts(use):
    prefix = use.cache()
    use.fed(prefix, FIRST)
    for prompt in (MORE, OTHER, ids(1, 7)):
        found = use.fed(copy.deepcopy(prefix), prompt, ids(1, 8))
        assert torch.equal(found, use.fed(use.cache(), FIRST, prompt, ids(1, 8)))


def test_several_prompts_after_one_another(use):
    """reset() in between: any batch may come next, also a larger one."""
    cache = use.cache()
    for batch, length in ((1, 9), (3, 5), (2, 14), (1, 9)):
        tokens = ids(length, batch, batch)
        found = use.fed(cache, tokens, tokens[:, :1])
        assert torch.equal(found, use.fed(use.cache(), tokens, tokens[:, :1]))
        cache.reset()
        assert cache.get_seq_length() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"batch": 3},
            r"^batch: 3 of new keys and values is not that of the stored ones, 1; call ",
        ),
        ({"kv_heads": 1}, r"^kv heads: 1 of new keys"),
        (
            {"dtype": torch.float16},
            r"^dtype: torch\.float16 of new keys and values is not that of ",
        ),
        (
            {"head_dim": 4},
            r"^key dimension: 4 of new keys and values .* call reset\(\) first, or u",
        ),
    ],
)
def test_tokens_that_do_not_fit_what_is_stored_are_refused(use, change, message):
    cache = use.cache()
    use.fed(cache, FIRST)
    form = {"batch": 1, "kv_heads": 2, "head_dim": 8, "dtype": torch.float32} | change
    shape = form["batch"], form["kv_heads"], 2, form["head_dim"]
    states = torch.zeros(shape, dtype=form["dtype"])
    with pytest.raises(ValueError, match=message) as caught:
        cache.update(states, states, 0)
    assert "\n" not in str(caught.value)
    assert torch.equal(use.fed(cache, MORE), use.fed(use.cache(), FIRST, MORE))


@pytest.mark.parametrize(
    ("keys", "values", "message"),
    [
        (torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 4, 8), "do not fit each other"),
        (
            torch.zeros(1, 2, 8),
            torch.zeros(1, 2, 8),
            r"^keys \(1, 2, 8\) and values \(1, 2, 8\) do",
        ),
        (torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8).half(), "must be alike$"),
    ],
)
def test_keys_and_values_that_do_not_fit_each_other_are_refused(use, keys, values, message):
    with pytest.raises(ValueError, match=message):
        use.cache().update(keys, values, 0)


def test_heads_that_were_not_calibrated_are_refused(ternary):
    states = torch.zeros(1, 3, 2, 8)
    with pytest.raises(ValueError, match=r"^keys have 3 KV heads, the calibration is of 2; calibr"):
        ternary.cache().update(states, states, 0)


def test_a_batch_that_changes_in_a_model_is_refused(use):
    cache = use.cache()
    use.fed(cache, FIRST)
    with pytest.raises(ValueError, match=r"^batch: 3 of new keys and values .*; call reset\(\) fi"):
        use.fed(cache, ids(2, 9, batch=3))


def test_a_pass_of_no_tokens_changes_nothing(ternary):
    cache = ternary.cache()
    ternary.fed(cache, FIRST)
    cache.update(torch.zeros(1, 2, 0, 8), torch.zeros(1, 2, 0, 8), 0)
    cache.update(torch.zeros(1, 2, 0, 8), torch.zeros(1, 2, 0, 8), 1)
    assert torch.equal(ternary.fed(cache, MORE), ternary.fed(ternary.cache(), FIRST, MORE))


def test_inference_mode_and_ordinary_mode_take_turns(use):
    cache = use.cache()
    use.fed(cache, FIRST)
    options = {"past_key_values": cache, "logits_to_keep": 1}
    with torch.no_grad():
        found = use.model(MORE, **options).logits
    assert torch.equal(found, use.fed(use.cache(), FIRST, MORE))
    with_gradients = use.model(OTHER, **options).logits.detach()  # they end at the cache
    assert torch.equal(with_gradients, use.fed(use.cache(), FIRST, MORE, OTHER))


# --- generate() -----------------------------------------------------------------------------------


def test_a_chat_goes_on_on_the_same_cache(use):
    cache = use.cache()
    first = use.generate(FIRST, cache)
    asked = torch.cat((first.sequences, OTHER), 1)
    second = use.generate(asked, cache)
    assert cache.get_seq_length() == second.sequences.shape[1] - 1
    fresh = use.cache()
    use.fed(fresh, FIRST, *first.sequences[:, 13:-1].split(1, 1))
    pieces = asked[:, 18:], *second.sequences[:, asked.shape[1] : -1].split(1, 1)
    for found, piece in zip(second.logits, pieces, strict=True):
        assert torch.equal(found, use.fed(fresh, piece)[:, -1])


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "num_return_sequences": 3, "top_k": 20},
        {"num_beams": 3, "num_return_sequences": 2},
        {},
    ],
    ids=["num_return_sequences", "beams", "greedy"],
)
def test_generate_on_a_cache_that_was_used_and_reset(use, options):
    cache = use.cache()
    use.generate(OTHER, cache)
    cache.reset()
    results = []
    for tried in (cache, use.cache()):
        torch.manual_seed(3)
        results.append(use.generate(FIRST, tried, **options))
    assert torch.equal(results[0].sequences, results[1].sequences)
    assert torch.equal(torch.stack(results[0].logits), torch.stack(results[1].logits))


def test_a_batch_of_prompts_after_a_prefix_repeated(use):
    """One prefix for several sequences, by batch_repeat_interleave."""
    cache = use.cache()
    use.fed(cache, FIRST)
    cache.batch_repeat_interleave(3)
    more = ids(4, 6, batch=3)
    found = use.fed(cache, more)
    fresh = use.cache()
    use.fed(fresh, FIRST)
    assert cache.get_seq_length() == 17
    cache.batch_select_indices(torch.tensor([2]))
    copied = copy.deepcopy(fresh)
    copied.batch_repeat_interleave(3)
    assert torch.equal(use.fed(copied, more), found)
    # rows of a float product may depend on their companions: integers decide
    alone = use.fed(fresh, more[2:])
    torch.testing.assert_close(found[2:], alone, rtol=0, atol=1e-3)


def test_crop_is_the_cache_before(ternary):
    cache = ternary.cache()
    for wrong in (3, 1, 5):
        ternary.fed(cache, *([FIRST] if not cache.get_seq_length() else []), ids(wrong, wrong))
        cache.crop(-wrong)
        assert cache.get_seq_length() == 13
    assert torch.equal(ternary.fed(cache, MORE), ternary.fed(ternary.cache(), FIRST, MORE))
    cache.crop(-100)  # more than there is: everything, as DynamicCache does
    assert cache.get_seq_length() == 0
    tokens = ids(6, 3, batch=2)
    assert torch.equal(ternary.fed(cache, tokens), ternary.fed(ternary.cache(), tokens))


def test_crop_refuses_positive_numbers_and_baselines(use):
    cache = use.cache()
    use.fed(cache, FIRST)
    with pytest.raises(ValueError, match=r"^tokens_to_remove: 2 is not allowed; "):
        cache.crop(2)
    if use.format.attention == BASELINE_ATTENTION:
        with pytest.raises(
            ValueError, match=r"^tokens_to_remove: -2 is not allowed; this cache can"
        ):
            cache.crop(-2)
    assert torch.equal(use.fed(cache, MORE), use.fed(use.cache(), FIRST, MORE))


def test_a_crop_that_one_layer_refuses_changes_none(use_of):
    """Layers with and without a window in one cache."""
    whole, window = use_of(TERNARY[0]), use_of(TERNARY[1])
    cache = whole.cache()
    cache.layers[1] = window.cache().layers[1]
    for token in FIRST.split(1, 1):
        whole.fed(cache, token)
    with pytest.raises(ValueError, match="allowed is down to -1, or reset"):
        cache.crop(-3)
    assert [layer.get_seq_length() for layer in cache.layers] == [13, 13]


@pytest.mark.parametrize("options", ["lookup", "assistant"])
def test_assisted_decoding_gives_the_tokens_of_greedy_decoding(ternary, options, monkeypatch):
    tokens = FIRST.repeat(1, 2)  # something to look up
    crops = []
    cache = ternary.cache()
    crop = type(cache).crop
    monkeypatch.setattr(type(cache), "crop", lambda self, n: crops.append(n) or crop(self, n))
    expected = ternary.generate(tokens, ternary.cache(), max_new_tokens=12).sequences
    if options == "lookup":
        found = ternary.generate(tokens, cache, max_new_tokens=12, prompt_lookup_num_tokens=3)
    else:
        assistant = copy.deepcopy(ternary.model)
        assistant.set_attn_implementation("sdpa")
        with torch.no_grad():
            assistant.lm_head.weight[::3] *= 1.5  # an assistant that is wrong now and then
        found = ternary.generate(tokens, cache, max_new_tokens=12, assistant_model=assistant)
    assert torch.equal(found.sequences, expected)
    assert any(n < 0 for n in crops)  # some candidates were wrong
    # the cache that has been cropped again and again goes on
    held = cache.get_seq_length()
    assert held >= found.sequences.shape[1] - 1
    cache.crop(found.sequences.shape[1] - 1 - held)


def test_assisted_decoding_on_a_baseline_is_refused(use_of):
    use = use_of("int4,sinks=2,window=4")
    with pytest.raises(ValueError) as caught:
        use.generate(FIRST.repeat(1, 2), use.cache(), prompt_lookup_num_tokens=3)
    assert "\n" not in str(caught.value)


# --- devices and compiled models ------------------------------------------------------------------


def test_offloaded_layers_come_back(use):
    cache = use.cache()
    use.fed(cache, FIRST)
    for layer in cache.layers:
        layer.offload()
    found = [use.fed(cache, MORE)]
    for layer in cache.layers:
        layer.offload()
        layer.prefetch()
        layer.keys.to("cpu")
        layer.values.to("cpu")
    found.append(use.fed(cache, OTHER))
    fresh = use.cache()
    for logits, piece in zip(found, ((FIRST, MORE), (OTHER,)), strict=True):
        assert torch.equal(logits, use.fed(fresh, *piece))


@pytest.mark.parametrize("code", [TERNARY[1], BASELINES[0]])
def test_a_compiled_model_gives_the_same_logits(use_of, code):
    """Dynamo leaves the graph at the cache and at the attention instead of tracing their loops."""
    use = use_of(code)
    torch._dynamo.reset()
    compiled = torch.compile(use.model, backend="eager")
    cache, fresh = use.cache(), use.cache()
    for piece in (FIRST, ids(1, 3), ids(1, 4), MORE, ids(1, 5)):
        assert torch.equal(use.fed(cache, piece, model=compiled), use.fed(fresh, piece))
    torch._dynamo.reset()


# --- what is missing ------------------------------------------------------------------------------


def test_a_model_without_the_cache_says_what_to_pass(use):
    name = "TernaryCache" if use.format.attention == ATTENTION else "BaselineCache"
    message = (
        rf"^the model's cache gave the attention a Tensor; '{use.format.attention}' needs a {name}"
    )
    with pytest.raises(TypeError, match=message) as caught:
        use.model(FIRST)
    assert re.search(r"past_key_values=", str(caught.value))
    assert "\n" not in str(caught.value)


def test_an_empty_cache_has_no_bits_per_element(ternary):
    with pytest.raises(
        ValueError, match=r"^bits per element: the cache is empty; store tokens fir"
    ):
        ternary.cache().bits_per_element()
