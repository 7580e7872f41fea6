//! What a file of weights is made of: its format, its header, and where each tensor lies.
//!
//! The bytes are anybody's. Whatever they say, reading them takes bounded memory and ends with a [`Layout`] or a
//! [`Malformed`]: never a crash, never an allocation by a length that was only claimed.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{gguf, onnx, safetensors, torch};
use crate::file_state::Digest;

/// Tensors of one file at most; a file with more is told to be malformed.
pub const TENSORS_MAX: usize = 1_000_000;

/// Bytes of header at most that are read of any format.
pub const HEADER_MAX: u64 = 256 << 20;

/// Longest name of a tensor.
pub const NAME_MAX: u64 = 4096;

/// Names that [`Layout::touched`] tells at most.
const TOLD: usize = 8;

/// Longest name that people are shown.
const SHOWN: usize = 96;

/// A format of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// safetensors.
    Safetensors,
    /// GGUF.
    Gguf,
    /// A zip as PyTorch writes it.
    Torch,
    /// ONNX.
    Onnx,
    /// None that is known: chunks are compared all the same.
    Unknown,
}

impl Format {
    /// As people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Gguf => "GGUF",
            Self::Torch => "PyTorch zip",
            Self::Onnx => "ONNX",
            Self::Unknown => "unknown format",
        }
    }
}

/// A tensor, or what takes its place: a zip's member, an initializer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// Its name. Hostile text.
    pub name: String,
    /// Where it begins, in bytes of the file.
    pub start: u64,
    /// Where it ends, exclusive.
    pub end: u64,
    /// SHA-256 of its bytes, where it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}

/// What a file is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Its format.
    pub format: Format,
    /// How many bytes at its beginning are header and tensor table; 0 where these are not in one piece.
    pub header: u64,
    /// Its tensors in the order of their place; none overlaps another.
    pub tensors: Vec<Tensor>,
}

/// Why a file is not what its format asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The bytes are wrong, and how.
    #[error("{0}")]
    Wrong(String),
    /// They could not be read.
    #[error("cannot be read: {0}")]
    Unread(String),
}

impl From<io::Error> for Malformed {
    fn from(err: io::Error) -> Self {
        match err.kind() {
            io::ErrorKind::UnexpectedEof => Self::Wrong("ends in the middle of its header".to_owned()),
            _ => Self::Unread(err.to_string()),
        }
    }
}

/// Something wrong, in words.
pub(super) fn wrong<T>(why: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed::Wrong(why.into()))
}

/// Bytes at places: a file, or a slice.
pub trait Bytes {
    /// How many there are.
    fn size(&self) -> u64;
    /// Fills `out` from `at` on.
    ///
    /// # Errors
    /// Where there are fewer, or they cannot be read.
    fn fill(&self, at: u64, out: &mut [u8]) -> io::Result<()>;
}

impl Bytes for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }
    fn fill(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let range = usize::try_from(at).ok().and_then(|at| Some(at..at.checked_add(out.len())?));
        let found = range.and_then(|range| self.get(range)).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }
}

/// A file whose size was looked at once: it may grow or shrink meanwhile.
#[derive(Debug)]
pub struct Opened<'a> {
    /// The file.
    pub file: &'a File,
    /// Its size then, in bytes.
    pub size: u64,
}

impl Bytes for Opened<'_> {
    fn size(&self) -> u64 {
        self.size
    }
    fn fill(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, at)
    }
}

/// Reads forward through a part of some bytes, a block at a time.
pub(super) struct Cursor<'a, B: Bytes + ?Sized> {
    bytes: &'a B,
    at: u64,
    end: u64,
    block: Vec<u8>,
    block_at: u64,
}

impl<'a, B: Bytes + ?Sized> Cursor<'a, B> {
    /// From `at` to `end`, but no further than the bytes go.
    pub(super) fn new(bytes: &'a B, at: u64, end: u64) -> Self {
        Self { bytes, at, end: end.min(bytes.size()), block: Vec::new(), block_at: 0 }
    }

    /// The place of the next byte.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// How many bytes are left.
    pub(super) fn left(&self) -> u64 {
        self.end.saturating_sub(self.at)
    }

    /// Passes over `n` bytes.
    pub(super) fn skip(&mut self, n: u64) -> Result<(), Malformed> {
        if n > self.left() {
            return wrong("a length points past the end");
        }
        self.at += n;
        Ok(())
    }

