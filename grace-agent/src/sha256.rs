//! SHA-256 as Grace writes it: a hasher that ends in a [`Digest`], and hex both ways.

use std::io::{self, Read};

use sha2::Digest as _;

use crate::file_state::Digest;

/// Hashes what it is fed.
#[derive(Debug, Clone, Default)]
pub struct Sha256(sha2::Sha256);

impl Sha256 {
    /// Takes in more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of everything fed so far.
    #[must_use]
    pub fn finish(self) -> Digest {
        Digest(hex(&self.0.finalize()))
    }
}

/// The digest of `bytes`.
#[must_use]
pub fn of_bytes(bytes: &[u8]) -> Digest {
    let mut hasher = Sha256::default();
    hasher.update(bytes);
    hasher.finish()
}

/// Hashes what `from` yields, but at most `limit` bytes: the digest, and how many bytes went into it.
///
/// `expected` sizes the buffer, so that a small file takes two reads: its content and the end.
///
/// # Errors
/// Those of reading.
pub fn of_reader(from: &mut impl Read, expected: u64, limit: u64) -> io::Result<(Digest, u64)> {
    let mut hasher = Sha256::default();
    let total = each_block(from, expected, limit, |block| {
        hasher.update(block);
        Ok(())
    })?;
    Ok((hasher.finish(), total))
}

/// Calls `take` with what `from` yields, block by block, but with at most `limit` bytes; says how many there were.
///
/// # Errors
/// Those of reading and of `take`.
pub fn each_block(
    from: &mut impl Read,
    expected: u64,
    limit: u64,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<u64> {
    let room = usize::try_from(expected.saturating_add(1)).unwrap_or(BLOCK).min(BLOCK);
    let mut block = vec![0; room];
    let mut total = 0;
    while total < limit {
        let want = usize::try_from(limit - total).unwrap_or(room).min(room);
        let got = match from.read(&mut block[..want]) {
            Ok(0) => break,
            Ok(got) => got,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
            Err(err) => return Err(err),
        };
        take(&block[..got])?;
        total += got as u64;
    }
    Ok(total)
}

/// `bytes` as lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        for nibble in [byte >> 4, byte & 15] {
            out.push(char::from(DIGITS[usize::from(nibble)]));
        }
    }
    out
}

/// The bytes that lower-case or upper-case hex stands for; none where it is not hex.
#[must_use]
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";
const BLOCK: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_the_one_that_sha256sum_prints() {
        let (digest, total) = of_reader(&mut &b"abc"[..], 3, 100).unwrap();
        assert_eq!(digest.0, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(total, 3);
        let long = vec![7_u8; 3 * BLOCK + 5];
        assert_eq!(of_reader(&mut &long[..], 10, u64::MAX).unwrap().1, long.len() as u64);
        assert_eq!(of_reader(&mut &long[..], u64::MAX, 1000).unwrap().1, 1000);
    }

    #[test]
    fn hex_there_and_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(unhex(&hex(&bytes)).unwrap(), bytes);
        assert_eq!(unhex("0"), None);
        assert_eq!(unhex("zz"), None);
    }
}
