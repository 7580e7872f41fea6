//! `cargo xtask corpus`: records the labelled corpus of faults (`tests/corpus/errors/recorded.jsonl`) from real programs
//! made to fail, several times each with other pids, addresses, values, folders and line numbers.
//!
//! Needs python3, node, go, a JDK, gcc with sanitizers and rustc; the tests need none of them, only what was recorded.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::{places, process};

/// Records the corpus of faults anew from real programs
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these languages: python, node, go, java, rust, native
    only: Vec<String>,
}

/// What differs between the runs of one scenario: value, name, port, lines put before the program, folder.
const RUNS: [(u32, &str, u32, usize, &str); 4] = [
    (41, "alice", 8080, 0, "srv/app"),
    (207, "bob-7", 9000, 3, "home/deploy/releases/20261124"),
    (5302, "4fe2a1c09b", 31337, 17, "opt/acme/worker-3"),
    (77, "c.jones", 6379, 60, "data/jobs/a81f"),
];

/// Nothing that is recorded runs longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes kept of one run.
const MOST: usize = 12 << 10;

struct Recipe {
    language: &'static str,
    source: &'static str,
    comment: &'static str,
    scenarios: &'static [&'static str],
    /// Builds `source` in its folder; returns the command without the scenario.
    make: fn(&Path, &str) -> Result<Vec<String>>,
}

const RECIPES: &[Recipe] = &[
    Recipe {
        language: "python",
        source: "faults.py",
        comment: "#",
        scenarios: &[
            "key_error",
            "key_error_elsewhere",
            "value_error",
            "index_error",
            "attribute_a",
            "attribute_b",
            "import_error",
            "import_other",
            "zero",
            "file_missing",
            "file_denied",
            "refused",
            "decode",
            "no_table",
            "no_column",
            "chained",
            "chained_other",
            "group",
            "group_other",
            "multiline",
            "recursion",
            "syntax",
            "custom",
            "unpack",
            "logged",
            "logged_prefixed",
            "error_line",
            "in_thread",
            "in_pool",
            "in_task",
            "segfault",
            "asserts",
        ],
        make: |folder, _| Ok(vec!["/usr/bin/python3".to_owned(), path(folder, "faults.py")]),
    },
    Recipe {
        language: "node",
        source: "faults.js",
        comment: "//",
        scenarios: &[
            "undefined_a",
            "undefined_b",
            "undefined_other",
            "not_a_function",
            "not_defined",
            "range",
            "custom",
            "missing_file",
            "parse",
            "refused",
            "rejected",
            "rejected_value",
            "caused",
            "module_missing",
            "recursion",
            "logged",
        ],
        make: |folder, _| Ok(vec!["node".to_owned(), path(folder, "faults.js")]),
    },
    Recipe {
        language: "go",
        source: "faults.go",
        comment: "//",
        scenarios: &[
            "index",
            "index_elsewhere",
            "nil",
            "nil_map",
            "divide",
            "custom",
            "text",
            "wrapped",
            "deadlock",
            "concurrent",
            "goroutine",
            "repanic",
            "convert",
            "closed",
            "logged",
        ],
        make: |folder, _| {
            let program = path(folder, "faults");
            process::run(Command::new("go").current_dir(folder).args([
                "build",
                "-o",
                &program,
                "faults.go",
            ]))?;
            Ok(vec![program])
        },
    },
    Recipe {
        language: "java",
        source: "Faults.java",
        comment: "//",
        scenarios: &[
            "number",
            "index",
            "index_elsewhere",
            "none",
            "cast",
            "custom",
            "caused",
            "caused_other",
            "suppressed",
            "deep",
            "memory",
            "lambda",
            "future",
            "thread",
            "multiline",
            "missing",
            "class",
        ],
        make: |folder, _| {
            process::run(Command::new("javac").current_dir(folder).arg("Faults.java"))?;
            let words = ["java", "-Xmx32m", "-Xss256k", "-cp"].map(str::to_owned);
            Ok([&words[..], &[folder.to_string_lossy().into_owned(), "Faults".to_owned()]].concat())
        },
    },
    Recipe {
        language: "rust",
        source: "faults.rs",
        comment: "//",
        scenarios: &[
            "index",
            "index_elsewhere",
            "parse",
            "none",
            "expect",
            "store",
            "equal",
            "divide",
            "thread",
            "overflow",
            "borrow",
            "multiline",
            "backtrace:index",
            "backtrace:index_elsewhere",
            "backtrace:store",
            "backtrace:thread",
        ],
        make: |folder, _| {
            let program = path(folder, "faults");
            process::run(Command::new("rustc").current_dir(folder).args([
                "-g",
                "--edition",
                "2021",
                "-o",
                &program,
                "faults.rs",
            ]))?;
            Ok(vec![program])
        },
    },
    Recipe {
        language: "native",
        source: "faults.cpp",
        comment: "//",
        scenarios: &[
            "asan_uaf",
            "asan_uaf_elsewhere",
            "asan_overflow",
            "asan_double",
            "asan_leak",
            "asan_null",
            "ubsan_add",
            "ubsan_shift",
            "free_invalid",
            "double_free",
            "corrupt",
            "smash",
            "assert",
            "assert_other",
            "throw",
            "throw_range",
            "throw_map",
            "throw_int",
            "pure",
            "segv",
            "abort",
        ],
        make: |folder, scenario| {
            let sanitized = scenario.starts_with("asan_") || scenario.starts_with("ubsan_");
            let program = path(folder, if sanitized { "faults-checked" } else { "faults" });
            if !Path::new(&program).exists() {
                let flags: &[&str] = if sanitized {
                    &["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
                } else {
                    &["-fstack-protector-all", "-U_FORTIFY_SOURCE"]
                };
                let mut compiler = Command::new("g++");
                compiler
                    .current_dir(folder)
                    .args(["-g", "-O1", "-w", "-std=c++17", "-o", &program])
                    .args(flags);
                process::run(compiler.arg("faults.cpp"))?;
            }
            Ok(vec![program])
        },
    },
];

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).to_string_lossy().into_owned()
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let corpus = places::root().join("tests/corpus/errors");
    let scratch = std::env::temp_dir().join(format!("grace-corpus-{}", std::process::id()));
    let recorded = record(args, &corpus, &scratch);
    // What cannot be removed lies in the folder for temporary files.
    drop(fs::remove_dir_all(&scratch));
    let fresh = recorded?;
    let file = corpus.join("recorded.jsonl");
    // What was not recorded now stays as it was.
    let kept: Vec<String> = fs::read_to_string(&file)
        .unwrap_or_default()
        .lines()
        .filter(|line| {
            let label = serde_json::from_str(line)
                .ok()
                .and_then(|v: serde_json::Value| Some(v["label"].as_str()?.to_owned()));
            let language = label.as_deref().and_then(|l| l.split('/').next()).unwrap_or_default().to_owned();
            !args.only.is_empty() && !args.only.contains(&language)
        })
        .map(str::to_owned)
        .collect();
    let mut out = fs::File::create(&file).with_context(|| format!("cannot write {}", file.display()))?;
    for line in kept.iter().chain(&fresh) {
        writeln!(out, "{line}")?;
    }
    println!("{}: {} records", file.display(), kept.len() + fresh.len());
    Ok(ExitCode::SUCCESS)
}

