"""The connection of `--scheduler` to a Dask cluster; any failure of the cluster is one line."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kvtq_hw.contract.errors import UserError, shown, warn

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["ENDED", "connected"]

#: Message for a process that measured and was killed.
ENDED = (
    "a process that measured was ended from outside, perhaps for want of memory; run again: what "
    "was measured is kept"
)


@contextmanager
def connected(scheduler: str) -> Iterator[Client]:
    """Connect to a Dask scheduler; warn where it has no workers, which the work then waits for.

    Raises
    ------
    UserError
        When no scheduler answers at the address, the scheduler goes away while the block runs, or
        workers end again and again.
    """
    from concurrent.futures import CancelledError

    from distributed import Client, KilledWorker
    from distributed.comm import CommClosedError

    _check_answers(scheduler)
    try:
        client = Client(scheduler, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--scheduler: {scheduler!r}: no Dask scheduler answers: {error}") from None
    with client:
        if not client.nthreads():
            warn(
                f"--scheduler: {scheduler!r} has no workers, and the work waits for one; start it "
                f"with: dask worker {scheduler}"
            )
        try:
            yield client
        except KilledWorker:
            raise UserError(ENDED) from None
        except (CancelledError, CommClosedError):
            raise UserError(
                f"--scheduler: {scheduler!r} went away; run again: what was measured is kept"
            ) from None


def _check_answers(scheduler: str) -> None:
    """Refuse an address that is malformed or on which nothing listens.

    Without this check, Dask's client tries for seconds and prints tracebacks of its threads.
    """
    from distributed.comm.addressing import parse_address, parse_host_port

    try:
        kind, place = parse_address(scheduler, strict=True)
        if kind not in ("tcp", "tls"):
            return  # an address in this process, or of a transport from outside Dask
        host, port = parse_host_port(place)
        socket.create_connection((host, port), timeout=5).close()
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--scheduler: {shown(scheduler)}: no Dask scheduler answers: {reason}; must be an "
            "address such as tcp://host:8786"
        ) from None
