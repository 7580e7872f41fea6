//! safetensors: eight bytes of length, a header of JSON, and then tensors without a gap.
//!
//! As strict as the format's own library: no hole, no overlap, no tensor given twice, sizes that fit type and shape. The
//! header is read as a stream, never as a whole.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::layout::{
    Bytes, Cursor, Format, Layout, Malformed, NAME_MAX, TENSORS_MAX, Tensor, in_order, shown, wrong,
};

/// The format's own limit for its header, in bytes.
const HEADER_MAX: u64 = 100_000_000;

/// Reads the header.
///
/// # Errors
/// Where the bytes are not what the format asks for.
pub fn read<B: Bytes + ?Sized>(bytes: &B) -> Result<Layout, Malformed> {
    let size = bytes.size();
    if size < 8 {
        return wrong(format!("has {size} bytes: the length of its header takes 8"));
    }
    let mut length = [0; 8];
    bytes.fill(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_MAX {
        return wrong(format!("claims a header of {length} bytes: {HEADER_MAX} are allowed"));
    }
    let header = length + 8;
    if header > size {
        return wrong(format!("claims a header of {length} bytes, but ends after {size}"));
    }
    let mut json = serde_json::Deserializer::from_reader(Cursor::new(bytes, 8, header));
    let mut tensors = Table { data: header, size }.deserialize(&mut json).map_err(said)?;
    json.end().map_err(said)?;
    tensors = in_order(tensors, size)?;
    let mut end = header;
    for tensor in &tensors {
        if tensor.start != end {
            return wrong(format!(
                "there is a hole of {} bytes before {}",
                tensor.start - end,
                shown(&tensor.name)
            ));
        }
        end = tensor.end;
    }
    if end != size {
        return wrong(format!("its tensors end at {end}, but it has {size} bytes"));
    }
    Ok(Layout { format: Format::Safetensors, header, tensors })
}

/// A parser's words may quote the header.
fn said(err: serde_json::Error) -> Malformed {
    let text: String = err.to_string().escape_debug().take(200).collect();
    Malformed::Wrong(format!("its header is no table of tensors: {text}"))
}

/// The table: names and what they stand for.
struct Table {
    data: u64,
    size: u64,
}

impl<'de> DeserializeSeed<'de> for Table {
    type Value = Vec<Tensor>;
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Table {
    type Value = Vec<Tensor>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut tensors = Vec::new();
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if name.len() as u64 > NAME_MAX {
                return Err(A::Error::custom(format!("a name has {} bytes", name.len())));
            }
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format!("{} stands there twice", shown(&name))));
            }
            if name == "__metadata__" {
                map.next_value_seed(Metadata)?;
                continue;
            }
            if tensors.len() == TENSORS_MAX {
                return Err(A::Error::custom(format!("it has more than {TENSORS_MAX} tensors")));
            }
            let entry: Entry = map.next_value()?;
            let (start, end) = entry
                .place(self.size - self.data)
                .map_err(|why| A::Error::custom(format!("{}: {why}", shown(&name))))?;
            tensors.push(Tensor { name, start: self.data + start, end: self.data + end, digest: None });
        }
        Ok(tensors)
    }
}

/// `__metadata__`: text by text, and nothing of it is kept.
struct Metadata;

impl<'de> DeserializeSeed<'de> for Metadata {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Metadata {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of texts")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_entry::<IgnoredAny, String>()?.is_some() {}
        Ok(())
    }
}

/// One tensor as the header has it.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

impl Entry {
    /// Where it lies within the data, of which there are `room` bytes.
    fn place(&self, room: u64) -> Result<(u64, u64), String> {
        let (start, end) = self.data_offsets;
        if start > end || end > room {
            return Err(format!("lies from {start} to {end}, but the data ends at {room}"));
        }
        let elements = self.shape.0.ok_or("has more elements than can be counted")?;
        // Types that came later than this program are taken as they are.
        if let Some(bits) = bits(&self.dtype) {
            let total = elements.checked_mul(bits).ok_or("has more elements than can be counted")?;
            if total % 8 != 0 || total / 8 != end - start {
                return Err(format!(
                    "its type and shape ask for {} bytes, it has {}",
                    total.div_ceil(8),
                    end - start
                ));
            }
        }
        Ok((start, end))
    }
}

