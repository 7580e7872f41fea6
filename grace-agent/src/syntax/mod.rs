//! The syntax check of source trees: which files do not parse, where, and what was expected there.
//!
//! `language.rs` which language a file is in · `check.rs` one file's bytes · `grammar.rs` tree-sitter's word on them ·
//! `opinion.rs` the language's own parser, which must agree · `clike.rs` C and C++, where macros make every parser
//! guess · `data.rs` JSON, YAML, TOML · `worker.rs` the process in which files are parsed · `cache.rs` what earlier
//! scans found · `scan.rs` a whole scan.
//!
//! Sources are hostile input and some of the parsers are written in C. So they run in processes of their own with
//! bounded memory: one that crashes, hangs or grows costs one file, which is counted.

mod cache;
mod check;
mod clike;
mod data;
mod grammar;
mod language;
mod opinion;
mod scan;
mod worker;

pub use cache::Cache;
pub use check::{Checked, Skip, check};
pub use language::Language;
pub use scan::{Broken, Counters, Counts, Options, ScanError, Scanned, scan, told_path};
pub use worker::{COMMAND, serve};

/// Files larger than this are not parsed, in bytes: they are data or generated.
pub const MAX_FILE: u64 = 4 << 20;

/// The name of the file in which results are kept between scans.
pub const CACHE_FILE: &str = "syntax.cache";

/// Errors told of one file: what follows the first ones is mostly their echo.
pub const MAX_ERRORS: usize = 3;

/// How much of the offending line is told, in characters.
pub const MAX_LINE: usize = 160;

/// What is to be raised when the same file may be judged differently: by a rule in here or by another version of a
/// parser. Results of earlier scans then count no more. `parsers_are_those_that_the_rules_were_raised_for` fails when
/// Cargo.lock has another version than [`PARSERS`].
pub const RULES: u32 = 1;

/// The parsers and their versions.
pub const PARSERS: &[(&str, &str)] = &[
    ("brush-parser", "0.4.0"),
    ("oxc_parser", "0.146.0"),
    ("rustpython-ruff_python_parser", "0.15.8"),
    ("saphyr-parser", "0.3.4"),
    ("syn", "2.0.119"),
    ("tree-sitter", "0.27.1"),
    ("tree-sitter-bash", "0.25.1"),
    ("tree-sitter-c", "0.24.2"),
    ("tree-sitter-cpp", "0.23.4"),
    ("tree-sitter-go", "0.25.0"),
    ("tree-sitter-javascript", "0.25.0"),
    ("tree-sitter-python", "0.25.0"),
    ("tree-sitter-rust", "0.24.2"),
    ("tree-sitter-typescript", "0.23.2"),
];

#[cfg(test)]
mod tests {
    use super::PARSERS;

    #[test]
    fn parsers_are_those_that_the_rules_were_raised_for() {
        let lock = include_str!("../../../Cargo.lock");
        for (name, version) in PARSERS {
            let entry = format!("name = \"{name}\"\nversion = \"{version}\"\n");
            assert!(
                lock.contains(&entry),
                "{name} is not {version} any more: update PARSERS and raise RULES"
            );
        }
    }
}
