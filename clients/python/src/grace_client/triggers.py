"""Grace's triggers, by the names that its first version gave them.

``from backend.triggers import …`` becomes ``from grace_client.triggers import …``; nothing else changes. Here they are a
remote control: the agent judges and repairs. ``check()`` is awaited, ``check_sync()`` is the same without; both say what
fires now as a dict with `trigger`, `target`, `action` and `issues`, or None.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any, Callable, Dict, List, Optional, TypeVar, Union
from urllib.parse import quote

import grace_client

from ._agent import Number, agent

__all__ = [
    "Risk",
    "config_drift_trigger",
    "dependency_regression_trigger",
    "health_signal_trigger",
    "latency_queue_trigger",
    "live_error_feed_trigger",
    "model_integrity_trigger",
    "pre_boot_code_diff_trigger",
    "predictive_failure_trigger",
    "resource_pressure_trigger",
    "run_all_triggers",
    "run_all_triggers_sync",
    "telemetry_drift_trigger",
]

#: `trigger`, `target` (`self_healing` or `coding_agent`), `action`, `issues`.
Result = Dict[str, Any]
_T = TypeVar("_T")
AnyPath = Union[str, "os.PathLike[str]"]

#: How long a repair that a check set off is waited for, in seconds.
REPAIR_PATIENCE = 1.0
#: How long a scan of everything may take, in seconds.
SCAN_PATIENCE = 30.0


def _done(answer: Any) -> bool:
    return answer is not None and 200 <= answer[0] < 300


def _document(answer: Any) -> Any:
    return answer[1] if _done(answer) else None


def _dicts(document: Any) -> List[Dict[str, Any]]:
    return [one for one in document if isinstance(one, dict)] if isinstance(document, list) else []


class _Trigger:
    """What fires of one of the agent's triggers."""

    def __init__(self, name: str, target: str, action: str) -> None:
        #: The agent's name of the trigger.
        self.name = name
        self._target = target
        self._action = action

    async def check(self) -> Optional[Result]:
        """What fires now; None where nothing does, or no agent answers."""
        return await _aside(self.check_sync)

    def check_sync(self) -> Optional[Result]:
        """The same, waiting."""
        try:
            document = _document(agent().ask("GET", f"/v1/firings?trigger={self.name}"))
            return self._result(_issues(_dicts(document), self.name))
        except Exception:
            return None

    def _result(self, issues: List[Dict[str, Any]]) -> Optional[Result]:
        if not issues:
            return None
        rungs = [rung for issue in issues for rung in issue.get("remedy", [])]
        # Where the agent can do nothing itself, it has asked for help.
        alone = bool(rungs) and all(rung == "file_task" for rung in rungs)
        return {
            "trigger": self.name,
            "target": "coding_agent" if alone else self._target,
            "action": rungs[0] if rungs else self._action,
            "issues": issues,
        }


def _issues(firings: List[Dict[str, Any]], trigger: str) -> List[Dict[str, Any]]:
    return [_issue(firing) for firing in firings if firing.get("trigger") == trigger and firing.get("state") == "holds"]


def _issue(firing: Dict[str, Any]) -> Dict[str, Any]:
    subject = firing.get("subject")
    subject = subject if isinstance(subject, dict) else {}
    kept = ("id", "summary", "measured", "threshold", "baseline", "since", "evidence_gaps")
    return {
        "subject": subject.get("name"),
        "kind": subject.get("kind"),
        **{key: firing.get(key) for key in kept},
        "remedy": [rung.get("action") for rung in _dicts(firing.get("remedy"))],
    }


async def _aside(work: Callable[[], Optional[_T]]) -> Optional[_T]:
    """`work` off the event loop. Nothing of it reaches the application."""
    try:
        return await asyncio.get_running_loop().run_in_executor(None, work)
    except asyncio.CancelledError:
        raise
    except Exception:
        return None


class HealthSignalTrigger(_Trigger):
    """Missing heartbeats, flat metrics, silent logs."""

    def record_heartbeat(self, name: str) -> bool:
        """`name` is alive."""
        return grace_client.heartbeat(name)


class LatencyQueueTrigger(_Trigger):
    """Queues that grow, answers that take too long."""

    def record_queue_size(self, name: str, size: Number) -> bool:
        """So many wait in queue `name`."""
        return grace_client.queue(name, size)

    def record_latency(self, route: str, ms: Number) -> bool:
        """An answer took `ms` milliseconds."""
        return grace_client.latency(route, ms)


class ConfigDriftTrigger(_Trigger):
    """Files that are not as they were."""

    def __init__(self, name: str, target: str, action: str) -> None:
        super().__init__(name, target, action)
        self._paths: Dict[str, None] = {}

    def snapshot_config(self, path: AnyPath) -> bool:
        """Gives a file to Grace: its state now is the one to keep. False: it was not taken."""
        try:
            where = os.path.abspath(os.fspath(path))
            answers = _dicts(_document(agent().ask("POST", "/v1/snapshot", {"paths": [where]})))
            taken = bool(answers) and answers[0].get("error") is None and answers[0].get("done") is not None
            if taken:
                self._paths[str(answers[0].get("path", where))] = None
            return taken
        except Exception:
            return False

    def check_sync(self) -> Optional[Result]:
        """Lets the agent look at what was given to it here, or at all of its files. What it finds it repairs, where its
        mode is to repair; an issue says whether it was `restored` by the end of the check."""
        try:
            paths = list(self._paths)
            found = self._drifts(paths)
            if not found:
                return None
            until = time.monotonic() + REPAIR_PATIENCE
            left = found
            while left and time.monotonic() < until:
                time.sleep(0.01)
                left = self._drifts(list(found))
            issues = [
                {"subject": path, "kind": "file", "summary": "; ".join(drift), "drift": drift, "restored": path not in left}
                for path, drift in found.items()
            ]
            return self._result(issues)
        except Exception:
            return None

    def _drifts(self, paths: List[str]) -> Dict[str, List[str]]:
        looked = _dicts(_document(agent().ask("POST", "/v1/verify", {"paths": paths})))
        wrong = ("drift", "missing")
        return {str(one.get("path")): list(one.get("drift") or []) for one in looked if one.get("verdict") in wrong}


