//! The source of answers: asks every `[[endpoint]]` in its own time and says what the answers look like.
//!
//! One thread keeps the times; what is due is asked by a few threads at once, so that a server that hangs delays no other.
//! A client of the field does the talking: body and headers are bounded, redirects are not followed, no proxy and no cookie
//! is used. Only the shape of an answer goes on, not its values. An answer that is no JSON, an error or none at all is
//! said, and never judged.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use ureq::http::{Method, Request};
use ureq::tls::{RootCerts, TlsConfig};

use crate::api::view::{EndpointView, Health, SourceView};
use crate::clock;
use crate::code_facts::{Answer, KnownAnswers};
use crate::config::Endpoint;
use crate::event::{Event, Kind, Timestamp};
use crate::shape::{Schema, Shape, openapi};
use crate::sources::round::{Asked, Rounds};

/// Bytes of an answer's body.
const MAX_BODY: u64 = 1 << 20;
/// Bytes of an OpenAPI document.
const MAX_DOCUMENT: u64 = 8 << 20;
/// Endpoints asked at the same time.
const AT_ONCE: usize = 4;
/// The thread looks for what is due at least this often.
const REST: Duration = Duration::from_secs(1);

/// The polled endpoints.
#[derive(Clone)]
pub struct Endpoints {
    shared: Arc<Mutex<Shared>>,
    thread: std::thread::Thread,
}

#[derive(Default)]
struct Shared {
    stop: bool,
    rounds: Rounds,
    polled: BTreeMap<String, Polled>,
}

/// An endpoint and what came of it.
#[derive(Clone)]
struct Polled {
    config: Endpoint,
    due: Timestamp,
    /// When it was last asked, and why that brought nothing.
    last: Option<(Timestamp, Result<(), String>)>,
    answers: u64,
    /// Time of the OpenAPI document that was last read; why it says nothing.
    document: Option<SystemTime>,
    document_trouble: Option<String>,
}

impl Endpoints {
    /// Starts the thread. Nothing is asked until [`Endpoints::set`].
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(events: SyncSender<Event>) -> std::io::Result<Self> {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let mine = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("grace-endpoints".into())
            .spawn(move || keep_asking(&mine, &events))?;
        Ok(Self { shared, thread: thread.thread().clone() })
    }

    /// Asks these endpoints from now on. Those that are asked already keep their times.
    pub fn set(&self, endpoints: &[Endpoint]) {
        let mut shared = lock(&self.shared);
        let mut old = std::mem::take(&mut shared.polled);
        for config in endpoints {
            let name = config.name().to_owned();
            let polled = match old.remove(&name) {
                Some(same) if same.config == *config => same,
                _ => Polled {
                    config: config.clone(),
                    due: clock::boottime(),
                    last: None,
                    answers: 0,
                    document: None,
                    document_trouble: None,
                },
            };
            shared.polled.insert(name, polled);
        }
        drop(shared);
        self.thread.unpark();
    }

    /// Asks for a whole look now: every endpoint is asked, whenever it would be due.
    #[must_use]
    pub fn ask(&self) -> Asked {
        let mut shared = lock(&self.shared);
        let now = clock::boottime();
        shared.polled.values_mut().for_each(|polled| polled.due = now);
        let asked = shared.rounds.ask();
        drop(shared);
        self.thread.unpark();
        asked
    }

    /// Ends the thread, when it next looks.
    pub fn stop(&self) {
        lock(&self.shared).stop = true;
        self.thread.unpark();
    }

    /// The endpoints and their last answers.
    #[must_use]
    pub fn views(&self) -> Vec<EndpointView> {
        lock(&self.shared)
            .polled
            .iter()
            .map(|(name, polled)| EndpointView {
                name: name.clone(),
                url: polled.config.url.clone(),
                asked: polled.last.as_ref().map(|(at, _)| clock::rfc3339(*at)),
                answers: polled.answers,
                trouble: polled.trouble(),
                openapi: polled.config.openapi.clone(),
                learned_from: None,
                schema: None,
            })
            .collect()
    }

