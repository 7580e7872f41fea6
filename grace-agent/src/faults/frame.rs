//! Frames: which are the program's own, and what of them stays the same from run to run.

use super::template::digits_out;

/// One call in a trace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frame {
    /// The function, without its arguments.
    pub function: String,
    /// The file, as it was written; empty where the trace does not say it.
    pub file: String,
}

/// Bytes of a function's and of a file's name that count.
const NAME_MAX: usize = 160;

/// Where libraries and runtimes lie.
const LIBRARY_PATHS: &[&str] = &[
    "/site-packages/",
    "/dist-packages/",
    "/lib/python",
    "<frozen ",
    "/node_modules/",
    "node:",
    "internal/",
    "/rustc/",
    "/.cargo/registry/",
    "/.cargo/git/",
    "/library/std/",
    "/library/core/",
    "/library/alloc/",
    "/go/pkg/mod/",
    "/go/src/runtime",
    "/go/src/",
    "/usr/lib/go",
    "/vendor/",
    "/usr/include/",
    "/sysdeps/",
    "libsanitizer",
    "/csu/",
    "/libstdc++-v3/",
    "/gcc/",
];

/// Beginnings of files of libraries.
const LIBRARY_ROOTS: &[&str] =
    &["/usr/lib/", "/usr/lib64/", "/lib/", "/lib64/", "../sysdeps/", "./nptl/", "./stdlib/"];

/// Beginnings of functions of runtimes and of libraries that nobody debugs first.
const LIBRARY_FUNCTIONS: &[&str] = &[
    "std::",
    "<std::",
    "core::",
    "<core::",
    "alloc::",
    "<alloc::",
    "rust_begin_unwind",
    "__rust_",
    "_rust_",
    "rust_panic",
    "_start",
    "__libc_",
    "__cxa_",
    "__gnu_cxx::",
    "abort",
    "raise",
    "gsignal",
    "__GI_",
    "__asan",
    "__ubsan",
    "__sanitizer",
    "__interceptor_",
    "__tsan",
    "__lsan",
    "__msan",
    "__assert",
    "__pthread_",
    "start_thread",
    "clone3",
    "__clone",
    "runtime.",
    "runtime/",
    "testing.",
    "reflect.",
    "sync.",
    "net/http.",
    "os/signal.",
    "panic(",
    "java.",
    "javax.",
    "jdk.",
    "sun.",
    "com.sun.",
    "kotlin.",
    "kotlinx.",
    "scala.",
    "groovy.",
    "org.springframework.",
    "org.apache.",
    "org.hibernate.",
    "org.eclipse.",
    "io.netty.",
    "reactor.",
    "com.google.common.",
    "org.junit.",
    "malloc",
    "free",
    "operator new",
    "operator delete",
    "google::",
    "absl::",
    "at::",
    "c10::",
    "torch::",
];

impl Frame {
    /// A frame.
    #[must_use]
    pub fn new(function: &str, file: &str) -> Self {
        Self { function: function.trim().to_owned(), file: file.trim().to_owned() }
    }

    /// Whether a library or a runtime made this call, not the program.
    #[must_use]
    pub fn is_library(&self) -> bool {
        let (file, function) = (self.file.as_str(), self.function.as_str());
        LIBRARY_PATHS.iter().any(|p| file.contains(p))
            || LIBRARY_ROOTS.iter().any(|p| file.starts_with(p))
            || LIBRARY_FUNCTIONS.iter().any(|p| function.starts_with(p))
    }

    /// What stays the same: the function, and the file's name without its folders, both without numbers that differ
    /// from build to build.
    fn stable(&self) -> String {
        let file = self.file.rsplit(['/', '\\']).next().unwrap_or_default();
        let function = name(&self.function);
        let file = super::cap(&digits_out(file), NAME_MAX);
        if file.is_empty() { function } else { format!("{function} ({file})") }
    }
}

/// A function's name without addresses, hashes and counters that compilers put into it.
fn name(function: &str) -> String {
    let mut out = String::with_capacity(function.len().min(NAME_MAX));
    let mut depth = 0_i32;
    let mut rest = function.chars().peekable();
    let mut previous = ' ';
    while let Some(c) = rest.next() {
        if out.len() > NAME_MAX {
            break;
        }
        // What stands in type arguments says little and is long.
        if c == '<' && !out.is_empty() && out.chars().all(|c| c != ' ') && previous.is_alphanumeric() {
            depth += 1;
        }
        if depth == 0 {
            let counted =
                c.is_ascii_digit() && !previous.is_ascii_digit() && matches!(previous, '$' | '#' | '.');
            if counted {
                out.push_str("<n>");
                while rest.peek().is_some_and(char::is_ascii_hexdigit) {
                    rest.next();
                }
            } else {
                out.push(c);
            }
        }
        if c == '>' && depth > 0 {
            depth -= 1;
        }
        previous = c;
    }
    // Rust's legacy mangling ends in a hash.
    if let Some((head, hash)) = out.rsplit_once("::h")
        && hash.len() == 16
        && hash.bytes().all(|b| b.is_ascii_hexdigit())
    {
        return head.to_owned();
    }
    out
}

/// The frames that tell a fault from another, outermost first, and whether they say where it is: the program's own, or
/// the innermost ones of libraries where there are none. `deep`: the stack was cut somewhere in a recursion, so only who
/// takes part says anything.
pub(super) fn own(frames: &[Frame], max: usize, deep: bool) -> (Vec<String>, bool) {
    let mut out: Vec<String> = Vec::new();
    for frame in frames.iter().filter(|f| !f.is_library()) {
        let stable = frame.stable();
        // A recursion is as deep as it is: calls that repeat count once.
        let repeats = (1..=4).any(|n| out.len() >= n && out.get(out.len() - n) == Some(&stable));
        if !repeats {
            out.push(stable);
        }
    }
    if deep {
        out.sort();
        out.dedup();
    }
    let placed = !out.is_empty();
    if !placed {
        out = frames.iter().rev().take(3).rev().map(Frame::stable).collect();
    }
    let from = out.len().saturating_sub(max);
    (out.split_off(from), placed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_frames_are_put_aside() {
        for (function, file, library) in [
            ("work", "/srv/app/worker.py", false),
            ("get", "/usr/lib/python3/dist-packages/requests/api.py", true),
            ("get", "/venv/lib/python3.11/site-packages/x.py", true),
            ("core::panicking::panic_fmt", "/rustc/abc/library/core/src/panicking.rs", true),
            ("app::work", "./src/main.rs", false),
            ("java.util.ArrayList.get", "ArrayList.java", true),
            ("com.example.App.main", "App.java", false),
            ("Module._compile", "node:internal/modules/cjs/loader", true),
            ("runtime.goexit", "/usr/lib/go-1.19/src/runtime/asm_amd64.s", true),
            ("main.work", "/srv/app/main.go", false),
        ] {
            assert_eq!(Frame::new(function, file).is_library(), library, "{function} {file}");
        }
    }

    #[test]
    fn names_lose_what_differs_from_build_to_build() {
        assert_eq!(name("app::work::h0123456789abcdef"), "app::work");
        assert_eq!(name("App.lambda$main$0"), name("App.lambda$main$12"));
        assert_eq!(name("main.main.func1"), "main.main.func1");
    }

    #[test]
    fn a_recursion_counts_once() {
        let frames: Vec<Frame> = (0..50).map(|i| Frame::new(["a", "b"][i % 2], "x.py")).collect();
        assert_eq!(own(&frames, 12, false).0.len(), 2);
    }
}
