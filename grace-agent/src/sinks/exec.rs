//! Sink `exec`: gives a task to a coding agent's command, in a clone of the repo at the deployed commit that is made for it.
//!
//! The command runs as a user without rights, in a cgroup of its own, for a bounded time, without Grace's socket in its
//! environment and without a right to it. It cannot reach what is deployed: it works in a clone, and what it changed there
//! becomes an attachment. The task is submitted, and judged like any other's.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Surroundings;
use crate::actions::run_hook::{self, Arguments};
use crate::actions::start_process::user_ids;
use crate::config::{Hook, Sink, Span};
use crate::error_chain::chain;
use crate::tasks::{Change, Delivery, Entry, MAX_TEXT, QueueError, file_name, render};

/// How long git may take for a clone or a difference.
const GIT_PATIENCE: Duration = Duration::from_secs(300);

/// The first `limit` bytes of a regular file of `uid`, in a folder where that user may put anything: a link, also a hard one to
/// a file that only root reads, is not followed for them.
fn read_own(path: &Path, uid: u32, limit: u64) -> io::Result<Vec<u8>> {
    let file =
        fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.uid() != uid {
        return Err(io::Error::other("it is no regular file of the command's user"));
    }
    let mut out = Vec::new();
    file.take(limit).read_to_end(&mut out)?;
    Ok(out)
}

/// Has the command work on the task.
pub(super) fn deliver(config: &Sink, entry: &Entry, around: &Surroundings, patience: Duration) -> Delivery {
    let task = &entry.task;
    let Some(repo) = &task.brief.repo else {
        return Delivery::Refused("the task is about no declared [[repo]]".to_owned());
    };
    let (Some(user), Some(work)) = (config.user.as_deref(), config.work.as_deref()) else {
        return Delivery::Refused("needs `user` and `work`".to_owned());
    };
    let ids = match user_ids(user) {
        Ok(ids) => ids,
        Err(err) => return Delivery::Later(chain(&err), None),
    };
    if ids.0 == 0 || ids.0 == rustix::process::geteuid().as_raw() {
        return Delivery::Refused(
            "`user` must be neither root nor the agent's own: it could reach Grace's socket".into(),
        );
    }
    if around.queue.is_exhausted(task.attempts) {
        // A command that is wrong each time is not run for ever.
        return Delivery::Refused(
            "the task was claimed too often ([tasks] attempts): a person is to look at it".into(),
        );
    }
    let name = format!("exec-{}", config.name());
    let lease = patience + GIT_PATIENCE * 3;
    let token = match around.queue.claim(Some(&task.id), &name, Some(lease)) {
        Ok((token, _)) => token,
        // Its own claim, of before a crash: it ends with its lease.
        Err(QueueError::State { .. })
            if task.claim.as_ref().is_some_and(|claim| claim.agent == file_name(&name)) =>
        {
            return Delivery::Later(
                "the claim of an earlier try is not over".into(),
                Some(Duration::from_secs(30)),
            );
        }
        // Somebody else works on it, or it is over: nothing to do.
        Err(QueueError::State { .. } | QueueError::NotThere(_)) => return Delivery::Sent,
        Err(err) => return Delivery::Later(chain(&err), None),
    };
    let job = Job { config, user, ids, around, folder: work.join(format!("{}-{}", task.id, entry.seq)) };
    let done = job.work(Path::new(&repo.path), repo.deployed.as_deref(), entry, patience);
    // Files of anybody: removed without following a link.
    drop(fs::remove_dir_all(&job.folder));
    let change = match done {
        Ok(patch) => {
            let attached = around.queue.update(
                &task.id,
                Change::Attach { token: token.clone(), name: "patch".into(), text: patch },
                &name,
            );
            match attached {
                Ok(_) => Change::Complete { token, summary: "its command ended well: see the patch".into() },
                Err(err) => Change::Release { token, why: chain(&err) },
            }
        }
        Err(why) => Change::Release { token, why },
    };
    match around.queue.update(&task.id, change, &name) {
        // A lease that was over is somebody else's claim now: what was done is not theirs.
        Ok(_) | Err(QueueError::Token(_) | QueueError::NotThere(_)) => Delivery::Sent,
        Err(err) => Delivery::Later(chain(&err), None),
    }
}

struct Job<'a> {
    config: &'a Sink,
    user: &'a str,
    ids: (u32, u32),
    around: &'a Surroundings,
    folder: PathBuf,
}

