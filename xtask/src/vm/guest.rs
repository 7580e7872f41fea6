//! One guest: booted, a command run in it, its exit status taken back.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::fetch::Kernel;
use super::{file_systems, initrd, virtiofsd, write};
use crate::places::on_path;
use crate::process;

const MEMORY: &str = "2G";

/// For every guest: quick to boot, nothing random, pressure figures and BPF's LSM on.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 loglevel=5 panic=-1 nokaslr no5lvl mitigations=off no_timer_check \
    tsc=reliable random.trust_cpu=on rcupdate.rcu_expedited=1 audit=0 psi=1 lsm=lockdown,yama,apparmor,bpf";

/// What to do in a guest.
pub(crate) struct Guest {
    /// The program and its arguments.
    pub(crate) command: Vec<OsString>,
    /// Where it runs.
    pub(crate) directory: PathBuf,
    /// What it may write to for good.
    pub(crate) folders: Vec<PathBuf>,
    /// Its environment; what a shell could not name is left out.
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// For booting and running.
    pub(crate) timeout: Duration,
    /// Where to keep the kernel's log.
    pub(crate) log: Option<PathBuf>,
}

/// How it ended.
pub(crate) enum Ended {
    /// The command did, with this exit status.
    Status(u8),
    /// It was ended.
    OutOfTime,
    /// The guest did, without a status; with the end of its log.
    Died(String),
}

impl Guest {
    /// Boots, runs, waits. The command's streams arrive as they come, byte for byte.
    pub(crate) fn run(
        &self,
        kernel: &Kernel,
        out: impl Write + Send,
        err: impl Write + Send,
    ) -> Result<Ended> {
        let run = RunDir::new()?;
        let dir = &run.0;
        write(&dir.join("modules"), initrd::modules(&kernel.dir).as_os_str().as_bytes())?;
        write(&dir.join("folders"), lines(&self.folders)?)?;
        write(&dir.join("command"), self.script())?;
        let disks = file_systems::make(dir)?;

        let mut server = Running(file_server(dir)?);
        await_socket(dir, &mut server.0)?;

        let streams = [dir.join("out"), dir.join("err")];
        for path in &streams {
            mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).context("cannot make a FIFO")?;
        }
        // Open for both, so that opening waits for nobody and the end comes when we say so.
        let open = |path: &PathBuf| OpenOptions::new().read(true).write(true).open(path);
        let held = streams.iter().map(open).collect::<io::Result<Vec<File>>>()?;
        let reader = |path: &PathBuf| File::open(path);
        let (from_out, from_err) = (reader(&streams[0])?, reader(&streams[1])?);

        let ended = thread::scope(|scope| {
            let copies = [scope.spawn(move || copy(from_out, out)), scope.spawn(move || copy(from_err, err))];
            let ended = qemu(kernel, dir, &disks).and_then(|child| wait(&mut Running(child), self.timeout));
            drop(held);
            for copy in copies {
                // Whoever reads our output has gone: the guest's status still counts.
                drop(copy.join());
            }
            ended
        })?;

        let console = dir.join("console");
        if let Some(log) = &self.log
            && console.exists()
        {
            fs::copy(&console, log).with_context(|| format!("cannot write {}", log.display()))?;
        }
        let reported = fs::read_to_string(dir.join("status")).unwrap_or_default();
        Ok(match (reported.lines().next().and_then(|line| line.parse().ok()), ended) {
            (Some(status), _) => Ended::Status(status),
            (None, None) => Ended::OutOfTime,
            (None, Some(qemu)) => Ended::Died(post_mortem(dir, qemu)),
        })
    }

    /// The command for the guest's shell.
    fn script(&self) -> Vec<u8> {
        let mut script = Vec::new();
        for (key, value) in &self.environment {
            let name = key.to_string_lossy();
            let nameable = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if name.chars().all(nameable)
                && !name.starts_with(|c: char| c.is_ascii_digit())
                && !name.is_empty()
                && !file_systems::is_ours(key)
            {
                script.extend_from_slice(format!("export {name}=").as_bytes());
                shell_word(&mut script, value.as_bytes());
                script.push(b'\n');
            }
        }
        script.extend_from_slice(b"cd ");
        shell_word(&mut script, self.directory.as_os_str().as_bytes());
        script.extend_from_slice(b" || exit 125\nexec");
        for word in &self.command {
            script.push(b' ');
            shell_word(&mut script, word.as_bytes());
        }
        script.push(b'\n');
        script
    }
}

fn shell_word(script: &mut Vec<u8>, word: &[u8]) {
    script.push(b'\'');
    for &byte in word {
        match byte {
            b'\'' => script.extend_from_slice(br"'\''"),
            byte => script.push(byte),
        }
    }
    script.push(b'\'');
}

fn lines(folders: &[PathBuf]) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    for folder in folders {
        let folder = folder.canonicalize().with_context(|| folder.display().to_string())?;
        if folder.as_os_str().as_bytes().contains(&b'\n') {
            bail!("a guest cannot be given a folder with a line break in its name: {}", folder.display());
        }
        text.extend_from_slice(folder.as_os_str().as_bytes());
        text.push(b'\n');
    }
    Ok(text)
}

/// A folder for one run, removed after it. Its name has our process id, so that what a killed run left is found.
struct RunDir(PathBuf);