    /// How the source is.
    #[must_use]
    pub fn health(&self) -> SourceView {
        let shared = lock(&self.shared);
        let down: Vec<String> = shared
            .polled
            .iter()
            .filter_map(|(name, polled)| Some(format!("{name}: {}", polled.trouble()?)))
            .collect();
        let state = match (shared.polled.is_empty(), down.is_empty()) {
            (true, _) => Health::Off,
            (false, true) => Health::Ok,
            (false, false) => Health::Degraded,
        };
        let detail = match state {
            Health::Off => "no [[endpoint]] declared".to_owned(),
            Health::Ok => format!("{} asked", shared.polled.len()),
            _ => format!(
                "{} of {} bring nothing that can be judged: {}",
                down.len(),
                shared.polled.len(),
                down.join("; ")
            ),
        };
        SourceView { name: "endpoints".into(), state, detail }
    }
}

impl Polled {
    fn trouble(&self) -> Option<String> {
        let last = self.last.as_ref().and_then(|(_, result)| result.clone().err());
        self.document_trouble.clone().or(last)
    }
}

/// The thread.
fn keep_asking(shared: &Mutex<Shared>, events: &SyncSender<Event>) {
    loop {
        let now = clock::boottime();
        let mut due: Vec<Polled> = Vec::new();
        let mut next = now.after(REST);
        let (rounds, begun) = {
            let mut shared = lock(shared);
            if shared.stop {
                return;
            }
            for polled in shared.polled.values_mut() {
                if polled.due <= now {
                    polled.due = now.after(polled.config.every.get());
                    due.push(polled.clone());
                }
                next = next.min(polled.due);
            }
            (shared.rounds.clone(), shared.rounds.begin())
        };
        for few in due.chunks_mut(AT_ONCE) {
            std::thread::scope(|scope| {
                for polled in few.iter_mut() {
                    scope.spawn(|| turn(polled, events));
                }
            });
            let mut shared = lock(shared);
            for polled in few {
                if let Some(known) = shared.polled.get_mut(polled.config.name())
                    && known.config == polled.config
                {
                    *known = Polled { due: known.due, ..polled.clone() };
                }
            }
        }
        rounds.end(begun);
        std::thread::park_timeout(next.since(clock::boottime()));
    }
}

/// Asks one endpoint and says what came.
fn turn(polled: &mut Polled, events: &SyncSender<Event>) {
    let name = polled.config.name().to_owned();
    if let Some(document) = polled.config.openapi.clone() {
        match read_document(&document, &polled.config, &mut polled.document) {
            Ok(None) => {}
            Ok(Some(schema)) => {
                polled.document_trouble = None;
                let known = KnownAnswers::Declared { document, schema: Box::new(schema) };
                send(events, Kind::EndpointKnown { name: name.clone(), known });
            }
            Err(why) => polled.document_trouble = Some(why),
        }
        if polled.document_trouble.is_some() {
            // Without what it is measured by, an answer would be learned from instead.
            return;
        }
    }
    let answer = ask(&polled.config);
    let result = match &answer {
        Answer::Json(_) => {
            polled.answers += 1;
            Ok(())
        }
        Answer::None(why) => Err(why.clone()),
    };
    polled.last = Some((clock::boottime(), result));
    send(events, Kind::EndpointSeen { name, answer });
}

fn send(events: &SyncSender<Event>, kind: Kind) {
    // Fails only when the engine has ended, with the agent.
    drop(events.send(Event { at: clock::boottime(), kind }));
}

/// What an endpoint answers now.
fn ask(endpoint: &Endpoint) -> Answer {
    match fetch(endpoint) {
        Ok(value) => Answer::Json(Box::new(Shape::of(&value))),
        Err(why) => Answer::None(why.chars().take(200).flat_map(char::escape_debug).collect()),
    }
}

