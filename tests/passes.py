"""Tiny models with sliding windows on a backend, pass by pass, as several test files run them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from tiny_model import prompt, tiny_model, with_window

from golden.attend.attention import ATTENTION
from golden.attend.backends import GoldenBackend
from golden.cache.ternary_cache import TernaryCache
from golden.llm.calibration import calibrate
from golden.llm.models import LanguageModel
from kvtq_hw.commands.frame.session import PutOn, Session
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import load_config

#: Models with a sliding window of 11 tokens in all layers, or in the first only.
SLIDING: dict[str, Callable[[], LanguageModel]] = {
    "every layer": lambda: with_window(tiny_model(), 11),
    "one layer": lambda: tiny_model(sliding=11),
}
#: Tokens of each pass, around a sliding window of 11: texts that go on after decode steps, up to
#: the window's end, across it and beyond it, and a text token by token. The shortest is first: a
#: memory keeps the bytes of a longer one.
PASSES = ([6, 1, 4, 1, 1, 1], [6, 1, 1, 5, 1, 1], [1] * 28, [30, 1, 1, 14, 1, 3, 1])
CODES = ("balanced:3/2,sinks=2,window=4,feedback", "residual:2/3")


@contextmanager
def checked_session(put: PutOn, model: LanguageModel, code: str) -> Iterator[Session]:
    """A model, calibrated, on a backend that the golden model checks."""
    calibration = calibrate(model, prompt(60), tokens=50)
    session = Session(
        model, load_config("tiny"), CacheCode.parse(code), calibration, GoldenBackend()
    )
    with put(session, check=True) as opened:
        yield opened


def check_outputs(session: Session) -> None:
    """Assert that every output of every decode step of `PASSES` was compared, and none differs."""
    steps = sum(passes.count(1) for passes in PASSES)
    assert session.checked.outputs_compared == steps * 2 * 2 * 2 * 8
    assert session.checked.mismatches == 0


def run_passes(session: Session, passes: Sequence[int]) -> TernaryCache:
    """Run random tokens in passes of so many tokens each; the cache afterwards."""
    cache = session.new_cache()
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(2, 128, (1, sum(passes)), generator=generator)
    with session.model.attending_with(ATTENTION), torch.inference_mode():
        for tokens in ids.split(list(passes), 1):
            session.model.model(tokens, past_key_values=cache)
    return cache
