//! The configuration described: its JSON Schema, and every default as commented TOML.
//!
//! Both come from the types and their doc comments, so that neither can tell of a key that does not exist.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::Config;
use super::load::resolve;

impl Config {
    /// JSON Schema of the configuration.
    #[must_use]
    pub fn schema() -> Value {
        schemars::schema_for!(Config).to_value()
    }

    /// The configuration as TOML.
    #[must_use]
    pub fn to_toml(&self) -> String {
        // Strings, numbers, booleans, tables and arrays of them: there is nothing that TOML could not say.
        toml::to_string_pretty(self).unwrap_or_else(|err| format!("# {err}\n"))
    }

    /// Every key with its default, commented out, below the line that says what it is for. A valid configuration as
    /// it stands, and one again after any `#key = value` line lost its `#`.
    #[must_use]
    pub fn commented_defaults() -> String {
        let schema = Self::schema();
        let mut out =
            String::from("# Every setting of Grace with its default. Remove the `#` to change one.\n");
        table(&mut out, &schema, &schema, "");
        out
    }
}

/// Writes the keys of `schema` and, below them, its tables: TOML wants them in this order.
fn table(out: &mut String, schema: &Value, root: &Value, path: &str) {
    let Some(keys) = resolve(schema, root).get("properties").and_then(Value::as_object) else {
        return;
    };
    for (key, about) in in_order(schema, root, keys).filter(|(_, about)| !is_table(about, root)) {
        doc(out, about, root);
        let default = about.get("default").filter(|d| !d.is_null());
        let example = about.get("examples").and_then(|e| e.get(0));
        match default.or(example).and_then(to_toml) {
            Some(value) => {
                let unset = if about.get("default").is_some_and(Value::is_null) {
                    " # not set by default"
                } else {
                    ""
                };
                line(out, format_args!("#{key} = {value}{unset}"));
            }
            None => line(out, format_args!("# {key}: no default")),
        }
    }
    for (key, about) in keys.iter().filter(|(_, about)| is_table(about, root)) {
        let dot = if path.is_empty() { "" } else { "." };
        let name = format!("{path}{dot}{key}");
        match about.get("items") {
            Some(items) => {
                doc(out, about, root);
                line(out, format_args!("#[[{name}]]"));
                table(out, items, root, &name);
            }
            None => {
                // The header of a table that only holds tables would say nothing.
                let inner = resolve(about, root).get("properties").and_then(Value::as_object);
                if inner.is_some_and(|keys| keys.values().any(|about| !is_table(about, root))) {
                    doc(out, about, root);
                    line(out, format_args!("[{name}]"));
                }
                table(out, about, root, &name);
            }
        }
    }
}

/// Required keys first, as declared: they are what an entry begins with.
fn in_order<'a>(
    schema: &'a Value,
    root: &'a Value,
    keys: &'a Map<String, Value>,
) -> impl Iterator<Item = (&'a String, &'a Value)> {
    let required =
        resolve(schema, root).get("required").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let first = required.iter().filter_map(|name| keys.get_key_value(name.as_str()?));
    let rest = keys.iter().filter(|(key, _)| !required.iter().any(|name| name == key.as_str()));
    first.chain(rest)
}

fn is_table(about: &Value, root: &Value) -> bool {
    let properties = |schema: &Value| resolve(schema, root).get("properties").is_some();
    properties(about) || about.get("items").is_some_and(properties)
}

fn doc(out: &mut String, about: &Value, root: &Value) {
    let text = about.get("description").or_else(|| resolve(about, root).get("description"));
    line(out, format_args!(""));
    for text in text.and_then(Value::as_str).unwrap_or_default().lines() {
        line(out, format_args!("# {text}"));
    }
    let choices = resolve(about, root).get("oneOf").and_then(Value::as_array);
    for choice in choices.into_iter().flatten() {
        if let (Some(word), Some(text)) = (choice["const"].as_str(), choice["description"].as_str()) {
            line(out, format_args!("#   {word}: {text}"));
        }
    }
}

fn to_toml(value: &Value) -> Option<String> {
    match value {
        Value::Object(map) if map.is_empty() => Some("{}".to_owned()),
        value => toml::Value::try_from(value).ok().map(|v| v.to_string()),
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // A String takes everything.
    writeln!(out, "{text}").unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parse(text: &str) -> Config {
        Config::parse(text.as_bytes(), Path::new("generated.toml"))
            .unwrap_or_else(|err| panic!("{err}\n\n{text}"))
    }

    /// `text` with every setting switched on. A comment has a space after its `#`, a setting has none.
    fn switched_on(text: &str) -> String {
        let on = |line: &str| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => rest.to_owned(),
            _ => line.to_owned(),
        };
        text.lines().map(on).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_commented_defaults_are_the_defaults() {
        let text = Config::commented_defaults();
        assert_eq!(parse(&text), Config::default());

        let on = parse(&switched_on(&text));
        let mut wanted = Config::default();
        // Not set by default: switched on it is the example.
        wanted.triggers.health_gap.spinning = on.triggers.health_gap.spinning;
        wanted.policy.quiet.clone_from(&on.policy.quiet);
        assert!(wanted.triggers.health_gap.spinning.is_some());
        wanted.gpu.library.clone_from(&on.gpu.library);
        assert!(wanted.gpu.library.is_some());
        wanted.records.group = on.records.group.clone();
        assert!(wanted.records.group.is_some());
        wanted.triggers.latency_spike.relearn_after = on.triggers.latency_spike.relearn_after;
        assert!(wanted.triggers.latency_spike.relearn_after.is_some());
        wanted.http = on.http.clone();
        assert!(wanted.http.listen.is_some() && wanted.http.token_file.is_some());
        let alone = Config {
            check: vec![],
            sink: vec![],
            process: vec![],
            hook: vec![],
            file: vec![],
            model: vec![],
            queue: vec![],
            route: vec![],
            repo: vec![],
            endpoint: vec![],
            environment: vec![],
            ..on.clone()
        };
        assert_eq!(alone, wanted);
        assert_eq!(
            (on.process.len(), on.file.len(), on.queue.len(), on.route.len(), on.repo.len()),
            (1, 1, 1, 1, 1)
        );
        assert_eq!((on.endpoint.len(), on.environment.len()), (1, 1));
        let defaults = parse("[[process]]\nname = \"worker\"\ncommand = [\"/bin/true\"]");
        assert_eq!(on.process[0].backoff, defaults.process[0].backoff);
    }

    #[test]
    fn every_key_is_told_with_its_doc_comment() {
        let text = Config::commented_defaults();
        for key in
            ["mode", "name", "command", "importance", "path", "writers", "host_burst", "sweep", "max_mib"]
        {
            assert!(text.contains(&format!("\n#{key} = ")), "{key} is missing:\n{text}");
        }
        assert!(text.contains("\n#   observe: Judge"), "a choice tells what its values mean:\n{text}");
        assert!(
            text.lines().filter(|l| l.starts_with('#')).all(|l| l.len() > 2),
            "an empty comment:\n{text}"
        );
    }

    #[test]
    fn to_toml_comes_back_the_same() {
        let config = parse(&switched_on(&Config::commented_defaults()));
        assert_eq!(parse(&config.to_toml()), config);
        assert_eq!(parse(&Config::default().to_toml()), Config::default());
    }
}
