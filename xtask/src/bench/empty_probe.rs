//! The floor under every probe of system calls: empty programs on the kernel's raw tracepoints.
//!
//! Whatever wants to see each call's begin and end pays this much before it has done anything. The programs are
//! loaded with bpf(2) itself, so that no library's work is in the figure.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};

/// The commands and the program type of `linux/bpf.h`.
const PROG_LOAD: i32 = 5;
const PROG_GET_NEXT_ID: i32 = 11;
const RAW_TRACEPOINT_OPEN: i32 = 17;
const TYPE_RAW_TRACEPOINT: u32 = 17;

/// `r0 = 0; exit`, eight bytes each: opcode, registers, offset, immediate.
const NOTHING: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 0, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
const INSTRUCTIONS: u32 = 2;

/// The beginning of `union bpf_attr` for loading; the kernel takes the rest as zero.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
}

/// For attaching.
#[repr(C)]
struct Open {
    name: u64,
    prog_fd: i32,
    _pad: u32,
}

/// For listing.
#[repr(C)]
struct Next {
    start_id: u32,
    next_id: u32,
    open_flags: u32,
}

/// What is called at the end of every system call.
pub(super) const EXIT: &[&CStr] = &[c"sys_exit"];
/// What is called at its begin and at its end.
pub(super) const BOTH: &[&CStr] = &[c"sys_enter", c"sys_exit"];

/// Empty programs on some tracepoints; dropped, they are gone.
pub(super) struct EmptyProbes {
    /// Closing these detaches; each keeps its program.
    _attached: Vec<OwnedFd>,
}

impl EmptyProbes {
    /// Loads and attaches one for each tracepoint.
    pub(super) fn attach(tracepoints: &[&CStr]) -> Result<Self> {
        Ok(Self { _attached: tracepoints.iter().map(|name| attach(name)).collect::<Result<_>>()? })
    }
}

/// How many programs are loaded in this kernel, by whomever.
pub(super) fn loaded() -> Result<u32> {
    let mut attr = Next { start_id: 0, next_id: 0, open_flags: 0 };
    let mut count = 0;
    loop {
        match bpf(PROG_GET_NEXT_ID, &mut attr) {
            Ok(_) => count += 1,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(count),
            Err(err) => return Err(err).context("BPF_PROG_GET_NEXT_ID"),
        }
        attr.start_id = attr.next_id;
    }
}

fn attach(tracepoint: &CStr) -> Result<OwnedFd> {
    let mut load = Load {
        prog_type: TYPE_RAW_TRACEPOINT,
        insn_cnt: INSTRUCTIONS,
        insns: NOTHING.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
    };
    let program = descriptor(bpf(PROG_LOAD, &mut load).context("BPF_PROG_LOAD of an empty program")?);
    let mut open = Open { name: tracepoint.as_ptr() as u64, prog_fd: program.as_raw_fd(), _pad: 0 };
    let link = bpf(RAW_TRACEPOINT_OPEN, &mut open)
        .with_context(|| format!("BPF_RAW_TRACEPOINT_OPEN of {}", tracepoint.to_string_lossy()))?;
    Ok(descriptor(link))
}

#[expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]
fn bpf<A>(command: i32, attr: &mut A) -> io::Result<i32> {
    // SAFETY: `attr` is one of the structs above: the layout that `command` has in `union bpf_attr`, as long as is
    // said. What they point to is constant or outlives the call, and the kernel writes only within `attr`.
    let got = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(got).map_err(io::Error::other)
}

#[expect(unsafe_code, reason = "the kernel has just handed over the descriptor as a number")]
fn descriptor(number: i32) -> OwnedFd {
    // SAFETY: bpf(2) has returned this number for a new descriptor that nobody else knows of.
    unsafe { OwnedFd::from_raw_fd(number) }
}
