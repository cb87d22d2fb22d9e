"""A session of random jobs: KV heads that grow from the first token on, under two codes."""

from __future__ import annotations

import numpy as np

from kvtq_hw.contract.config import EngineConfig
from sim.bench.heads import Heads
from sim.plain.session import Session

__all__ = ["codes_of", "random_session"]

_BASE = 0x4000
_TOKENS = 9
#: Hits from which on a token of the first code becomes an anchor.
_THRESHOLD = 20


def codes_of(config: EngineConfig) -> tuple[str, str]:
    """Return the codes of a session: one with everything that a balanced code has, a residual one.

    Anchors are there where the hardware has slots for them.
    """
    keys, values = min(2, config.max_planes), min(3, config.max_planes)
    anchors = ",anchors=3" if config.anchor_slots >= 3 else ""
    return (
        f"balanced:{keys}/1,sinks=2,window=3{anchors},feedback",
        f"residual:{keys}/{values},sinks=1,window=2",
    )


def random_session(config: EngineConfig, seed: int) -> Session:
    """Return a session in which up to two KV heads run decode steps under each of `codes_of`.

    The jobs of a code run back to back, and two of a head's jobs only append or only attend. The
    last job is refused. The same configuration and seed give the same session.
    """
    rng = np.random.default_rng(seed)
    codes = codes_of(config)
    session = Session(config, _BASE, f"random jobs of seed {seed}, codes {' and '.join(codes)}")
    images, before = [], []
    end, anchors = _BASE, 0
    for code in codes:
        heads = Heads(
            config,
            code,
            rng.spawn(1)[0],
            count=min(2, config.table_heads),
            tokens=min(_TOKENS, config.max_context),
            base=end,
            threshold=_THRESHOLD,
        )
        anchors += _grow(session, heads)
        session.settle(anchors)
        end = heads.layout.end
        before.append(heads.memory)
        images.append(heads.image())
    session.refuse()
    session.before, session.after = np.concatenate(before), np.concatenate(images)
    return session


def _grow(session: Session, heads: Heads) -> int:
    """Load tables and run a code's jobs; return the number of tokens that have become anchors."""
    count = len(heads.layout.heads[0])
    packets = list(heads.tables())
    if heads.code.tiers.anchors:
        packets += [heads.anchors(head) for head in range(count)]
    session.load(packets)
    steps = [(True, True)] * heads.layout.tokens  # append and attend
    steps[len(steps) // 2] = (True, False)
    steps.append((False, True))
    for append, attend in steps:
        for head in range(count):
            job = heads.plan(head, append=append, attend=attend)
            expected = None
            if job.vectors is not None:
                heads.append(job)
            if job.queries is not None:
                expected = heads.attend(job)
            session.start(job.descriptor, job.vectors, job.queries, expected)
    return sum(decision.promoted for _, decision in heads.decisions)