/// One client for all: it reads the host's certificates when it first needs them, which takes a while.
static CLIENT: LazyLock<ureq::Agent> = LazyLock::new(|| {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_response_header_size(64 << 10)
        .max_idle_connections(0)
        .proxy(None)
        .user_agent(concat!("grace/", env!("CARGO_PKG_VERSION")))
        .accept("application/json")
        .allow_non_standard_methods(true)
        // The host's own certificates: what it trusts, Grace trusts.
        .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
        .build()
        .new_agent()
});

fn fetch(endpoint: &Endpoint) -> Result<Value, String> {
    let method = Method::from_bytes(endpoint.method.as_bytes()).map_err(|err| err.to_string())?;
    let mut request = Request::builder().method(method).uri(&endpoint.url);
    for (name, value) in &endpoint.headers {
        request = request.header(name, value);
    }
    let wrong = |err: ureq::http::Error| err.to_string();
    let patience = Some(endpoint.timeout.get());
    let answer = match &endpoint.body {
        Some(body) => {
            let request = request.body(body.clone()).map_err(wrong)?;
            CLIENT.run(CLIENT.configure_request(request).timeout_global(patience).build())
        }
        None => {
            let request = request.body(()).map_err(wrong)?;
            CLIENT.run(CLIENT.configure_request(request).timeout_global(patience).build())
        }
    };
    let mut answer = answer.map_err(|err| err.to_string())?;
    let status = answer.status();
    if !status.is_success() {
        return Err(format!("answers {status}"));
    }
    let body = answer.body_mut().with_config().limit(MAX_BODY).read_to_vec();
    let body = body.map_err(|err| match err {
        ureq::Error::BodyExceedsLimit(_) => format!("answers more than {} KiB", MAX_BODY >> 10),
        err => err.to_string(),
    })?;
    serde_json::from_slice(&body).map_err(|err| format!("answers something else than JSON: {err}"))
}