fn record(args: &Args, corpus: &Path, scratch: &Path) -> Result<Vec<String>> {
    let mut out = Vec::new();
    for recipe in RECIPES.iter().filter(|r| args.only.is_empty() || args.only.iter().any(|o| o == r.language))
    {
        let source = fs::read_to_string(corpus.join("programs").join(recipe.source))?;
        for (run, (value, name, port, shift, folder)) in RUNS.into_iter().enumerate() {
            let folder = scratch.join(folder).join(recipe.language);
            fs::create_dir_all(&folder)?;
            let lines = format!("{} moved down\n", recipe.comment).repeat(shift);
            fs::write(folder.join(recipe.source), lines + &source)?;
            let mut command = Vec::new();
            for scenario in recipe.scenarios {
                if command.is_empty() || recipe.language == "native" {
                    command = (recipe.make)(&folder, scenario)?;
                }
                let backtrace = scenario.starts_with("backtrace:");
                let argument = scenario.trim_start_matches("backtrace:");
                // A shell says what signal ended its child, as a supervisor's shell would.
                let mut child = Command::new("/bin/sh")
                    .args(["-c", "\"$@\"; true", "sh"])
                    .args(&command)
                    .arg(argument)
                    .current_dir(&folder)
                    .env("VALUE", value.to_string())
                    .env("NAME", name)
                    .env("PORT", port.to_string())
                    .env("RUST_BACKTRACE", if backtrace { "1" } else { "0" })
                    .env(
                        "UBSAN_OPTIONS",
                        if run % 2 == 0 { "print_stacktrace=1" } else { "print_stacktrace=1:color=never" },
                    )
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped())
                    .spawn()?;
                let text = read(&mut child).with_context(|| format!("{} {scenario}", recipe.language))?;
                if text.trim().is_empty() {
                    bail!("{} {scenario}: it did not fail", recipe.language);
                }
                let label = format!("{}/{scenario}", recipe.language);
                out.push(json!({ "label": label, "run": run, "text": text }).to_string());
            }
            println!("{} run {run}: {} scenarios", recipe.language, recipe.scenarios.len());
        }
    }
    Ok(out)
}

/// What a child writes to stderr until it ends, cut in the middle where it is long.
fn read(child: &mut std::process::Child) -> Result<String> {
    let mut pipe = child.stderr.take().context("no pipe")?;
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).map(|_| bytes)
    });
    let began = Instant::now();
    while child.try_wait()?.is_none() {
        if began.elapsed() > PATIENCE {
            child.kill()?;
            bail!("does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let bytes = reader.join().ok().context("the reader panicked")??;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if text.len() <= MOST {
        return Ok(text);
    }
    let lines: Vec<&str> = text.lines().collect();
    let keep = lines.len().min(60);
    Ok([&lines[..keep], &lines[lines.len().saturating_sub(20).max(keep)..]].concat().join("\n"))
}
