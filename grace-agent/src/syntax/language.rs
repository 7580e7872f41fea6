//! Which language a file is in: by its name, and where the name does not tell, by its first line.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A language that is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Language {
    /// Python 3 (Python 2 is told apart and left alone).
    Python = 1,
    /// Rust.
    Rust = 2,
    /// JavaScript, JSX too.
    JavaScript = 3,
    /// TypeScript.
    TypeScript = 4,
    /// TypeScript with JSX.
    Tsx = 5,
    /// Go.
    Go = 6,
    /// C.
    C = 7,
    /// C++.
    Cpp = 8,
    /// POSIX shell and bash.
    Shell = 9,
    /// JSON, and JSON with comments where a tool reads it so.
    Json = 10,
    /// YAML.
    Yaml = 11,
    /// TOML.
    Toml = 12,
}

impl Language {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Python,
        Self::Rust,
        Self::JavaScript,
        Self::TypeScript,
        Self::Tsx,
        Self::Go,
        Self::C,
        Self::Cpp,
        Self::Shell,
        Self::Json,
        Self::Yaml,
        Self::Toml,
    ];

    /// Its name for people and `--json`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Rust => "rust",
            Self::JavaScript => "javascript",
            Self::TypeScript => "typescript",
            Self::Tsx => "tsx",
            Self::Go => "go",
            Self::C => "c",
            Self::Cpp => "c++",
            Self::Shell => "shell",
            Self::Json => "json",
            Self::Yaml => "yaml",
            Self::Toml => "toml",
        }
    }

    /// The language with this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|language| *language as u8 == number)
    }
}

/// What a file's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    /// It is in this language.
    Is(Language),
    /// Its first line may tell (`#!`).
    AskFirstLine,
    /// It is not a source in a language that is checked.
    Other,
}

/// What the name of `path` says.
pub(super) fn by_name(path: &Path) -> Named {
    use Language::*;
    let Some(name) = path.file_name().map(OsStrExt::as_bytes) else { return Named::Other };
    let Some(name) = std::str::from_utf8(name).ok() else {
        // The ending of a name in another encoding is ASCII all the same.
        return ending(name).map_or(Named::Other, by_ending);
    };
    match name {
        ".babelrc" | ".eslintrc" | ".swcrc" | ".jshintrc" => return Named::Is(Json),
        ".bashrc" | ".bash_profile" | ".bash_aliases" | ".profile" | "PKGBUILD" => return Named::Is(Shell),
        "Pipfile" | "Cargo.lock" | "poetry.lock" | "uv.lock" => return Named::Is(Toml),
        "SConstruct" | "SConscript" | "wscript" => return Named::Is(Python),
        _ => {}
    }
    match ending(name.as_bytes()) {
        Some(ending) => by_ending(ending),
        None => Named::AskFirstLine,
    }
}

/// What follows the last dot, where something stands before it.
fn ending(name: &[u8]) -> Option<&[u8]> {
    let at = name.iter().rposition(|b| *b == b'.')?;
    (at > 0).then(|| &name[at + 1..])
}

fn by_ending(ending: &[u8]) -> Named {
    use Language::*;
    Named::Is(match ending {
        b"py" | b"pyi" | b"pyw" => Python,
        b"rs" => Rust,
        b"js" | b"mjs" | b"cjs" | b"jsx" => JavaScript,
        b"ts" | b"mts" | b"cts" => TypeScript,
        b"tsx" => Tsx,
        b"go" => Go,
        b"c" => C,
        // A header may be of either: judged as the more tolerant one.
        b"h" | b"cc" | b"cpp" | b"cxx" | b"c++" | b"hh" | b"hpp" | b"hxx" | b"h++" | b"ipp" | b"cu"
        | b"cuh" => Cpp,
        b"sh" | b"bash" => Shell,
        b"json" | b"jsonc" | b"webmanifest" | b"code-workspace" => Json,
        b"yaml" | b"yml" => Yaml,
        b"toml" => Toml,
        _ => return Named::Other,
    })
}

