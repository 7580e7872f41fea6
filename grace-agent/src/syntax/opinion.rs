//! The second opinion: the language's own parser, where there is one in Rust. Its word counts: it knows the language as
//! it is now, and says what it expected and where.

use oxc_allocator::Allocator;
use oxc_span::SourceType;

use super::MAX_ERRORS;
use super::check::Source;
use super::language::Language;
use crate::event::SyntaxError;

/// The errors that the language's own parser finds in the file called `name`; none where there is no such parser.
pub(super) fn errors(language: Language, name: &str, source: &Source<'_>) -> Option<Vec<SyntaxError>> {
    match language {
        Language::Python => Some(python(name, source)),
        Language::Rust => Some(rust(source)),
        Language::JavaScript | Language::TypeScript | Language::Tsx => {
            Some(javascript(language, name, source))
        }
        Language::Shell => Some(shell(source)),
        _ => None,
    }
}

/// Whether the language's own parser takes less time than tree-sitter.
pub(super) fn is_quick(language: Language) -> bool {
    matches!(language, Language::Python | Language::JavaScript | Language::TypeScript | Language::Tsx)
}

fn python(_name: &str, source: &Source<'_>) -> Vec<SyntaxError> {
    use rustpython_ruff_python_parser::{Mode, ParseOptions, parse_unchecked};
    let parsed = parse_unchecked(source.text, ParseOptions::from(Mode::Module));
    let told = parsed.errors().iter().take(MAX_ERRORS);
    told.map(|err| source.error(err.location.start().to_usize(), err.error.to_string())).collect()
}

fn rust(source: &Source<'_>) -> Vec<SyntaxError> {
    let Err(err) = syn::parse_file(source.text) else { return Vec::new() };
    // What is only included elsewhere may be the inside of a block, or one expression.
    if syn::parse_str::<syn::Block>(&format!("{{{}\n}}", source.text)).is_ok()
        || syn::parse_str::<syn::Expr>(source.text).is_ok()
    {
        return Vec::new();
    }
    // A span ends where the compiler would underline; a missing token is told at the next one.
    err.into_iter()
        .take(MAX_ERRORS)
        .map(|err| {
            let at = err.span().start();
            let problem = match err.to_string() {
                // The tokens themselves do not fit: an unclosed bracket, mostly.
                lex if lex.starts_with("lex error") => "a bracket or a quote has no partner".to_owned(),
                other => other,
            };
            source.error_at(at.line, at.column + 1, problem)
        })
        .collect()
}

fn javascript(language: Language, name: &str, source: &Source<'_>) -> Vec<SyntaxError> {
    let ending = name.rsplit('.').next().unwrap_or_default();
    let kinds = match language {
        Language::Tsx => vec![SourceType::tsx()],
        Language::TypeScript
            if name.ends_with(".d.ts") || name.ends_with(".d.mts") || name.ends_with(".d.cts") =>
        {
            vec![SourceType::d_ts(), SourceType::ts()]
        }
        Language::TypeScript => vec![SourceType::ts(), SourceType::ts().with_script(true)],
        _ if ending == "mjs" => vec![SourceType::mjs().with_jsx(true)],
        // As a module, as a script, as what a bundler takes: right in one of them is right.
        _ => vec![
            SourceType::mjs().with_jsx(true),
            SourceType::script().with_jsx(true),
            SourceType::cjs().with_jsx(true),
        ],
    };
    let mut first = None;
    for kind in kinds {
        let allocator = Allocator::default();
        let options = oxc_parser::ParseOptions {
            allow_return_outside_function: true,
            ..oxc_parser::ParseOptions::default()
        };
        let parsed = oxc_parser::Parser::new(&allocator, source.text, kind).with_options(options).parse();
        let told: Vec<SyntaxError> = parsed
            .diagnostics
            .errors()
            .take(MAX_ERRORS)
            .map(|problem| {
                let at = problem
                    .labels
                    .first()
                    .map_or(0, |label| usize::try_from(label.offset()).unwrap_or(usize::MAX));
                let help = problem.labels.first().and_then(|label| label.label()).unwrap_or_default();
                let dash = if help.is_empty() { "" } else { ": " };
                source.error(at, format!("{}{dash}{help}", problem.message))
            })
            .collect();
        if told.is_empty() {
            return Vec::new();
        }
        first.get_or_insert(told);
    }
    first.unwrap_or_default()
}

fn shell(source: &Source<'_>) -> Vec<SyntaxError> {
    use brush_parser::{ParseError, Parser, ParserOptions};
    let parsed = Parser::new(source.text.as_bytes(), &ParserOptions::default()).parse_program();
    let Err(err) = parsed else { return Vec::new() };
    vec![match err {
        ParseError::ParsingNear(at) => {
            let word = source.text.lines().nth(at.line.saturating_sub(1)).unwrap_or_default();
            let word: String = word.chars().skip(at.column.saturating_sub(1)).take(24).collect();
            source.error_at(at.line, at.column, format!("`{}` does not fit here", word.trim()))
        }
        ParseError::ParsingAtEndOfInput => {
            source.error(source.text.len(), "ends within a command: something is never closed")
        }
        ParseError::Tokenizing { inner, position } => match position {
            Some(at) => source.error_at(at.line, at.column, inner.to_string()),
            None => source.error(source.text.len(), inner.to_string()),
        },
    }]
}
