//! The readers of formats of weights against bytes of anybody: any bytes, real files damaged at any place, headers as large as
//! they may be. They end with a layout or with what is wrong, and never take more memory than the bytes are worth.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod harness;

use std::alloc::{GlobalAlloc, Layout as Room, System};
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use grace_agent::weights::{Format, Layout, Malformed, read_layout};
use proptest::prelude::*;
use proptest::sample::Index;

/// Counts what each thread has taken and not given back.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn took(size: usize) {
    // A thread that ends has no such places any more; nobody asks about it.
    let held = HELD.try_with(|held| held.replace(held.get().wrapping_add(size)).wrapping_add(size));
    if let Ok(held) = held {
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held)));
    }
}

fn gave(size: usize) {
    // What another thread took is no reason to count below nothing.
    let _ = HELD.try_with(|held| held.set(held.get().saturating_sub(size)));
}

#[expect(unsafe_code, reason = "the trait asks for it")]
// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, room: Room) -> *mut u8 {
        took(room.size());
        // SAFETY: as the caller was asked to hold it.
        unsafe { System.alloc(room) }
    }
    unsafe fn dealloc(&self, at: *mut u8, room: Room) {
        gave(room.size());
        // SAFETY: as the caller was asked to hold it.
        unsafe { System.dealloc(at, room) }
    }
    unsafe fn realloc(&self, at: *mut u8, room: Room, size: usize) -> *mut u8 {
        gave(room.size());
        took(size);
        // SAFETY: as the caller was asked to hold it.
        unsafe { System.realloc(at, room, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What was read, and how many bytes of memory that took at most.
fn read(bytes: &[u8], name: &str) -> (Result<Layout, Malformed>, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let found = read_layout(bytes, Path::new(name));
    (found, PEAK.get().saturating_sub(before))
}

/// Whatever `bytes` claim, they are read in no more memory than this many times their size, and a little. The worst are
/// initializers of ONNX, of which each takes two bytes.
const TIMES: usize = 200;
const A_LITTLE: usize = 1 << 20;

/// Reads them, and sees to it that a layout fits into the file and memory was bounded.
fn bounded(bytes: &[u8], name: &str) -> Result<(), TestCaseError> {
    let (found, peak) = read(bytes, name);
    prop_assert!(peak <= TIMES * bytes.len() + A_LITTLE, "{peak} bytes of memory for {}", bytes.len());
    match found {
        Ok(layout) => {
            let size = bytes.len() as u64;
            prop_assert!(layout.header <= size);
            prop_assert!(layout.tensors.iter().all(|t| t.start <= t.end && t.end <= size), "{layout:?}");
            // What is asked of it, over all of the file.
            drop((layout.touched(&[(0, size)]), layout.layers(&[(0, size)])));
        }
        Err(why) => prop_assert!(why.to_string().len() < 1000, "{why}"),
    }
    Ok(())
}

/// A small file of each format, made by hand.
fn made(format: Format) -> (Vec<u8>, &'static str) {
    match format {
        Format::Safetensors => {
            let header = br#"{"__metadata__":{"format":"np"},"a.0.w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"U8","shape":[4],"data_offsets":[16,20]}}"#;
            let mut out = (header.len() as u64).to_le_bytes().to_vec();
            out.extend(header);
            out.extend([7; 20]);
            (out, "m.safetensors")
        }
        Format::Gguf => {
            let text = |s: &str| [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat();
            let mut out = b"GGUF\x03\0\0\0".to_vec();
            out.extend(2_u64.to_le_bytes());
            out.extend(2_u64.to_le_bytes());
            out.extend(text("general.alignment"));
            out.extend(4_u32.to_le_bytes());
            out.extend(32_u32.to_le_bytes());
            out.extend(text("tokens"));
            // A list of two texts.
            out.extend(9_u32.to_le_bytes());
            out.extend(8_u32.to_le_bytes());
            out.extend(2_u64.to_le_bytes());
            out.extend(text("a"));
            out.extend(text("bc"));
            for (name, offset) in [("blk.0.w", 0_u64), ("blk.1.w", 64)] {
                out.extend(text(name));
                out.extend(1_u32.to_le_bytes());
                out.extend(16_u64.to_le_bytes());
                out.extend(0_u32.to_le_bytes());
                out.extend(offset.to_le_bytes());
            }
            out.resize(out.len().next_multiple_of(32) + 128, 5);
            (out, "m.gguf")
        }
        Format::Torch => {
            let members: [(&str, &[u8]); 3] =
                [("m/data.pkl", b"\x80\x02}."), ("m/data/0", &[1; 40]), ("m/data/1", &[2; 24])];
            let (mut out, mut directory) = (Vec::new(), Vec::new());
            for (name, data) in members {
                let size = (data.len() as u32).to_le_bytes();
                let (at, length) = ((out.len() as u32).to_le_bytes(), (name.len() as u16).to_le_bytes());
                out.extend(
                    [b"PK\x03\x04\x14\0\0\0\0\0", &[0; 8][..], &size, &size, &length, &[0; 2]].concat(),
                );
                out.extend(name.as_bytes());
                out.extend(data);
                directory.extend(b"PK\x01\x02\x14\0\x14\0\0\0\0\0");
                directory.extend([&[0; 8][..], &size, &size, &length, &[0; 12], &at].concat());
                directory.extend(name.as_bytes());
            }
            let (at, length) = (out.len() as u32, directory.len() as u32);
            out.extend(directory);
            out.extend(b"PK\x05\x06\0\0\0\0\x03\0\x03\0");
            out.extend([length.to_le_bytes(), at.to_le_bytes()].concat());
            out.extend([0; 2]);
            (out, "m.pt")
        }
        Format::Onnx | Format::Unknown => {
            let field = |number: u8, content: &[u8]| {
                let mut out = vec![number << 3 | 2, content.len() as u8];
                out.extend(content);
                out
            };
            let tensor = |name: &str| [field(8, name.as_bytes()), field(9, &[3; 20])].concat();
            let graph = [field(5, &tensor("l.0.w")), field(5, &tensor("l.1.w"))].concat();
            ([&[8, 7][..], &field(7, &graph)].concat(), "m.onnx")
        }
    }
}

const FORMATS: [Format; 4] = [Format::Safetensors, Format::Gguf, Format::Torch, Format::Onnx];

/// Begin and end of the files that the real libraries write: their headers and tables. None where these are not there.
fn real() -> &'static [(Vec<u8>, String)] {
    static REAL: OnceLock<Vec<(Vec<u8>, String)>> = OnceLock::new();
    REAL.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let folder = tempfile::tempdir().unwrap();
        let written = Command::new(root.join("target/weights-python/bin/python"))
            .arg(root.join("tests/weights/make.py"))
            .arg(folder.path())
            .output();
        if !written.is_ok_and(|out| out.status.success()) {
            harness::skip("real files, damaged", "`cargo xtask setup` gets the libraries of weights");
            return Vec::new();
        }
        let files = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let read = |path: PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (fs::read(path).unwrap(), name)
        };
        files.map(read).collect()
    })
}

