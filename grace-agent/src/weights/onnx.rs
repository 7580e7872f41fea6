//! ONNX: a protobuf message with a graph in it, and the graph's initializers, which are the weights.
//!
//! A reader of protobuf as far as this needs one: fields are walked, four kinds of messages are entered, nothing is kept but
//! names and places. Weights that lie in another file (`external_data`) are not in this one.

use super::layout::{Bytes, Cursor, Format, Layout, Malformed, TENSORS_MAX, Tensor, in_order, wrong};

/// Fields that are walked at most, of all messages together: a graph's nodes are passed over whole.
const FIELDS_MAX: u64 = 20_000_000;

/// `ModelProto.graph`, `GraphProto.initializer`, `TensorProto.name`, `TensorProto.raw_data`: onnx.proto.
const GRAPH: u64 = 7;
const INITIALIZER: u64 = 5;
const NAME: u64 = 8;
const RAW_DATA: u64 = 9;

/// Highest number of a field in protobuf.
const FIELD_MAX: u64 = (1 << 29) - 1;

/// Reads the graph.
///
/// # Errors
/// Where the bytes are not what the format asks for.
pub fn read<B: Bytes + ?Sized>(bytes: &B) -> Result<Layout, Malformed> {
    let size = bytes.size();
    if size == 0 {
        return wrong("is empty");
    }
    let mut reader = Reader { bytes, fields: 0 };
    let (mut graphs, mut tensors) = (Vec::new(), Vec::new());
    reader.walk(0, size, |_, field, start, end| {
        if field == GRAPH {
            graphs.push((start, end));
        }
        Ok(())
    })?;
    let [graph] = graphs[..] else {
        return wrong(format!("holds {} graphs instead of one", graphs.len()));
    };
    reader.walk(graph.0, graph.1, |reader, field, start, end| {
        if field != INITIALIZER {
            return Ok(());
        }
        if tensors.len() == TENSORS_MAX {
            return wrong(format!("has more than {TENSORS_MAX} initializers"));
        }
        let (mut name, mut raw) = (String::new(), None);
        reader.walk(start, end, |reader, field, start, end| {
            match field {
                NAME => name = Cursor::new(reader.bytes, start, end).name(end - start)?,
                RAW_DATA => raw = Some((start, end)),
                _ => {}
            }
            Ok(())
        })?;
        // Small ones keep their numbers in other fields.
        let (start, end) = raw.unwrap_or((start, end));
        tensors.push(Tensor { name, start, end, digest: None });
        Ok(())
    })?;
    Ok(Layout { format: Format::Onnx, header: 0, tensors: in_order(tensors, size)? })
}

struct Reader<'a, B: Bytes + ?Sized> {
    bytes: &'a B,
    fields: u64,
}

impl<B: Bytes + ?Sized> Reader<'_, B> {
    /// Calls `each` with number and place of each field of the message from `at` to `end` that has a length.
    fn walk(
        &mut self,
        at: u64,
        end: u64,
        mut each: impl FnMut(&mut Self, u64, u64, u64) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        let mut cursor = Cursor::new(self.bytes, at, end);
        while cursor.left() > 0 {
            self.fields += 1;
            if self.fields > FIELDS_MAX {
                return wrong(format!("has more than {FIELDS_MAX} fields"));
            }
            let tag = varint(&mut cursor)?;
            let field = tag >> 3;
            if field == 0 || field > FIELD_MAX {
                return wrong(format!("a field has the number {field}"));
            }
            match tag & 7 {
                0 => {
                    varint(&mut cursor)?;
                }
                1 => cursor.skip(8)?,
                2 => {
                    let length = varint(&mut cursor)?;
                    let start = cursor.at();
                    cursor.skip(length)?;
                    each(self, field, start, start + length)?;
                }
                5 => cursor.skip(4)?,
                other => return wrong(format!("a field is of the kind {other}")),
            }
        }
        Ok(())
    }
}

fn varint<B: Bytes + ?Sized>(cursor: &mut Cursor<'_, B>) -> Result<u64, Malformed> {
    let mut out = 0_u64;
    for shift in (0..64).step_by(7) {
        let [byte] = cursor.take()?;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return wrong("a number has more than 64 bits");
        }
        out |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(out);
        }
    }
    wrong("a number does not end")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2];
        let mut n = content.len();
        while n > 127 {
            out.push(u8::try_from(n & 127).unwrap() | 128);
            n >>= 7;
        }
        out.push(u8::try_from(n).unwrap());
        out.extend(content);
        out
    }

    fn good() -> Vec<u8> {
        let tensor =
            |name: &str, data: &[u8]| field(5, &[field(8, name.as_bytes()), field(9, data)].concat());
        let graph =
            [field(1, b"node"), tensor("w", &[1; 300]), tensor("b", &[2; 40]), field(2, b"g")].concat();
        [vec![0x08, 9], field(7, &graph)].concat()
    }

    #[test]
    fn initializers_are_found() {
        let bytes = good();
        let layout = read(&bytes[..]).unwrap();
        let found: Vec<(&str, u64)> =
            layout.tensors.iter().map(|t| (t.name.as_str(), t.end - t.start)).collect();
        assert_eq!(found, [("w", 300), ("b", 40)]);
        let start = usize::try_from(layout.tensors[0].start).unwrap();
        assert_eq!(bytes[start..start + 300], [1; 300]);
        for bad in [&b""[..], b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x00", b"\x08", b"\x3a\x05a"]
        {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader_of_onnx(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(read(&bytes[..]));
            drop(read(&field(7, &bytes)[..]));
            drop(read(&field(7, &field(5, &bytes))[..]));
        }

        #[test]
        fn no_damage_breaks_the_reader_of_onnx(at: prop::sample::Index, byte: u8) {
            let mut bytes = good();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(layout) = read(&bytes[..]) {
                prop_assert!(layout.tensors.iter().all(|t| t.start <= t.end && t.end <= bytes.len() as u64));
            }
        }
    }
}
