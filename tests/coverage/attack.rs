//! What the coverage test's other process does: one way of changing a file, by plain system calls.
//!
//! The test starts its own program again with the way's name and the file's path in the environment. A way that this
//! kernel or file system refuses ends with exit status [`REFUSED`] and says why.

#![expect(unsafe_code, reason = "raw system calls are what is tried here")]

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Exit status of a way that is refused here.
pub(crate) const REFUSED: i32 = 77;
/// What a process that stays says when it waits to be told to go on.
pub(crate) const READY: &str = "attacker: ready";
/// What it says after the deed.
pub(crate) const DONE: &str = "attacker: done";

const EVIL: &[u8] = b"EVIL!!";
const PAGE: usize = 4096;

/// Does it, as the whole of this process.
pub(crate) fn main(way: &str, file: &Path) -> ! {
    match attack(way, file) {
        Ok(()) => std::process::exit(0),
        Err(err) => {
            eprintln!("refused: {way}: {err}");
            std::process::exit(REFUSED);
        }
    }
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn check(rc: impl TryInto<i64>) -> io::Result<i64> {
    match rc.try_into() {
        Ok(rc) if rc >= 0 => Ok(rc),
        _ => Err(io::Error::last_os_error()),
    }
}

fn rw(file: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(file)
}

fn allocate(file: &Path, mode: i32, from: i64, length: i64) -> io::Result<()> {
    let file = rw(file)?;
    // SAFETY: no pointers.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, from, length) }).map(drop)
}

fn mount(source: &Path, target: &Path, flags: libc::c_ulong) -> io::Result<()> {
    let (source, target) = (c(source), c(target));
    // SAFETY: both strings are NUL-terminated and outlive the call; the others may be null.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), std::ptr::null(), flags, std::ptr::null()) })
        .map(drop)
}

/// Takes a mount off again, whatever uses it.
pub(crate) fn unmount(target: &Path) {
    let target = c(target);
    // SAFETY: NUL-terminated and outlives the call.
    unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
}

fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    let (a, b) = (c(a), c(b));
    // SAFETY: both strings are NUL-terminated and outlive the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            a.as_ptr(),
            libc::AT_FDCWD,
            b.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    check(rc).map(drop)
}

/// A page of `file`, mapped shared and writable; stays mapped.
fn map(file: &File) -> io::Result<*mut u8> {
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at.cast()) }
}

fn store(at: *mut u8, bytes: &[u8]) {
    for (i, byte) in bytes.iter().enumerate() {
        // SAFETY: within the mapped page, and the file is longer than that; nobody cuts it.
        unsafe { at.add(i).write_volatile(*byte) };
    }
}

fn ready() {
    println!("\n{READY}");
    io::stdout().flush().unwrap();
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).unwrap();
}

fn done() {
    println!("\n{DONE}");
    io::stdout().flush().unwrap();
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).unwrap();
}

