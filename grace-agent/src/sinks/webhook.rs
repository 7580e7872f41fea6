//! Sink `webhook`: a CloudEvent by HTTP POST, signed with HMAC-SHA256.
//!
//! The envelope is CloudEvents 1.0 in structured JSON. The signature is as Standard Webhooks has it: over
//! `ID.TIMESTAMP.BODY`, in `webhook-signature`. The id is the same at each try and the timestamp is of the try, so that a
//! receiver refuses what is old and drops what it has seen.

use std::time::Duration;

use base64::Engine as _;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;
use ureq::http::Request;

use super::http;
use crate::clock;
use crate::config::Sink;
use crate::tasks::{Delivery, Entry};

/// Sends one event.
pub(super) fn deliver(config: &Sink, entry: &Entry, host: &str, patience: Duration) -> Delivery {
    post(config, entry, host, patience).map_or_else(|delivery| delivery, |()| Delivery::Sent)
}

fn post(config: &Sink, entry: &Entry, host: &str, patience: Duration) -> Result<(), Delivery> {
    let secret = super::secret(config.secret_file.as_deref()).map_err(|why| Delivery::Later(why, None))?;
    let body = envelope(entry, host).to_string();
    let timestamp = (clock::wall_ns() / 1_000_000_000).to_string();
    let signature = sign(secret.as_bytes(), &entry.id, &timestamp, &body);
    let request = Request::builder()
        .method("POST")
        .uri(config.url.as_deref().unwrap_or_default())
        .header("content-type", "application/cloudevents+json; charset=utf-8")
        .header("webhook-id", &entry.id)
        .header("webhook-timestamp", &timestamp)
        .header("webhook-signature", format!("v1,{signature}"))
        .body(body.into_bytes())
        .map_err(|err| Delivery::Refused(err.to_string()))?;
    http::send(request, patience)?.ok().map(drop)
}

/// The event, as it is sent.
#[must_use]
pub fn envelope(entry: &Entry, host: &str) -> Value {
    json!({
        "specversion": "1.0",
        "id": entry.id,
        "source": format!("/grace/{}", host.escape_debug()),
        "type": format!("grace.task.{}", entry.event),
        "subject": entry.task.fingerprint,
        "time": clock::rfc3339_wall(entry.at_ns),
        "datacontenttype": "application/json",
        "data": entry.task,
    })
}

/// The signature of a body, in Base64.
fn sign(secret: &[u8], id: &str, timestamp: &str, body: &str) -> String {
    // A key of any length is one.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else { return String::new() };
    for part in [id, ".", timestamp, ".", body] {
        mac.update(part.as_bytes());
    }
    base64::engine::general_purpose::STANDARD.encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_of_id_time_and_body() {
        // Checked with `openssl dgst -sha256 -hmac`.
        assert_eq!(sign(b"key", "a", "1", "body"), expected("key", "a.1.body"));
        assert_ne!(sign(b"key", "a", "1", "body"), sign(b"key", "a", "2", "body"));
        assert_ne!(sign(b"key", "a", "1", "body"), sign(b"other", "a", "1", "body"));
    }

    /// HMAC by its definition (RFC 2104), so that the library's use is checked by something else.
    fn expected(key: &str, message: &str) -> String {
        use sha2::Digest as _;
        let pad = |with: u8| -> Vec<u8> {
            (0..64).map(|n| key.as_bytes().get(n).copied().unwrap_or(0) ^ with).collect()
        };
        let inner = Sha256::digest([pad(0x36), message.as_bytes().to_vec()].concat());
        let outer = Sha256::digest([pad(0x5c), inner.to_vec()].concat());
        base64::engine::general_purpose::STANDARD.encode(outer)
    }
}
