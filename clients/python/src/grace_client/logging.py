"""A handler for the standard library's logging that reports exceptions to the agent."""

from __future__ import annotations

import logging
import traceback

from ._agent import agent

__all__ = ["GraceHandler"]


class GraceHandler(logging.Handler):
    """Reports each logged exception; with ``messages=True`` also what was logged without one.

    ``logging.getLogger().addHandler(GraceHandler())`` is all there is to do.
    """

    def __init__(self, level: int = logging.ERROR, messages: bool = False) -> None:
        super().__init__(level)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if record.exc_info and record.exc_info[0] is not None:
                kind, value, trace = record.exc_info
                text = "".join(traceback.format_exception(kind, value, trace))
                agent().record({"kind": "error", "error": kind.__name__, "trace": text})
            elif self._messages:
                where = f"{record.pathname}:{record.lineno}"
                text = f"{record.levelname} {where}: {record.getMessage()}"
                agent().record({"kind": "error", "error": f"{record.name}.{record.levelname}", "trace": text})
        except Exception:
            # A message whose arguments do not fit, for one. Logging must not fail because somebody listens.
            agent()._drop("invalid")
