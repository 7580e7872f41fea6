//! The syntax scan through its front door: broken snippets of every language with their places, sources that only look
//! broken, trees with hostile names and things that are no files, what a second scan parses, and the agent's own scan.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod harness;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use grace_agent::syntax::{Checked, Language, Skip, check};
use harness::{Agent, GRACE, wait_until};
use proptest::prelude::*;
use serde_json::Value;

/// A folder with a cache of its own.
struct Tree {
    dir: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("grace-scan-").tempdir().unwrap();
        fs::create_dir(dir.path().join("src")).unwrap();
        Self { dir }
    }

    fn file(&self, name: impl AsRef<Path>, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.src().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn src(&self) -> PathBuf {
        self.dir.path().join("src").canonicalize().unwrap()
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache/syntax.cache")
    }

    /// `grace scan` in the tree, without an agent.
    fn scan(&self, args: &[&str]) -> Output {
        Command::new(GRACE)
            .arg("scan")
            .arg("--cache")
            .arg(self.cache())
            .args(args)
            .current_dir(self.src())
            .env("GRACE_SOCKET", "/nonexistent/grace.sock")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// The document that it prints, and its exit code.
    fn json(&self, args: &[&str]) -> (Value, i32) {
        let out = self.scan(&[&["--json"], args].concat());
        let document = serde_json::from_slice(&out.stdout).unwrap_or_else(|err| panic!("{err}: {out:?}"));
        (document, out.status.code().unwrap())
    }
}

/// Language, name, text, and where its first error is.
const BROKEN: &[(Language, &str, &str, u32, u32)] = &[
    (Language::Python, "a.py", "import os\ndef f(:\n    pass\n", 2, 7),
    (Language::Python, "b.py", "x = (1,\ny = 2\n", 2, 3),
    (Language::Python, "c.py", "class A\n    pass\n", 1, 8),
    (Language::Python, "d.py", "s = 'open\n", 1, 5),
    (Language::Rust, "a.rs", "fn main() {\n    let x = ;\n}\n", 2, 13),
    (Language::Rust, "b.rs", "struct A { x: u8\n", 1, 10),
    (Language::JavaScript, "a.js", "function f( {\n  return 1;\n}\n", 2, 10),
    (Language::JavaScript, "b.jsx", "const a = <div>\n", 1, 16),
    (Language::TypeScript, "a.ts", "interface A { x: number\nconst y = 1;\n", 2, 1),
    (Language::Tsx, "a.tsx", "export const A = () => <p>{1</p>;\n", 1, 30),
    (Language::Go, "a.go", "package a\n\nfunc f() {\n\treturn 1 2\n}\n", 4, 11),
    (Language::C, "a.c", "int f(void) {\n    return 1;\n", 1, 13),
    (Language::C, "b.c", "int f(void) {\n    return (1];\n}\n", 2, 14),
    (Language::C, "c.c", "int f(int a) {\n    int x = a + 1\n    return x;\n}\n", 2, 18),
    (Language::C, "d.c", "/* never closed\nint x;\n", 1, 1),
    (Language::Cpp, "a.cpp", "class A {\n  void f() { g(\"x); }\n};\n", 2, 16),
    (Language::Shell, "a.sh", "if true; then\n  echo hi\n", 2, 10),
    (Language::Shell, "b.sh", "echo $(date\n", 1, 12),
    (Language::Json, "a.json", "{\"a\": 1,\n \"b\": }\n", 2, 7),
    (Language::Json, "b.json", "{\"a\": [1, 2,]}", 1, 13),
    (Language::Yaml, "a.yaml", "a: 1\nb: [1, 2\nc: 3\n", 3, 2),
    (Language::Yaml, "b.yml", "a:\n\t- b\n", 2, 2),
    (Language::Toml, "a.toml", "[a]\nb = \n", 2, 4),
    (Language::Toml, "b.toml", "a = 1\na = 2\n", 2, 1),
];

#[test]
fn the_place_of_an_error_is_told() {
    let mut wrong = Vec::new();
    for (language, name, text, line, column) in BROKEN {
        // The same place in a text with another end of line, and behind a byte-order mark.
        for text in [(*text).to_owned(), text.replace('\n', "\r\n"), format!("\u{feff}{text}")] {
            match check(*language, name, text.as_bytes()) {
                Checked::Broken(errors)
                    if (errors[0].line, errors[0].column) == (*line, *column)
                        && !errors[0].problem.is_empty() => {}
                other => wrong.push(format!("{name}, wanted {line}:{column}: {other:?}")),
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn what_only_looks_broken_is_left_alone() {
    for (language, name, text) in [
        (
            Language::Python,
            "new.py",
            "match x:\n    case {'a': [b, *_]} if b:\n        type T[A] = list[A]\nprint(f'{x!r:>{w}} {'nested'}')\n",
        ),
        (
            Language::Python,
            "two.py",
            "import os\nprint 'x' % y,\ntry:\n  pass\nexcept (A, B), e:\n  raise E, ur'x'\nprint >>f, `x`, 0777L\nexec code in ns\n",
        ),
        (Language::Python, "empty.py", ""),
        (Language::Python, "gap.py", "\n\n   \n"),
        (
            Language::Rust,
            "edition.rs",
            "#!/usr/bin/env cargo\n//! doc\nfn f() { if let Some(x) = y && x > 1 {} }\nunsafe extern \"C\" { safe fn g(); }\n",
        ),
        (Language::Rust, "part.rs", "[1, 2, 3]"),
        (Language::JavaScript, "script.js", "#!/usr/bin/env node\nreturn\n"),
        (
            Language::JavaScript,
            "module.js",
            "import a from 'a' with { type: 'json' };\nexport const b = <A {...c}/>;\nawait a;\n",
        ),
        (Language::JavaScript, "sloppy.js", "with (a) { b = 010 }\n"),
        (
            Language::TypeScript,
            "a.d.ts",
            "declare module 'x' { export function f<const T>(a: T): asserts a is T; }\n",
        ),
        (
            Language::Go,
            "generic.go",
            "package a\n\nfunc F[T any, U ~int | ~string](x T) (U, error) { for i := range 10 { _ = i }; panic(0) }\n",
        ),
        (
            Language::C,
            "macros.c",
            "BEGIN_DECLS\n#define OPEN {\n#define F(x) do { x; } while (0)\nint f(void) OPEN\n  F(1)\n  return 0;\n}\nEND_DECLS\n",
        ),
        (
            Language::C,
            "branches.c",
            "int f(int a) {\n#ifdef A\n  if (a) {\n#else\n  if (!a) {\n#endif\n  return 1; }\n  return 0;\n}\n",
        ),
        (
            Language::C,
            "unsure.c",
            "#ifdef A\nint f(int a) {\n#else\nint f(int a, int b)\n#endif\n return 0;\n}\n",
        ),
        (Language::C, "zero.c", "#if 0\n don't { ( \" read this\n#else\nint x;\n#endif\n"),
        (Language::C, "error.c", "#error don't do this (\nint x;\n"),
        (Language::C, "macrocall.c", "int f(void) {\n  LOG_ERROR(\"x\")\n  return 0;\n}\n"),
        (Language::Cpp, "raw.cpp", "auto a = R\"x(\" ) } )x\"; auto b = 1'000'000; auto c = u8'\\'';\n"),
        (
            Language::Cpp,
            "lambda.hpp",
            "template <class T> requires (sizeof(T) > 1) auto f = [](auto... a) { return (a + ...); };\n",
        ),
        (
            Language::Shell,
            "here.sh",
            "#!/bin/sh\ncat <<'EOF'\nif ( \" `\nEOF\nfor i do echo \"$i\"; done\ncase $1 in (a) ;; b|c) x=`date` ;; esac\n",
        ),
        (Language::Json, "tsconfig.json", "{\n // why\n \"a\": [1,], /* */\n}\n"),
        (Language::Json, "lines.json", "{\"a\":1}\n{\"a\":2}\n"),
        (Language::Json, "commented.json", "// generated\n{\"url\": \"http://x\"}\n"),
        (Language::Yaml, "helm.yaml", "a: {{ .Values.b | quote }}\n{{- if .Values.c }}\nd: 1\n{{- end }}\n"),
        (Language::Yaml, "jinja.yml", "{% if a %}\nb: {{ c }}\n{% endif %}\n"),
        (
            Language::Yaml,
            "many.yaml",
            "%YAML 1.1\n---\na: &x 1\nb: !custom {c: *x}\n...\n---\n- |\n  text: [\n",
        ),
        (Language::Toml, "new.toml", "a = { b = 1, c = [1, 2] }\n[[d]]\ne = 2026-01-01T00:00:00Z\n"),
    ] {
        let checked = check(language, name, text.as_bytes());
        assert!(!matches!(checked, Checked::Broken(_)), "{name}: {checked:?}");
    }
}

#[test]
fn what_cannot_be_judged_says_why() {
    for (language, name, bytes, why) in [
        (
            Language::JavaScript,
            "flow.js",
            &b"/* @flow */\nfunction f(a: ?number): %checks { return a }\n"[..],
            Skip::Flow,
        ),
        (Language::Python, "binary.py", b"\x7fELF\x00\x00", Skip::Binary),
        (Language::Python, "wide.py", b"\xff\xfea\x00", Skip::Binary),
        (Language::Json, "latin.json", b"{\"a\": \"\xe9\"", Skip::Encoding),
        (Language::Yaml, "helm.yaml", b"a: {{ .Values.b }}\n  c: d: e\n", Skip::Template),
    ] {
        assert_eq!(check(language, name, bytes), Checked::Skipped(why), "{name}");
    }
    // Latin-1 is judged as it is; columns count characters.
    let checked = check(Language::Python, "latin.py", b"# -*- coding: latin-1 -*-\nx = '\xe9\xe9' (\n");
    assert!(matches!(&checked, Checked::Broken(errors) if errors[0].line >= 2), "{checked:?}");
    // A line is told around the error, however long it is.
    let long = format!("x = '{}' ]\n", "a".repeat(10_000));
    let Checked::Broken(errors) = check(Language::Python, "long.py", long.as_bytes()) else { panic!() };
    assert!(errors[0].text.chars().count() < 200 && errors[0].text.contains(']'), "{errors:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Whatever the bytes: no parser panics, and what is told lies within the text.
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for language in Language::ALL {
            told_within(&check(language, "x", &bytes), &bytes);
        }
    }

    /// The same for sources of which a part was cut out and something else put in.
    #[test]
    fn damaged_sources_are_survived(
        which in 0..BROKEN.len(),
        from in 0..200usize,
        length in 0..20usize,
        put in "[(){}\\[\\]<>\"'`#/*\\\\:;,=\n \\t$%&|!a0\u{e9}\u{1f600}]{0,12}",
    ) {
        let (language, name, text, ..) = BROKEN[which];
        let mut bytes = text.repeat(3).into_bytes();
        let from = from.min(bytes.len());
        bytes.splice(from..(from + length).min(bytes.len()), put.into_bytes());
        told_within(&check(language, name, &bytes), &bytes);
    }
}

fn told_within(checked: &Checked, bytes: &[u8]) {
    let Checked::Broken(errors) = checked else { return };
    assert!(!errors.is_empty() && errors.len() <= 3);
    let lines = bytes.split(|b| *b == b'\n').count();
    for error in errors {
        assert!(error.line >= 1 && error.line as usize <= lines && error.column >= 1, "{error:?}");
        assert!(error.column as usize <= bytes.len() + 1 && error.text.chars().count() <= 170, "{error:?}");
    }
}

#[test]
fn a_scan_finds_what_is_broken_and_says_where() {
    let tree = Tree::new();
    for (_, name, text, ..) in BROKEN {
        tree.file(format!("deep/{name}"), text);
    }
    tree.file("good.py", "x = 1\n");
    tree.file("tool", "#!/bin/sh\nif\n");
    tree.file("README", "not ( a source\n");
    let (found, code) = tree.json(&[]);
    assert_eq!(code, 1);
    let items = found["coding_agent"].as_array().unwrap();
    assert_eq!(items.len(), BROKEN.len() + 1, "{found:#}");
    assert_eq!(found["found"], items.len());
    for (language, name, _, line, column) in BROKEN {
        let path = tree.src().join("deep").join(name);
        let item = items.iter().find(|i| i["subject"]["name"] == path.to_str().unwrap());
        let item = item.unwrap_or_else(|| panic!("{name} is missing: {found:#}"));
        let error = &item["errors"][0];
        assert_eq!((&error["line"], &error["column"]), (&(*line).into(), &(*column).into()), "{item:#}");
        assert_eq!(item["language"], language.name());
        assert_eq!(item["title"], format!("fix syntax error in {name} at line {line}"));
        assert_eq!(item["trigger"], "syntax");
    }
    assert_eq!(found["syntax"]["files"], BROKEN.len() + 2);
    assert!(found["not_done"][0].as_str().unwrap().contains("no agent"), "{found:#}");

    let out = tree.scan(&[]);
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("25 issues → Coding Agent"), "{text}");
    assert!(text.contains("fix syntax error in a.py at line 2"), "{text}");
    assert!(text.contains("a.py:2:7: ") && text.contains("def f(:"), "{text}");
    assert!(out.stderr.is_empty(), "no progress where nobody watches: {text}");
}

#[test]
fn exit_codes_say_what_a_scan_came_to() {
    let tree = Tree::new();
    let good = tree.file("good.py", "x = 1\n");
    assert_eq!(tree.json(&[]).1, 0);
    let bad = tree.file("bad.py", "x = (\n");
    assert_eq!(tree.json(&[]).1, 1);
    assert_eq!(tree.json(&[good.to_str().unwrap()]).1, 0, "one file");
    assert_eq!(tree.json(&[bad.to_str().unwrap(), good.to_str().unwrap()]).1, 1);
    // Twice the same, by two names.
    let (found, _) = tree.json(&[".", "../src", bad.to_str().unwrap()]);
    assert_eq!(found["found"], 1, "{found:#}");
    let out = tree.scan(&["/nonexistent/x"]);
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stderr).contains("/nonexistent/x"), "{out:?}");
    assert!(out.stdout.is_empty());
}

#[test]
fn a_second_scan_parses_only_what_has_changed() {
    let tree = Tree::new();
    for n in 0..50 {
        tree.file(format!("a{n}.py"), "x = 1\n");
    }
    let bad = tree.file("bad.py", "x = (\n");
    // What has changed a moment ago is not trusted to stay: the first scans may parse some of it again.
    let mut last = Value::Null;
    wait_until("a scan that parses nothing", || {
        last = tree.json(&[]).0;
        last["syntax"]["parsed"] == 0
    });
    assert_eq!(last["syntax"]["cached"], 51, "{last:#}");
    assert_eq!(last["found"], 1, "what was found is remembered");
    assert_eq!(last["coding_agent"][0]["errors"][0]["line"], 1);

    // The same size, the same time of modification: only the change time tells.
    let times = fs::metadata(&bad).unwrap().modified().unwrap();
    fs::write(&bad, "x = 1\n").unwrap();
    fs::File::options().write(true).open(&bad).unwrap().set_modified(times).unwrap();
    let (found, code) = tree.json(&[]);
    assert_eq!((&found["syntax"]["parsed"], code), (&1.into(), 0), "{found:#}");
    // Gone, renamed, new.
    fs::rename(tree.src().join("a0.py"), tree.src().join("b0.py")).unwrap();
    fs::remove_file(tree.src().join("a1.py")).unwrap();
    let (found, _) = tree.json(&[]);
    assert_eq!(found["syntax"]["files"], 50, "{found:#}");
    let (found, _) = tree.json(&["--fresh"]);
    assert_eq!(found["syntax"]["parsed"], 50, "{found:#}");
    // A cache that is no cache is none.
    fs::write(tree.cache(), "nonsense").unwrap();
    assert_eq!(tree.json(&[]).0["syntax"]["parsed"], 50);
}

#[test]
fn what_tools_made_and_what_is_ignored_is_not_scanned() {
    let tree = Tree::new();
    let bad = "x = (\n";
    for folder in ["node_modules/a", ".venv/lib", "__pycache__", ".git/hooks", "go/testdata", "env/lib"] {
        tree.file(format!("{folder}/bad.py"), bad);
    }
    tree.file("env/pyvenv.cfg", "");
    tree.file("target/bad.py", bad);
    tree.file("Cargo.toml", "[package]\nname = \"x\"\n");
    tree.file("ignored/bad.py", bad);
    tree.file(".gitignore", "ignored/\n");
    tree.file("fixtures/bad.py", bad);
    tree.file(".graceignore", "fixtures/\n");
    tree.file("lib.min.js", "function(");
    tree.file("huge.json", vec![b'['; 5 << 20]);
    tree.file(".github/workflows/ci.yml", "a: b: c\n");
    tree.file("other/target/kept.py", bad);
    let (found, _) = tree.json(&[]);
    let mut names: Vec<&str> = found["coding_agent"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["subject"]["name"].as_str().unwrap().rsplit('/').next().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["ci.yml", "kept.py"], "{found:#}");
    assert_eq!(found["syntax"]["skipped"]["larger than 4 MiB"], 1, "{found:#}");
    assert_eq!(found["syntax"]["skipped"]["minified"], 1, "{found:#}");
}

#[test]
fn hostile_trees_are_survived() {
    let tree = Tree::new();
    let evil = "a\n\u{1b}[2Jy\u{202e}.py";
    tree.file(evil, "x = (\u{1b}[31m\n");
    use std::os::unix::ffi::OsStrExt;
    tree.file(Path::new(std::ffi::OsStr::from_bytes(b"caf\xe9.py")), "x = (\n");
    std::os::unix::fs::symlink("loop.py", tree.src().join("loop.py")).unwrap();
    std::os::unix::fs::symlink(".", tree.src().join("again")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", tree.src().join("zero.py")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, tree.src().join("pipe.py"), rustix::fs::Mode::RWXU).unwrap();
    // Deeper than any stack, in every language.
    for ending in ["py", "rs", "js", "ts", "go", "c", "cpp", "sh", "json", "yaml", "toml"] {
        tree.file(format!("deep.{ending}"), "[".repeat(200_000));
        tree.file(format!("open.{ending}"), "((".repeat(100_000));
    }
    let shut = tree.file("shut/bad.py", "x = (\n");
    fs::set_permissions(shut.parent().unwrap(), fs::Permissions::from_mode(0o000)).unwrap();
    let (found, code) = tree.json(&[]);
    fs::set_permissions(shut.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(code, 1);
    let items = found["coding_agent"].as_array().unwrap();
    let has = |what: &str| items.iter().any(|i| i["subject"]["name"].as_str().unwrap().contains(what));
    assert!(has(evil) && has("caf\u{fffd}.py"), "{found:#}");
    assert!(!has("loop") && !has("again") && !has("zero") && !has("pipe"), "{found:#}");
    if !rustix::process::geteuid().is_root() {
        assert_eq!(found["syntax"]["unreadable"], 1, "{found:#}");
        assert!(found["not_done"].as_array().unwrap().iter().any(|w| w.as_str().unwrap().contains("shut")));
    }
    let out = tree.scan(&["--color", "never"]);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(!text.contains(|c: char| c.is_control() && c != '\n') && !text.contains('\u{202e}'), "{text:?}");
    assert!(!text.lines().any(|l| l.starts_with('y')), "{text}");
}

#[test]
fn an_agents_scan_at_start_makes_a_firing_and_a_task_that_end_with_the_error() {
    let tree = Tree::new();
    let bad = tree.file("main.py", "x = 1\ndef f(:\n    pass\n");
    tree.file("good.py", "x = 1\n");
    let agent = Agent::start(&format!("[[repo]]\npath = {:?}\n", tree.src()));
    let firing = agent.wait_firing("the syntax error", |f| f["trigger"] == "syntax" && f["state"] == "holds");
    assert_eq!(firing["subject"]["name"], bad.to_str().unwrap());
    assert_eq!(firing["route"], "coding_agent");
    assert!(firing["summary"].as_str().unwrap().contains("line 2, column 7"), "{firing:#}");
    wait_until("a task", || !agent.lines(&["tasks", "list", "--json"]).is_empty());
    let task = agent.lines(&["tasks", "list", "--json"]).remove(0);
    assert_eq!((&task["trigger"], &task["count"]), (&"syntax".into(), &1.into()), "{task:#}");
    let evidence = task["evidence"].to_string();
    assert!(evidence.contains("def f(:") && evidence.contains("main.py"), "{task:#}");
    let status = agent.json(&["status", "--json"]);
    assert_eq!((&status["scan"]["state"], &status["scan"]["broken"]), (&"done".into(), &1.into()));
    assert_eq!(status["scan"]["files"], 2);
    wait_until("the picture", || agent.log().contains("fix syntax error in main.py at line 2"));

    // By route.
    assert_eq!(agent.lines(&["firings", "--json", "--route", "coding_agent"]).len(), 1);
    assert!(agent.lines(&["firings", "--json", "--route", "self_healing"]).is_empty());
    assert!(agent.ok(&["firings"]).contains("coding_agent"));
    assert!(agent.ok(&["explain", firing["id"].as_str().unwrap()]).contains("route"));

    // `grace scan` asks the agent, and scans what the agent scans; what both know is told once.
    let out = agent.grace(&["scan", "--json"]);
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    let found: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(found["found"], 1, "{found:#}");
    assert_eq!(found["coding_agent"][0]["firing"], firing["id"], "{found:#}");
    assert!(found["triggers"].as_array().unwrap().iter().any(|t| t == "config_drift"), "{found:#}");
    assert_eq!(found["syntax"]["roots"][0], tree.src().to_str().unwrap());

    fs::write(&bad, "x = 1\n").unwrap();
    let out = agent.grace(&["scan", "--json"]);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    agent.wait_firing("cleared", |f| f["trigger"] == "syntax" && f["state"] == "cleared");
    assert_eq!(agent.json(&["status", "--json"])["scan"]["broken"], 0);
}

#[test]
fn a_scan_makes_the_agent_look_at_what_it_owns() {
    let agent = Agent::start_as("", "observe", &[]);
    let tree = Tree::new();
    tree.file("good.py", "x = 1\n");
    let file = agent.file("a.conf", "good\n");
    agent.ok(&["snapshot", file.to_str().unwrap()]);
    let scan = || agent.grace(&["scan", "--json", tree.src().to_str().unwrap()]);
    let clean = scan();
    assert_eq!(clean.status.code(), Some(0), "{clean:?}");
    fs::write(&file, "bad\n").unwrap();
    let out = scan();
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    let found: Value = serde_json::from_slice(&out.stdout).unwrap();
    let item = &found["self_healing"][0];
    assert_eq!((&item["trigger"], &found["found"]), (&"config_drift".into(), &1.into()), "{found:#}");
    assert_eq!(item["remedy"][0]["state"], "held", "{found:#}");
    assert!(item["firing"].as_str().unwrap().starts_with("f-"), "{found:#}");
    let text = agent.grace(&["scan", tree.src().to_str().unwrap()]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("1 issue → Self-Healing") && text.contains("mode is observe"), "{text}");
}

#[test]
fn an_agent_that_is_told_not_to_scan_does_not() {
    let tree = Tree::new();
    tree.file("main.py", "x = (\n");
    for config in ["".to_owned(), format!("[scan]\nat_start = false\n[[repo]]\npath = {:?}\n", tree.src())] {
        let agent = Agent::start(&config);
        let status = agent.json(&["status", "--json"]);
        assert_eq!(status["scan"]["state"], "off", "{status:#}");
        assert!(status["scan"]["why"].is_string());
    }
}
