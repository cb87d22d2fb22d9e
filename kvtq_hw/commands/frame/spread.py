"""An evaluation on the workers of a Dask cluster: each measures some formats on one segment.

A worker loads the model by its name, once, and computes the unquantized model's predictions on its
segment itself; formats, with the calibration in them, are sent to each worker once. Every result
comes back as soon as it is measured. A worker on which a result would be another (other weights,
sources or versions) refuses the task: each result's key is computed there too.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from kvtq_hw.commands.frame.measuring import Formats, Reporter, Task, key_of, measure
from kvtq_hw.contract.errors import UserError, shown
from kvtq_hw.contract.model_wheels import WHEEL_MODELS

if TYPE_CHECKING:
    from distributed import Client, Worker

    from golden.llm.models import LanguageModel

__all__ = ["ClusterSpread", "ModelPlace"]

# A model's attention is set for one measurement at a time: a worker's other threads wait.
_ONE_AT_A_TIME = Lock()

# The model of a worker, under its place.
_LOADED: dict[ModelPlace, LanguageModel] = {}


@dataclass(frozen=True)
class ModelPlace:
    """Where a worker finds the model, and how it loads it; see `golden.llm.models.load_model`."""

    source: str
    ternary: bool
    device: str
    dtype: str

    def load(self) -> LanguageModel:
        """Load the model."""
        from golden.llm.models import load_model

        return load_model(self.source, ternary=self.ternary, device=self.device, dtype=self.dtype)

    def elsewhere(self) -> ModelPlace:
        """Return the same place for a process in another folder."""
        path = Path(self.source).expanduser()
        if self.source in WHEEL_MODELS or not path.exists():
            return self
        return replace(self, source=str(path.resolve()))


@dataclass(frozen=True)
class ClusterSpread:
    """Spreads tasks over the workers of a cluster.

    client : the connection
    place : where the workers find the model
    """

    client: Client
    place: ModelPlace

    def measure(self, formats: Formats, tasks: Sequence[Task], reporter: Reporter) -> None:
        """Measure all tasks; give each result to the reporter as soon as it comes.

        Raises
        ------
        UserError
            When a worker cannot load the model, or would measure something else than this process.
        """
        from distributed import as_completed

        if not tasks:
            return
        shares = list(_shares(tasks, len(self.client.nthreads())))
        told: set[tuple[int, str]] = set()
        one_at_a_time = Lock()

        def tell(share: int, code: str, result: dict[str, Any]) -> None:
            with one_at_a_time:
                if (share, code) not in told:
                    reporter.put(shares[share], code, result)
                    reporter.step(len(shares[share].tokens))
                    told.add((share, code))

        def take(event: tuple[float, dict[str, Any]]) -> None:
            message = event[1]
            if "result" in message:
                tell(message["share"], message["code"], message["result"])
            else:
                reporter.label(message["label"])

        topic = f"kvtq-hw-eval-{uuid.uuid4()}"
        sent = self.client.scatter(_packed(formats), hash=False)
        self.client.subscribe_topic(topic, take)
        place = self.place.elsewhere()
        waiting = [
            self.client.submit(_measure, place, sent, task, topic, share, pure=False)
            for share, task in enumerate(shares)
        ]
        try:
            for future in as_completed(waiting, loop=self.client.loop):
                share, results = future.result()
                for code, result in results.items():
                    tell(share, code, result)  # what the events have not told yet
        finally:
            self.client.cancel(waiting)
            self.client.unsubscribe_topic(topic)


def _shares(tasks: Sequence[Task], workers: int) -> Iterator[Task]:
    """Yield the tasks; tasks of fewer codes if there are more workers than tasks.

    Every share of a segment computes the unquantized model's predictions anew.
    """
    parts = max(1, workers // len(tasks))
    for task in tasks:
        codes = list(task.keys)
        for part in range(min(parts, len(codes))):
            yield replace(task, keys={code: task.keys[code] for code in codes[part::parts]})


def _packed(formats: Formats) -> bytes:
    """Return the formats as bytes that `_unpacked` reads; formats share a calibration's tensors."""
    import torch

    data = io.BytesIO()
    torch.save(dict(formats), data)
    return data.getvalue()


def _unpacked(data: bytes) -> Formats:
    import torch

    return torch.load(io.BytesIO(data), weights_only=False)


def _model(place: ModelPlace) -> LanguageModel:
    """Return a worker's model; another one is dropped before it is loaded."""
    if place not in _LOADED:
        _LOADED.clear()
        _LOADED[place] = place.load()
    return _LOADED[place]


def _measure(
    place: ModelPlace, formats: bytes, task: Task, topic: str, share: int
) -> tuple[int, dict[str, dict[str, Any]]]:
    """Measure a share on a worker; return its number, and its results by code."""
    from distributed import get_worker

    worker = get_worker()
    try:
        with _ONE_AT_A_TIME:
            model, unpacked = _model(place), _unpacked(formats)
            for code, key in task.keys.items():
                found = key_of(model, task.what, task.index, task.tokens, unpacked[code])
                _check_same(key, found)
            desk = _Desk(worker, topic, share)
            measure(model, unpacked, task, desk)
            return share, desk.results
    except UserError as error:
        raise UserError(f"worker {worker.address}: {error}") from None


def _check_same(wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise `UserError` if a worker would measure something else than what is wanted."""
    for field in sorted(wanted.keys() | found.keys()):
        if wanted.get(field) != found.get(field):
            _LOADED.clear()  # so that a model put right on the disk is loaded at the next try
            raise UserError(
                f"{field}: {shown(found.get(field))} there is not {shown(wanted.get(field))} here; "
                "must be the same model, and the same versions of packages"
            )


class _Cancelled(Exception):
    """Raised on a worker when nobody waits for a share any more."""


class _Desk:
    """Sends the progress and the results of a share from a worker.

    Attributes
    ----------
    results : all results so far, by code
    """

    def __init__(self, worker: Worker, topic: str, share: int) -> None:
        self.results: dict[str, dict[str, Any]] = {}
        self._worker, self._topic, self._share = worker, topic, share
        self._task = worker.get_current_task()

    def label(self, text: str) -> None:
        """Send the name of the current measurement."""
        self._worker.log_event(self._topic, {"label": text})

    def step(self, tokens: int) -> None:
        """End here if the client has gone or was interrupted."""
        known = self._worker.state.tasks.get(self._task)
        if known is None or known.state == "cancelled":
            raise _Cancelled

    def put(self, task: Task, code: str, result: dict[str, Any]) -> None:
        """Keep a result, and send it."""
        self.results[code] = result
        message = {"share": self._share, "code": code, "result": result}
        self._worker.log_event(self._topic, message)
