//! What processes of Grace give up. The agent keeps the capabilities that it uses and no other; a process that parses
//! files of anybody keeps nothing but the right to read. `docs/privileges.md` says what each is for.

use std::collections::BTreeMap;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr,
};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities, set_no_new_privs};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// What the agent uses.
const AGENT: CapabilitySet = CapabilitySet::CHOWN // restored files get their owner back
    .union(CapabilitySet::DAC_OVERRIDE) // files of anybody are restored
    .union(CapabilitySet::DAC_READ_SEARCH) // files of anybody are read
    .union(CapabilitySet::FOWNER) // mode, times and attributes of files of anybody
    .union(CapabilitySet::FSETID) // setuid and setgid bits are kept
    .union(CapabilitySet::SETFCAP) // file capabilities come back
    .union(CapabilitySet::LINUX_IMMUTABLE) // so does what `chattr +i` says
    .union(CapabilitySet::KILL) // processes of anybody are ended
    .union(CapabilitySet::SETUID) // processes are started as their user
    .union(CapabilitySet::SETGID) // and group
    .union(CapabilitySet::SYS_CHROOT) // and with what a hook asks for
    .union(CapabilitySet::SYS_PTRACE) // /proc/PID/exe, maps and fd of anybody
    .union(CapabilitySet::SYS_ADMIN) // fanotify; bpf(2) before Linux 5.8
    .union(CapabilitySet::SYS_NICE) // priorities, its own and those of what is throttled
    .union(CapabilitySet::SYS_RESOURCE) // limits of what it starts, locked memory of maps before Linux 5.11
    .union(CapabilitySet::SYSLOG) // /dev/kmsg, addresses in /proc/kallsyms
    .union(CapabilitySet::NET_ADMIN) // sock_diag tells owners of sockets
    .union(CapabilitySet::IPC_LOCK) // memory of perf buffers
    .union(CapabilitySet::BPF)
    .union(CapabilitySet::PERFMON);

/// Why something could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The kernel refused.
    #[error("cannot give up capabilities")]
    Capabilities(#[source] rustix::io::Errno),
    /// The kernel refused.
    #[error("cannot give up what setuid programs would grant")]
    NewPrivileges(#[source] rustix::io::Errno),
    /// The filter of system calls is not one, or is refused.
    #[error("cannot filter system calls")]
    Filter(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The kernel knows Landlock, and refused.
    #[error("cannot restrict access to files")]
    Files(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Gives up what the agent does not use: the calling thread's, and so that of all it starts. To be called before there
/// are other threads.
///
/// They are not in effect any more; they stay permitted and in the bounding set. A server that Grace restarts must be able
/// to do what it could before, and one that gets more by execve(2) than its parent was permitted leaves no core dumps.
///
/// # Errors
/// Where the kernel refuses.
pub fn agent() -> Result<(), ConfineError> {
    let mut sets = capabilities(None).map_err(ConfineError::Capabilities)?;
    sets.effective &= AGENT;
    set_capabilities(None, sets).map_err(ConfineError::Capabilities)
}

/// Leaves this process nothing but to read files and to write into what is open. For processes that parse what anybody
/// may have written. To be called before there are other threads.
///
/// # Errors
/// Where the kernel refuses; one that is too old for a part of it is not an error.
pub fn parser() -> Result<(), ConfineError> {
    // The last one for O_NOATIME: reading shall leave no trace.
    keep(CapabilitySet::DAC_READ_SEARCH | CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER)?;
    set_no_new_privs(true).map_err(ConfineError::NewPrivileges)?;
    read_only()?;
    match seccompiler::apply_filter(&filter()?) {
        // A kernel without seccomp, or a container that allows none: what is given up above must do.
        Ok(()) | Err(seccompiler::Error::Prctl(_) | seccompiler::Error::Seccomp(_)) => Ok(()),
        Err(err) => Err(ConfineError::Filter(err.into())),
    }
}

fn keep(wanted: CapabilitySet) -> Result<(), ConfineError> {
    let mut sets = capabilities(None).map_err(ConfineError::Capabilities)?;
    sets.permitted &= wanted;
    sets.effective &= wanted;
    sets.inheritable &= wanted;
    set_capabilities(None, sets).map_err(ConfineError::Capabilities)
}

/// Files can be read and nothing else, no port bound or connected to, as far as this kernel's Landlock goes.
fn read_only() -> Result<(), ConfineError> {
    let wrong = |err: landlock::RulesetError| ConfineError::Files(err.into());
    let abi = ABI::V5;
    let root = PathFd::new("/").map_err(|err| ConfineError::Files(err.into()))?;
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(abi)))
        .and_then(Ruleset::create)
        .and_then(|rules| rules.add_rule(PathBeneath::new(root, AccessFs::ReadFile | AccessFs::ReadDir)))
        .and_then(landlock::RulesetCreated::restrict_self)
        .map(drop)
        .map_err(wrong)
}

/// System calls that reading files, memory and threads do not need, and that reach others. They fail with EPERM.
fn filter() -> Result<BpfProgram, ConfineError> {
    let wrong = |err: seccompiler::BackendError| ConfineError::Filter(err.into());
    let never = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_sendmmsg,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_process_madvise,
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_rt_sigqueueinfo,
        libc::SYS_rt_tgsigqueueinfo,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_pidfd_send_signal,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_io_uring_setup,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_fsopen,
        libc::SYS_fsmount,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_mount_setattr,
        libc::SYS_fanotify_init,
        libc::SYS_open_by_handle_at,
        libc::SYS_openat2,
        libc::SYS_truncate,
        libc::SYS_ftruncate,
        libc::SYS_fallocate,
        libc::SYS_unlinkat,
        libc::SYS_mkdirat,
        libc::SYS_mknodat,
        libc::SYS_linkat,
        libc::SYS_symlinkat,
        libc::SYS_renameat,
        libc::SYS_renameat2,
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        libc::SYS_fchown,
        libc::SYS_fchownat,
        libc::SYS_utimensat,
        libc::SYS_setxattr,
        libc::SYS_lsetxattr,
        libc::SYS_fsetxattr,
        libc::SYS_removexattr,
        libc::SYS_lremovexattr,
        libc::SYS_fremovexattr,
        libc::SYS_setuid,
        libc::SYS_setgid,
        libc::SYS_setresuid,
        libc::SYS_setresgid,
        libc::SYS_setgroups,
        libc::SYS_setpriority,
        libc::SYS_sched_setscheduler,
        libc::SYS_sched_setattr,
        libc::SYS_ioctl,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_adjtimex,
        libc::SYS_syslog,
        libc::SYS_quotactl,
        libc::SYS_acct,
    ];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = never.map(|call| (call, Vec::new())).into();
    #[cfg(target_arch = "x86_64")]
    rules.extend(
        [
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_creat,
            libc::SYS_unlink,
            libc::SYS_rmdir,
            libc::SYS_mkdir,
            libc::SYS_mknod,
            libc::SYS_link,
            libc::SYS_symlink,
            libc::SYS_rename,
            libc::SYS_chmod,
            libc::SYS_chown,
            libc::SYS_lchown,
            libc::SYS_utime,
            libc::SYS_utimes,
            libc::SYS_futimesat,
            libc::SYS_iopl,
            libc::SYS_ioperm,
        ]
        .map(|call| (call, Vec::new())),
    );
    // Opening is for reading: which argument says for what.
    rules.insert(libc::SYS_openat, to_write(2)?);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, to_write(1)?);
    let arch = std::env::consts::ARCH.try_into().map_err(wrong)?;
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).and_then(TryInto::try_into).map_err(wrong)
}

