//! Restores where it is hard: everything that a file carries, other names, packages that are upgraded, a user who swaps
//! links, and resources that have run out. Needs root.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr, reason = "tests")]

mod harness;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use grace_agent::actions::restore_file::{RestoreError, restore};
use grace_agent::snapshots::{Store, Take};
use grace_agent::sources::look::look;
use grace_agent::state_dir::StateDir;
use harness::{Agent, program, root, skip, wait_until};
use rustix::fs::{CWD, RenameFlags, XattrFlags, renameat_with};
use serde_json::Value;

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn cleared(path: &Path) -> impl Fn(&Value) -> bool + '_ {
    move |f| f["trigger"] == "config_drift" && f["subject"]["name"] == name(path) && f["state"] == "cleared"
}

fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 4096];
    let length = rustix::fs::listxattr(path, &mut names[..]).unwrap();
    let mut out = Vec::new();
    for name in names[..length].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let name = std::str::from_utf8(name).unwrap().to_owned();
        let mut value = vec![0; 4096];
        let length = rustix::fs::getxattr(path, name.as_str(), &mut value[..]).unwrap();
        value.truncate(length);
        out.push((name, value));
    }
    out.sort();
    out
}

/// `u::rw-,u:1234:r--,g::---,m::r--,o::---` as the kernel keeps it (include/uapi/linux/posix_acl_xattr.h).
fn acl() -> Vec<u8> {
    let mut out = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in
        [(1_u16, 6_u16, u32::MAX), (2, 4, 1234), (4, 0, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
    {
        out.extend(tag.to_le_bytes());
        out.extend(perm.to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    out
}

/// `cap_net_bind_service=ep` (struct vfs_cap_data, revision 2).
fn capability() -> Vec<u8> {
    [0x0200_0001_u32, 1 << 10, 0, 0, 0].iter().flat_map(|n| n.to_le_bytes()).collect()
}

#[test]
fn everything_that_a_file_carries_comes_back() {
    if !root() {
        return skip("everything_that_a_file_carries_comes_back", "needs root");
    }
    // The same writer each time, which is otherwise a fight.
    let agent = Agent::start("[triggers.config_drift]\nconflict_count = 100\n");
    let path = agent.file("tool", "#!/bin/true\n");
    std::os::unix::fs::chown(&path, Some(4321), Some(8765)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o2750)).unwrap();
    for (attribute, value) in [
        ("security.capability", capability()),
        ("system.posix_acl_access", acl()),
        ("user.origin", b"built \x00 by hand".to_vec()),
        ("trusted.label", b"x".to_vec()),
    ] {
        rustix::fs::setxattr(&path, attribute, &value, XattrFlags::empty())
            .unwrap_or_else(|err| panic!("{attribute}: {err}"));
    }
    let times = |path: &Path| {
        let meta = fs::symlink_metadata(path).unwrap();
        (meta.mtime(), meta.mtime_nsec())
    };
    filetime(&path, 1_234_567_890, 123_456_789);
    let all = |path: &Path| {
        let meta = fs::symlink_metadata(path).unwrap();
        (meta.mode(), meta.uid(), meta.gid(), fs::read(path).unwrap(), xattrs(path), times(path))
    };
    let good = all(&path);
    assert_eq!(good.4.len(), 4, "{good:?}");
    agent.ok(&["snapshot", name(&path)]);

    let ways: [(&str, &dyn Fn()); 6] = [
        ("replaced", &|| {
            fs::remove_file(&path).unwrap();
            fs::write(&path, "other").unwrap();
        }),
        ("capability", &|| rustix::fs::removexattr(&path, "security.capability").unwrap()),
        ("ACL", &|| fs::set_permissions(&path, fs::Permissions::from_mode(0o2770)).unwrap()),
        ("attribute", &|| rustix::fs::setxattr(&path, "user.origin", b"y", XattrFlags::empty()).unwrap()),
        ("added", &|| rustix::fs::setxattr(&path, "user.more", b"y", XattrFlags::empty()).unwrap()),
        ("owner", &|| std::os::unix::fs::chown(&path, Some(0), None).unwrap()),
    ];
    for (way, change) in ways {
        change();
        assert!(all(&path) != good || !agent.firings().is_empty(), "{way}: changes nothing");
        wait_until(way, || path.exists() && all(&path) == good && agent.firings().iter().all(cleared(&path)));
    }
    assert!(agent.firings().len() >= 6, "{:#?}", agent.firings());
    // A time alone is no drift, and comes back with the next restore.
    agent.ok(&["verify", name(&path)]);
}

fn filetime(path: &Path, seconds: i64, nanos: i64) {
    let at = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = rustix::fs::Timestamps { last_access: at, last_modification: at };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

#[test]
fn hard_links_are_cut_and_said_or_left_alone_as_configured() {
    if !root() {
        return skip("hard_links_are_cut_and_said_or_left_alone_as_configured", "needs root");
    }
    let mut agent = Agent::start("");
    let (path, other) = (agent.file("a.conf", "good\n"), agent.path("etc/other"));
    fs::hard_link(&path, &other).unwrap();
    agent.ok(&["snapshot", name(&path)]);
    fs::write(&other, "bad\n").unwrap();
    let restored = |f: &Value| cleared(&path)(f) && f["remedy"][0]["state"] == "done";
    let firing = agent.wait_firing("a change through the other name", restored);
    let why = firing["remedy"][0]["why"].as_str().unwrap();
    assert!(why.contains("1 another name (hard links), which still show what lay there"), "{why}");
    assert_eq!(
        (fs::read(&path).unwrap(), fs::read(&other).unwrap()),
        (b"good\n".to_vec(), b"bad\n".to_vec())
    );

    // Both owned: both are right again.
    fs::remove_file(&other).unwrap();
    fs::hard_link(&path, &other).unwrap();
    agent.ok(&["snapshot", name(&path), name(&other)]);
    fs::write(&other, "bad\n").unwrap();
    wait_until("both names", || {
        fs::read(&path).unwrap() == b"good\n" && fs::read(&other).unwrap() == b"good\n"
    });

    agent.stop();
    agent.config("[snapshots]\nhard_links = \"hold\"\n");
    agent.run();
    fs::remove_file(&other).unwrap();
    fs::hard_link(&path, &other).unwrap();
    fs::write(&other, "bad\n").unwrap();
    let held = agent.wait_firing("left alone", |f| {
        f["subject"]["name"] == name(&path) && f["state"] == "holds" && f["remedy"][0]["state"] == "failed"
    });
    assert!(held["remedy"][0]["why"].as_str().unwrap().contains("`hard_links` is `hold`"), "{held}");
    assert_eq!(fs::read(&path).unwrap(), b"bad\n");
}

#[test]
fn a_bind_mount_of_the_file_is_said() {
    if !root() {
        return skip("a_bind_mount_of_the_file_is_said", "needs root");
    }
    let agent = Agent::start("");
    let (path, place) = (agent.file("a.conf", "good\n"), agent.file("place", ""));
    let mounted = Command::new("mount").arg("--bind").arg(&path).arg(&place).status();
    if !mounted.is_ok_and(|status| status.success()) {
        return skip("a_bind_mount_of_the_file_is_said", "cannot mount");
    }
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            Command::new("umount").arg("-l").arg(&self.0).status().ok();
        }
    }
    let _mounted = Mounted(place.clone());
    agent.ok(&["snapshot", name(&path)]);
    let out = agent.grace(&["snapshot", name(&place)]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("mount point of its own"), "{out:?}");
    fs::write(&place, "bad\n").unwrap();
    let restored = |f: &Value| cleared(&path)(f) && f["remedy"][0]["state"] == "done";
    let firing = agent.wait_firing("a change through the mount", restored);
    let why = firing["remedy"][0]["why"].as_str().unwrap();
    assert!(why.contains(&format!("it is mounted at {}", name(&place))), "{why}");
    assert_eq!(fs::read(&path).unwrap(), b"good\n");
}

/// A package with `files` files whose content says `version`, made by dpkg-deb.
fn package(dir: &Path, version: u32, files: usize) -> PathBuf {
    let tree = dir.join(format!("tree-{version}"));
    fs::create_dir_all(tree.join("DEBIAN")).unwrap();
    fs::create_dir_all(tree.join("etc/graced")).unwrap();
    let control = format!(
        "Package: grace-restores-test\nVersion: {version}\nArchitecture: all\nMaintainer: nobody <n@example.org>\n\
         Description: five hundred configs\n"
    );
    fs::write(tree.join("DEBIAN/control"), control).unwrap();
    // What maintainer scripts do: change a config by sed, two processes below dpkg.
    let script =
        "#!/bin/sh\nset -e\nsleep 2\nsed -i s/^by=.*/by=postinst/ \"$DPKG_ROOT/etc/graced/0.conf\"\n";
    fs::write(tree.join("DEBIAN/postinst"), script).unwrap();
    fs::set_permissions(tree.join("DEBIAN/postinst"), fs::Permissions::from_mode(0o755)).unwrap();
    for n in 0..files {
        let content = format!("version={version}\nby=package\nnumber={n}\n{}", "x".repeat(n));
        fs::write(tree.join(format!("etc/graced/{n}.conf")), content).unwrap();
    }
    let deb = dir.join(format!("{version}.deb"));
    let built =
        Command::new("dpkg-deb").args(["--root-owner-group", "-b"]).arg(&tree).arg(&deb).output().unwrap();
    assert!(built.status.success(), "{built:?}");
    deb
}

#[test]
fn a_package_upgrade_of_500_files_under_watch_is_no_drift() {
    const TEST: &str = "a_package_upgrade_of_500_files_under_watch_is_no_drift";
    const FILES: usize = 500;
    if !root() || !Path::new("/usr/bin/dpkg").exists() {
        return skip(TEST, "needs root and dpkg");
    }
    let mut agent = Agent::start("");
    agent.stop();
    let base = agent.path("root");
    for folder in ["root/var/lib/dpkg/info", "root/var/lib/dpkg/updates", "root/etc", "root/tmp"] {
        fs::create_dir_all(agent.path(folder)).unwrap();
    }
    fs::write(agent.path("root/var/lib/dpkg/status"), "").unwrap();
    let debs = [package(agent.dir.path(), 1, FILES), package(agent.dir.path(), 2, FILES)];
    let dpkg = |args: &[&str]| {
        // By a shell and another process, as a package tool would start it.
        let out = Command::new("/bin/sh")
            .args(["-c", "env DEBIAN_FRONTEND=noninteractive dpkg \"$@\"; exit $?", "sh"])
            .arg(format!("--root={}", base.display()))
            .args(["--force-script-chrootless", "--force-not-root", "--force-bad-path", "--no-triggers"])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
    };
    dpkg(&["-i", name(&debs[0])]);
    let file = |n: usize| base.join(format!("etc/graced/{n}.conf"));
    assert!(fs::read_to_string(file(0)).unwrap().contains("by=postinst"));
    agent.config("[[file]]\npath = \"$DIR/root/etc/graced/\"\n");
    agent.run();
    assert_eq!(agent.lines(&["snapshots", "--json"]).len(), FILES);

    dpkg(&["-i", name(&debs[1])]);
    let version_2 = |snapshots: &[Value]| {
        snapshots
            .iter()
            .filter(|s| s["current"] == true && s["author"].as_str().unwrap().contains("dpkg"))
            .count()
    };
    wait_until("every upgraded file is known-good", || {
        version_2(&agent.lines(&["snapshots", "--json"])) == FILES
    });
    for n in 0..FILES {
        let content = fs::read_to_string(file(n)).unwrap();
        assert!(content.starts_with("version=2\n"), "{n}: a false restore\n{content}");
    }
    agent.ok(&["verify"]);
    let firings = agent.firings();
    let restored: Vec<&Value> =
        firings.iter().filter(|f| f["remedy"].to_string().contains("restore_file")).collect();
    assert!(restored.is_empty(), "{} false drifts, the first: {:#}", restored.len(), restored[0]);
    let versions = agent.lines(&["snapshots", "--json", name(&file(0))]);
    let author = versions.last().unwrap()["author"].as_str().unwrap();
    assert!(author.contains("sed ←") && author.contains("/usr/bin/dpkg"), "{versions:#?}");

    // Anybody else's change of the same files is a drift as ever.
    fs::write(file(7), "intruder\n").unwrap();
    agent.wait_firing("an intruder", cleared(&file(7)));
    assert!(fs::read_to_string(file(7)).unwrap().starts_with("version=2\n"));

    // The package goes, and its files with it: nobody brings them back one by one.
    dpkg(&["--purge", "grace-restores-test"]);
    wait_until("removals are held", || {
        let held = |f: &&Value| {
            f["state"] == "holds"
                && f["remedy"][0]["state"] == "held"
                && f["summary"].as_str().unwrap().starts_with("removed")
        };
        agent.firings().iter().filter(held).count() == FILES
    });
    assert!((0..FILES).all(|n| !file(n).exists()));
}

/// The hostile user of the next test: this program again, as nobody.
#[test]
fn hostile_child() {
    let Some(dir) = std::env::var_os("GRACE_SWAP_IN") else { return };
    let dir = PathBuf::from(dir);
    let (real, link, file) = (dir.join("conf"), dir.join("link"), dir.join("conf/app.conf"));
    let exchange = |a: &Path, b: &Path| {
        let _ = renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE);
    };
    for round in 0_u64.. {
        // A parent that is now a folder, now a link to somebody else's; the name itself, too; and whatever temporary
        // name is seen.
        exchange(&real, &link);
        exchange(&real, &link);
        exchange(&file, &dir.join("conf/trap"));
        for entry in fs::read_dir(&real).into_iter().flatten().flatten().take(8) {
            if entry.file_name().as_encoded_bytes().starts_with(b".grace-") {
                let path = entry.path();
                if round % 3 == 0 {
                    exchange(&path, &dir.join("conf/trap"));
                } else {
                    drop(fs::remove_file(&path));
                    drop(symlink("../victim/app.conf", &path));
                }
            }
        }
        drop(fs::write(&file, "bad\n"));
        if !dir.join("run").exists() {
            return;
        }
    }
}

#[test]
fn a_user_who_swaps_links_and_parents_gets_not_one_write_outside() {
    const TEST: &str = "a_user_who_swaps_links_and_parents_gets_not_one_write_outside";
    if !root() {
        return skip(TEST, "needs root");
    }
    let rounds: u32 = std::env::var("GRACE_SWAP_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3_000);
    let scratch = tempfile::Builder::new().prefix("grace-swaps-").tempdir_in("/dev/shm").unwrap();
    let top = scratch.path().canonicalize().unwrap();
    fs::set_permissions(&top, fs::Permissions::from_mode(0o755)).unwrap();
    let (theirs, victim) = (top.join("theirs"), top.join("victim"));
    for folder in [&theirs, &theirs.join("conf"), &victim] {
        fs::create_dir(folder).unwrap();
    }
    let path = theirs.join("conf/app.conf");
    fs::write(&path, "good\n").unwrap();
    for mine in [&theirs, &theirs.join("conf"), &path] {
        std::os::unix::fs::chown(mine, Some(65534), Some(65534)).unwrap();
    }
    // What the user must not reach: a folder of root's that links lead to.
    for file in ["app.conf", "trap", "shadow"] {
        fs::write(victim.join(file), format!("{file} of root\n")).unwrap();
        fs::set_permissions(victim.join(file), fs::Permissions::from_mode(0o600)).unwrap();
    }
    symlink(&victim, theirs.join("link")).unwrap();
    symlink("../../victim/shadow", theirs.join("conf/trap")).unwrap();
    fs::write(theirs.join("run"), "").unwrap();
    let outside = || {
        let mut out: Vec<_> = fs::read_dir(&victim)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let meta = entry.metadata().unwrap();
                (
                    entry.file_name(),
                    fs::read(entry.path()).unwrap(),
                    meta.ino(),
                    meta.mode(),
                    meta.uid(),
                    meta.mtime_nsec(),
                    meta.ctime_nsec(),
                )
            })
            .collect();
        out.sort();
        out
    };
    let before = outside();

    let state = StateDir::open(&top.join("state")).unwrap();
    let store = Store::open(&state).unwrap();
    let known = store.take(&path, Take::default()).unwrap().snapshot.known;
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hostile_child", "--nocapture"])
        .env("GRACE_SWAP_IN", &theirs)
        .uid(65534)
        .gid(65534)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut done, mut refused, mut raced) = (0_u32, 0_u32, 0_u32);
    for round in 0..rounds {
        let judged = look(&path, Some(&known)).id();
        match restore(&store, &state.quarantine(), &path, &known, judged, &format!("f-{round}"), || ()) {
            Ok(_) => done += 1,
            Err(RestoreError::LostRace { .. }) => raced += 1,
            Err(_) => refused += 1,
        }
        if round % 500 == 0 {
            assert_eq!(outside(), before, "round {round}: written outside");
        }
        assert!(child.try_wait().unwrap().is_none(), "the hostile user gave up");
        if round % 200 == 199 {
            // The quarantine must not fill the memory that it lies in here.
            for entry in fs::read_dir(state.quarantine()).unwrap().flatten() {
                let folder = entry.metadata().unwrap().is_dir();
                if folder {
                    fs::remove_dir_all(entry.path()).unwrap()
                } else {
                    fs::remove_file(entry.path()).unwrap()
                }
            }
        }
    }
    fs::remove_file(theirs.join("run")).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    eprintln!("{rounds} restores: {done} done, {raced} lost the race, {refused} refused");
    assert_eq!(outside(), before, "written outside");
    assert!(done > 0 && raced + refused > 0, "the user was never in the way, or always");
}

