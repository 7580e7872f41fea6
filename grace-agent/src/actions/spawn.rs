//! Starts a program: in its cgroup from its first instruction on, as its user, with its limits, and with a pidfd that was its
//! own before anybody could take its number.
//!
//! The standard library can neither start into a cgroup nor say the pidfd; moving a process afterwards lets children escape and
//! costs ten times as much (the kernel waits for a grace period). So clone3(2) is called here, and the child does what
//! is left with system calls alone.
#![expect(
    unsafe_code,
    reason = "clone3(2) and what its child does have no safe wrapper; each block says why it holds"
)]

use std::ffi::{CString, NulError, c_char};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

/// Who a program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// All its groups.
    pub groups: Vec<u32>,
}

/// A resource limit, soft and hard, by its number (`RLIMIT_…`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// Which.
    pub resource: u32,
    /// How much; none: without limit.
    pub value: Option<u64>,
}

/// What is to be started. The program and its folder are absolute paths.
pub struct Program<'a> {
    /// Program and arguments: at least one.
    pub command: &'a [String],
    /// Its whole environment.
    pub env: &'a [(String, String)],
    /// Its working folder.
    pub cwd: &'a Path,
    /// None: as the agent.
    pub ids: Option<&'a Ids>,
    /// Beside those that it inherits.
    pub limits: &'a [Rlimit],
    /// How soon it is chosen where memory runs out, from -1000 (never) to 1000 (first); 0: like any other (proc(5)).
    pub oom_score_adj: i16,
    /// Where its output goes: stdout and stderr.
    pub output: [&'a OwnedFd; 2],
    /// The folder of its cgroup, opened.
    pub cgroup: Option<&'a OwnedFd>,
}

/// A program that runs.
#[derive(Debug)]
pub struct Spawned {
    /// Its number.
    pub pid: u32,
    /// A handle of exactly this process.
    pub pidfd: OwnedFd,
}

/// `struct clone_args` of clone3(2).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// All that the child needs, made before there is one: it must not ask for memory.
struct Prepared {
    program: CString,
    _strings: Vec<CString>,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    cwd: CString,
    groups: Vec<libc::gid_t>,
    ids: Option<(u32, u32)>,
    limits: Vec<(u32, [u64; 2])>,
    /// As the kernel reads it.
    oom_score_adj: CString,
    fds: [RawFd; 3],
    /// Where the child says why it could not start; closed by a successful exec.
    told: RawFd,
}

/// Starts `program`. It leads a process group of its own.
///
/// # Errors
/// Where the kernel refuses, or the program cannot be executed: nothing runs then.
pub fn spawn(program: &Program<'_>) -> io::Result<Spawned> {
    let null = File::open("/dev/null")?;
    let (mut reader, writer) = io::pipe()?;
    let prepared = prepare(program, &null, writer.as_raw_fd())
        .map_err(|err| io::Error::new(io::ErrorKind::InvalidInput, err))?;
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: CLONE_PIDFD,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: u64::try_from(libc::SIGCHLD).unwrap_or(0),
        ..CloneArgs::default()
    };
    if let Some(cgroup) = program.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).unwrap_or(0);
    }
    // SAFETY: `args` is a whole `struct clone_args` of the size that is said, and without CLONE_VM the child works on a copy of
    // this memory. In the child only the calling thread exists, so it must take no lock: it runs `child`, which makes system
    // calls on what was prepared, and never returns from it.
    let pid = unsafe {
        let pid = libc::syscall(libc::SYS_clone3, &raw mut args, std::mem::size_of::<CloneArgs>());
        if pid == 0 {
            child(&prepared);
        }
        pid
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just written it, with CLONE_PIDFD, and nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    drop(writer);
    let mut told = Vec::new();
    // Ends when the program is executed, or the child is gone.
    reader.read_to_end(&mut told)?;
    let pid = u32::try_from(pid).map_err(io::Error::other)?;
    match <[u8; 4]>::try_from(told.as_slice()) {
        Ok(errno) => {
            reap(&pidfd);
            Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
        }
        Err(_) => Ok(Spawned { pid, pidfd }),
    }
}