#[test]
fn files_made_by_hand_are_read() {
    for format in FORMATS {
        let (bytes, name) = made(format);
        let layout = read(&bytes, name).0.unwrap_or_else(|why| panic!("{name}: {why}"));
        assert_eq!(layout.format, format);
        assert!(layout.tensors.len() >= 2, "{layout:?}");
    }
    for (bytes, name) in real() {
        assert!(read(bytes, name).0.unwrap().tensors.len() >= 6, "{name}");
    }
}

#[test]
fn a_claim_at_any_place_costs_no_memory() {
    for format in FORMATS {
        let (good, name) = made(format);
        for at in 0..good.len() {
            for claim in [u64::MAX, 1 << 63, 1 << 40, 0xffff_ffff, 900_000, 65_535, 0] {
                for width in [2, 4, 8] {
                    let mut bytes = good.clone();
                    let end = bytes.len().min(at + width);
                    bytes[at..end].copy_from_slice(&claim.to_le_bytes()[..end - at]);
                    bounded(&bytes, name).unwrap();
                }
            }
        }
    }
}

/// Something to do to a file.
#[derive(Debug, Clone)]
enum Damage {
    Byte(Index, u8),
    Word(Index, u32),
    Length(Index, u64),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Twice(Index, Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let claims = prop_oneof![
        Just(u64::MAX),
        Just(1 << 63),
        Just(0xffff_ffff),
        Just(1 << 40),
        Just(900_000),
        0..5000_u64,
        any::<u64>()
    ];
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        (any::<Index>(), any::<u32>()).prop_map(|(at, word)| Damage::Word(at, word)),
        (any::<Index>(), claims).prop_map(|(at, length)| Damage::Length(at, length)),
        any::<Index>().prop_map(Damage::Cut),
        (any::<Index>(), proptest::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Damage::Twice(from, to)),
    ]
}