impl Job<'_> {
    /// What the command changed, as a patch.
    fn work(
        &self,
        repo: &Path,
        commit: Option<&str>,
        entry: &Entry,
        patience: Duration,
    ) -> Result<String, String> {
        let fail = |what: &str, err: io::Error| format!("cannot {what}: {err}");
        drop(fs::remove_dir_all(&self.folder));
        self.make(&self.folder).map_err(|err| fail("make its folder", err))?;
        let (home, tree) = (self.folder.join("home"), self.folder.join("tree"));
        self.make(&home).map_err(|err| fail("make its home", err))?;
        // git reads repos of others only where it is told so, and the environment does not reach all of it.
        self.write(
            &home.join(".gitconfig"),
            "[safe]\n\tdirectory = *\n[user]\n\tname = agent\n\temail = agent@localhost\n",
        )
        .map_err(|err| fail("write its git configuration", err))?;
        let file = self.folder.join("task.md");
        self.write(&file, &render::markdown(&entry.task)).map_err(|err| fail("write the task", err))?;
        let (from, to) = (repo.display().to_string(), tree.display().to_string());
        self.git(&["clone", "--quiet", "--no-hardlinks", "--no-checkout", &from, &to], &self.folder)?;
        let head = commit.unwrap_or("HEAD");
        self.git(&["checkout", "--quiet", "--detach", head, "--"], &tree)?;
        let said = self.run("agent", &self.config.command, &tree, patience)?;
        tracing::info!(sink = %self.config.name(), task = %entry.task.id, %said, "its command has ended");
        self.git(&["add", "--all"], &tree)?;
        let patch = self.folder.join("patch");
        let output = format!("--output={}", patch.display());
        self.git(
            &["diff", "--cached", "--no-ext-diff", "--no-textconv", "--no-color", &output, head],
            &tree,
        )?;
        let text =
            read_own(&patch, self.ids.0, MAX_TEXT as u64 + 1).map_err(|err| fail("read its patch", err))?;
        if text.is_empty() {
            return Err("its command changed nothing".to_owned());
        }
        if text.len() > MAX_TEXT {
            return Err(format!("its patch is larger than {} KiB", MAX_TEXT >> 10));
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn git(&self, arguments: &[&str], cwd: &Path) -> Result<String, String> {
        let git = ["/usr/bin/git", "/usr/local/bin/git", "/bin/git"]
            .into_iter()
            .find(|path| Path::new(path).exists());
        let git = git.ok_or("git is not installed")?;
        let command: Vec<String> = [git, "-c", "core.hooksPath=/dev/null"]
            .iter()
            .chain(arguments)
            .map(|s| (*s).to_owned())
            .collect();
        self.run("git", &command, cwd, GIT_PATIENCE)
    }

    fn run(&self, what: &str, command: &[String], cwd: &Path, patience: Duration) -> Result<String, String> {
        let env = [
            ("HOME".to_owned(), self.folder.join("home").display().to_string()),
            ("GRACE_TASK".to_owned(), self.folder.join("task.md").display().to_string()),
        ];
        let hook = Hook {
            name: format!("{what}.{}", self.config.name()),
            command: command.to_vec(),
            user: Some(self.user.to_owned()),
            group: None,
            cwd: Some(cwd.to_owned()),
            env: env.into(),
            timeout: Span::millis(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX)),
            replicas: 1,
            max_replicas: None,
            trigger: None,
            subject: None,
        };
        run_hook::run(&hook, &Arguments::default(), &self.around.cgroups)
            .map_err(|err| format!("{what}: {}", chain(&err)))
    }

    /// A folder of the user's own.
    fn make(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(path)?;
        std::os::unix::fs::lchown(path, Some(self.ids.0), Some(self.ids.1))
    }

    /// A file of the user's own, before the user runs anything.
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        use std::io::Write;
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        std::os::unix::fs::lchown(path, Some(self.ids.0), Some(self.ids.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_of_the_users_own_is_read_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let (own, link) = (dir.path().join("patch"), dir.path().join("link"));
        fs::write(&own, "0123456789").unwrap();
        let uid = fs::metadata(&own).unwrap().uid();
        assert_eq!(read_own(&own, uid, 4).unwrap(), b"0123");
        assert!(read_own(&own, uid + 1, 4).is_err(), "another's, as behind a hard link");
        std::os::unix::fs::symlink(&own, &link).unwrap();
        assert!(read_own(&link, uid, 4).is_err());
        assert!(read_own(dir.path(), uid, 4).is_err());
    }
}