    /// The next `N` bytes.
    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut out = [0; N];
        self.fill(&mut out)?;
        Ok(out)
    }

    /// The next little-endian number.
    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_le_bytes)
    }

    /// The next little-endian number.
    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_le_bytes)
    }

    /// The next `len` bytes as a name; what is no UTF-8 is replaced.
    pub(super) fn name(&mut self, len: u64) -> Result<String, Malformed> {
        if len > NAME_MAX {
            return wrong(format!("a name has {len} bytes"));
        }
        if len > self.left() {
            return wrong("a name points past the end");
        }
        let mut out = vec![0; usize::try_from(len).unwrap_or(0)];
        self.fill(&mut out)?;
        Ok(String::from_utf8(out).unwrap_or_else(|err| String::from_utf8_lossy(err.as_bytes()).into_owned()))
    }

    fn fill(&mut self, mut out: &mut [u8]) -> Result<(), Malformed> {
        if out.len() as u64 > self.left() {
            return wrong("ends in the middle of its header");
        }
        while !out.is_empty() {
            let have = self.block()?;
            let n = have.len().min(out.len());
            out[..n].copy_from_slice(&have[..n]);
            out = &mut out[n..];
            self.at += n as u64;
        }
        Ok(())
    }

    /// What is read ahead from the next byte on; empty at the end.
    fn block(&mut self) -> io::Result<&[u8]> {
        let inside = self.at >= self.block_at && self.at - self.block_at < self.block.len() as u64;
        if !inside {
            let want = self.left().min(BLOCK);
            self.block.resize(usize::try_from(want).unwrap_or(0), 0);
            self.block_at = self.at;
            self.bytes.fill(self.at, &mut self.block)?;
        }
        let from = usize::try_from(self.at - self.block_at).unwrap_or(0);
        Ok(self.block.get(from..).unwrap_or_default())
    }
}

impl<B: Bytes + ?Sized> Read for Cursor<'_, B> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let have = self.block()?;
        let n = have.len().min(out.len());
        out[..n].copy_from_slice(&have[..n]);
        self.at += n as u64;
        Ok(n)
    }
}

/// Bytes read at once.
const BLOCK: u64 = 64 * 1024;

/// What `bytes` are made of. The format is found by their beginning; `path` decides only where that says nothing (ONNX).
///
/// # Errors
/// Where they are not what their format, or their name, asks for.
pub fn read_layout<B: Bytes + ?Sized>(bytes: &B, path: &Path) -> Result<Layout, Malformed> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    let mut magic = [0; 9];
    let known = usize::try_from(bytes.size()).unwrap_or(usize::MAX).min(magic.len());
    bytes.fill(0, &mut magic[..known])?;
    let layout = match (&magic, extension.as_str()) {
        ([b'G', b'G', b'U', b'F', ..], _) | (_, "gguf") => gguf::read(bytes)?,
        ([b'P', b'K', 3, 4, ..], "onnx") => return wrong("is a zip, not ONNX"),
        ([b'P', b'K', 3, 4, ..], _) => torch::read(bytes)?,
        (_, "onnx") => onnx::read(bytes)?,
        (_, "safetensors") => safetensors::read(bytes)?,
        // Named by its digest, as a cache of a hub does.
        ([.., b'{'], "") => safetensors::read(bytes)?,
        _ => Layout { format: Format::Unknown, header: 0, tensors: Vec::new() },
    };
    Ok(layout)
}

/// Puts tensors in the order of their place.
///
/// # Errors
/// Where one ends before it begins or past `size`, or two overlap.
pub(super) fn in_order(mut tensors: Vec<Tensor>, size: u64) -> Result<Vec<Tensor>, Malformed> {
    tensors.sort_by_key(|t| (t.start, t.end));
    let mut end = 0;
    for tensor in &tensors {
        if tensor.end < tensor.start {
            return wrong(format!("{} ends before it begins", shown(&tensor.name)));
        }
        if tensor.end > size {
            return wrong(format!("{} ends at {}, past the end at {size}", shown(&tensor.name), tensor.end));
        }
        if tensor.start < end && tensor.start < tensor.end {
            return wrong(format!("{} overlaps the tensor before it", shown(&tensor.name)));
        }
        end = end.max(tensor.end);
    }
    Ok(tensors)
}

/// A name as people are shown it: quoted, escaped, cut.
#[must_use]
pub fn shown(name: &str) -> String {
    let mut text: String = name.escape_debug().take(SHOWN).collect();
    if name.escape_debug().nth(SHOWN).is_some() {
        text.push('…');
    }
    format!("`{text}`")
}

