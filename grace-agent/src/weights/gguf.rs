//! GGUF: a table of keys and values, a table of tensors, and then tensors at aligned places.
//!
//! Versions 2 and 3, little-endian. Values are passed over; only `general.alignment` counts.

use super::layout::{
    Bytes, Cursor, Format, HEADER_MAX, Layout, Malformed, NAME_MAX, TENSORS_MAX, Tensor, in_order, shown,
    wrong,
};

/// Keys and values of one file at most.
const KEYS_MAX: u64 = 1_000_000;

/// Lists in lists at most this deep.
const DEPTH: u32 = 4;

/// Numbers of dimensions that a tensor has at most (ggml's own limit).
const DIMENSIONS: u32 = 4;

/// Reads both tables.
///
/// # Errors
/// Where the bytes are not what the format asks for.
pub fn read<B: Bytes + ?Sized>(bytes: &B) -> Result<Layout, Malformed> {
    let size = bytes.size();
    let mut cursor = Cursor::new(bytes, 0, HEADER_MAX);
    if &cursor.take::<4>()? != b"GGUF" {
        return wrong("does not begin with GGUF");
    }
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        return wrong(format!("is of version {version}: 2 and 3 are known"));
    }
    let (tensors, keys) = (cursor.u64()?, cursor.u64()?);
    if tensors > TENSORS_MAX as u64 {
        return wrong(format!("claims {tensors} tensors: {TENSORS_MAX} are read"));
    }
    if keys > KEYS_MAX {
        return wrong(format!("claims {keys} keys: {KEYS_MAX} are read"));
    }
    let mut alignment = 32;
    for _ in 0..keys {
        let length = cursor.u64()?;
        let key = cursor.name(length)?;
        let kind = cursor.u32()?;
        if key == "general.alignment" && kind == U32 {
            alignment = u64::from(cursor.u32()?);
        } else {
            pass_value(&mut cursor, kind, DEPTH)?;
        }
    }
    if !alignment.is_power_of_two() || alignment > 1 << 20 {
        return wrong(format!("its alignment is {alignment}"));
    }
    // Not reserved: the number is only a claim.
    let mut found = Vec::new();
    for _ in 0..tensors {
        found.push(Info::read(&mut cursor)?);
    }
    let data = cursor.at().next_multiple_of(alignment);
    if !found.is_empty() && data > size {
        return wrong("ends before its tensors begin");
    }
    let mut starts: Vec<u64> = found.iter().map(|t| t.offset).collect();
    starts.sort_unstable();
    let tensors = found
        .into_iter()
        .map(|info| {
            let name = || shown(&info.name);
            if !info.offset.is_multiple_of(alignment) {
                return wrong(format!("{} lies at {}, not a multiple of {alignment}", name(), info.offset));
            }
            let start = data.checked_add(info.offset).filter(|start| *start <= size);
            let Some(start) = start else {
                return wrong(format!("{} begins past the end", name()));
            };
            let length = match info.bytes() {
                Some(length) => length?,
                // A type that came later than this program: up to the next one.
                None => {
                    let next = starts.partition_point(|s| *s <= info.offset);
                    starts.get(next).map_or(size - start, |next| next - info.offset)
                }
            };
            let Some(end) = start.checked_add(length) else {
                return wrong(format!("{} ends past the end", name()));
            };
            Ok(Tensor { name: info.name, start, end, digest: None })
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Layout { format: Format::Gguf, header: data.min(size), tensors: in_order(tensors, size)? })
}

/// A row of the tensor table.
struct Info {
    name: String,
    elements: Option<u64>,
    /// Elements of the first dimension: blocks do not cross rows.
    row: u64,
    kind: u32,
    offset: u64,
}

impl Info {
    fn read<B: Bytes + ?Sized>(cursor: &mut Cursor<'_, B>) -> Result<Self, Malformed> {
        let length = cursor.u64()?;
        let name = cursor.name(length)?;
        let dimensions = cursor.u32()?;
        if dimensions > DIMENSIONS {
            return wrong(format!("{} has {dimensions} dimensions", shown(&name)));
        }
        let (mut elements, mut row) = (Some(1_u64), 1);
        for i in 0..dimensions {
            let n = cursor.u64()?;
            elements = elements.and_then(|e| e.checked_mul(n));
            if i == 0 {
                row = n;
            }
        }
        Ok(Self { name, elements, row, kind: cursor.u32()?, offset: cursor.u64()? })
    }

    /// How many bytes it takes; none where its type is not known.
    fn bytes(&self) -> Option<Result<u64, Malformed>> {
        let (block, bytes) = block(self.kind)?;
        let counted = self
            .elements
            .filter(|_| self.row.is_multiple_of(block))
            .and_then(|n| (n / block).checked_mul(bytes));
        let why = || Malformed::Wrong(format!("{} has a shape that its type cannot have", shown(&self.name)));
        Some(counted.ok_or_else(why))
    }
}