impl RunDir {
    fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        const PREFIX: &str = "grace-vm-";
        // Not below a long TMPDIR: a socket's path has 107 bytes.
        let base = Path::new("/tmp");
        for entry in fs::read_dir(base)?.flatten() {
            let name = entry.file_name();
            let process = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
            if process.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
                drop(fs::remove_dir_all(entry.path()));
            }
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = base.join(format!("{PREFIX}{}-{count}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// A program that does not outlive us.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A program that the kernel ends when this thread ends, however that may be.
fn bound(program: &Path) -> Command {
    let mut command = process::program("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program).stdin(Stdio::null());
    command
}

fn file_server(dir: &Path) -> Result<Child> {
    let program = virtiofsd().context("no virtiofsd (Debian: qemu-system-common or virtiofsd)")?;
    let mut command = bound(&program);
    let socket = format!("--socket-path={}", dir.join("files").display());
    if program.starts_with("/usr/lib/qemu") {
        command.args(["-f", "-o", "source=/,cache=always,sandbox=chroot,xattr"]);
    } else {
        command.args(["--shared-dir", "/", "--cache", "always", "--sandbox", "chroot", "--xattr"]);
    }
    let log = File::create(dir.join("files.log"))?;
    command.arg(socket).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("cannot start `{}`", process::typed(&command)))
}

fn await_socket(dir: &Path, server: &mut Child) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(10);
    while !dir.join("files").exists() {
        if server.try_wait()?.is_some() || Instant::now() > until {
            let log = fs::read_to_string(dir.join("files.log")).unwrap_or_default();
            bail!("the guest's file server (virtiofsd) did not start: {}", log.trim());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn qemu(kernel: &Kernel, dir: &Path, disks: &[PathBuf]) -> Result<Child> {
    let program = on_path("qemu-system-x86_64").context("no qemu-system-x86_64 (qemu-system-x86)")?;
    let at = |name: &str| dir.join(name).display().to_string();
    let mut command = bound(&program);
    // Emulation by name: on a machine that is a guest itself, KVM may be there and not run stock kernels. One
    // processor: QEMU 7.2 with more crashes guests whose code is patched, as attaching BPF does.
    command.args(["-machine", "q35,memory-backend=memory", "-accel", "tcg,thread=multi,tb-size=512"]);
    command.args(["-cpu", "max", "-smp", "1", "-m", MEMORY]);
    command.args(["-object", &format!("memory-backend-memfd,id=memory,size={MEMORY},share=on")]);
    command.args(["-nodefaults", "-nographic", "-no-reboot", "-device", "virtio-rng-pci"]);
    command.arg("-kernel").arg(kernel.dir.join(initrd::VMLINUX));
    command.arg("-initrd").arg(&kernel.initrd);
    command.args(["-append", &format!("{KERNEL_COMMAND_LINE} grace.run={}", dir.display())]);
    command.args(["-chardev", &format!("socket,id=files,path={}", at("files"))]);
    command.args(["-device", "vhost-user-fs-pci,chardev=files,tag=host"]);
    for disk in disks {
        command.args(["-drive", &format!("if=virtio,format=raw,cache=unsafe,file={}", disk.display())]);
    }
    command.args([
        "-chardev",
        &format!("file,id=console,path={}", at("console")),
        "-serial",
        "chardev:console",
    ]);
    command.args(["-device", "virtio-serial-pci"]);
    for (number, port) in (1..).zip(["out", "err", "status"]) {
        command.args(["-chardev", &format!("file,id={port},path={}", at(port))]);
        command.args(["-device", &format!("virtserialport,chardev={port},nr={number}")]);
    }
    let log = File::create(dir.join("qemu.log"))?;
    command.stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("cannot start `{}`", process::typed(&command)))
}

/// QEMU's status, or none if time ran out.
fn wait(qemu: &mut Running, timeout: Duration) -> Result<Option<ExitStatus>> {
    let until = Instant::now() + timeout;
    loop {
        if let Some(status) = qemu.0.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > until {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn copy(mut from: File, mut to: impl Write) -> io::Result<()> {
    let mut buffer = [0; 16384];
    let mut deaf = false;
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return to.flush();
        }
        // Read on even if nobody listens any more: a full FIFO would stop the guest.
        deaf = deaf || to.write_all(&buffer[..count]).and_then(|()| to.flush()).is_err();
    }
}

fn post_mortem(dir: &Path, qemu: ExitStatus) -> String {
    let end = |name: &str| {
        let text = fs::read(dir.join(name)).unwrap_or_default();
        // The firmware moves the cursor and clears the screen.
        let printable = |c: &char| !c.is_control() || *c == '\n';
        let text: String = String::from_utf8_lossy(&text).chars().filter(printable).collect();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    };
    format!("the guest died without a status (QEMU: {qemu})\n{}\n{}", end("qemu.log"), end("console"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Guest;
    use crate::process;

    #[test]
    fn words_and_environment_survive_the_shell() {
        let guest = Guest {
            command: ["printf", "%s|", "it's", "$HOME \"x\"", ""].map(Into::into).to_vec(),
            directory: "/".into(),
            folders: Vec::new(),
            environment: [("A_1", "a\nb'c"), ("not a name", "x"), ("GRACE_TEST_FS", "the host's")]
                .map(|(key, value)| (key.into(), value.into()))
                .to_vec(),
            timeout: Duration::ZERO,
            log: None,
        };
        let mut script = String::from_utf8(guest.script()).expect("text");
        assert!(!script.contains("GRACE_TEST_FS"), "{script}");
        script = script.replace("exec 'printf'", "printf '%s|' \"$A_1\"; exec 'printf'");
        let said = process::text(process::program("sh").args(["-c", &script])).expect("runs");
        assert_eq!(said, "a\nb'c|it's|$HOME \"x\"||");
    }
}
