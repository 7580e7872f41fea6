//! Digests that others published: a `SHA256SUMS`, the pointer that Git LFS keeps in a file's place, the name of a blob in
//! the cache of a hub. All of them name SHA-256.

use std::path::Path;

use crate::file_state::Digest;

/// The largest list of digests that is read, in bytes.
pub const LIST_MAX: u64 = 16 << 20;

/// A digest that was published, and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// What the file should be.
    pub digest: Digest,
    /// Its size in bytes, where that was published, too.
    pub size: Option<u64>,
    /// `a line of the list`, `a Git LFS pointer`, …
    pub found: &'static str,
}

/// What `text`, an LFS pointer or a list of digests, says of the file called `name`.
#[must_use]
pub fn in_text(text: &str, name: &str) -> Option<Published> {
    if text.starts_with("version https://git-lfs.github.com/spec/") {
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
        let digest = digest(value("oid sha256:")?)?;
        let size = value("size ").and_then(|n| n.parse().ok());
        return Some(Published { digest, size, found: "a Git LFS pointer" });
    }
    let lines = text.lines().filter_map(|line| listed(line.trim_end()));
    let mut alone = None;
    for (found, listed_name) in lines {
        let listed = Published { digest: found, size: None, found: "a line of the list" };
        match listed_name {
            Some(listed_name) => {
                let last = listed_name.rsplit('/').next().unwrap_or(listed_name);
                if last == name {
                    return Some(listed);
                }
            }
            None => alone = Some(Published { found: "a bare digest", ..listed }),
        }
    }
    alone
}

/// The digest that the path of a blob in a hub's cache, `…/blobs/<sha256>`, is.
#[must_use]
pub fn in_path(path: &Path) -> Option<Published> {
    let in_cache = path.parent()?.file_name()? == "blobs";
    let digest = digest(path.file_name()?.to_str()?)?;
    in_cache.then_some(Published { digest, size: None, found: "its name in a hub's cache" })
}

/// A line as `sha256sum` writes it (`digest  name`, `digest *name`), or as BSD does (`SHA256 (name) = digest`).
fn listed(line: &str) -> Option<(Digest, Option<&str>)> {
    if let Some(rest) = line.strip_prefix("SHA256 (") {
        let (name, hex) = rest.rsplit_once(") = ")?;
        return Some((digest(hex)?, Some(name)));
    }
    match line.split_once([' ', '\t']) {
        None => Some((digest(line)?, None)),
        Some((hex, name)) => Some((digest(hex)?, Some(name.trim_start_matches([' ', '\t', '*'])))),
    }
}

fn digest(text: &str) -> Option<Digest> {
    let hex = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    hex.then(|| Digest(text.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_form_is_read() {
        let (a, b) = ("ab".repeat(32), "CD".repeat(32));
        let of = |text: &str, name: &str| in_text(text, name).map(|p| p.digest.0);
        let list = format!("# comment\n{a}  ./x/m.gguf\n{b} *n.gguf\n");
        assert_eq!(of(&list, "m.gguf"), Some(a.clone()));
        assert_eq!(of(&list, "n.gguf"), Some(b.to_lowercase()));
        assert_eq!(of(&list, "o.gguf"), None);
        assert_eq!(of(&format!("SHA256 (a (b).pt) = {a}"), "a (b).pt"), Some(a.clone()));
        assert_eq!(of(&format!("{a}\n"), "any"), Some(a.clone()));
        let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{a}\nsize 12\n");
        assert_eq!(in_text(&pointer, "any").unwrap().size, Some(12));
        assert!(in_path(Path::new(&format!("/c/blobs/{a}"))).is_some());
        assert!(in_path(Path::new(&format!("/c/other/{a}"))).is_none());
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_reader_of_digests(text in ".{0,200}") {
            drop(in_text(&text, "x"));
            drop(in_path(Path::new(&text)));
        }
    }
}
