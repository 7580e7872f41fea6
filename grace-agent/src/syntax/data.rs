//! JSON, YAML and TOML, by parsers of their own: these say exactly what they expected and where.

use saphyr_parser::{Event, Parser};
use serde::de::IgnoredAny;
use toml::de::DeTable;

use super::check::{Skip, Source};
use super::language::Language;
use crate::clock::Stopwatch;
use crate::event::SyntaxError;

/// A file that takes longer is given up.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// The errors of a file called `name`: at most one, since nothing can be said of what follows it.
pub(super) fn errors(language: Language, name: &str, source: &Source<'_>) -> Result<Vec<SyntaxError>, Skip> {
    match language {
        Language::Json => json(name, source),
        Language::Yaml => yaml(source),
        _ => Ok(toml(source).into_iter().collect()),
    }
}

fn json(name: &str, source: &Source<'_>) -> Result<Vec<SyntaxError>, Skip> {
    let Some(first) = json_error(source.text, source)? else { return Ok(Vec::new()) };
    // A log or a data set: a document a line.
    let mut documents = serde_json::Deserializer::from_str(source.text).into_iter::<IgnoredAny>();
    if documents.all(|document| document.is_ok()) && source.text.trim_start().starts_with(['{', '[']) {
        return Ok(Vec::new());
    }
    let plain = without_comments(source.text, reads_comments(name));
    if let Some(plain) = plain {
        if json_error(&plain, source)?.is_none() {
            // Comments are a choice of whoever reads it; npm and its kin do not.
            let strict = matches!(name, "package.json" | "package-lock.json" | "composer.json");
            return Ok(if strict { vec![first] } else { Vec::new() });
        }
        if reads_comments(name) {
            return Ok(json_error(&plain, source)?.into_iter().collect());
        }
    }
    Ok(vec![first])
}

/// What is wrong with `text`, which is that of `source` or has the same places.
fn json_error(text: &str, source: &Source<'_>) -> Result<Option<SyntaxError>, Skip> {
    match serde_json::from_str::<IgnoredAny>(text) {
        Ok(IgnoredAny) => Ok(None),
        // A limit of the parser, not of the language.
        Err(err) if err.to_string().starts_with("recursion limit exceeded") => Err(Skip::TooLong),
        Err(err) => {
            let said = err.to_string();
            let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(what, _)| what).to_owned();
            // Its columns are bytes.
            let start: usize =
                text.split_inclusive('\n').take(err.line().saturating_sub(1)).map(str::len).sum();
            Ok(Some(source.error(start + err.column().saturating_sub(1), said)))
        }
    }
}

/// Whether the tool that reads a file of this name takes comments and trailing commas.
fn reads_comments(name: &str) -> bool {
    let any = |names: &[&str]| names.iter().any(|n| name.starts_with(n));
    name.ends_with(".jsonc")
        || name.ends_with(".code-workspace")
        || any(&[
            "tsconfig",
            "jsconfig",
            ".eslintrc",
            ".babelrc",
            ".swcrc",
            ".jshintrc",
            "devcontainer",
            "deno.json",
        ])
        || matches!(
            name,
            "settings.json"
                | "launch.json"
                | "tasks.json"
                | "extensions.json"
                | "keybindings.json"
                | "language-configuration.json"
                | "turbo.json"
                | "rush.json"
                | "api-extractor.json"
                | "c_cpp_properties.json"
                | "biome.json"
                | "angular.json"
                | "nx.json"
        )
}

/// `text` with its comments as blanks, every byte in its place; with `commas` those before a closing bracket, too. None
/// where there was nothing to blank.
fn without_comments(text: &str, commas: bool) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let (mut at, mut any) = (0, false);
    let mut comma = None;
    while let Some(byte) = bytes.get(at).copied() {
        match (byte, bytes.get(at + 1)) {
            (b'"', _) => {
                comma = None;
                at += 1;
                while let Some(inner) = bytes.get(at).filter(|b| **b != b'"') {
                    at += if *inner == b'\\' { 2 } else { 1 };
                }
            }
            (b'/', Some(b'/')) => {
                while let Some(inner) = bytes.get(at).filter(|b| **b != b'\n') {
                    blank(&mut out, at, *inner);
                    at += 1;
                }
                any = true;
                continue;
            }
            (b'/', Some(b'*')) => {
                let end = text.get(at + 2..)?.find("*/")? + at + 4;
                while at < end {
                    blank(&mut out, at, *bytes.get(at)?);
                    at += 1;
                }
                any = true;
                continue;
            }
            (b',', _) => comma = Some(at),
            (b'}' | b']', _) if commas => {
                if let Some(at) = comma.take() {
                    blank(&mut out, at, b',');
                    any = true;
                }
            }
            (byte, _) if !byte.is_ascii_whitespace() => comma = None,
            _ => {}
        }
        at += 1;
    }
    any.then(|| String::from_utf8(out).ok()).flatten()
}

fn blank(out: &mut [u8], at: usize, byte: u8) {
    if byte != b'\n'
        && let Some(slot) = out.get_mut(at)
    {
        *slot = b' ';
    }
}

fn yaml(source: &Source<'_>) -> Result<Vec<SyntaxError>, Skip> {
    let clock = Stopwatch::start();
    let mut parser = Parser::new_from_str(source.text);
    let mut events = 0u32;
    while let Some(event) = parser.next_event() {
        match event {
            Ok((Event::StreamEnd, _)) => break,
            Ok(_) => {}
            Err(err) => {
                let said = err.info().to_owned();
                // Anchors are looked up by whoever composes the documents; a fragment may use those of another file.
                // Directives before YAML 1.2 needed no marker.
                if said.contains("unknown anchor") || said.contains("explicit document end marker") {
                    return Ok(Vec::new());
                }
                return Ok(vec![source.error_at(err.marker().line(), err.marker().col() + 1, said)]);
            }
        }
        events = events.wrapping_add(1);
        if events.is_multiple_of(4096) && clock.elapsed() > PATIENCE {
            return Err(Skip::TooLong);
        }
    }
    Ok(Vec::new())
}

fn toml(source: &Source<'_>) -> Option<SyntaxError> {
    let err = DeTable::parse(source.text).err()?;
    let at = err.span().map_or(0, |span| span.start);
    let said = err.message().lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>();
    Some(source.error(at, said.join("; ")))
}