#[test]
fn without_descriptors_or_room_nothing_is_half_done() {
    const TEST: &str = "without_descriptors_or_room_nothing_is_half_done";
    if !root() {
        return skip(TEST, "needs root");
    }
    // In a process of its own: the limit and the mount are its.
    if std::env::var_os("GRACE_EXHAUSTED").is_none() {
        let out = Command::new(program("unshare"))
            .args(["-m", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .env("GRACE_EXHAUSTED", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{said}\n{}", String::from_utf8_lossy(&out.stdout));
        return;
    }
    let scratch = tempfile::Builder::new().prefix("grace-exhausted-").tempdir().unwrap();
    let top = scratch.path().canonicalize().unwrap();
    fs::create_dir(top.join("state")).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2m,mode=700", "grace"])
        .arg(top.join("state"))
        .status();
    assert!(mounted.unwrap().success());
    let path = top.join("app.conf");
    fs::write(&path, "good\n").unwrap();
    let state = StateDir::open(&top.join("state")).unwrap();
    let store = Store::open(&state).unwrap();
    let known = store.take(&path, Take::default()).unwrap().snapshot.known;
    let sound = |what: &str| {
        assert_eq!(store.all().unwrap().len(), 1, "{what}");
        store.check_object(&known.digest).unwrap();
        let left = |folder: &Path| -> Vec<_> {
            let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            names.filter(|n| n.starts_with("incoming-") || n.starts_with(".grace-restore-")).collect()
        };
        assert_eq!((left(&top), left(&state.objects())), (vec![], vec![]), "{what}");
    };

    // The store's disk is full: no version, and none lost.
    let mut seed = 1_u64;
    let room: Vec<u8> = std::iter::repeat_with(|| {
        // xorshift64: nothing that could be compressed.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()
    })
    .take(3 << 17)
    .flatten()
    .collect();
    fs::write(&path, &room).unwrap();
    let err = store.take(&path, Take::default()).unwrap_err();
    assert!(grace_agent::error_chain::chain(&err).contains("No space left"), "{err:?}");
    sound("a full store");
    // It is read-only.
    fs::write(&path, "bad\n").unwrap();
    let objects = top.join("state/objects");
    let done = |program: &str, args: &[&str]| {
        Command::new(program).args(args).arg(&objects).status().unwrap().success()
    };
    assert!(done("mount", &["--bind", name(&objects)]) && done("mount", &["-o", "remount,bind,ro"]));
    let err = store.take(&path, Take::default()).unwrap_err();
    assert!(grace_agent::error_chain::chain(&err).contains("Read-only"), "{err:?}");
    sound("a read-only store");
    assert!(done("umount", &[]));

    // No descriptors, few of them, and enough again.
    let judged = look(&path, Some(&known)).id();
    let mut spare = Vec::new();
    let all = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let limit = rustix::process::Rlimit { current: Some(256), ..all };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    while let Ok(file) = fs::File::open("/dev/null") {
        spare.push(file);
    }
    let mut failures = 0;
    let restored = loop {
        match restore(&store, &state.quarantine(), &path, &known, judged, "f-1", || ()) {
            Ok(restored) => break restored,
            Err(err) => {
                failures += 1;
                assert!(failures < 40, "{err:?}");
                assert_eq!(fs::read(&path).unwrap_or_else(|_| b"bad\n".to_vec()), b"bad\n", "{err:?}");
            }
        }
        spare.pop();
    };
    assert!(failures >= 3, "it needs more than {failures} descriptors");
    drop(spare);
    assert_eq!(fs::read(&path).unwrap(), b"good\n");
    assert_eq!(fs::read(restored.quarantined.unwrap()).unwrap(), b"bad\n");
    sound("no descriptors");
    drop((store, state));
    assert!(Command::new("umount").arg("-l").arg(top.join("state")).status().unwrap().success());
}