/// The ways to open a file that are not for reading alone, as flags in this argument.
fn to_write(argument: u8) -> Result<Vec<SeccompRule>, ConfineError> {
    let wrong = |err: seccompiler::BackendError| ConfineError::Filter(err.into());
    let ways = [
        (libc::O_ACCMODE, libc::O_WRONLY),
        (libc::O_ACCMODE, libc::O_RDWR),
        (libc::O_CREAT, libc::O_CREAT),
        (libc::O_TRUNC, libc::O_TRUNC),
    ];
    ways.into_iter()
        .map(|(mask, value)| {
            let compare = SeccompCmpOp::MaskedEq(u64::from(mask.unsigned_abs()));
            let value = u64::from(value.unsigned_abs());
            let condition =
                SeccompCondition::new(argument, SeccompCmpArgLen::Dword, compare, value).map_err(wrong)?;
            SeccompRule::new(vec![condition]).map_err(wrong)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a thread that is confined like a parser can do, by name. The others of this program go on as they were.
    fn tried() -> Vec<(&'static str, bool)> {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("own");
        std::fs::write(&own, "text").unwrap();
        let (file, link) = (own.clone(), folder.path().join("link"));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            parser().unwrap();
            let dir = rustix::fs::open("/", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
            #[expect(clippy::disallowed_methods, reason = "it must not work")]
            let program = std::process::Command::new("/bin/true").status();
            vec![
                ("read", std::fs::read_to_string(&file).is_ok_and(|text| text == "text")),
                ("list", dir.is_ok()),
                ("a thread", std::thread::spawn(|| 1).join().is_ok_and(|n| n == 1)),
                ("write", std::fs::write(&file, "other").is_ok()),
                ("append", std::fs::OpenOptions::new().append(true).open(&file).is_ok()),
                ("create", std::fs::File::create(file.with_extension("new")).is_ok()),
                ("remove", std::fs::remove_file(&file).is_ok()),
                ("rename", std::fs::rename(&file, &link).is_ok()),
                ("link", std::os::unix::fs::symlink(&file, &link).is_ok()),
                (
                    "mode",
                    std::fs::set_permissions(&file, std::fs::metadata(&file).unwrap().permissions()).is_ok(),
                ),
                ("connect", std::net::TcpStream::connect(address).is_ok()),
                ("a program", program.is_ok()),
                ("a signal", rustix::process::test_kill_process(rustix::process::getpid()).is_ok()),
            ]
        });
        let tried = thread.join().unwrap();
        assert_eq!(std::fs::read_to_string(&own).unwrap(), "text");
        assert!(std::fs::write(&own, "more").is_ok(), "the other threads");
        tried
    }

    #[test]
    fn a_parser_can_read_and_nothing_else() {
        let can: Vec<&str> = tried().into_iter().filter(|(_, done)| *done).map(|(what, _)| what).collect();
        assert_eq!(can, ["read", "list", "a thread"]);
    }

    #[test]
    fn the_agent_cannot_load_modules_reboot_or_set_the_clock() {
        let never = CapabilitySet::SYS_MODULE
            | CapabilitySet::SYS_RAWIO
            | CapabilitySet::SYS_BOOT
            | CapabilitySet::SYS_TIME
            | CapabilitySet::MAC_ADMIN
            | CapabilitySet::MAC_OVERRIDE;
        let thread = std::thread::spawn(|| {
            agent().unwrap();
            capabilities(None).unwrap()
        });
        let sets = thread.join().unwrap();
        assert!(!sets.effective.intersects(never), "{sets:?}");
        let mine = capabilities(None).unwrap();
        assert_eq!(sets.effective, mine.effective & AGENT, "no more than that is given up");
        assert_eq!(sets.permitted, mine.permitted, "what it starts must not have to win it back");
    }
}
