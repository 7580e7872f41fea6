//! A zip as PyTorch writes it: members that are stored, not packed, so that each storage lies in one piece.
//!
//! Only the directory at the end is read, and each member's own header. The pickle in it is a program and is not run: a
//! storage is called by its member, `data/12`.

use super::layout::{
    Bytes, Cursor, Format, HEADER_MAX, Layout, Malformed, TENSORS_MAX, Tensor, in_order, shown, wrong,
};

const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;
const ENTRY: u32 = 0x0201_4b50;
const LOCAL: u32 = 0x0403_4b50;
/// The end's own length, and the longest comment after it.
const END_LENGTH: u64 = 22;
const COMMENT: u64 = 65535;

/// Reads the directory.
///
/// # Errors
/// Where the bytes are not what the format asks for.
pub fn read<B: Bytes + ?Sized>(bytes: &B) -> Result<Layout, Malformed> {
    let size = bytes.size();
    let directory = Directory::find(bytes)?;
    if directory.count > TENSORS_MAX as u64 {
        return wrong(format!("claims {} members: {TENSORS_MAX} are read", directory.count));
    }
    if directory.length > HEADER_MAX {
        return wrong(format!("claims a directory of {} bytes", directory.length));
    }
    let end = directory.start.checked_add(directory.length).filter(|end| *end <= size);
    let Some(end) = end else { return wrong("its directory ends past the end") };
    let mut cursor = Cursor::new(bytes, directory.start, end);
    let mut tensors = Vec::new();
    for _ in 0..directory.count {
        let member = Member::read(&mut cursor)?;
        let start = member.data(bytes)?;
        let Some(end) = start.checked_add(member.packed) else {
            return wrong(format!("{} ends past the end", shown(&member.name)));
        };
        if member.method == 0 && member.packed != member.length {
            return wrong(format!("{} has two lengths", shown(&member.name)));
        }
        tensors.push(Tensor { name: member.name, start, end, digest: None });
    }
    if cursor.left() > 0 {
        return wrong(format!("{} bytes of its directory belong to no member", cursor.left()));
    }
    Ok(Layout { format: Format::Torch, header: 0, tensors: in_order(tensors, directory.start)? })
}

/// Where the directory lies.
struct Directory {
    start: u64,
    length: u64,
    count: u64,
}

impl Directory {
    fn find<B: Bytes + ?Sized>(bytes: &B) -> Result<Self, Malformed> {
        let size = bytes.size();
        if size < END_LENGTH {
            return wrong("is too short for a zip");
        }
        let from = size.saturating_sub(END_LENGTH + COMMENT);
        let mut tail = vec![0; usize::try_from(size - from).unwrap_or(0)];
        bytes.fill(from, &mut tail)?;
        let last = tail.windows(4).rposition(|w| w == END.to_le_bytes());
        let Some(last) = last.filter(|at| tail.len() - at >= 22) else {
            return wrong("has no directory: it was cut, or is no zip");
        };
        let at = from + last as u64;
        let mut cursor = Cursor::new(bytes, at + 8, size);
        cursor.skip(2)?;
        let count = u64::from(u16::from_le_bytes(cursor.take()?));
        let (length, start) = (u64::from(cursor.u32()?), u64::from(cursor.u32()?));
        if count != 0xffff && length != 0xffff_ffff && start != 0xffff_ffff {
            return Ok(Self { start, length, count });
        }
        // PyTorch writes the longer form always, and marks it where numbers need it.
        let Some(locator) = at.checked_sub(20) else { return wrong("has no place for its zip64 directory") };
        let mut cursor = Cursor::new(bytes, locator, at);
        if cursor.u32()? != LOCATOR64 {
            return wrong("has no zip64 directory, but needs one");
        }
        cursor.skip(4)?;
        let end64 = cursor.u64()?;
        let mut cursor = Cursor::new(bytes, end64, locator);
        if cursor.u32()? != END64 {
            return wrong("its zip64 directory is not where it should be");
        }
        cursor.skip(8 + 2 + 2 + 4 + 4 + 8)?;
        let count = cursor.u64()?;
        let (length, start) = (cursor.u64()?, cursor.u64()?);
        Ok(Self { start, length, count })
    }
}

/// A member as the directory has it.
struct Member {
    name: String,
    method: u16,
    packed: u64,
    length: u64,
    local: u64,
}