class DependencyRegressionTrigger(_Trigger):
    """Versions that changed, programs that are gone."""

    def snapshot_versions(self) -> bool:
        """What is installed now is as it should be."""
        return _done(agent().ask("POST", "/v1/deps/snapshot", {}))


class ModelIntegrityTrigger(_Trigger):
    """Weights that are damaged, models that answer worse."""

    def record_model_accuracy(self, model: str, value: Number) -> bool:
        """`model` answers this well; more is better."""
        return grace_client.accuracy(model, value)


class ResourcePressureTrigger(_Trigger):
    """Processor, memory and GPU at their end."""


class PreBootCodeDiffTrigger(_Trigger):
    """Critical code that differs from what was known to be good."""

    def mark_commit_good(self, repo: Optional[AnyPath] = None) -> bool:
        """The commit that is checked out at `repo` (here, if not given) is known to be good."""
        try:
            where = os.path.abspath(os.fspath(repo) if repo is not None else os.getcwd())
            return _done(agent().ask("POST", "/v1/good", {"repo": where}))
        except Exception:
            return False


class LiveErrorFeedTrigger(_Trigger):
    """Errors that come again and again."""

    def record_error(self, kind: Union[str, BaseException], trace: Optional[str] = None) -> bool:
        """Something failed: an exception, or its type's name with a trace."""
        return grace_client.error(kind, trace)


class TelemetryDriftTrigger(_Trigger):
    """Answers whose schema changed."""


class Risk(float):
    """A risk from 0 to 1. Where the agent could not tell it is 0 and `known` is False."""

    known: bool

    def __new__(cls, value: float, known: bool = True) -> "Risk":
        risk = super().__new__(cls, value)
        risk.known = known
        return risk


class PredictiveFailureTrigger(_Trigger):
    """Files that are likely to fail next."""

    def predict_failure_risk(self, path: AnyPath) -> Risk:
        """How likely `path` is to need a fix soon, calibrated."""
        try:
            where = quote(os.path.abspath(os.fspath(path)), safe="/")
            document = _document(agent().ask("GET", f"/v1/risk?path={where}"))
            if isinstance(document, list):
                document = document[0] if document else None
            risk = float(document["risk"]) if isinstance(document, dict) else -1.0
            return Risk(risk) if 0.0 <= risk <= 1.0 else Risk(0.0, known=False)
        except Exception:
            return Risk(0.0, known=False)


health_signal_trigger = HealthSignalTrigger("health_gap", "self_healing", "restart_process")
latency_queue_trigger = LatencyQueueTrigger("latency_spike", "self_healing", "scale_workers")
config_drift_trigger = ConfigDriftTrigger("config_drift", "self_healing", "restore_file")
dependency_regression_trigger = DependencyRegressionTrigger("dependency_regression", "coding_agent", "file_task")
model_integrity_trigger = ModelIntegrityTrigger("model_integrity", "self_healing", "restore_weights")
resource_pressure_trigger = ResourcePressureTrigger("resource_pressure", "self_healing", "shed_load")
pre_boot_code_diff_trigger = PreBootCodeDiffTrigger("code_diff", "coding_agent", "file_task")
live_error_feed_trigger = LiveErrorFeedTrigger("error_feed", "coding_agent", "file_task")
telemetry_drift_trigger = TelemetryDriftTrigger("telemetry_drift", "coding_agent", "file_task")
predictive_failure_trigger = PredictiveFailureTrigger("predicted_failure", "coding_agent", "file_task")

_ALL: List[_Trigger] = [
    health_signal_trigger,
    latency_queue_trigger,
    config_drift_trigger,
    dependency_regression_trigger,
    model_integrity_trigger,
    resource_pressure_trigger,
    pre_boot_code_diff_trigger,
    live_error_feed_trigger,
    telemetry_drift_trigger,
    predictive_failure_trigger,
]


async def run_all_triggers() -> List[Result]:
    """Lets the agent scan, where it can, and says what fires then, a result for each trigger that does."""
    return await _aside(run_all_triggers_sync) or []


def run_all_triggers_sync() -> List[Result]:
    """The same, waiting."""
    try:
        # One that hangs shall not cost the patience that a scan needs.
        if agent().ask("GET", "/v1/triggers") is None:
            return []
        agent().ask("POST", "/v1/scan", {}, timeout=SCAN_PATIENCE)
        firings = _dicts(_document(agent().ask("GET", "/v1/firings")))
        results = [trigger._result(_issues(firings, trigger.name)) for trigger in _ALL]
        return [result for result in results if result is not None]
    except Exception:
        return []