/// What the first bytes of a file say: the interpreter in `#!`.
pub(super) fn by_first_line(head: &[u8]) -> Option<Language> {
    let mut lines = head.strip_prefix(b"#!")?.split(|b| *b == b'\n');
    let line = lines.next()?;
    // Python that a shell starts, because its interpreter's path is too long for the first line.
    if lines.next().is_some_and(|second| second.starts_with(b"'''exec") || second.starts_with(b"''''exec")) {
        return Some(Language::Python);
    }
    let line = std::str::from_utf8(line).ok()?;
    // `env -S` and its settings come before the interpreter.
    let program = line
        .split_whitespace()
        .map(|word| word.rsplit('/').next().unwrap_or(word))
        .find(|word| *word != "env" && !word.starts_with('-') && !word.contains('='))?;
    match program {
        "sh" | "bash" | "dash" | "ash" => Some(Language::Shell),
        "node" | "nodejs" => Some(Language::JavaScript),
        "python" | "python3" => Some(Language::Python),
        version if version.starts_with("python3.") => Some(Language::Python),
        _ => None,
    }
}

/// Folders that hold what tools made or fetched, never what people wrote. `beside` tells whether a name lies beside
/// it, `inside` whether one lies in it.
pub(super) fn is_made_by_tools(
    name: &[u8],
    beside: impl Fn(&str) -> bool,
    inside: impl Fn(&str) -> bool,
) -> bool {
    match name {
        b"node_modules" | b"bower_components" | b"jspm_packages" | b"__pycache__" | b"site-packages"
        | b"dist-packages" | b".git" | b".hg" | b".svn" | b".jj" | b".venv" | b".tox" | b".nox"
        | b".mypy_cache" | b".ruff_cache" | b".pytest_cache" | b".eggs" | b".terraform" | b".gradle"
        | b".next" | b".nuxt" | b".yarn" | b".cache" => true,
        // Not made by tools, but what Go's leave alone: often wrong on purpose.
        b"testdata" => true,
        b"venv" | b"env" | b"virtualenv" => inside("pyvenv.cfg"),
        b"target" => beside("Cargo.toml") || inside("CACHEDIR.TAG"),
        b"vendor" => inside("modules.txt") || inside("autoload.php") || inside("bundle"),
        _ => inside("CACHEDIR.TAG"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_language() {
        for (name, wanted) in [
            ("/a/main.py", Named::Is(Language::Python)),
            ("x.tsx", Named::Is(Language::Tsx)),
            ("tsconfig.json", Named::Is(Language::Json)),
            ("lib.h", Named::Is(Language::Cpp)),
            (".bashrc", Named::Is(Language::Shell)),
            (".gitignore", Named::AskFirstLine),
            ("configure", Named::AskFirstLine),
            ("a.j2", Named::Other),
            ("values.yaml.tmpl", Named::Other),
            ("photo.png", Named::Other),
        ] {
            assert_eq!(by_name(Path::new(name)), wanted, "{name}");
        }
    }

    #[test]
    fn first_lines_tell_the_language() {
        for (line, wanted) in [
            ("#!/bin/sh -e\nx", Some(Language::Shell)),
            ("#!/usr/bin/env python3\n", Some(Language::Python)),
            ("#!/usr/bin/env -S A=b node --x\n", Some(Language::JavaScript)),
            ("#!/usr/bin/python2.7\n", None),
            ("#!/bin/zsh\n", None),
            ("#!/bin/sh\n'''exec' /opt/python \"$0\" \"$@\"\n' '''\n", Some(Language::Python)),
            ("#!\n", None),
            ("\u{7f}ELF", None),
            ("", None),
        ] {
            assert_eq!(by_first_line(line.as_bytes()), wanted, "{line:?}");
        }
    }

    #[test]
    fn every_language_has_its_own_number() {
        for language in Language::ALL {
            assert_eq!(Language::from_number(language as u8), Some(language));
        }
        assert_eq!(Language::from_number(0), None);
    }
}
