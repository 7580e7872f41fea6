"""How the agent is reached: records as datagrams that never wait, questions over HTTP that never wait long.

Nothing here raises. A record that cannot be handed over at once is dropped and counted; a question that is not answered
in time is answered with None.
"""

from __future__ import annotations

import errno
import http.client
import io
import json
import math
import os
import re
import socket
import threading
import time
from typing import Any, Dict, Mapping, Optional, Tuple, Union

DEFAULT_SOCKET = "/run/grace/grace.sock"
#: Longest datagram that the agent reads whole is 16 KiB.
DATAGRAM_MAX = 16_000
#: An agent that was not there is not looked for again before this, in seconds.
RETRY_AFTER = 1.0
#: After an agent did not answer in time it is not asked again for this long, in seconds.
PAUSE_AFTER_TIMEOUT = 5.0
#: Largest answer that is read, in bytes.
ANSWER_MAX = 16 << 20
#: Longest name, in bytes, and largest number that the agent takes.
NAME_MAX = 256
VALUE_MAX = 1e15

#: Names that mean the same in a StatsD line; others travel as JSON.
_PLAIN = re.compile(r"[^\x00-\x1f\x7f-\x9f:|]+\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

Answer = Tuple[int, Any]
Number = Union[int, float]


class Agent:
    """One agent, by the path of its socket. Safe to use from any thread, and after a fork."""

    def __init__(self, path: Optional[str] = None, timeout: float = 1.0) -> None:
        self.path = path or os.environ.get("GRACE_SOCKET") or DEFAULT_SOCKET
        self.timeout = timeout
        self._datagrams = os.path.join(os.path.dirname(self.path) or ".", "grace.dgram")
        self._fresh()

    def _fresh(self) -> None:
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._socket: Optional[socket.socket] = None
        self._not_before = 0.0
        self._paused_until = 0.0
        self._sent = 0
        self._answered = 0
        self._unanswered = 0
        self._dropped: Dict[str, int] = {}

    # Records.

    def line(self, prefix: str, name: str, value: Number, kind: str, record: Mapping[str, Any]) -> bool:
        """Sends a StatsD line, or `record` where the name would not be read as one from a line."""
        try:
            number = float(value)
            if not isinstance(name, str) or not _is_name(name) or not math.isfinite(number) or abs(number) > VALUE_MAX:
                return self._drop("invalid")
            if _PLAIN.match(name) and (number >= 0 or kind != "g"):
                return self._send(f"{prefix}{name}:{number!r}|{kind}".encode("utf-8"))
            return self.record(record)
        except Exception:
            return self._drop("invalid")

    def record(self, record: Mapping[str, Any]) -> bool:
        """Sends a record as JSON. A trace that is too long for one datagram loses its middle."""
        try:
            data = _encode(record)
            trace = record.get("trace")
            room = DATAGRAM_MAX // 2
            while len(data) > DATAGRAM_MAX and isinstance(trace, str) and room > 100:
                data = _encode({**record, "trace": _without_middle(trace, room)})
                room //= 2
            return self._send(data)
        except Exception:
            return self._drop("invalid")

    def _send(self, data: bytes) -> bool:
        # Twice: an agent that was started again has another socket at the same place.
        for _ in range(2):
            connected = self._socket or self._connect()
            if connected is None:
                return False
            try:
                connected.send(data, socket.MSG_DONTWAIT)
            except OSError as err:
                if err.errno in (errno.EAGAIN, errno.ENOBUFS):
                    return self._drop("full")
                if err.errno == errno.EMSGSIZE:
                    return self._drop("too_long")
                with self._lock:
                    if self._socket is connected:
                        self._socket = None
                        connected.close()
                continue
            with self._counting:
                self._sent += 1
            return True
        return self._drop("no_agent")

    def _connect(self) -> Optional[socket.socket]:
        with self._lock:
            if self._socket is not None:
                return self._socket
            if time.monotonic() < self._not_before:
                self._drop("no_agent")
                return None
            fresh: Optional[socket.socket] = None
            try:
                fresh = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                fresh.setblocking(False)
                # What waits to be read is charged to the sender: room for a burst, as much as the host allows.
                fresh.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                fresh.connect(self._datagrams)
                self._socket = fresh
                return fresh
            except OSError as err:
                if fresh is not None:
                    fresh.close()
                self._not_before = time.monotonic() + RETRY_AFTER
                self._drop("denied" if err.errno in (errno.EACCES, errno.EPERM) else "no_agent")
                return None

    def _drop(self, why: str) -> bool:
        with self._counting:
            self._dropped[why] = self._dropped.get(why, 0) + 1
        return False

    # Questions.

    def ask(self, method: str, path: str, body: Any = None, timeout: Optional[float] = None) -> Optional[Answer]:
        """Status and document of an answer; None where there is none in time."""
        answer: Optional[Answer] = None
        try:
            if time.monotonic() >= self._paused_until:
                answer = self._ask(method, path, body, self.timeout if timeout is None else timeout)
        except TimeoutError:
            self._paused_until = time.monotonic() + PAUSE_AFTER_TIMEOUT
        except Exception:
            # No agent, no right to ask it, or something else answers there: all the same to the application.
            answer = None
        with self._counting:
            if answer is None:
                self._unanswered += 1
            else:
                self._answered += 1
        return answer

    def _ask(self, method: str, path: str, body: Any, timeout: float) -> Answer:
        deadline = time.monotonic() + timeout
        data = b"" if body is None else _encode(body)
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: grace\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as stream:

            def remaining() -> float:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                return left

            try:
                stream.settimeout(remaining())
                stream.connect(self.path)
                stream.sendall(head.encode("ascii") + data)
                came = bytearray()
                while True:
                    stream.settimeout(remaining())
                    some = stream.recv(65536)
                    if not some:
                        break
                    came += some
                    if len(came) > ANSWER_MAX:
                        raise ValueError("too long an answer")
            except socket.timeout:
                # Before Python 3.10 it is no TimeoutError.
                raise TimeoutError from None
            except BlockingIOError:
                # Nobody takes what waits there any more.
                raise TimeoutError from None
        response = http.client.HTTPResponse(_Came(bytes(came)), method=method)  # type: ignore[arg-type]
        response.begin()
        text = response.read()
        return response.status, json.loads(text) if text else None

    def stats(self) -> Dict[str, Any]:
        """What became of records and questions so far."""
        with self._counting:
            return {
                "sent": self._sent,
                "dropped": sum(self._dropped.values()),
                "dropped_by": dict(self._dropped),
                "answered": self._answered,
                "unanswered": self._unanswered,
            }

    def close(self) -> None:
        """Gives the descriptor back."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None


class _Came:
    """Bytes that came, as http.client reads a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def _encode(document: Any) -> bytes:
    # A trace may hold anything, halves of characters too.
    return json.dumps(document, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def _is_name(name: str) -> bool:
    return 0 < len(name.encode("utf-8")) <= NAME_MAX and not _CONTROL.search(name)


def _without_middle(text: str, room: int) -> str:
    # Some languages say first what it is about, some last.
    half = room // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}" if len(text) > room else text


_agent = Agent()


def agent() -> Agent:
    """The agent that this process talks to."""
    return _agent


def configure(socket: Optional[str] = None, timeout: float = 1.0) -> None:
    """Talks to the agent at `socket` from now on; a question may take `timeout` seconds.

    Without this it is $GRACE_SOCKET, else /run/grace/grace.sock, and one second.
    """
    global _agent
    before, _agent = _agent, Agent(socket, timeout)
    before.close()


def _after_fork() -> None:
    # A lock that another thread held at the fork would never open in the child. The socket itself can be shared.
    _agent._lock = threading.Lock()
    _agent._counting = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
