//! Sink `github`: one issue for each fingerprint: created, updated, closed when verified or cancelled, reopened.
//!
//! An issue carries its task's fingerprint in its body. Whether there is one already is asked before one is created, unless its
//! number is known: after a crash between the creation and the note of it, the issue is found again, not made twice.

use std::time::Duration;

use serde_json::{Value, json};
use ureq::http::Request;

use super::http;
use crate::config::Sink;
use crate::tasks::{Delivery, Entry, Queue, render};

/// The label by which issues are found again.
const LABEL: &str = "grace";
const BASE: &str = "https://api.github.com";
/// Issues on one page, and pages looked at.
const PAGE: usize = 100;
const PAGES: usize = 50;

/// Brings the issue of a task up to date.
pub(super) fn deliver(config: &Sink, entry: &Entry, queue: &Queue, patience: Duration) -> Delivery {
    let issues = match Issues::new(config, patience) {
        Ok(issues) => issues,
        Err(why) => return Delivery::Later(why, None),
    };
    issues.bring(entry, queue).map_or_else(|delivery| delivery, |()| Delivery::Sent)
}

struct Issues {
    base: String,
    token: String,
    labels: Vec<String>,
    patience: Duration,
    /// The sink's name, under which numbers are kept.
    sink: String,
}

impl Issues {
    fn new(config: &Sink, patience: Duration) -> Result<Self, String> {
        let token = super::secret(config.token_file.as_deref())?;
        let api = config.url.as_deref().unwrap_or(BASE).trim_end_matches('/');
        let repository = config.repository.as_deref().ok_or("no repository is configured")?;
        let mut labels = config.labels.clone();
        if !labels.iter().any(|label| label == LABEL) {
            labels.push(LABEL.to_owned());
        }
        Ok(Self {
            base: format!("{api}/repos/{repository}/issues"),
            token,
            labels,
            patience,
            sink: config.name().to_owned(),
        })
    }

    fn bring(&self, entry: &Entry, queue: &Queue) -> Result<(), Delivery> {
        let task = &entry.task;
        let over = matches!(task.state.as_str(), "verified" | "cancelled");
        let known = entry.external.as_ref().and_then(|number| number.parse::<u64>().ok());
        let found = match known {
            Some(number) => Some(number),
            None => self.find(&mark(&task.fingerprint))?,
        };
        let number = match found {
            Some(number) => number,
            None => {
                let mut new = issue(entry);
                new["labels"] = json!(self.labels);
                let made = self.ask("POST", "", Some(&new))?;
                made["number"].as_u64().ok_or_else(|| {
                    Delivery::Later("answers without the number of the issue".to_owned(), None)
                })?
            }
        };
        if known.is_none() {
            let keep = queue.keep_external(&self.sink, &task.id, &number.to_string());
            keep.map_err(|err| Delivery::Later(err.to_string(), None))?;
        }
        if found.is_some() || over {
            let state = if over { "closed" } else { "open" };
            let reason = match task.state.as_str() {
                "verified" => json!("completed"),
                "cancelled" => json!("not_planned"),
                _ => Value::Null,
            };
            let mut change = issue(entry);
            change["state"] = json!(state);
            change["state_reason"] = reason;
            self.ask("PATCH", &format!("/{number}"), Some(&change))?;
        }
        Ok(())
    }

    /// The number of the issue that carries `mark`, the oldest where somebody made copies.
    fn find(&self, mark: &str) -> Result<Option<u64>, Delivery> {
        let mut found: Option<u64> = None;
        for page in 1..=PAGES {
            let way = format!("?labels={LABEL}&state=all&per_page={PAGE}&page={page}");
            let listed = self.ask("GET", &way, None)?;
            let Some(issues) = listed.as_array() else { break };
            for issue in issues {
                if issue["body"].as_str().is_some_and(|body| carries(body, mark))
                    && let Some(number) = issue["number"].as_u64()
                {
                    found = Some(found.map_or(number, |known| known.min(number)));
                }
            }
            if issues.len() < PAGE {
                break;
            }
        }
        Ok(found)
    }

    fn ask(&self, method: &str, way: &str, body: Option<&Value>) -> Result<Value, Delivery> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{way}", self.base))
            .header("authorization", format!("Bearer {}", self.token))
            .header("accept", "application/vnd.github+json")
            .header("x-github-api-version", "2022-11-28")
            .header("content-type", "application/json")
            .body(body.map(|body| body.to_string().into_bytes()).unwrap_or_default())
            .map_err(|err| Delivery::Refused(err.to_string()))?;
        Ok(http::send(request, self.patience)?.ok()?.body)
    }
}

/// Title and body of the issue of a task.
#[must_use]
pub fn issue(entry: &Entry) -> Value {
    json!({ "title": entry.task.title, "body": render::markdown(&entry.task) })
}

/// What the body of a task's issue says of it, as `render` writes it.
fn mark(fingerprint: &str) -> String {
    format!("`grace-fingerprint: {fingerprint}`")
}

/// Whether `body` has the mark as a line of its own: in fenced text each line begins with the fence's own sign.
fn carries(body: &str, mark: &str) -> bool {
    body.lines().any(|line| line.trim() == mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_in_fenced_text_is_none() {
        let mark = mark("abc");
        assert!(carries(&format!("# t-1\r\n{mark}\r\n"), &mark));
        assert!(!carries(&format!("```untrusted\n{}{mark}\n```", render::FENCE), &mark));
    }
}
