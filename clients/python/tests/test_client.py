"""The client alone: with nobody there, with somebody who hangs, with somebody who answers nonsense."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import tempfile
import threading
import time
import unittest
from typing import Any, Callable, List, Optional, Tuple

import grace_client
from grace_client import triggers
from grace_client.logging import GraceHandler

#: Far more than anything here may take, far less than a wait for an agent that hangs would be without a limit.
PATIENCE = 20.0

ODD_NAMES = ["", "x" * 257, "a\nb", "a\x00b", "\ud800", None, 7, b"bytes"]
ODD_NUMBERS = [float("nan"), float("inf"), -float("inf"), 1e300, "much", None, [], 10**400]


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.socket = os.path.join(self.folder.name, "grace.sock")
        self.datagrams = os.path.join(self.folder.name, "grace.dgram")
        grace_client.configure(self.socket, timeout=0.2)
        self.addCleanup(grace_client.configure)

    def receiver(self) -> socket.socket:
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(receiver.close)
        receiver.bind(self.datagrams)
        receiver.settimeout(PATIENCE)
        return receiver

    def answering(self, answer: Optional[bytes]) -> None:
        """Somebody listens and gives everybody this answer; None: none at all, ever."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.socket)
        listener.listen(64)
        self.addCleanup(listener.close)
        held: List[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                    held.append(peer)
                    if answer is not None:
                        peer.recv(65536)
                        peer.sendall(answer)
                        peer.close()
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        self.addCleanup(held.clear)

    def everything(self) -> List[Any]:
        """Everything that there is to call, with arguments that fit."""
        with grace_client.timed("/t"):
            pass
        return [
            grace_client.heartbeat("a"),
            grace_client.queue("q", 5),
            grace_client.latency("/r", 1.5),
            grace_client.accuracy("m", 0.9),
            grace_client.metric("n", -3),
            grace_client.error("E", "trace"),
            grace_client.error(ValueError("x")),
            triggers.config_drift_trigger.snapshot_config("/etc/hostname"),
            triggers.dependency_regression_trigger.snapshot_versions(),
            triggers.pre_boot_code_diff_trigger.mark_commit_good(),
            *(trigger.check_sync() for trigger in triggers._ALL),
            triggers.run_all_triggers_sync() or None,
            triggers.predictive_failure_trigger.predict_failure_risk("x.py").known,
        ]

    async def awaited(self) -> List[Any]:
        checks = [trigger.check() for trigger in triggers._ALL]
        return [*(await asyncio.gather(*checks)), (await triggers.run_all_triggers()) or None]


class NoAgent(Case):
    def test_nothing_raises_and_all_is_counted(self) -> None:
        self.assertFalse(any(self.everything()))
        self.assertFalse(any(asyncio.run(self.awaited())))
        stats = grace_client.stats()
        self.assertEqual((stats["sent"], stats["dropped_by"], stats["answered"]), (0, {"no_agent": 8}, 0))
        self.assertGreater(stats["unanswered"], 10)

    def test_odd_arguments_neither(self) -> None:
        odd: Any
        for odd in ODD_NAMES:
            grace_client.heartbeat(odd)
            grace_client.error(odd)
            grace_client.queue(odd, 1)
            triggers.config_drift_trigger.snapshot_config(odd)
            triggers.predictive_failure_trigger.predict_failure_risk(odd)
            triggers.pre_boot_code_diff_trigger.mark_commit_good(odd)
        for odd in ODD_NUMBERS:
            for call in (grace_client.queue, grace_client.latency, grace_client.accuracy, grace_client.metric):
                self.assertFalse(call("a", odd))
        self.assertGreater(grace_client.stats()["dropped_by"]["invalid"], 30)

    def test_a_million_records_cost_nothing_to_speak_of(self) -> None:
        # An agent that is not there is looked for once a second, not once a record.
        for _ in range(100_000):
            grace_client.heartbeat("a")
        self.assertEqual(grace_client.stats()["dropped_by"], {"no_agent": 100_000})

    def test_an_agent_that_comes_later_is_found(self) -> None:
        self.assertFalse(grace_client.heartbeat("a"))
        receiver = self.receiver()
        self.until(lambda: grace_client.heartbeat("a"))
        self.assertEqual(receiver.recv(100), b"heartbeat.a:1.0|c")

    def until(self, done: Any) -> None:
        began = time.monotonic()
        while not done():
            self.assertLess(time.monotonic() - began, PATIENCE)
            time.sleep(0.01)


class Hanging(Case):
    def test_who_hangs_is_given_up_and_left_alone_for_a_while(self) -> None:
        self.answering(None)
        self.receiver()
        began = time.monotonic()
        answers = self.everything()
        self.assertTrue(all(answers[:7]), "records go out whether or not somebody answers")
        self.assertFalse(any(answers[7:]))
        self.assertFalse(any(asyncio.run(self.awaited())))
        self.assertLess(time.monotonic() - began, PATIENCE)
        self.assertEqual(grace_client.stats()["answered"], 0)

    def test_who_drips_is_given_up_too(self) -> None:
        self.answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n[")
        began = time.monotonic()
        self.assertIsNone(triggers.health_signal_trigger.check_sync())
        self.assertLess(time.monotonic() - began, PATIENCE)

    def test_who_does_not_read_costs_records_and_no_time(self) -> None:
        self.receiver()
        sent = sum(grace_client.heartbeat("a") for _ in range(20_000))
        stats = grace_client.stats()
        self.assertEqual((stats["sent"], stats["dropped_by"]), (sent, {"full": 20_000 - sent}))
        self.assertLess(sent, 20_000)

    def test_an_agent_that_ended_is_noticed(self) -> None:
        receiver = self.receiver()
        self.assertTrue(grace_client.heartbeat("a"))
        receiver.close()
        self.assertFalse(grace_client.heartbeat("a"))
        os.unlink(self.datagrams)
        again = self.receiver()
        grace_client.configure(self.socket)
        self.assertTrue(grace_client.heartbeat("b"))
        self.assertEqual(again.recv(100), b"heartbeat.b:1.0|c")


class Nonsense(Case):
    def test_whatever_is_answered(self) -> None:
        bodies = [
            b"",
            b"null",
            b"[1]",
            b'"x"',
            b'[{"trigger":"health_gap","state":"holds"}]',
            b'[{"trigger":"health_gap","state":"holds","subject":7,"remedy":[1,{"action":"x"}]}]',
            b'{"risk":"high"}',
            b'{"risk":1e999}',
            b"{",
        ]
        answers = [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body) for body in bodies]
        for answer in [*answers, b"", b"hello", b"HTTP/1.1 999 X\r\n\r\n", b"\xff" * 1000]:
            with self.subTest(answer=answer[-40:]):
                self.setUp()
                self.answering(answer)
                self.everything()
                asyncio.run(self.awaited())


class Records(Case):
    def one(self, receiver: socket.socket) -> bytes:
        return receiver.recv(65536)

    def test_what_goes_out(self) -> None:
        receiver = self.receiver()
        lines: List[Tuple[Callable[[], bool], bytes]] = [
            (lambda: grace_client.heartbeat("coding_agent"), b"heartbeat.coding_agent:1.0|c"),
            (lambda: grace_client.queue("message_bus", 1500), b"queue.message_bus:1500.0|g"),
            (lambda: grace_client.latency("/api/chat", 850.5), b"latency./api/chat:850.5|ms"),
            (lambda: grace_client.accuracy("grace_reasoning", 0.85), b"accuracy.grace_reasoning:0.85|g"),
        ]
        for call, expected in lines:
            self.assertTrue(call())
            self.assertEqual(self.one(receiver), expected)
        documents: List[Tuple[Callable[[], bool], Any]] = [
            (lambda: grace_client.queue("a:b|c", 3), {"kind": "queue", "name": "a:b|c", "depth": 3}),
            (lambda: grace_client.metric("WATCHDOG=1", 2), {"kind": "metric", "name": "WATCHDOG=1", "value": 2}),
            (lambda: grace_client.error("E", "t"), {"kind": "error", "error": "E", "trace": "t"}),
            (lambda: grace_client.error("E"), {"kind": "error", "error": "E"}),
        ]
        for call, document in documents:
            self.assertTrue(call())
            self.assertEqual(json.loads(self.one(receiver)), document)

    def test_of_a_long_trace_begin_and_end_arrive(self) -> None:
        receiver = self.receiver()
        for middle in ("x" * 1_000_000, "ä\n\ud800" * 100_000):
            self.assertTrue(grace_client.error("E", f"first{middle}last"))
            datagram = self.one(receiver)
            self.assertLessEqual(len(datagram), 16_000)
            trace = json.loads(datagram)["trace"]
            self.assertTrue(trace.startswith("first") and trace.endswith("last"), trace[:20])

    def test_logged_exceptions_are_reported(self) -> None:
        receiver = self.receiver()
        logger = logging.getLogger("some.module")
        handler = GraceHandler()
        logger.addHandler(handler)
        logger.propagate = False
        self.addCleanup(logger.removeHandler, handler)
        logger.error("without an exception: not reported")
        try:
            raise KeyError("gone")
        except KeyError:
            logger.exception("while %s", "working")
        record = json.loads(self.one(receiver))
        self.assertEqual((record["kind"], record["error"]), ("error", "KeyError"))
        self.assertIn("Traceback", record["trace"])
        logger.removeHandler(handler)
        talkative = GraceHandler(messages=True)
        logger.addHandler(talkative)
        self.addCleanup(logger.removeHandler, talkative)
        logger.error("%d wrong", "arguments")
        logger.error("plain %s", "words")
        record = json.loads(self.one(receiver))
        self.assertEqual(record["error"], "some.module.ERROR")
        self.assertIn("plain words", record["trace"])

    def test_timed_reports_also_what_raised(self) -> None:
        receiver = self.receiver()
        with self.assertRaises(ZeroDivisionError), grace_client.timed("/r"):
            1 / 0
        self.assertTrue(self.one(receiver).startswith(b"latency./r:"))

    def test_threads_and_children_share_one_agent(self) -> None:
        receiver = self.receiver()
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        got: List[bytes] = []
        reading = threading.Thread(target=lambda: got.extend(self.one(receiver) for _ in range(41)))
        reading.start()

        def send(name: str) -> None:
            for _ in range(10):
                while not grace_client.heartbeat(name):
                    time.sleep(0.001)

        threads = [threading.Thread(target=send, args=(f"t{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        child = os.fork()
        if child == 0:
            os._exit(0 if grace_client.heartbeat("child") else 1)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        reading.join(PATIENCE)
        self.assertEqual(len(got), 41)
        self.assertIn(b"heartbeat.child:1.0|c", got)


if __name__ == "__main__":
    unittest.main()
