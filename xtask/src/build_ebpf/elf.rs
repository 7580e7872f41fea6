//! Just enough ELF to tell a BPF object from another file.

use anyhow::{Context as _, Result, bail};

const MACHINE_BPF: u16 = 247;

/// An error unless it is a 64-bit BPF object in this machine's byte order.
pub(crate) fn check(file: &[u8]) -> Result<()> {
    let order = if cfg!(target_endian = "big") { 2 } else { 1 };
    if file.get(..6) != Some(&[0x7f, b'E', b'L', b'F', 2, order]) {
        bail!("not a 64-bit ELF object in this machine's byte order");
    }
    let machine = u16_at(file, 18).context("the ELF header is cut short")?;
    if machine != MACHINE_BPF {
        bail!("an ELF object for machine {machine}; an eBPF object has {MACHINE_BPF}");
    }
    Ok(())
}

/// Whether a section of that name is there.
pub(crate) fn has_section(file: &[u8], name: &str) -> bool {
    sections(file).is_some_and(|names| names.contains(&name.as_bytes()))
}

fn sections(file: &[u8]) -> Option<Vec<&[u8]>> {
    let table = usize::try_from(u64_at(file, 40)?).ok()?;
    let [size, count, names] = [58, 60, 62].map(|at| u16_at(file, at).map(usize::from));
    let header = |n: usize| file.get(table + n * size?..);
    let names = usize::try_from(u64_at(header(names?)?, 24)?).ok()?;
    (0..count?)
        .map(|n| {
            let at = u32::from_ne_bytes(header(n)?.get(..4)?.try_into().ok()?);
            let name = file.get(names + usize::try_from(at).ok()?..)?;
            name.split(|&byte| byte == 0).next()
        })
        .collect()
}

fn u16_at(file: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(file.get(at..at + 2)?.try_into().ok()?))
}

fn u64_at(file: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(file.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::{check, has_section};

    #[test]
    fn our_own_program_is_elf_but_not_bpf() {
        let ours = std::fs::read("/proc/self/exe").expect("readable");
        assert!(check(&ours).expect_err("not BPF").to_string().contains("has 247"));
        assert!(has_section(&ours, ".text"));
        assert!(!has_section(&ours, ".BTF"));
    }

    #[test]
    fn cut_short_is_no_panic() {
        let ours = std::fs::read("/proc/self/exe").expect("readable");
        for length in [0, 5, 6, 18, 20, 41, 62, 64, 100] {
            assert!(check(&ours[..length]).is_err());
            assert!(!has_section(&ours[..length], ".text"));
        }
    }
}