/// How many elements a shape has; none where that cannot be counted.
struct Shape(Option<u64>);

impl<'de> serde::Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Product;
        impl<'de> Visitor<'de> for Product {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of numbers")
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut product = Some(1_u64);
                while let Some(n) = seq.next_element::<u64>()? {
                    product = product.and_then(|p| p.checked_mul(n));
                }
                Ok(Shape(product))
            }
        }
        from.deserialize_seq(Product)
    }
}

/// Bits of one element.
fn bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "I16" | "U16" | "F16" | "BF16" => 16,
        "I32" | "U32" | "F32" => 32,
        "I64" | "U64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(header.as_bytes());
        out.extend(vec![7; data]);
        out
    }

    const GOOD: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,2],"data_offsets":[4,20]},"a":{"dtype":"I16","shape":[2],"data_offsets":[0,4]}}  "#;

    #[test]
    fn tensors_are_found_in_the_order_of_their_place() {
        let bytes = file(GOOD, 20);
        let layout = read(&bytes[..]).unwrap();
        let names: Vec<&str> = layout.tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(layout.tensors[1].end, bytes.len() as u64);
        assert_eq!(layout.header, GOOD.len() as u64 + 8);
    }

    #[test]
    fn what_does_not_fit_is_told() {
        for (header, data, said) in [
            (r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#, 5, "its tensors end at"),
            (r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#, 3, "the data ends at 3"),
            (r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[1,5]}}"#, 5, "a hole of 1 bytes"),
            (r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,4]}}"#, 4, "ask for 16 bytes"),
            (r#"{"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#, 4, "counted"),
            (r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}}"#, 4, "the data ends at 4"),
            (
                r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
                0,
                "twice",
            ),
            (
                r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#,
                3,
                "overlaps",
            ),
            (r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,2]}}"#, 2, "no table"),
            (r#"{"a":3}"#, 0, "no table"),
            (r#"{"__metadata__":{"a":1}}"#, 0, "no table"),
            ("[]", 0, "no table"),
            ("{}x", 0, "no table"),
        ] {
            let err = read(&file(header, data)[..]).unwrap_err().to_string();
            assert!(err.contains(said), "{header}: {err}");
        }
        for bytes in [&b""[..], b"1234567", &u64::MAX.to_le_bytes(), &100_u64.to_le_bytes()] {
            assert!(read(bytes).is_err());
        }
        // Deep nesting ends in an error, not in a stack overflow.
        let deep = format!("{{\"a\":{}", "[".repeat(200_000));
        assert!(read(&file(&deep, 0)[..]).is_err());
    }

    #[test]
    fn a_million_tensors_are_read_and_one_more_is_told() {
        let mut header = String::from("{");
        for i in 0..=TENSORS_MAX {
            header.push_str(&format!("\"{i}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}},"));
        }
        header.pop();
        header.push('}');
        let err = read(&file(&header, 0)[..]).unwrap_err().to_string();
        assert!(err.contains("more than 1000000"), "{err}");
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader_of_safetensors(bytes in proptest::collection::vec(any::<u8>(), 0..300), len in 0_u64..400) {
            drop(read(&bytes[..]));
            let mut with = len.to_le_bytes().to_vec();
            with.extend(&bytes);
            drop(read(&with[..]));
        }

        #[test]
        fn no_damage_breaks_the_reader_of_safetensors(at in 0_usize..200, byte: u8, cut in 0_usize..200) {
            let mut bytes = file(GOOD, 20);
            let n = bytes.len();
            bytes[at % n] = byte;
            bytes.truncate(n - cut % n);
            if let Ok(layout) = read(&bytes[..]) {
                // What is accepted covers the file without a hole.
                let covered: u64 = layout.tensors.iter().map(|t| t.end - t.start).sum();
                prop_assert_eq!(covered + layout.header, bytes.len() as u64);
            }
        }
    }
}
