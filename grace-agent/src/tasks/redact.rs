//! Finds secrets in text of others and takes them out, before anything of it is stored.
//!
//! By form, not by guess: private key blocks, tokens whose issuers gave them a prefix, JSON Web Tokens, values behind names
//! such as `password`, `Authorization` headers, credentials in URLs. What has none of these forms stays; a digest or a
//! commit is no secret. Each find is replaced by words that say its kind, so that a reader knows that something was there.

/// What was found is replaced by this, with its kind.
const MARK: &str = "[redacted ";

/// Text without the secrets that were found in it, and how many there were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redacted {
    /// What is left.
    pub text: String,
    /// How many secrets were taken out.
    pub found: u32,
}

/// Takes the secrets out of `text`.
#[must_use]
pub fn redact(text: &str) -> Redacted {
    let mut done = Redacted { text: text.to_owned(), found: 0 };
    for step in [key_blocks, url_credentials, named_values, known_tokens] {
        let next = step(&done.text);
        done = Redacted { text: next.text, found: done.found.saturating_add(next.found) };
    }
    done
}

/// A token that its issuer made recognizable.
struct Form {
    prefix: &'static str,
    /// Characters behind the prefix, at least.
    least: usize,
    /// Which characters these are, beside letters and digits.
    more: &'static str,
    /// The prefix means it only where no word stands before it.
    apart: bool,
    kind: &'static str,
}

const fn form(
    prefix: &'static str,
    least: usize,
    more: &'static str,
    apart: bool,
    kind: &'static str,
) -> Form {
    Form { prefix, least, more, apart, kind }
}

/// Longer prefixes first where one begins with another.
const FORMS: &[Form] = &[
    form("AKIA", 16, "", true, "AWS access key"),
    form("ASIA", 16, "", true, "AWS access key"),
    form("ABIA", 16, "", true, "AWS access key"),
    form("ACCA", 16, "", true, "AWS access key"),
    form("github_pat_", 22, "_", false, "GitHub token"),
    form("ghp_", 30, "", false, "GitHub token"),
    form("gho_", 30, "", false, "GitHub token"),
    form("ghu_", 30, "", false, "GitHub token"),
    form("ghs_", 30, "", false, "GitHub token"),
    form("ghr_", 30, "", false, "GitHub token"),
    form("glpat-", 20, "-_.", false, "GitLab token"),
    form("gldt-", 20, "-_.", false, "GitLab token"),
    form("glrt-", 20, "-_.", false, "GitLab token"),
    form("glptt-", 20, "-_.", false, "GitLab token"),
    form("glcbt-", 20, "-_.", false, "GitLab token"),
    form("glsoat-", 20, "-_.", false, "GitLab token"),
    form("xoxb-", 10, "-", false, "Slack token"),
    form("xoxa-", 10, "-", false, "Slack token"),
    form("xoxp-", 10, "-", false, "Slack token"),
    form("xoxr-", 10, "-", false, "Slack token"),
    form("xoxs-", 10, "-", false, "Slack token"),
    form("xoxe-", 10, "-", false, "Slack token"),
    form("xoxe.", 10, "-.", false, "Slack token"),
    form("xapp-", 10, "-", false, "Slack token"),
    form("hooks.slack.com/services/", 20, "/", false, "Slack webhook"),
    form("sk-ant-", 20, "-_", true, "Anthropic key"),
    form("sk-", 20, "-_", true, "OpenAI key"),
    form("hf_", 20, "", true, "Hugging Face token"),
    form("api_org_", 20, "", true, "Hugging Face token"),
    form("AIza", 35, "-_", true, "Google API key"),
    form("ya29.", 20, "-_.", true, "Google OAuth token"),
    form("GOCSPX-", 20, "-_", true, "Google client secret"),
    form("sk_live_", 16, "_", true, "Stripe key"),
    form("sk_test_", 16, "_", true, "Stripe key"),
    form("rk_live_", 16, "_", true, "Stripe key"),
    form("rk_test_", 16, "_", true, "Stripe key"),
    form("whsec_", 16, "+/=_-", true, "webhook secret"),
    form("npm_", 30, "", true, "npm token"),
    form("pypi-AgE", 40, "-_", true, "PyPI token"),
    form("SG.", 40, "-_.", true, "SendGrid key"),
    form("dop_v1_", 40, "", true, "DigitalOcean token"),
    form("AGE-SECRET-KEY-1", 40, "", false, "age key"),
];