fn attack(way: &str, file: &Path) -> io::Result<()> {
    let folder = file.parent().unwrap();
    let beside = |name: &str| folder.parent().unwrap().join(name);
    let other = folder.join("other");
    let evil = libc::iovec { iov_base: EVIL.as_ptr().cast_mut().cast(), iov_len: EVIL.len() };
    match way {
        "write" => rw(file)?.write_all(EVIL),
        "pwrite" => std::os::unix::fs::FileExt::write_all_at(&rw(file)?, EVIL, 100),
        "writev" => {
            let fd = rw(file)?;
            // SAFETY: one iovec over a constant.
            check(unsafe { libc::writev(fd.as_raw_fd(), &raw const evil, 1) }).map(drop)
        }
        "pwritev2" => {
            let fd = rw(file)?;
            // SAFETY: one iovec over a constant.
            check(unsafe { libc::pwritev2(fd.as_raw_fd(), &raw const evil, 1, 10, 0) }).map(drop)
        }
        "aio" => aio(&rw(file)?),
        "io_uring" => io_uring(&rw(file)?, false),
        "io_uring_fixed" => io_uring(&rw(file)?, true),
        "direct" => {
            let fd = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(file)?;
            let layout = std::alloc::Layout::from_size_align(PAGE, PAGE).unwrap();
            // SAFETY: a layout of one page, and the slice is exactly that page, zeroed.
            let page = unsafe { std::slice::from_raw_parts(std::alloc::alloc_zeroed(layout), PAGE) };
            std::os::unix::fs::FileExt::write_all_at(&fd, page, 0)
        }
        "open_trunc" => OpenOptions::new().write(true).truncate(true).open(file).map(drop),
        "truncate" => {
            let name = c(file);
            // SAFETY: NUL-terminated and outlives the call.
            check(unsafe { libc::truncate(name.as_ptr(), 7) }).map(drop)
        }
        "ftruncate" => rw(file)?.set_len(7),
        "punch_hole" => {
            allocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0, PAGE as i64)
        }
        "zero_range" => allocate(file, libc::FALLOC_FL_ZERO_RANGE, 0, PAGE as i64),
        "collapse_range" => allocate(file, libc::FALLOC_FL_COLLAPSE_RANGE, 0, PAGE as i64),
        "copy_file_range" => {
            let (from, to) = (File::open(other)?, rw(file)?);
            let null = std::ptr::null_mut();
            // SAFETY: no offsets are passed.
            check(unsafe { libc::copy_file_range(from.as_raw_fd(), null, to.as_raw_fd(), null, PAGE, 0) })
                .map(drop)
        }
        "sendfile" => {
            let (from, to) = (File::open(other)?, rw(file)?);
            // SAFETY: no offset is passed.
            check(unsafe { libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), std::ptr::null_mut(), PAGE) })
                .map(drop)
        }
        "splice" => {
            let (from, mut to) = io::pipe()?;
            to.write_all(EVIL)?;
            let fd = rw(file)?;
            let null = std::ptr::null_mut();
            // SAFETY: no offsets are passed.
            check(unsafe { libc::splice(from.as_raw_fd(), null, fd.as_raw_fd(), null, EVIL.len(), 0) })
                .map(drop)
        }
        "clone_over" => {
            const FICLONE: libc::c_ulong = 0x4004_9409;
            let (from, to) = (File::open(other)?, rw(file)?);
            // SAFETY: FICLONE takes a descriptor, no pointer.
            check(unsafe { libc::ioctl(to.as_raw_fd(), FICLONE as _, from.as_raw_fd()) }).map(drop)
        }
        "open_by_handle" => open_by_handle(file)?.write_all(EVIL),
        "mmap_first" => {
            store(map(&rw(file)?)?, EVIL);
            Ok(())
        }
        "mmap_later" => {
            let fd = rw(file)?;
            let at = map(&fd)?;
            drop(fd);
            // Dirties the page with what is there already.
            store(at, b"a");
            ready();
            store(at, EVIL);
            done();
            Ok(())
        }
        "chmod" => fs::set_permissions(file, fs::Permissions::from_mode(0o666)),
        "chown" => std::os::unix::fs::chown(file, Some(12), Some(34)),
        "setxattr" => {
            let (name, key) = (c(file), c"trusted.evil");
            // SAFETY: both strings are NUL-terminated, the value is a constant; all outlive the call.
            check(unsafe { libc::setxattr(name.as_ptr(), key.as_ptr(), EVIL.as_ptr().cast(), EVIL.len(), 0) })
                .map(drop)
        }
        "utimes" => rw(file)?.set_modified(std::time::SystemTime::UNIX_EPOCH),
        "rename_over" => fs::rename(other, file),
        "rename_away" => fs::rename(file, folder.join("away")),
        "rename_exchange" => exchange(&other, file),
        "unlink" => fs::remove_file(file),
        "recreate" => {
            fs::remove_file(file)?;
            fs::write(file, EVIL)
        }
        // The link was there before.
        "hard_link" => rw(&beside("link"))?.write_all(EVIL),
        "bind_mount" => {
            let at = beside("bind");
            fs::create_dir(&at)?;
            mount(folder, &at, libc::MS_BIND)?;
            let wrote = rw(&at.join(file.file_name().unwrap())).and_then(|mut f| f.write_all(EVIL));
            unmount(&at);
            wrote
        }
        "mount_namespace" => {
            // SAFETY: no pointers; this process has one thread that matters.
            check(unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_FS) })?;
            mount(Path::new("none"), Path::new("/"), libc::MS_REC | libc::MS_PRIVATE)?;
            let at = beside("there");
            fs::create_dir(&at)?;
            mount(folder, &at, libc::MS_BIND)?;
            rw(&at.join(file.file_name().unwrap()))?.write_all(EVIL)
        }
        "lower_file" => rw(file)?.write_all(EVIL),
        "upper_folder" => {
            // The overlay's upper layer lies beside its mount point.
            let merged = folder.parent().unwrap().parent().unwrap();
            let below = file.strip_prefix(merged).unwrap();
            rw(&merged.with_file_name("upper").join(below))?.write_all(EVIL)
        }
        "folder_replaced" => {
            let new = beside("new");
            fs::create_dir(&new)?;
            fs::write(new.join(file.file_name().unwrap()), EVIL)?;
            fs::rename(folder, beside("old"))?;
            fs::rename(new, folder)
        }
        "folder_exchanged" => {
            let new = beside("new");
            fs::create_dir(&new)?;
            fs::write(new.join(file.file_name().unwrap()), EVIL)?;
            exchange(folder, &new)
        }
        "folder_made_anew" => {
            fs::rename(folder, beside("old"))?;
            std::thread::sleep(std::time::Duration::from_millis(300));
            fs::create_dir(folder)?;
            fs::write(file, EVIL)
        }
        "grandparent_replaced" => {
            let above = folder.parent().unwrap();
            let kept = above.with_extension("old");
            fs::rename(above, kept)?;
            fs::create_dir_all(folder)?;
            fs::write(file, EVIL)
        }
        "symlink_for_file" => {
            let link = folder.join("link");
            std::os::unix::fs::symlink("other", &link)?;
            fs::rename(link, file)
        }
        "symlink_for_folder" => {
            let new = beside("new");
            fs::create_dir(&new)?;
            fs::write(new.join(file.file_name().unwrap()), EVIL)?;
            fs::rename(folder, beside("old"))?;
            std::os::unix::fs::symlink("new", folder)
        }
        "mount_over" => {
            let new = beside("new");
            fs::create_dir(&new)?;
            fs::write(new.join(file.file_name().unwrap()), EVIL)?;
            mount(&new, folder, libc::MS_BIND)
        }
        "mount_over_file" => mount(&other, file, libc::MS_BIND),
        "write_and_stay" => {
            let mut fd = rw(file)?;
            ready();
            fd.write_all(EVIL)?;
            done();
            Ok(())
        }
        _ => panic!("no such way: {way}"),
    }
}