/// Does it, within the first or last `near` bytes.
fn hurt(bytes: &mut Vec<u8>, damage: &Damage, near: usize) {
    if bytes.is_empty() {
        return;
    }
    let place = |index: &Index, bytes: &[u8]| {
        let reach = bytes.len().min(2 * near);
        let at = index.index(reach);
        if at < reach / 2 { at } else { bytes.len() - (reach - at) }
    };
    let mut put = |index: &Index, new: &[u8]| {
        let at = place(index, bytes);
        let end = bytes.len().min(at + new.len());
        bytes[at..end].copy_from_slice(&new[..end - at]);
    };
    match damage {
        Damage::Byte(at, byte) => put(at, &[*byte]),
        Damage::Word(at, word) => put(at, &word.to_le_bytes()),
        Damage::Length(at, length) => put(at, &length.to_le_bytes()),
        Damage::Cut(at) => bytes.truncate(place(at, bytes)),
        Damage::Insert(at, new) => {
            let at = place(at, bytes);
            bytes.splice(at..at, new.iter().copied());
        }
        Damage::Twice(from, to) => {
            let (a, b) = (place(from, bytes), place(to, bytes));
            let piece = bytes[a.min(b)..a.max(b).min(a.min(b) + near)].to_vec();
            bytes.splice(a..a, piece);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_in_bounded_memory(bytes in proptest::collection::vec(any::<u8>(), 0..2000), format in 0..4_usize) {
        let (good, name) = made(FORMATS[format]);
        bounded(&bytes, name)?;
        // Behind what a reader takes for its own.
        let begin = good.len().min(24);
        bounded(&[&good[..begin], &bytes].concat(), name)?;
        bounded(&[&bytes[..], &good].concat(), name)?;
    }

    #[test]
    fn files_made_by_hand_and_damaged_are_read_in_bounded_memory(what in proptest::collection::vec(damage(), 1..6), format in 0..4_usize) {
        let (mut bytes, name) = made(FORMATS[format]);
        for one in &what {
            hurt(&mut bytes, one, 1 << 20);
        }
        bounded(&bytes, name)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn real_files_that_are_damaged_are_read_in_bounded_memory(what in proptest::collection::vec(damage(), 1..6), file: Index) {
        if !real().is_empty() {
            let (good, name) = &real()[file.index(real().len())];
            let mut bytes = good.clone();
            for one in &what {
                hurt(&mut bytes, one, 600);
            }
            bounded(&bytes, name)?;
        }
    }
}

/// A safetensors header around `entries`, and `data` bytes behind it.
fn headed(header: &str, data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.resize(out.len() + data, 0);
    out
}

/// So much memory at most for the largest table of tensors that is read.
const LARGEST: usize = 512 << 20;

#[test]
fn a_million_tensors_are_read_and_one_more_is_refused() {
    let header = |n: usize| {
        let entry =
            |i: usize| format!(r#""t{i}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#, i + 1);
        format!("{{{}}}", (0..n).map(entry).collect::<Vec<_>>().join(","))
    };
    let (found, peak) = read(&headed(&header(1_000_000), 1_000_000), "m.safetensors");
    assert_eq!(found.unwrap().tensors.len(), 1_000_000);
    assert!(peak < LARGEST, "{peak} bytes of memory");
    let (found, peak) = read(&headed(&header(1_000_001), 1_000_001), "m.safetensors");
    assert!(found.unwrap_err().to_string().contains("more than 1000000 tensors"));
    assert!(peak < LARGEST, "{peak} bytes of memory");

    // Two bytes each.
    let varint = |mut n: usize| {
        let mut out = Vec::new();
        while n >= 0x80 {
            out.push(n as u8 | 0x80);
            n >>= 7;
        }
        out.push(n as u8);
        out
    };
    let graph = [5 << 3 | 2, 0].repeat(1_000_001);
    let bytes = [&[7 << 3 | 2][..], &varint(graph.len()), &graph].concat();
    let (found, peak) = read(&bytes, "m.onnx");
    assert!(found.unwrap_err().to_string().contains("more than 1000000 initializers"));
    assert!(peak < LARGEST, "{peak} bytes of memory");
}

#[test]
fn a_header_of_100_mb_is_read_and_a_longer_one_is_refused() {
    const MAX: usize = 100_000_000;
    // Spaces, one name, one text of metadata, lists in lists.
    let name = "x".repeat(MAX - 100);
    for (header, why) in [
        (format!("{{{}}}", " ".repeat(MAX - 2)), None),
        (format!(r#"{{"{name}":{{"dtype":"U8","shape":[],"data_offsets":[0,1]}}}}"#), Some("a name has")),
        (format!(r#"{{"__metadata__":{{"a":"{name}"}}}}"#), None),
        (format!(r#"{{"a":{}"#, "[".repeat(MAX - 100)), Some("no table of tensors")),
    ] {
        assert!(header.len() <= MAX);
        let (found, peak) = read(&headed(&header, 0), "m.safetensors");
        match why {
            None => assert!(found.is_ok(), "{found:?}"),
            Some(why) => assert!(found.unwrap_err().to_string().contains(why)),
        }
        assert!(peak < 4 * MAX, "{peak} bytes of memory");
    }
    let (found, peak) = read(&headed(&" ".repeat(MAX + 1), 0), "m.safetensors");
    assert!(found.unwrap_err().to_string().contains("100000000 are allowed"));
    assert!(peak < A_LITTLE, "{peak} bytes of memory for what is only claimed");
}
