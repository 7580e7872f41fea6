//! HTTP as sinks use it: one client, bounded in time and size, and what an answer means for the entry.

use std::sync::LazyLock;
use std::time::Duration;

use serde_json::Value;
use ureq::http::{Request, Response};
use ureq::tls::{RootCerts, TlsConfig};

use crate::tasks::Delivery;

/// Bytes of an answer that are read.
const MAX_ANSWER: u64 = 4 << 20;
/// The longest pause that a sink may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(3600);

static CLIENT: LazyLock<ureq::Agent> = LazyLock::new(|| {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        // A redirect would take the token elsewhere.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_response_header_size(64 << 10)
        .max_idle_connections(0)
        .proxy(None)
        .user_agent(concat!("grace/", env!("CARGO_PKG_VERSION")))
        .allow_non_standard_methods(true)
        .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
        .build()
        .new_agent()
});

/// What a server answered.
pub(super) struct Answer {
    /// Its status.
    pub(super) status: u16,
    /// Its body, where that is JSON.
    pub(super) body: Value,
    /// The pause it asks for.
    retry_after: Option<Duration>,
}

/// Sends a request. An error is worth another try: nobody knows whether it arrived.
pub(super) fn send(request: Request<Vec<u8>>, patience: Duration) -> Result<Answer, Delivery> {
    let later = |why: String| Delivery::Later(why, None);
    let mut answer = CLIENT
        .run(CLIENT.configure_request(request).timeout_global(Some(patience)).build())
        .map_err(|err| later(err.to_string()))?;
    let retry_after = pause(&answer);
    let status = answer.status().as_u16();
    let body = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
    // An answer without a readable body is an answer all the same.
    let body = body.ok().and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or(Value::Null);
    Ok(Answer { status, body, retry_after })
}

impl Answer {
    /// The same where it says that all is well; else what becomes of the entry.
    pub(super) fn ok(self) -> Result<Self, Delivery> {
        let why = format!("answers {}", self.status);
        match self.status {
            200..=299 => Ok(self),
            // GitHub says 403 where others say 429.
            403 if self.retry_after.is_some() => Err(Delivery::Later(why, self.retry_after)),
            408 | 421 | 425 | 429 | 500..=599 => Err(Delivery::Later(why, self.retry_after)),
            _ => Err(Delivery::Refused(why)),
        }
    }
}

/// `Retry-After` in seconds or as a date.
fn pause<T>(answer: &Response<T>) -> Option<Duration> {
    let text = answer.headers().get("retry-after")?.to_str().ok()?.trim();
    let pause = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp().as_second();
            Duration::from_secs(u64::try_from(at - crate::clock::wall_ns() / 1_000_000_000).unwrap_or(0))
        }
    };
    Some(pause.min(MAX_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_read_in_both_forms_and_bounded() {
        let answer = |value: &str| Response::builder().header("retry-after", value).body(()).unwrap();
        assert_eq!(pause(&answer("7")), Some(Duration::from_secs(7)));
        assert_eq!(pause(&answer("99999999")), Some(MAX_PAUSE));
        assert_eq!(pause(&answer("Wed, 21 Oct 2015 07:28:00 GMT")), Some(Duration::ZERO));
        assert_eq!(pause(&answer("soon")), None);
    }
}