fn open_by_handle(file: &Path) -> io::Result<File> {
    use std::os::fd::FromRawFd;
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        handle: [u8; 128],
    }
    let mut handle = Handle { bytes: 128, kind: 0, handle: [0; 128] };
    let (name, mut mount) = (c(file), 0);
    let at = (&raw mut handle).cast();
    // SAFETY: `handle` begins like `struct file_handle` and has the room that it announces.
    check(unsafe { libc::name_to_handle_at(libc::AT_FDCWD, name.as_ptr(), at, &raw mut mount, 0) })?;
    let folder = File::open(file.parent().unwrap())?;
    // SAFETY: as above; the result is a new descriptor.
    unsafe {
        let fd = check(libc::open_by_handle_at(folder.as_raw_fd(), at, libc::O_WRONLY))?;
        Ok(File::from_raw_fd(fd as i32))
    }
}

/// Linux AIO by hand: `struct iocb` of include/uapi/linux/aio_abi.h.
fn aio(file: &File) -> io::Result<()> {
    let mut context: u64 = 0;
    let mut iocb = [0u8; 64];
    // aio_lio_opcode IOCB_CMD_PWRITE = 1 at 16, aio_fildes at 20, aio_buf at 24, aio_nbytes at 32, aio_offset at 40.
    iocb[16..18].copy_from_slice(&1u16.to_ne_bytes());
    iocb[20..24].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
    iocb[24..32].copy_from_slice(&(EVIL.as_ptr() as u64).to_ne_bytes());
    iocb[32..40].copy_from_slice(&(EVIL.len() as u64).to_ne_bytes());
    let list = [iocb.as_ptr()];
    let mut events = [0u8; 32];
    // SAFETY: every pointer is to a local that outlives the calls and has the size that the kernel expects.
    unsafe {
        check(libc::syscall(libc::SYS_io_setup, 1, &raw mut context))?;
        check(libc::syscall(libc::SYS_io_submit, context, 1, list.as_ptr()))?;
        let null = std::ptr::null::<libc::timespec>();
        check(libc::syscall(libc::SYS_io_getevents, context, 1, 1, events.as_mut_ptr(), null))?;
    }
    Ok(())
}

/// One write through io_uring, by hand: offsets of include/uapi/linux/io_uring.h.
fn io_uring(file: &File, fixed: bool) -> io::Result<()> {
    let mut params = [0u8; 120];
    let word = |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut buffer = EVIL.to_vec();
    // SAFETY: every pointer is to a local or a mapping of this function that outlives its use; offsets are the
    // kernel's own, within the rings that it sized.
    unsafe {
        let ring = check(libc::syscall(libc::SYS_io_uring_setup, 2, params.as_mut_ptr()))? as i32;
        let ring_map = |size: usize, offset: i64| {
            let at = libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                ring,
                offset,
            );
            if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at.cast::<u8>()) }
        };
        let (sq_entries, cq_entries) = (word(&params, 0) as usize, word(&params, 4) as usize);
        let sq = ring_map(word(&params, 40 + 24) as usize + sq_entries * 4, 0)?;
        let cq = ring_map(word(&params, 80 + 20) as usize + cq_entries * 16, 0x0800_0000)?;
        let sqe = ring_map(sq_entries * 64, 0x1000_0000)?;
        if fixed {
            let iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            check(libc::syscall(libc::SYS_io_uring_register, ring, 0, &raw const iov, 1))?;
        }
        *sqe = if fixed { 5 } else { 23 };
        sqe.add(4).cast::<i32>().write(file.as_raw_fd());
        sqe.add(16).cast::<u64>().write(buffer.as_mut_ptr() as u64);
        sqe.add(24).cast::<u32>().write(buffer.len() as u32);
        sq.add(word(&params, 40 + 24) as usize).cast::<u32>().write(0);
        let tail = sq.add(word(&params, 44) as usize).cast::<u32>();
        std::sync::atomic::AtomicU32::from_ptr(tail).store(1, std::sync::atomic::Ordering::Release);
        let null = std::ptr::null::<u8>();
        check(libc::syscall(libc::SYS_io_uring_enter, ring, 1, 1, 1, null, 0))?;
        let result = cq.add(word(&params, 80 + 20) as usize + 8).cast::<i32>().read_volatile();
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
    }
}
