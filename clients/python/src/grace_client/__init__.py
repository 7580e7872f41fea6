"""Tells a Grace agent how this application is, and asks it what fired.

Records (:func:`heartbeat`, :func:`queue`, :func:`latency`, :func:`accuracy`, :func:`metric`, :func:`error`) are handed over
without waiting; they return whether that worked. Questions wait a second at most. Neither ever raises: without an
agent the application runs as if it did not know of one, and :func:`stats` says what was dropped.

``grace_client.triggers`` has the objects of Grace's first version by the same names.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from typing import Any, Dict, Iterator, Optional, Union

from ._agent import Number, agent, configure

__all__ = [
    "accuracy",
    "configure",
    "error",
    "heartbeat",
    "latency",
    "metric",
    "queue",
    "stats",
    "timed",
]

__version__ = "0.1.0"


def heartbeat(name: str) -> bool:
    """`name` is alive."""
    return agent().line("heartbeat.", name, 1, "c", {"kind": "heartbeat", "name": name})


def queue(name: str, depth: Number) -> bool:
    """So many wait in queue `name`."""
    return agent().line("queue.", name, depth, "g", {"kind": "queue", "name": name, "depth": depth})


def latency(route: str, ms: Number) -> bool:
    """An answer on `route` took `ms` milliseconds."""
    return agent().line("latency.", route, ms, "ms", {"kind": "latency", "route": route, "ms": ms})


def accuracy(model: str, value: Number) -> bool:
    """`model` answers this well; more is better."""
    return agent().line("accuracy.", model, value, "g", {"kind": "accuracy", "model": model, "value": value})


def metric(name: str, value: Number) -> bool:
    """Any other number."""
    try:
        if not isinstance(name, str):
            return agent()._drop("invalid")
        return agent().record({"kind": "metric", "name": name, "value": float(value)})
    except Exception:
        return agent()._drop("invalid")


def error(kind: Union[str, BaseException], trace: Optional[str] = None) -> bool:
    """Something failed: an exception, or its type's name with a trace."""
    try:
        if isinstance(kind, BaseException):
            if trace is None:
                trace = "".join(traceback.format_exception(type(kind), kind, kind.__traceback__))
            kind = type(kind).__name__
        record: Dict[str, Any] = {"kind": "error", "error": str(kind)}
        if trace is not None:
            record["trace"] = str(trace)
        return agent().record(record)
    except Exception:
        return agent()._drop("invalid")


@contextlib.contextmanager
def timed(route: str) -> Iterator[None]:
    """Reports how long the block took as a latency of `route`, also where it raised."""
    began = time.perf_counter()
    try:
        yield
    finally:
        latency(route, (time.perf_counter() - began) * 1e3)


def stats() -> Dict[str, Any]:
    """What became of records and questions: `sent`, `dropped`, `dropped_by` reason, `answered`, `unanswered`.

    Reasons: `no_agent`, `denied` (this user may not send; see `[records]` in Grace's configuration), `full` (the agent does
    not keep up), `too_long`, `invalid`.
    """
    return agent().stats()