impl Member {
    fn read<B: Bytes + ?Sized>(cursor: &mut Cursor<'_, B>) -> Result<Self, Malformed> {
        if cursor.u32()? != ENTRY {
            return wrong("an entry of its directory does not begin as one");
        }
        cursor.skip(2 + 2 + 2)?;
        let method = u16::from_le_bytes(cursor.take()?);
        cursor.skip(2 + 2 + 4)?;
        let (packed, length) = (cursor.u32()?, cursor.u32()?);
        let [name, extra, comment] = [cursor.take()?, cursor.take()?, cursor.take()?].map(u16::from_le_bytes);
        cursor.skip(2 + 2 + 4)?;
        let local = cursor.u32()?;
        let name = cursor.name(u64::from(name))?;
        let extra_end = cursor.at() + u64::from(extra);
        let mut wide = Vec::new();
        while cursor.at() + 4 <= extra_end {
            let [id, n] = [cursor.take()?, cursor.take()?].map(u16::from_le_bytes);
            let end = cursor.at() + u64::from(n);
            if end > extra_end {
                return wrong(format!("{} has a field that is longer than its entry", shown(&name)));
            }
            while id == 1 && cursor.at() + 8 <= end && wide.len() < 3 {
                wide.push(cursor.u64()?);
            }
            cursor.skip(end - cursor.at())?;
        }
        cursor.skip(extra_end.saturating_sub(cursor.at()) + u64::from(comment))?;
        // Numbers that do not fit stand in the zip64 field, in this order.
        let mut wide = wide.into_iter();
        let mut pick = |n: u32| match n {
            u32::MAX => {
                wide.next().ok_or_else(|| Malformed::Wrong(format!("{} lacks its size", shown(&name))))
            }
            n => Ok(u64::from(n)),
        };
        let length = pick(length)?;
        let packed = pick(packed)?;
        let local = pick(local)?;
        Ok(Self { method, packed, length, local, name })
    }

    /// Where its data begins: after its own header, which must be one and call it by the same length of name.
    fn data<B: Bytes + ?Sized>(&self, bytes: &B) -> Result<u64, Malformed> {
        let mut header = [0; 30];
        if self.local.checked_add(30).is_none_or(|end| end > bytes.size()) {
            return wrong(format!("{} begins past the end", shown(&self.name)));
        }
        bytes.fill(self.local, &mut header)?;
        if header[..4] != LOCAL.to_le_bytes() {
            return wrong(format!("{} is not where its directory says", shown(&self.name)));
        }
        let number = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
        Ok(self.local + 30 + number(26) + number(28))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A zip of stored members, as little as one needs.
    fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
        let (mut out, mut directory) = (Vec::new(), Vec::new());
        for (name, data) in members {
            let local = u32::try_from(out.len()).unwrap();
            let length = u32::try_from(data.len()).unwrap();
            let name_length = u16::try_from(name.len()).unwrap().to_le_bytes();
            out.extend(LOCAL.to_le_bytes());
            out.extend([0; 14]);
            out.extend([length.to_le_bytes(), length.to_le_bytes()].concat());
            out.extend(name_length);
            out.extend([0; 2]);
            out.extend(name.as_bytes());
            out.extend(*data);
            directory.extend(ENTRY.to_le_bytes());
            directory.extend([0; 16]);
            directory.extend([length.to_le_bytes(), length.to_le_bytes()].concat());
            directory.extend(name_length);
            directory.extend([0; 12]);
            directory.extend(local.to_le_bytes());
            directory.extend(name.as_bytes());
        }
        let start = u32::try_from(out.len()).unwrap();
        out.extend(&directory);
        out.extend(END.to_le_bytes());
        out.extend([0; 4]);
        let count = u16::try_from(members.len()).unwrap().to_le_bytes();
        out.extend([count, count].concat());
        out.extend(u32::try_from(directory.len()).unwrap().to_le_bytes());
        out.extend(start.to_le_bytes());
        out.extend([0; 2]);
        out
    }

    fn good() -> Vec<u8> {
        zip(&[
            ("m/data.pkl", b"pickle"),
            ("m/data/0", &[1; 64]),
            ("m/data/1", &[2; 32]),
            ("m/version", b"3\n"),
        ])
    }

    #[test]
    fn members_are_found() {
        let layout = read(&good()[..]).unwrap();
        let found: Vec<(&str, u64)> =
            layout.tensors.iter().map(|t| (t.name.as_str(), t.end - t.start)).collect();
        assert_eq!(found, [("m/data.pkl", 6), ("m/data/0", 64), ("m/data/1", 32), ("m/version", 2)]);
        let bytes = good();
        let storage = &layout.tensors[1];
        let (start, end) = (usize::try_from(storage.start).unwrap(), usize::try_from(storage.end).unwrap());
        assert_eq!(bytes[start..end], [1; 64]);
    }

    #[test]
    fn a_zip_that_was_cut_is_told() {
        let bytes = good();
        for cut in 1..bytes.len() {
            assert!(read(&bytes[..bytes.len() - cut]).is_err(), "{cut}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader_of_zips(bytes in proptest::collection::vec(any::<u8>(), 0..200), start: u32, length: u32, count: u16) {
            let mut with = bytes;
            with.extend(END.to_le_bytes());
            with.extend([0; 6]);
            with.extend(count.to_le_bytes());
            with.extend(length.to_le_bytes());
            with.extend(start.to_le_bytes());
            with.extend([0; 2]);
            drop(read(&with[..]));
        }

        #[test]
        fn no_damage_breaks_the_reader_of_zips(at: prop::sample::Index, byte: u8) {
            let mut bytes = good();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(layout) = read(&bytes[..]) {
                prop_assert!(layout.tensors.iter().all(|t| t.start <= t.end && t.end <= bytes.len() as u64));
            }
        }
    }
}
