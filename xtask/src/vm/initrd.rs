//! What a guest boots from: the kernel unpacked, and an initramfs with a shell and the modules to reach the host.

use std::fs::{self, File};
use std::io::{self, Cursor, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use super::{busybox, read, write};
use crate::process;

const INIT: &str = include_str!("../../guest/initramfs.sh");
const COMMAND: &str = include_str!("../../guest/command.sh");

/// Needed before the host's files are there, with all that they depend on.
const MODULES: [&str; 5] = ["virtio_pci", "virtiofs", "overlay", "virtio_console", "virtio_blk"];

/// Here only because they are unpacked by the host: the emulated processor needs seconds for these. Not every kernel
/// has them.
const HEAVY: [&str; 2] = ["xfs", "btrfs"];

/// The kernel, in a kernel's folder.
pub(super) const VMLINUX: &str = "vmlinux";
/// How the initramfs' name begins, in a kernel's folder; the rest says what is in it.
const INITRD: &str = "initrd-";
/// One that no checkout has wanted for so long is removed.
const STALE: Duration = Duration::from_hours(24);

/// Where a kernel's modules are, in its folder.
pub(super) fn modules(kernel: &Path) -> PathBuf {
    // Newer packages have them where /lib is a link to.
    let merged = kernel.join("usr/lib/modules");
    if merged.is_dir() { merged } else { kernel.join("lib/modules") }
}

fn release(kernel: &Path) -> Result<String> {
    let modules = modules(kernel);
    let first = fs::read_dir(&modules).with_context(|| modules.display().to_string())?.next();
    let first = first.with_context(|| format!("no modules in {}", modules.display()))??;
    Ok(first.file_name().to_string_lossy().into_owned())
}

/// Takes the kernel out of its compressed image: unpacking costs the emulated processor seconds at every start.
pub(super) fn unpack_kernel(kernel: &Path) -> Result<()> {
    let release = release(kernel)?;
    // depmod and modprobe know only /lib.
    if !kernel.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", kernel.join("lib"))?;
    }
    if !modules(kernel).join(&release).join("modules.dep.bin").exists() {
        process::run(process::program("depmod").arg("-b").arg(kernel).arg(&release))?;
    }

    let candidates =
        [kernel.join(format!("boot/vmlinuz-{release}")), modules(kernel).join(&release).join("vmlinuz")];
    let image = candidates.iter().find(|path| path.exists());
    let image = image.with_context(|| format!("no kernel image in {}", kernel.display()))?;
    let bytes = read(image)?;
    let payload = payload(&bytes).with_context(|| image.display().to_string())?;
    let vmlinux = decompress(payload).with_context(|| image.display().to_string())?;
    if !vmlinux.starts_with(b"\x7fELF") {
        bail!("{}: what is compressed in it is no kernel", image.display());
    }
    write(&kernel.join(VMLINUX), vmlinux)
}

/// The compressed kernel in a bzImage. Offsets: the kernel's Documentation/arch/x86/boot.rst.
fn payload(image: &[u8]) -> Result<&[u8]> {
    let u32_at = |at: usize| -> Option<usize> {
        usize::try_from(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?)).ok()
    };
    let found = || {
        let setup_sectors = usize::from(*image.get(0x1f1)?);
        let start = (setup_sectors + 1) * 512 + u32_at(0x248)?;
        // The last four bytes are the unpacked size, for the kernel's own use.
        image.get(start..start + u32_at(0x24c)?.checked_sub(4)?)
    };
    if image.get(0x202..0x206) != Some(b"HdrS") {
        bail!("not a Linux kernel image for x86");
    }
    found().context("the kernel image is cut short")
}

/// Unpacks by the first bytes; what has none of the known ones is returned as it is.
fn decompress(bytes: &[u8]) -> Result<Vec<u8>> {
    let program = match bytes {
        [0xfd, b'7', b'z', b'X', ..] => "xz",
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0x1f, 0x8b, ..] => "gzip",
        _ => return Ok(bytes.to_vec()),
    };
    let mut child = process::program(program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let mut to = child.stdin.take().context("no pipe")?;
    let mut from = child.stdout.take().context("no pipe")?;
    let mut unpacked = Vec::new();
    std::thread::scope(|scope| -> io::Result<()> {
        scope.spawn(move || to.write_all(bytes));
        from.read_to_end(&mut unpacked).map(drop)
    })?;
    let status = child.wait()?;
    if !status.success() {
        bail!("{program} could not unpack it ({status})");
    }
    Ok(unpacked)
}

