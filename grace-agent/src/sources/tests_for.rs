//! Which tests are likely to cover a file: by their names, by where they lie and by what they import. Pure but for `read`.

use std::collections::{BTreeMap, BTreeSet};

/// Test files whose imports are read.
const MAX_READ: usize = 2_000;
/// Tests named.
const MAX_TESTS: usize = 25;

/// The tests among `tracked` that are likely to cover `changed`, the likeliest first. `read` gives the first part of a
/// file's text.
#[must_use]
pub(super) fn likely_tests<'a>(
    changed: &[String],
    tracked: impl Iterator<Item = &'a str>,
    read: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let tests: Vec<&str> = tracked.filter(|path| is_test(path)).collect();
    let mut scores: BTreeMap<&str, u32> = BTreeMap::new();
    for path in changed {
        for test in &tests {
            let score = by_name(path, test);
            if score > 0 {
                *scores.entry(test).or_default() += score;
            }
        }
    }
    for test in tests.iter().take(MAX_READ) {
        let Some(text) = read(test) else { continue };
        let imports = imports(test, &text);
        let hits = changed.iter().filter(|path| imported(path, &imports)).count();
        if hits > 0 {
            *scores.entry(test).or_default() += 5 * u32::try_from(hits).unwrap_or(u32::MAX / 5);
        }
    }
    let mut out: Vec<(u32, &str)> = scores.into_iter().map(|(test, score)| (score, test)).collect();
    out.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    out.into_iter().take(MAX_TESTS).map(|(_, test)| test.to_owned()).collect()
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// A file's name without its last extension, and that extension.
fn stem(path: &str) -> (&str, &str) {
    let (_, name) = split(path);
    name.rsplit_once('.').unwrap_or((name, ""))
}

/// The part of a test file's name that says what it tests; none where it is no test.
fn subject(path: &str) -> Option<&str> {
    let (stem, extension) = stem(path);
    let below_tests =
        path.split('/').rev().skip(1).any(|folder| matches!(folder, "tests" | "test" | "__tests__"));
    match extension {
        "py" => stem.strip_prefix("test_").or_else(|| stem.strip_suffix("_test")),
        "go" => stem.strip_suffix("_test"),
        "rs" => stem.strip_suffix("_test").or_else(|| (below_tests && stem != "mod").then_some(stem)),
        "js" | "jsx" | "ts" | "tsx" | "mjs" | "cjs" | "mts" | "cts" => stem
            .strip_suffix(".spec")
            .or_else(|| stem.strip_suffix(".test"))
            .or_else(|| (below_tests && path.contains("__tests__/")).then_some(stem)),
        "java" | "kt" => stem.strip_suffix("Tests").or_else(|| stem.strip_suffix("Test")),
        "rb" => stem.strip_suffix("_spec").or_else(|| stem.strip_suffix("_test")),
        "c" | "cc" | "cpp" | "cxx" => stem.strip_suffix("_test").or_else(|| stem.strip_prefix("test_")),
        _ => None,
    }
}

fn is_test(path: &str) -> bool {
    subject(path).is_some_and(|subject| !subject.is_empty())
}

/// How much the names say that `test` covers `path`.
fn by_name(path: &str, test: &str) -> u32 {
    if path == test {
        return 10;
    }
    let (stem, extension) = stem(path);
    let same_language = family(extension) == family(self::stem(test).1);
    let Some(subject) = subject(test).filter(|_| same_language) else { return 0 };
    let parent = split(split(path).0).1;
    // `api/chat.py` may be tested by `test_chat.py` and by `test_api_chat.py`.
    let longer = !parent.is_empty() && subject == format!("{parent}_{stem}");
    let near = split(path).0 == split(test).0;
    let package = extension == "go" && near;
    match (subject == stem || longer, near, package) {
        (true, true, _) => 6,
        (true, false, _) => 4,
        (false, _, true) => 2,
        _ => 0,
    }
}

/// Languages whose files test each other.
fn family(extension: &str) -> &str {
    match extension {
        "js" | "jsx" | "ts" | "tsx" | "mjs" | "cjs" | "mts" | "cts" => "js",
        "c" | "cc" | "cpp" | "cxx" | "h" | "hpp" => "c",
        "java" | "kt" => "jvm",
        other => other,
    }
}

/// What a test file imports: modules of Python as dotted names, files of JavaScript as paths without extension.
fn imports(test: &str, text: &str) -> BTreeSet<String> {
    match family(stem(test).1) {
        "py" => python_imports(test, text),
        "js" => script_imports(test, text),
        "rs" => text.lines().filter_map(rust_import).collect(),
        _ => BTreeSet::new(),
    }
}

fn python_imports(test: &str, text: &str) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    let names = |list: &str| -> Vec<String> {
        list.trim_matches(['(', ')', ' ', '\\'])
            .split(',')
            .filter_map(|part| part.split_whitespace().next())
            .map(|name| name.trim_matches(['(', ')']).to_owned())
            .filter(|name| !name.is_empty())
            .collect()
    };
    for line in text.lines().map(str::trim) {
        if let Some(list) = line.strip_prefix("import ") {
            out.extend(names(list));
        } else if let Some((from, list)) =
            line.strip_prefix("from ").and_then(|rest| rest.split_once(" import "))
        {
            let from = from.trim();
            let dots = from.len() - from.trim_start_matches('.').len();
            let module = if dots == 0 {
                from.to_owned()
            } else {
                let folder: Vec<&str> = split(test).0.split('/').filter(|part| !part.is_empty()).collect();
                let above = folder.get(..folder.len().saturating_sub(dots - 1)).unwrap_or_default().join(".");
                [above.as_str(), from.trim_start_matches('.')]
                    .into_iter()
                    .filter(|p| !p.is_empty())
                    .collect::<Vec<_>>()
                    .join(".")
            };
            out.extend(names(list).into_iter().map(|name| format!("{module}.{name}")));
            out.insert(module);
        }
    }
    out
}

