//! Offsets of structure members from the running kernel's type information (BTF).
//!
//! Only what the probes need: find a structure by name, a member by name (through anonymous members), its offset in
//! bytes. Format: Documentation/bpf/btf.rst of the kernel. The blob comes from the kernel, but a reader that cannot
//! be made to panic costs nothing: every access is checked.

use std::collections::HashMap;

use super::ProbeError;

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;

/// The types of a kernel.
pub(super) struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins in `types`; index is the type's id, 0 is `void`.
    at: Vec<usize>,
    /// Structures by name, those that the probes ask for.
    structs: HashMap<&'a str, u32>,
}

impl<'a> Types<'a> {
    /// The types in `blob`, as in /sys/kernel/btf/vmlinux.
    pub(super) fn parse(blob: &'a [u8]) -> Result<Self, ProbeError> {
        Self::read(blob).ok_or(ProbeError::BtfMalformed)
    }

    fn read(blob: &'a [u8]) -> Option<Self> {
        if u16_at(blob, 0)? != MAGIC {
            return None;
        }
        let header = u32_at(blob, 4)? as usize;
        let section = |offset: usize, length: usize| {
            let from = header.checked_add(u32_at(blob, offset)? as usize)?;
            blob.get(from..from.checked_add(u32_at(blob, length)? as usize)?)
        };
        let types = section(8, 12)?;
        let strings = section(16, 20)?;
        let mut out = Self { types, strings, at: vec![usize::MAX], structs: HashMap::new() };
        let mut pos = 0;
        while pos < types.len() {
            let info = u32_at(types, pos + 4)?;
            let (kind, vlen) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
            if kind == KIND_STRUCT {
                let id = u32::try_from(out.at.len()).ok()?;
                let name = out.string(u32_at(types, pos)?)?;
                if !name.is_empty() {
                    out.structs.entry(name).or_insert(id);
                }
            }
            out.at.push(pos);
            pos += 12
                + match kind {
                    KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                    KIND_ARRAY => 12,
                    KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * vlen,
                    KIND_ENUM | KIND_FUNC_PROTO => 8 * vlen,
                    _ => 0,
                };
        }
        Some(out)
    }

    /// Offset of `member` in `structure`, in bytes.
    pub(super) fn offset(&self, structure: &'static str, member: &'static str) -> Result<u32, ProbeError> {
        self.structs
            .get(structure)
            .and_then(|id| self.member(*id, member, 8))
            .map(|bits| bits / 8)
            .ok_or(ProbeError::NoSuchMember { structure, member })
    }

    /// Offset in bits; `depth` bounds the walk through anonymous members.
    fn member(&self, id: u32, member: &str, depth: u32) -> Option<u32> {
        let pos = *self.at.get(id as usize)?;
        let info = u32_at(self.types, pos.checked_add(4)?)?;
        let kind = (info >> 24) & 0x1f;
        if kind != KIND_STRUCT && kind != KIND_UNION {
            return None;
        }
        let bitfields = info >> 31 == 1;
        for i in 0..(info & 0xffff) as usize {
            let m = pos + 12 + 12 * i;
            let name = self.string(u32_at(self.types, m)?)?;
            let offset = u32_at(self.types, m + 8)?;
            let offset = if bitfields { offset & 0x00ff_ffff } else { offset };
            if name == member {
                return Some(offset);
            }
            if name.is_empty()
                && depth > 0
                && let Some(inner) = self.member(u32_at(self.types, m + 4)?, member, depth - 1)
            {
                return Some(offset + inner);
            }
        }
        None
    }

    fn string(&self, at: u32) -> Option<&'a str> {
        let rest = self.strings.get(at as usize..)?;
        let end = rest.iter().position(|b| *b == 0)?;
        std::str::from_utf8(rest.get(..end)?).ok()
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A blob with `struct a { int x; union { int y; struct { int z; }; }; }`, offsets 0, 32 and 96 bits.
    fn blob() -> Vec<u8> {
        let strings = b"\0a\0x\0y\0z\0";
        let mut types: Vec<u32> = Vec::new();
        let head = |kind: u32, vlen: u32| kind << 24 | vlen;
        types.extend([0, head(KIND_INT, 0), 4, 32]); // 1: int
        types.extend([0, head(KIND_STRUCT, 1), 4, 7, 1, 64]); // 2: struct { int z }
        types.extend([0, head(KIND_UNION, 2), 4, 5, 1, 0, 0, 2, 0]); // 3: union { int y; struct 2 }
        types.extend([1, head(KIND_STRUCT, 2), 12, 3, 1, 0, 0, 3, 32]); // 4: struct a
        let bytes: Vec<u8> = types.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let mut out = Vec::new();
        out.extend(MAGIC.to_ne_bytes());
        out.extend([1, 0]);
        for word in [24u32, 0, bytes.len() as u32, bytes.len() as u32, strings.len() as u32] {
            out.extend(word.to_ne_bytes());
        }
        out.extend(bytes);
        out.extend(strings);
        out
    }

    #[test]
    fn finds_members_through_anonymous_ones() {
        let blob = blob();
        let types = Types::parse(&blob).expect("well formed");
        assert_eq!(types.offset("a", "x").ok(), Some(0));
        assert_eq!(types.offset("a", "y").ok(), Some(4));
        assert_eq!(types.offset("a", "z").ok(), Some(12));
        assert!(types.offset("a", "w").is_err());
        assert!(types.offset("b", "x").is_err());
    }

    #[test]
    fn a_cut_blob_is_an_error_not_a_panic() {
        let blob = blob();
        for len in 0..blob.len() {
            if let Ok(types) = Types::parse(&blob[..len]) {
                drop(types.offset("a", "z"));
            }
        }
    }
}