impl Layout {
    /// What the bytes of `ranges` are a part of, in words and the order of their place: names of tensors, `the header`, or
    /// `padding`. Told of a few; the rest is counted.
    #[must_use]
    pub fn touched(&self, ranges: &[(u64, u64)]) -> Vec<String> {
        let mut told: Vec<String> = Vec::new();
        let mut more = 0_usize;
        let mut last = None;
        let mut tell = |what: String| match told.len() < TOLD {
            true => told.push(what),
            false => more += 1,
        };
        if ranges.iter().any(|(start, _)| *start < self.header) {
            tell("the header".to_owned());
        }
        for (start, end) in ranges {
            // The first that ends after the range begins.
            let from = self.tensors.partition_point(|t| t.end <= *start);
            let mut any = *start < self.header;
            for (i, tensor) in self.tensors.iter().enumerate().skip(from) {
                if tensor.start >= *end {
                    break;
                }
                any = true;
                if last.is_none_or(|last| i > last) {
                    last = Some(i);
                    tell(shown(&tensor.name));
                }
            }
            if !any && !self.tensors.is_empty() {
                tell("padding".to_owned());
            }
        }
        if more > 0 {
            told.push(format!("and {more} more"));
        }
        told
    }

    /// The layers that the bytes of `ranges` are a part of: `model.layers.12` of `model.layers.12.mlp.up_proj.weight`.
    #[must_use]
    pub fn layers(&self, ranges: &[(u64, u64)]) -> Vec<String> {
        let mut out = Vec::new();
        for (start, end) in ranges {
            let from = self.tensors.partition_point(|t| t.end <= *start);
            for tensor in self.tensors.iter().skip(from).take_while(|t| t.start < *end) {
                if let Some(layer) = layer(&tensor.name).map(shown)
                    && !out.contains(&layer)
                {
                    out.push(layer);
                }
                if out.len() == TOLD {
                    return out;
                }
            }
        }
        out
    }
}

/// The name up to its first number.
fn layer(name: &str) -> Option<&str> {
    let mut end = 0;
    for part in name.split('.') {
        end += part.len();
        if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
            return name.get(..end);
        }
        end += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, start: u64, end: u64) -> Tensor {
        Tensor { name: name.into(), start, end, digest: None }
    }

    #[test]
    fn a_range_touches_what_lies_in_it() {
        let tensors = vec![tensor("h.0.a", 10, 20), tensor("h.1.b", 20, 30), tensor("c", 40, 50)];
        let layout = Layout { format: Format::Safetensors, header: 10, tensors };
        let touched = |start, end| layout.touched(&[(start, end)]).join(" ");
        assert_eq!(touched(0, 5), "the header");
        assert_eq!(touched(9, 11), "the header `h.0.a`");
        assert_eq!(touched(19, 21), "`h.0.a` `h.1.b`");
        assert_eq!(touched(30, 40), "padding");
        assert_eq!(touched(0, 60), "the header `h.0.a` `h.1.b` `c`");
        assert_eq!(layout.layers(&[(0, 60)]), ["`h.0`", "`h.1`"]);
        assert_eq!(layout.touched(&[(12, 13), (14, 15)]), ["`h.0.a`"]);
    }

    #[test]
    fn names_are_escaped_and_cut() {
        assert_eq!(shown("a\n\u{1b}[31m"), "`a\\n\\u{1b}[31m`".replace("\\\\", "\\"));
        assert!(shown(&"x".repeat(10_000)).len() < 110);
        let many = (0..100).map(|i| tensor(&format!("t{i}"), i, i + 1)).collect();
        let layout = Layout { format: Format::Gguf, header: 0, tensors: many };
        assert_eq!(layout.touched(&[(0, 100)]).last().unwrap(), "and 92 more");
    }

    #[test]
    fn tensors_that_overlap_or_lie_outside_are_told() {
        assert!(in_order(vec![tensor("a", 0, 10), tensor("b", 9, 12)], 20).is_err());
        assert!(in_order(vec![tensor("a", 0, 21)], 20).is_err());
        assert!(in_order(vec![tensor("a", 5, 4)], 20).is_err());
        assert!(in_order(vec![tensor("b", 10, 20), tensor("a", 0, 10), tensor("e", 10, 10)], 20).is_ok());
    }
}