/// Tokens with a prefix, and JSON Web Tokens.
fn known_tokens(text: &str) -> Redacted {
    let mut out = Out::new(text);
    let mut at = 0;
    while at < text.len() {
        if !text.is_char_boundary(at) {
            at += 1;
            continue;
        }
        let rest = &text[at..];
        let apart = !text[..at].chars().next_back().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
        let found = FORMS.iter().find_map(|form| {
            let behind = rest.strip_prefix(form.prefix)?;
            if form.apart && !apart {
                return None;
            }
            let length = run(behind, form.more);
            (length >= form.least).then_some((form.prefix.len() + length, form.kind))
        });
        let found = found.or_else(|| apart.then(|| web_token(rest)).flatten().map(|length| (length, "JWT")));
        match found {
            Some((length, kind)) => {
                out.replace(at, at + length, kind);
                at += length;
            }
            None => at += 1,
        }
    }
    out.done()
}

/// The length of the JSON Web Token at the begin of `text`: three parts, the first of which is an object.
fn web_token(text: &str) -> Option<usize> {
    if !text.starts_with("eyJ") {
        return None;
    }
    let head = run(text, "-_");
    let body = text[head..].strip_prefix('.').map(|rest| run(rest, "-_"))?;
    if head < 10 || body < 10 {
        return None;
    }
    let two = head + 1 + body;
    let end = text[two..].strip_prefix('.').map_or(0, |rest| 1 + run(rest, "-_"));
    Some(two + end)
}

/// How many of the first characters are letters, digits or of `more`.
fn run(text: &str, more: &str) -> usize {
    text.bytes().take_while(|b| b.is_ascii_alphanumeric() || more.as_bytes().contains(b)).count()
}

/// Private keys as PEM blocks, also where only their begin or their end is there.
fn key_blocks(text: &str) -> Redacted {
    let mut out = Out::new(text);
    let mut at = 0;
    while let Some(begin) = text[at..].find("-----BEGIN ").map(|found| at + found) {
        let label = begin + "-----BEGIN ".len();
        let Some(end_of_label) = text[label..].find("-----").map(|n| label + n) else { break };
        if !is_private(&text[label..end_of_label]) {
            at = end_of_label;
            continue;
        }
        let body = end_of_label + 5;
        let end = text[body..].find("-----END ").map(|n| body + n).map_or(text.len(), |end| {
            let label = end + "-----END ".len();
            text[label..].find("-----").map_or(text.len(), |n| label + n + 5)
        });
        // The begin of one that was cut off goes as far as its lines look like one.
        out.replace(begin, end, "private key");
        at = end;
    }
    let done = out.done();
    tail_of_block(done)
}

fn is_private(label: &str) -> bool {
    label.len() < 60 && (label.contains("PRIVATE KEY") || label.contains("SECRET KEY"))
}

/// A block of which only the end is there: its lines of Base64 before it.
fn tail_of_block(done: Redacted) -> Redacted {
    let text = done.text;
    let Some(end) = text.match_indices("-----END ").find_map(|(at, _)| {
        let label = at + "-----END ".len();
        let close = text[label..].find("-----").map(|n| label + n)?;
        is_private(&text[label..close]).then_some((at, close + 5))
    }) else {
        return Redacted { text, found: done.found };
    };
    let mut begin = end.0;
    for line in text[..end.0].split('\n').rev() {
        let body = line.trim();
        let encoded =
            !body.is_empty() && body.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b));
        let last_break = body.is_empty() && begin == end.0;
        if !encoded && !last_break {
            break;
        }
        begin = begin.saturating_sub(line.len() + 1);
    }
    let mut out = Out::new(&text);
    out.replace(begin.min(end.0), end.1, "private key");
    let more = out.done();
    // There may be another one.
    tail_of_block(Redacted { text: more.text, found: done.found.saturating_add(more.found) })
}

/// `scheme://user:password@host`.
fn url_credentials(text: &str) -> Redacted {
    let mut out = Out::new(text);
    let mut at = 0;
    while let Some(found) = text[at..].find("://").map(|n| at + n + 3) {
        at = found;
        let authority: usize = text[found..]
            .bytes()
            .take_while(|b| !b.is_ascii_whitespace() && !b"/?#\"'<>\\`".contains(b))
            .count();
        // The last one: a password may hold another.
        if let Some(host) = text[found..found + authority].rfind('@')
            && host > 0
        {
            out.replace(found, found + host, "credentials");
            at = found + host;
        }
    }
    out.done()
}

/// Names whose values are secrets: the end of a name, without its separators.
const NAMES: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "secretkey",
    "token",
    "apikey",
    "accesskey",
    "accesskeyid",
    "privatekey",
    "authkey",
    "signingkey",
    "encryptionkey",
    "sessionkey",
    "accountkey",
    "credential",
    "credentials",
    "authorization",
    "proxyauthorization",
    "cookie",
    "setcookie",
    "sessionid",
];