/// Makes the initramfs unless it is there. Other parts make another file: checkouts that differ share the cache and
/// may be booting.
pub(super) fn initrd(kernel: &Path) -> Result<PathBuf> {
    let busybox = busybox().context("no busybox that runs alone (busybox-static)")?;
    let busybox = read(&busybox)?;
    let mut parts = Sha256::new();
    let names = [MODULES.as_slice(), &HEAVY].concat().join(" ");
    for part in [INIT.as_bytes(), COMMAND.as_bytes(), names.as_bytes(), &busybox] {
        parts.update(part.len().to_le_bytes());
        parts.update(part);
    }
    let stamp: String = parts.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let initrd = kernel.join(format!("{INITRD}{stamp}"));
    if let Ok(file) = File::open(&initrd) {
        file.set_modified(SystemTime::now()).with_context(|| initrd.display().to_string())?;
        return Ok(initrd);
    }
    remove_stale(kernel)?;

    let release = release(kernel)?;
    let mut archive = Cpio(Cursor::new(Vec::new()));
    for dir in ["bin", "modules", "dev"] {
        archive.entry(dir, 0o040_755, &[])?;
    }
    archive.entry("bin/busybox", 0o100_755, &busybox)?;
    archive.entry("init", 0o100_755, INIT.as_bytes())?;
    archive.entry("command.sh", 0o100_755, COMMAND.as_bytes())?;
    let mut order: Vec<String> = Vec::new();
    for module in MODULES.iter().chain(&HEAVY) {
        let mut modprobe = process::program("modprobe");
        modprobe.arg("-d").arg(kernel).args(["-S", &release, "--show-depends", module]);
        let needed = match process::text(&mut modprobe) {
            Err(_) if HEAVY.contains(module) => continue,
            needed => needed?,
        };
        for line in needed.lines() {
            // "insmod PATH", or "builtin NAME" for what the kernel has in it.
            let Some(path) = line.strip_prefix("insmod ").map(|path| Path::new(path.trim())) else {
                continue;
            };
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let name = name.split_inclusive(".ko").next().unwrap_or_default().to_owned();
            if !order.contains(&name) {
                archive.entry(&format!("modules/{name}"), 0o100_644, &decompress(&read(path)?)?)?;
                order.push(name);
            }
        }
    }
    let order: String = order.iter().map(|name| format!("{name}\n")).collect();
    archive.entry("modules/order", 0o100_644, order.as_bytes())?;
    let new = kernel.join("initrd.new");
    write(&new, archive.end()?)?;
    fs::rename(&new, &initrd).with_context(|| initrd.display().to_string())?;
    Ok(initrd)
}

fn remove_stale(kernel: &Path) -> Result<()> {
    for entry in fs::read_dir(kernel).with_context(|| kernel.display().to_string())? {
        let entry = entry?;
        let age = entry.metadata().and_then(|data| data.modified()).map(|time| time.elapsed());
        if entry.file_name().to_string_lossy().starts_with(INITRD)
            && matches!(age, Ok(Ok(age)) if age > STALE)
        {
            fs::remove_file(entry.path()).with_context(|| entry.path().display().to_string())?;
        }
    }
    Ok(())
}

/// An archive as the kernel reads it ("newc").
struct Cpio(Cursor<Vec<u8>>);

impl Cpio {
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        let (size, name_size) = (u32::try_from(content.len())?, u32::try_from(name.len() + 1)?);
        let number = u32::try_from(self.0.position())?;
        // Magic; inode, mode, owner, group, links, time, size, four device numbers, name's size, checksum.
        write!(self.0, "070701")?;
        for field in [number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
            write!(self.0, "{field:08X}")?;
        }
        self.0.write_all(name.as_bytes())?;
        self.0.write_all(b"\0")?;
        self.pad()?;
        self.0.write_all(content)?;
        self.pad()
    }

    fn pad(&mut self) -> Result<()> {
        while !self.0.position().is_multiple_of(4) {
            self.0.write_all(b"\0")?;
        }
        Ok(())
    }

    fn end(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.0.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::{COMMAND, Cpio, INIT, payload};
    use crate::process;

    #[test]
    fn scripts_parse() {
        for script in [INIT, COMMAND] {
            process::output(process::program("sh").args(["-n", "-c", script])).expect("a good shell script");
        }
    }

    #[test]
    fn archive_is_padded_and_ends() {
        let mut archive = Cpio(Cursor::new(Vec::new()));
        archive.entry("a", 0o100_644, b"hello").expect("room");
        let bytes = archive.end().expect("room");
        assert_eq!(bytes.len() % 4, 0);
        // 110 bytes of header, "a" and NUL: already a multiple of four.
        assert_eq!(&bytes[..14], b"07070100000000");
        assert_eq!(&bytes[112..117], b"hello");
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }

    #[test]
    fn other_files_are_no_kernels() {
        assert!(payload(b"").is_err());
        assert!(payload(&[0; 2048]).is_err());
    }
}