fn script_imports(test: &str, text: &str) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for marker in ["from ", "require(", "import(", "import "] {
        for (at, _) in text.match_indices(marker) {
            let rest = text.get(at + marker.len()..).unwrap_or_default().trim_start();
            let Some(quote) = rest.chars().next().filter(|c| matches!(c, '"' | '\'' | '`')) else { continue };
            let Some((name, _)) = rest.get(1..).unwrap_or_default().split_once(quote) else { continue };
            if name.starts_with('.') && name.len() < 512 {
                out.insert(without_extension(&joined(split(test).0, name)));
            }
        }
    }
    out
}

/// `use app::chat::x` as `app.chat`.
fn rust_import(line: &str) -> Option<String> {
    let path = line.trim().strip_prefix("use ")?.split(['{', ';', ' ']).next()?;
    let parts: Vec<&str> = path.split("::").filter(|part| !part.is_empty()).collect();
    (parts.len() >= 2).then(|| parts.get(..2).unwrap_or_default().join("."))
}

/// `relative` seen from `folder`, its dots resolved.
fn joined(folder: &str, relative: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in relative.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn without_extension(path: &str) -> String {
    for extension in [".js", ".jsx", ".ts", ".tsx", ".mjs", ".cjs"] {
        if let Some(bare) = path.strip_suffix(extension) {
            return bare.to_owned();
        }
    }
    path.to_owned()
}

fn imported(path: &str, imports: &BTreeSet<String>) -> bool {
    let (name, extension) = stem(path);
    match family(extension) {
        "py" => {
            let module = path.trim_end_matches(".py").trim_end_matches("/__init__").replace('/', ".");
            let below_src = module.strip_prefix("src.").or_else(|| module.strip_prefix("lib."));
            [Some(module.as_str()), below_src].into_iter().flatten().any(|module| imports.contains(module))
        }
        "js" => {
            let bare = without_extension(path);
            let index = bare.strip_suffix("/index").unwrap_or(&bare);
            imports.contains(&bare) || imports.contains(index)
        }
        "rs" => imports.iter().any(|import| import.rsplit('.').next() == Some(name)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tests_for(changed: &[&str], files: &[(&str, &str)]) -> Vec<String> {
        let changed: Vec<String> = changed.iter().map(|c| (*c).to_owned()).collect();
        let text: BTreeMap<&str, &str> = files.iter().copied().collect();
        likely_tests(&changed, files.iter().map(|(path, _)| *path), |path| {
            text.get(path).map(|t| (*t).to_owned())
        })
    }

    #[test]
    fn by_name_and_by_import_and_the_likeliest_first() {
        let files = [
            ("backend/api/chat.py", ""),
            ("tests/test_chat.py", "from backend.api import chat\n"),
            ("tests/test_api_chat.py", ""),
            ("tests/test_flow.py", "import os, backend.api.chat as c\n"),
            ("tests/test_other.py", "import backend.other\n"),
            ("tests/conftest.py", "import backend.api.chat\n"),
        ];
        assert_eq!(
            tests_for(&["backend/api/chat.py"], &files),
            ["tests/test_chat.py", "tests/test_flow.py", "tests/test_api_chat.py"]
        );
        assert_eq!(tests_for(&["docs/chat.md"], &files), [""; 0]);
    }

    #[test]
    fn each_language_has_its_own_ways() {
        for (changed, test, text) in [
            ("src/pkg/mod.py", "src/pkg/tests/test_x.py", "from ..mod import f\n"),
            ("src/pkg/mod.py", "tests/test_y.py", "from pkg.mod import f\n"),
            ("pkg/__init__.py", "tests/test_y.py", "from pkg import f\n"),
            ("web/a/chat.ts", "web/a/chat.spec.ts", ""),
            ("web/a/chat.tsx", "web/b/view.test.ts", "import { x } from \"../a/chat\";"),
            ("web/a/index.js", "web/b/view.test.js", "const a = require('../a')"),
            ("srv/queue.go", "srv/queue_test.go", ""),
            ("srv/other.go", "srv/queue_test.go", ""),
            ("src/engine.rs", "tests/engine.rs", ""),
            ("src/engine.rs", "tests/laws.rs", "use app::engine::Engine;"),
            ("src/Chat.java", "test/ChatTest.java", ""),
            ("tests/test_y.py", "tests/test_y.py", ""),
        ] {
            assert_eq!(tests_for(&[changed], &[(test, text)]), [test], "{changed}");
        }
        for (changed, test) in
            [("a/chat.go", "b/queue_test.go"), ("a/chat.py", "a/chat.spec.ts"), ("a/x.py", "test_.py")]
        {
            assert_eq!(tests_for(&[changed], &[(test, "")]), [""; 0], "{changed}");
        }
    }
}