/// Elements and bytes of one block of a ggml type.
fn block(kind: u32) -> Option<(u64, u64)> {
    Some(match kind {
        0 | 26 => (1, 4),
        1 | 25 | 30 => (1, 2),
        24 => (1, 1),
        27 | 28 => (1, 8),
        2 | 20 => (32, 18),
        3 => (32, 20),
        6 => (32, 22),
        7 => (32, 24),
        8 => (32, 34),
        9 => (32, 36),
        10 => (256, 84),
        11 => (256, 110),
        12 => (256, 144),
        13 => (256, 176),
        14 => (256, 210),
        15 => (256, 292),
        16 => (256, 66),
        17 => (256, 74),
        18 => (256, 98),
        19 => (256, 50),
        21 => (256, 110),
        22 => (256, 82),
        23 => (256, 136),
        29 => (256, 56),
        34 => (256, 54),
        35 => (256, 66),
        39 => (32, 17),
        _ => return None,
    })
}

const U32: u32 = 4;
const TEXT: u32 = 8;
const LIST: u32 = 9;

/// Passes over a value of `kind`.
fn pass_value<B: Bytes + ?Sized>(cursor: &mut Cursor<'_, B>, kind: u32, depth: u32) -> Result<(), Malformed> {
    if let Some(width) = width(kind) {
        return cursor.skip(width);
    }
    match kind {
        TEXT => {
            let length = cursor.u64()?;
            cursor.skip(length)
        }
        LIST if depth == 0 => wrong("lists in lists in lists"),
        LIST => {
            let (kind, count) = (cursor.u32()?, cursor.u64()?);
            match width(kind) {
                Some(width) => match count.checked_mul(width) {
                    Some(length) => cursor.skip(length),
                    None => wrong("a list's length cannot be counted"),
                },
                None => {
                    // Each takes eight bytes at least, so this ends with the header.
                    for _ in 0..count {
                        pass_value(cursor, kind, depth - 1)?;
                    }
                    Ok(())
                }
            }
        }
        _ => wrong(format!("a value is of type {kind}")),
    }
}

/// Bytes of a value that always takes the same.
fn width(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}

const _: () = assert!(NAME_MAX < HEADER_MAX);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(out: &mut Vec<u8>, s: &str) {
        out.extend((s.len() as u64).to_le_bytes());
        out.extend(s.as_bytes());
    }

    /// Two tensors: 64 floats, and 64 elements of Q8_0.
    fn good() -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend(2_u64.to_le_bytes());
        out.extend(2_u64.to_le_bytes());
        text(&mut out, "general.alignment");
        out.extend([4_u32.to_le_bytes(), 32_u32.to_le_bytes()].concat());
        text(&mut out, "list");
        out.extend([LIST.to_le_bytes(), TEXT.to_le_bytes()].concat());
        out.extend(2_u64.to_le_bytes());
        text(&mut out, "a");
        text(&mut out, "b");
        for (name, kind, offset) in [("blk.0.w", 0_u32, 0_u64), ("blk.1.w", 8, 256)] {
            text(&mut out, name);
            out.extend(1_u32.to_le_bytes());
            out.extend(64_u64.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(vec![1; 256 + 68]);
        out
    }

    #[test]
    fn both_tables_are_read() {
        let bytes = good();
        let layout = read(&bytes[..]).unwrap();
        let sizes: Vec<u64> = layout.tensors.iter().map(|t| t.end - t.start).collect();
        assert_eq!(sizes, [256, 68]);
        assert_eq!(layout.tensors[1].end, bytes.len() as u64);
        assert_eq!(layout.touched(&[(layout.header, layout.header + 1)]), ["`blk.0.w`"]);
        assert!(read(&bytes[..bytes.len() - 1]).unwrap_err().to_string().contains("past the end"));
    }

    #[test]
    fn lying_counts_cost_nothing() {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend(999_999_u64.to_le_bytes());
        bytes.extend(0_u64.to_le_bytes());
        assert!(read(&bytes[..]).is_err());
        bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(read(&bytes[..]).unwrap_err().to_string().contains("claims"));
        // A list of lists without end, each of them empty.
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend(0_u64.to_le_bytes());
        bytes.extend(1_u64.to_le_bytes());
        text(&mut bytes, "k");
        bytes.extend([LIST.to_le_bytes(), LIST.to_le_bytes()].concat());
        bytes.extend(u64::MAX.to_le_bytes());
        assert!(read(&bytes[..]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader_of_gguf(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(read(&bytes[..]));
            let mut with = b"GGUF\x03\0\0\0".to_vec();
            with.extend(&bytes);
            drop(read(&with[..]));
        }

        #[test]
        fn no_damage_breaks_the_reader_of_gguf(at in 0_usize..200, byte: u8, cut in 0_usize..400) {
            let mut bytes = good();
            let n = bytes.len();
            bytes[at % n] = byte;
            bytes.truncate(n - cut % n);
            if let Ok(layout) = read(&bytes[..]) {
                prop_assert!(layout.tensors.iter().all(|t| t.start <= t.end && t.end <= bytes.len() as u64));
            }
        }
    }
}
