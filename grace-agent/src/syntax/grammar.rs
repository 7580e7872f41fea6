//! tree-sitter's word: the errors in the tree that its grammar makes of a source.
//!
//! It is made for editors: it parses anything, without recursion, in bounded time, and marks what did not fit.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use tree_sitter::{Node, ParseOptions, ParseState, Parser, Tree, TreeCursor};

use super::check::{Skip, Source};
use super::language::Language;
use super::{MAX_ERRORS, clike};
use crate::clock::Stopwatch;
use crate::event::SyntaxError;

/// A file that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(5);

thread_local! {
    static PARSERS: RefCell<BTreeMap<Language, Parser>> = const { RefCell::new(BTreeMap::new()) };
}

/// The errors, in the order of the text; empty where it parses.
pub(super) fn errors(language: Language, source: &Source<'_>) -> Result<Vec<SyntaxError>, Skip> {
    let tree = tree(language, source.text)?;
    Ok(marks(&tree).into_iter().take(MAX_ERRORS).map(|node| told(node, source)).collect())
}

/// The tree of `text`.
pub(super) fn tree(language: Language, text: &str) -> Result<Tree, Skip> {
    let grammar = match language {
        Language::Python => tree_sitter_python::LANGUAGE,
        Language::Rust => tree_sitter_rust::LANGUAGE,
        Language::JavaScript => tree_sitter_javascript::LANGUAGE,
        Language::TypeScript => tree_sitter_typescript::LANGUAGE_TYPESCRIPT,
        Language::Tsx => tree_sitter_typescript::LANGUAGE_TSX,
        Language::Go => tree_sitter_go::LANGUAGE,
        Language::C => tree_sitter_c::LANGUAGE,
        Language::Cpp => tree_sitter_cpp::LANGUAGE,
        Language::Shell => tree_sitter_bash::LANGUAGE,
        Language::Json | Language::Yaml | Language::Toml => return Err(Skip::NoSource),
    };
    let clock = Stopwatch::start();
    PARSERS.with_borrow_mut(|parsers| {
        let parser = parsers.entry(language).or_default();
        // Fails where the grammar is of another generation than the library: a defect of the build, which the tests
        // find.
        if parser.set_language(&grammar.into()).is_err() {
            return Err(Skip::Crashed);
        }
        let mut progress = |_: &ParseState| match clock.elapsed() > PATIENCE {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let bytes = text.as_bytes();
        let mut read = |at: usize, _| bytes.get(at..).unwrap_or_default();
        let options = ParseOptions::new().progress_callback(&mut progress);
        let tree = parser.parse_with_options(&mut read, None, Some(options));
        if tree.is_none() {
            // What it had begun must not go into the next file.
            parser.reset();
        }
        tree.ok_or(Skip::TooLong)
    })
}

/// The nodes that did not fit and hold no smaller one that did not, in the order of the text.
pub(super) fn marks(tree: &Tree) -> Vec<Node<'_>> {
    let mut out = Vec::new();
    let mut cursor = tree.walk();
    // No recursion: trees are as deep as their text. No child by its number: that counts from the first one.
    loop {
        let node = cursor.node();
        if node.is_missing() || node.is_error() && !holds_another(&mut cursor) {
            out.push(node);
        } else if node.has_error() && cursor.goto_first_child() {
            continue;
        }
        loop {
            if cursor.goto_next_sibling() {
                break;
            }
            if !cursor.goto_parent() {
                out.sort_by_key(Node::start_byte);
                return out;
            }
        }
    }
}

/// Whether a child of the node at `cursor`, which stays there, did not fit.
fn holds_another(cursor: &mut TreeCursor<'_>) -> bool {
    if !cursor.goto_first_child() {
        return false;
    }
    let mut found = false;
    while !found {
        found = cursor.node().is_missing() || cursor.node().has_error();
        if !found && !cursor.goto_next_sibling() {
            break;
        }
    }
    cursor.goto_parent();
    found
}

fn told(node: Node<'_>, source: &Source<'_>) -> SyntaxError {
    if node.is_missing() {
        return source.error(clike::end_of_code(source.text, node.start_byte()), missing(node));
    }
    let text = source.text.get(node.byte_range()).unwrap_or_default();
    let word: String = text.lines().next().unwrap_or_default().trim().chars().take(24).collect();
    let problem = if word.is_empty() {
        "does not parse here".to_owned()
    } else {
        format!("`{word}` does not fit here")
    };
    source.error(node.start_byte(), problem)
}

/// What a missing node should have been.
pub(super) fn missing(node: Node<'_>) -> String {
    let kind = node.kind();
    match kind {
        "\n" => "a line break is missing".to_owned(),
        kind if kind.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && node.is_named() => {
            format!("{} is missing", kind.replace('_', " "))
        }
        kind => format!("`{kind}` is missing"),
    }
}