fn reap(pidfd: &OwnedFd) {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    use std::os::fd::AsFd;
    // It has ended, or is about to: what it ended with is known already.
    let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
}

fn prepare(program: &Program<'_>, null: &File, told: RawFd) -> Result<Prepared, NulError> {
    use std::os::unix::ffi::OsStrExt;
    let arguments: Vec<CString> =
        program.command.iter().map(|a| CString::new(a.as_str())).collect::<Result<_, _>>()?;
    let variables: Vec<CString> =
        program.env.iter().map(|(k, v)| CString::new(format!("{k}={v}"))).collect::<Result<_, _>>()?;
    let pointers = |of: &[CString]| -> Vec<*const c_char> {
        of.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let all = |value: Option<u64>| [value.unwrap_or(u64::MAX); 2];
    Ok(Prepared {
        program: CString::new(program.command.first().map(String::as_str).unwrap_or_default())?,
        argv: pointers(&arguments),
        envp: pointers(&variables),
        _strings: arguments.into_iter().chain(variables).collect(),
        cwd: CString::new(program.cwd.as_os_str().as_bytes())?,
        groups: program.ids.map(|ids| ids.groups.clone()).unwrap_or_default(),
        ids: program.ids.map(|ids| (ids.uid, ids.gid)),
        oom_score_adj: CString::new(program.oom_score_adj.to_string())?,
        limits: program.limits.iter().map(|l| (l.resource, all(l.value))).collect(),
        fds: [null.as_raw_fd(), program.output[0].as_raw_fd(), program.output[1].as_raw_fd()],
        told,
    })
}

/// The child: becomes the program, or says why not and ends.
///
/// # Safety
/// To be called in a child that shares no memory with its parent.
unsafe fn child(p: &Prepared) -> ! {
    // SAFETY: every pointer is to something in `p`, which lives in this copy of the memory until the exec; the calls are made
    // without the C library's wrappers, which would want its other threads.
    unsafe {
        become_program(p);
        let errno = *libc::__errno_location();
        libc::syscall(libc::SYS_write, p.told, (&raw const errno).cast::<u8>(), 4usize);
        loop {
            libc::syscall(libc::SYS_exit_group, 127);
        }
    }
}

/// Returns only where a call failed, which errno tells.
///
/// # Safety
/// As `child`.
unsafe fn become_program(p: &Prepared) {
    // SAFETY: as in `child`.
    unsafe {
        // Signals: what the agent blocks or ignores is not for it. (A kernel's signal set has 64 bits.)
        let none = 0u64;
        if libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, 0usize, 8usize) < 0 {
            return;
        }
        // struct kernel_sigaction of zeros: the default, no flags. Longer than any architecture's.
        let default = [0u64; 8];
        for signal in 1..=64 {
            // KILL and STOP cannot be set: they are never ignored.
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), 0usize, 8usize);
        }
        // The agent's own short slice and nice value are not inherited (`prompt.rs`). A group of its own: a Ctrl-C
        // for the agent is not for it.
        if libc::syscall(libc::SYS_setpgid, 0, 0) < 0 {
            return;
        }
        // Above those that are to be set: one may be another's place.
        let mut fds = [0; 3];
        for (i, fd) in p.fds.iter().enumerate() {
            let moved = libc::syscall(libc::SYS_fcntl, *fd, libc::F_DUPFD_CLOEXEC, 3);
            let Ok(moved @ 0..) = i32::try_from(moved) else { return };
            fds[i] = moved;
        }
        for (place, fd) in (0..).zip(fds) {
            if libc::syscall(libc::SYS_dup3, fd, place, 0) < 0 {
                return;
            }
        }
        // The agent is chosen last where memory runs out (`endure.rs`); what it starts is chosen like any other. Raising the
        // number needs no right, and where there is no /proc there was nothing to inherit.
        let file = libc::syscall(
            libc::SYS_openat,
            libc::AT_FDCWD,
            c"/proc/self/oom_score_adj".as_ptr(),
            libc::O_WRONLY | libc::O_CLOEXEC,
            0,
        );
        if file >= 0 {
            libc::syscall(libc::SYS_write, file, p.oom_score_adj.as_ptr(), p.oom_score_adj.as_bytes().len());
            libc::syscall(libc::SYS_close, file);
        }
        // What the agent was started with and did not close itself. Refused by kernels before 5.11, which then hand it down.
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        for (resource, both) in &p.limits {
            let old = 0usize;
            if libc::syscall(libc::SYS_prlimit64, 0, *resource, both.as_ptr(), old) < 0 {
                return;
            }
        }
        if let Some((uid, gid)) = p.ids
            && (libc::syscall(libc::SYS_setgroups, p.groups.len(), p.groups.as_ptr()) < 0
                || libc::syscall(libc::SYS_setresgid, gid, gid, gid) < 0
                || libc::syscall(libc::SYS_setresuid, uid, uid, uid) < 0)
        {
            return;
        }
        if libc::syscall(libc::SYS_chdir, p.cwd.as_ptr()) < 0 {
            return;
        }
        libc::syscall(libc::SYS_execve, p.program.as_ptr(), p.argv.as_ptr(), p.envp.as_ptr());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use super::*;

    fn run(command: &[&str], env: &[(&str, &str)], limits: &[Rlimit]) -> io::Result<String> {
        let mut out = tempfile::tempfile().unwrap();
        let fd: OwnedFd = out.try_clone().unwrap().into();
        let command: Vec<String> = command.iter().map(|s| (*s).to_owned()).collect();
        let env: Vec<(String, String)> =
            env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let spawned = spawn(&Program {
            command: &command,
            env: &env,
            cwd: Path::new("/usr"),
            ids: None,
            limits,
            oom_score_adj: 0,
            output: [&fd, &fd],
            cgroup: None,
        })?;
        assert_eq!(
            u32::try_from(
                rustix::process::getpgid(rustix::process::Pid::from_raw(i32::try_from(spawned.pid).unwrap()))
                    .unwrap()
                    .as_raw_nonzero()
                    .get()
            )
            .unwrap(),
            spawned.pid
        );
        reap(&spawned.pidfd);
        out.rewind().unwrap();
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        Ok(text)
    }

    #[test]
    fn a_program_gets_its_arguments_environment_folder_and_limits_and_nothing_else() {
        let text = run(
            &["/bin/sh", "-c", "echo $1; pwd; ulimit -n; env | sort; ls /proc/self/fd; trap - PIPE; kill -PIPE $$; echo lives", "x", "a b"],
            &[("A", "1 2")],
            &[Rlimit { resource: libc::RLIMIT_NOFILE, value: Some(77) }],
        )
        .unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..3], ["a b", "/usr", "77"], "{text}");
        assert!(lines.contains(&"A=1 2") && !text.contains("CARGO"), "{text}");
        // Its own three, and that of the folder that `ls` reads.
        assert_eq!(lines.iter().filter(|l| l.parse::<u8>().is_ok()).count(), 5, "{text}");
        assert!(!text.contains("lives"), "SIGPIPE is as programs expect it: {text}");
    }

    #[test]
    fn what_cannot_be_executed_says_why_and_leaves_nothing() {
        assert_eq!(run(&["/nonexistent"], &[], &[]).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(run(&["/etc/passwd"], &[], &[]).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(run(&["/bin/true\0"], &[], &[]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(run(&["/bin/true"], &[], &[Rlimit { resource: 999, value: Some(1) }]).is_err());
    }
}