/// Values behind names: `password=…`, `"api_key": "…"`, `--token …`, `Authorization: Bearer …`.
fn named_values(text: &str) -> Redacted {
    let mut out = Out::new(text);
    let bytes = text.as_bytes();
    let is_name = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    let mut at = 0;
    while at < bytes.len() {
        if !is_name(bytes[at]) {
            // What was taken out already is named in words that are names, too.
            let marked = bytes[at..].starts_with(MARK.as_bytes());
            let skip = if marked { text[at..].find(']').map_or(1, |n| n + 1) } else { 1 };
            at += skip;
            continue;
        }
        let end = at + bytes[at..].iter().take_while(|b| is_name(**b)).count();
        let word = &text[at..end];
        let option = word.starts_with("--");
        let plain: String =
            word.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
        let named = word.len() <= 80 && NAMES.iter().any(|name| plain.ends_with(name));
        if let Some((from, to)) = named.then(|| value(text, end, &plain, option)).flatten() {
            out.replace(from, to, "secret");
            at = to;
        } else if plain == "bearer" {
            // Without a header's name, as in a command line or a log.
            let from = end + bytes[end..].iter().take_while(|b| **b == b' ').count();
            let length = run(&text[from..], "-._~+/=");
            if from > end && length >= 16 {
                out.replace(from, from + length, "secret");
                at = from + length;
            } else {
                at = end;
            }
        } else {
            at = end;
        }
    }
    out.done()
}

/// Where the value is that belongs to a name which ended at `at`.
fn value(text: &str, at: usize, name: &str, option: bool) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    let skip = |from: usize, of: &[u8]| from + bytes[from..].iter().take_while(|b| of.contains(b)).count();
    // The quote that ends the name, escaped once or twice where JSON stands in JSON.
    let behind = skip(at, b"\\\"'] \t");
    let mut from = match bytes.get(behind) {
        Some(b'=' | b':') => skip(behind, b"=:>"),
        _ if option && bytes.get(at) == Some(&b' ') => at,
        _ => return None,
    };
    from = skip(from, b" \t");
    let mut quote = None;
    let opened = skip(from, b"\\");
    if let Some(b'"' | b'\'') = bytes.get(opened) {
        quote = bytes.get(opened).copied();
        from = opened + 1;
    }
    let mut to = ends(text, from, quote, name.ends_with("cookie"));
    // `Authorization: Bearer VALUE`: the scheme is no secret.
    let scheme = text[from..to].to_ascii_lowercase();
    if name.ends_with("authorization")
        && ["bearer", "basic", "token", "digest", "negotiate", "apikey"].contains(&scheme.as_str())
    {
        from = skip(to, b" \t");
        to = ends(text, from, quote, true);
    }
    let found = &text[from..to];
    let nothing = ["", "none", "null", "nil", "true", "false", "undefined", "required", "missing", "invalid"];
    let told = found.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_ascii_lowercase();
    let marked = found.starts_with('[') && text[from..].starts_with(MARK);
    (!marked && !nothing.contains(&told.as_str())).then_some((from, to))
}

/// Where a value ends: at its quote, or at what cannot belong to it.
fn ends(text: &str, from: usize, quote: Option<u8>, whole_line: bool) -> usize {
    let end = |b: &u8| match quote {
        Some(quote) => *b == quote || *b == b'\n',
        None if whole_line => b"\r\n\"'".contains(b),
        None => b.is_ascii_whitespace() || b"\"',;&|)}]<>`".contains(b),
    };
    let length = text.as_bytes()[from..].iter().take_while(|b| !end(b)).count();
    let mut to = from + length;
    // The backslash before an escaped quote belongs to the quote.
    while to > from && quote.is_some() && text.as_bytes()[to - 1] == b'\\' {
        to -= 1;
    }
    to
}

/// Text that is copied but for what is replaced.
struct Out<'a> {
    from: &'a str,
    text: String,
    copied: usize,
    found: u32,
}

impl<'a> Out<'a> {
    fn new(from: &'a str) -> Self {
        Self { from, text: String::with_capacity(from.len()), copied: 0, found: 0 }
    }

    fn replace(&mut self, from: usize, to: usize, kind: &str) {
        if from < self.copied || to < from {
            return;
        }
        self.text.push_str(&self.from[self.copied..from]);
        self.text.push_str(MARK);
        self.text.push_str(kind);
        self.text.push(']');
        self.copied = to;
        self.found = self.found.saturating_add(1);
    }