/// What the OpenAPI document says; none where it is the one that was read last.
fn read_document(
    path: &Path,
    endpoint: &Endpoint,
    read_at: &mut Option<SystemTime>,
) -> Result<Option<Schema>, String> {
    let fail = |why: String| format!("{}: {why}", PathBuf::from(path).display());
    let file = File::open(path).map_err(|err| fail(err.to_string()))?;
    let meta = file.metadata().map_err(|err| fail(err.to_string()))?;
    if !meta.is_file() {
        return Err(fail("is not a regular file".to_owned()));
    }
    let changed = meta.modified().ok();
    if changed.is_some() && *read_at == changed {
        return Ok(None);
    }
    *read_at = None;
    let mut text = String::new();
    let read = file.take(MAX_DOCUMENT + 1).read_to_string(&mut text).map_err(|err| fail(err.to_string()))?;
    if read as u64 > MAX_DOCUMENT {
        return Err(fail(format!("is larger than {} MiB", MAX_DOCUMENT >> 20)));
    }
    // JSON is YAML, too, but its own parser is faster and says more.
    let doc: Value = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(&text).map_err(|err| fail(err.to_string()))?,
        false => serde_saphyr::from_str(&text).map_err(|err| fail(err.to_string()))?,
    };
    let way = endpoint.url.parse::<ureq::http::Uri>().map(|uri| uri.path().to_owned());
    let schema = openapi::answer(&doc, &endpoint.method, &way.unwrap_or_else(|_| "/".to_owned()));
    let schema = schema.map_err(|err| fail(err.to_string()))?;
    *read_at = changed;
    Ok(Some(schema))
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// A server that answers each connection with the next of `answers`, byte for byte; the last one again and again.
    fn server(answers: Vec<Vec<u8>>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1/x", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let mut answers = answers.into_iter().peekable();
            while let Ok((mut stream, _)) = listener.accept() {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head);
                let answer = if answers.len() > 1 { answers.next() } else { answers.peek().cloned() };
                let _ = stream.write_all(&answer.unwrap_or_default());
                let _: Result<(), _> = TcpStream::shutdown(&stream, std::net::Shutdown::Write);
            }
        });
        url
    }

    fn http(status: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nlocation: /elsewhere\r\n\r\n{body}", body.len())
            .into_bytes()
    }

    fn endpoint(url: &str) -> Endpoint {
        serde_json::from_value(serde_json::json!({ "url": url, "timeout": "2s" })).unwrap()
    }

    fn answer(bytes: Vec<u8>) -> Answer {
        ask(&endpoint(&server(vec![bytes])))
    }

    #[test]
    fn json_with_a_good_status_has_a_shape_and_nothing_else_has() {
        let Answer::Json(shape) = answer(http("200 OK", "{\"a\":1}")) else { panic!("no answer") };
        assert_eq!(*shape, Shape::of(&serde_json::json!({"a": 1})));
        for (bytes, why) in [
            (http("500 Internal Server Error", "{\"a\":1}"), "answers 500"),
            (http("302 Found", "{\"a\":1}"), "answers 302"),
            (http("200 OK", "<html>"), "something else than JSON"),
            (http("200 OK", "{\"a\":1e999}"), "something else than JSON"),
            (http("200 OK", ""), "something else than JSON"),
            (http("200 OK", &"[".repeat(100_000)), "something else than JSON"),
            (http("200 OK", &format!("\"{}\"", "x".repeat(2 << 20))), "more than 1024 KiB"),
            (b"\x00\x01\x02\r\n\r\n".to_vec(), ""),
            (Vec::new(), ""),
        ] {
            match answer(bytes) {
                Answer::None(said) => assert!(said.contains(why), "{said} is not {why}"),
                Answer::Json(shape) => panic!("{why}: {shape:?}"),
            }
        }
    }

    #[test]
    fn a_server_that_is_down_or_hangs_is_said() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        // It accepts (the kernel does) and never answers.
        let hangs = Endpoint { timeout: crate::config::Span::millis(200), ..endpoint(&url) };
        assert!(matches!(ask(&hangs), Answer::None(why) if why.contains("timeout")));
        drop(listener);
        assert!(matches!(ask(&endpoint(&url)), Answer::None(why) if why.to_lowercase().contains("refused")));
        assert!(matches!(ask(&endpoint("https://127.0.0.1:1/")), Answer::None(_)));
    }

    #[test]
    fn a_document_is_read_as_json_or_yaml_and_again_only_when_it_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("openapi.yaml");
        let yaml = "openapi: 3.0.3\npaths:\n  /v1/x:\n    get:\n      responses:\n        '200':\n          content:\n            \
                    application/json:\n              schema: {type: object, required: [a], properties: {a: {type: integer}}}\n";
        std::fs::write(&path, yaml).unwrap();
        let endpoint = endpoint("http://h/v1/x?y=1");
        let mut at = None;
        let schema = read_document(&path, &endpoint, &mut at).unwrap().expect("new");
        assert_eq!(schema.check(&Shape::of(&serde_json::json!({})), true).len(), 1);
        assert!(read_document(&path, &endpoint, &mut at).unwrap().is_none());
        std::fs::write(&path, "openapi: 3.0.3\npaths: {}\n").unwrap();
        std::fs::File::open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(read_document(&path, &endpoint, &mut at).unwrap_err().contains("no path"));
        assert!(
            read_document(&path, &endpoint, &mut at).unwrap_err().contains("no path"),
            "said until it is mended"
        );
        std::fs::write(&path, "a: &a [*a, *a]\n").unwrap();
        assert!(read_document(&path, &endpoint, &mut at).is_err());
        assert!(read_document(dir.path(), &endpoint, &mut at).unwrap_err().contains("not a regular file"));
    }
}