    fn done(mut self) -> Redacted {
        self.text.push_str(&self.from[self.copied..]);
        Redacted { text: self.text, found: self.found }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Made up, and put together here, so that no scanner of repositories takes them for real ones.
    fn corpus() -> Vec<(&'static str, String, String)> {
        let letters = "Ab3dEf6hIj9kLm2nOp5qRs8tUv1wXy4zAb3dEf6hIj9kLm2nOp5q";
        let upper: String = letters.to_uppercase();
        let token = |prefix: &str, n: usize| format!("{prefix}{}", &letters[..n]);
        let jwt = format!("eyJ{}.eyJ{}.{}", &letters[..20], &letters[..30], &letters[..40]);
        let key = format!(
            "-----BEGIN {0}PRIVATE KEY-----\n{1}\n{1}\n-----END {0}PRIVATE KEY-----",
            "RSA ", letters
        );
        let mut all = vec![
            ("aws", format!("AKIA{}", &upper[..16]), "key AKIA… of an instance".to_owned()),
            ("aws session", format!("ASIA{}", &upper[..16]), String::new()),
            ("github", token("ghp_", 36), String::new()),
            ("github app", token("ghs_", 36), String::new()),
            ("github fine", token("github_pat_", 50), String::new()),
            ("gitlab", token("glpat-", 20), String::new()),
            ("slack bot", format!("xoxb-123456789012-{}", &letters[..24]), String::new()),
            (
                "slack hook",
                format!("hooks.slack.com/services/T{0}/B{0}/{1}", &upper[..8], &letters[..24]),
                String::new(),
            ),
            ("openai", token("sk-proj-", 48), String::new()),
            ("openai old", token("sk-", 48), String::new()),
            ("anthropic", token("sk-ant-api03-", 48), String::new()),
            ("hugging face", token("hf_", 34), String::new()),
            ("google", token("AIza", 35), String::new()),
            ("google oauth", token("ya29.", 40), String::new()),
            ("stripe", token("sk_live_", 24), String::new()),
            ("jwt", jwt, String::new()),
            ("npm", token("npm_", 36), String::new()),
            ("private key", letters.to_owned(), key),
        ];
        let named = [
            ("password", "password={}"),
            ("password json", "{\"password\": \"{}\", \"user\": \"ann\"}"),
            ("password in json in json", "{\\\"db_password\\\": \\\"{}\\\"}"),
            ("environment", "DATABASE_PASSWORD='{}' python app.py"),
            ("yaml", "  api_key: {}\n  other: 1"),
            ("header", "Authorization: Bearer {}"),
            ("basic", "authorization: Basic {}\r\nhost: a"),
            ("curl", "curl -H 'X-Api-Key: {}' http://host/"),
            ("bare bearer", "sent Bearer {} to the host"),
            ("option", "worker --token {} --port 80"),
            ("aws secret", "aws_secret_access_key = {}"),
            ("url", "postgres://ann:{}@db.internal:5432/app"),
            ("url without a user", "redis://:{}@cache:6379/0"),
            ("cookie", "Cookie: session={}; theme=dark"),
        ];
        for (name, form) in named {
            all.push((name, letters[..30].to_owned(), form.replace("{}", &letters[..30])));
        }
        all
    }

    #[test]
    fn secrets_of_every_known_form_are_taken_out() {
        for (name, secret, text) in corpus() {
            let text = if text.contains(&secret) { text } else { format!("failed with {secret}, again") };
            let done = redact(&text);
            assert!(!done.text.contains(&secret), "{name}: {}", done.text);
            assert!(done.found > 0 && done.text.contains(MARK), "{name}: {}", done.text);
            assert_eq!(redact(&done.text).text, done.text, "{name}: twice is once");
        }
    }

    #[test]
    fn the_end_of_a_key_whose_begin_was_cut_off_is_taken_out_with_its_lines() {
        let line = "MIIEpAIBAAKCAQEAx0x0x0x0x0x0x0x0x0x0x0x0x0x0x0x0";
        let text =
            format!("  File \"a.py\"\n  {line}\n  {line}\n  -----END RSA PRIVATE KEY-----\nValueError: bad");
        let done = redact(&text).text;
        assert!(!done.contains(line) && done.contains("a.py") && done.contains("ValueError"), "{done}");
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "commit 361d0e0f5c5d7b8a9e2b1c3d4e5f60718293a4b5 is deployed",
            "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "the task-list-of-all-the-open-things-there-are is long",
            "password: None",
            "a public key: -----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
            "File \"/srv/app/token.py\", line 3, in tokens",
            "http://127.0.0.1:8000/v1/models?limit=10",
            "KeyError: 'token'",
        ] {
            assert_eq!(redact(text), Redacted { text: text.to_owned(), found: 0 });
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived_and_twice_is_once(text in "\\PC{0,300}", n in 0_usize..32, cut in 0_usize..300) {
            let all = corpus();
            let (_, secret, _) = &all[n % all.len()];
            let cut = (0..=cut.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            let done = redact(&format!("{} {secret} {}", &text[..cut], &text[cut..]));
            let again = redact(&done.text);
            prop_assert_eq!(again.text, done.text);
        }
    }
}
