//! What a restore does to the file, to what lay there, and to who gets in its way.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::file_state::FileState;
use crate::snapshots::Take;
use crate::sources::look::look;
use crate::state_dir::StateDir;

/// A state folder, a store and an owned file with known-good content, all in one scratch folder.
struct Scene {
    _dir: tempfile::TempDir,
    state: StateDir,
    store: Store,
    etc: PathBuf,
    path: PathBuf,
    known: KnownGood,
}

const GOOD: &[u8] = b"listen = 8080\n";
const BAD: &[u8] = b"listen = 6666\n";

fn scene() -> Scene {
    scene_in(tempfile::tempdir().unwrap())
}

fn scene_in(dir: tempfile::TempDir) -> Scene {
    let top = dir.path().canonicalize().unwrap();
    let state = StateDir::open(&top.join("state")).unwrap();
    let store = Store::open(&state).unwrap();
    let etc = top.join("etc");
    fs::create_dir(&etc).unwrap();
    let path = etc.join("app.conf");
    fs::write(&path, GOOD).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let known = store.take(&path, Take::default()).unwrap().snapshot.known;
    Scene { _dir: dir, state, store, etc, path, known }
}

impl Scene {
    fn restore(&self) -> Result<Restored, RestoreError> {
        let judged = look(&self.path, Some(&self.known)).id();
        self.restore_judged(judged)
    }

    fn restore_judged(&self, judged: Option<FileId>) -> Result<Restored, RestoreError> {
        restore(&self.store, &self.state.quarantine(), &self.path, &self.known, judged, "f-7", || ())
    }

    fn recover(&self) -> Vec<String> {
        recover(&self.store, &self.state.quarantine(), std::slice::from_ref(&self.path))
    }

    /// Nothing drifts, and nothing is left beside the file.
    fn assert_clean(&self) {
        let drift = self.known.drift(&look(&self.path, Some(&self.known)));
        assert!(drift.is_empty(), "{drift:?}");
        self.assert_nothing_left();
    }

    fn assert_nothing_left(&self) {
        assert_eq!(
            self.names(),
            self.names().into_iter().filter(|n| !n.starts_with(".grace")).collect::<Vec<_>>()
        );
    }

    fn names(&self) -> Vec<String> {
        names(&self.etc)
    }

    fn quarantined(&self) -> Vec<String> {
        names(&self.state.quarantine())
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn content_mode_owner_and_time_come_back_and_the_displaced_file_is_kept() {
    let scene = scene();
    fs::write(&scene.path, BAD).unwrap();
    fs::set_permissions(&scene.path, fs::Permissions::from_mode(0o4777)).unwrap();
    let done = scene.restore().unwrap();
    scene.assert_clean();
    assert_eq!(fs::read(&scene.path).unwrap(), GOOD);
    let meta = fs::metadata(&scene.path).unwrap();
    assert_eq!(meta.mtime() * 1_000_000_000 + meta.mtime_nsec(), scene.known.mtime_ns);
    let kept = done.quarantined.clone().unwrap();
    assert_eq!(kept, scene.state.quarantine().join("f-7-app.conf"));
    assert_eq!(fs::read(kept).unwrap(), BAD);
    assert!(done.durable && done.weaker.is_none() && done.note.is_none(), "{done:?}");
    let bad = of_reader(&mut &BAD[..], 0, u64::MAX).unwrap().0;
    assert_eq!(done.displaced_digest, Some(bad));
}

#[test]
fn the_same_name_twice_in_the_quarantine_keeps_both() {
    let scene = scene();
    for _ in 0..3 {
        fs::write(&scene.path, BAD).unwrap();
        scene.restore().unwrap();
    }
    assert_eq!(scene.quarantined().len(), 3, "{:?}", scene.quarantined());
}

#[test]
fn setuid_and_extended_attributes_come_back() {
    let scene = scene();
    let set = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(&scene.path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    set("user.origin", b"known good");
    fs::set_permissions(&scene.path, fs::Permissions::from_mode(0o6755)).unwrap();
    let known = scene.store.take(&scene.path, Take::default()).unwrap().snapshot.known;
    assert_eq!(known.meta.mode, 0o6755);
    assert_eq!(known.meta.xattrs.len(), 1);
    set("user.origin", b"changed");
    set("user.other", b"added");
    let scene = Scene { known, ..scene };
    assert_eq!(scene.known.drift(&look(&scene.path, Some(&scene.known))).len(), 2);
    scene.restore().unwrap();
    scene.assert_clean();
}

#[test]
fn what_the_folder_would_pass_on_is_taken_off() {
    let scene = scene();
    // A default ACL (version 2; owner rwx, user 1000 rwx, group r-x, mask rwx, other ---).
    let acl: Vec<u8> = [
        &2_u32.to_le_bytes()[..],
        &[1, 0, 7, 0, 255, 255, 255, 255],
        &[2, 0, 7, 0, 232, 3, 0, 0],
        &[4, 0, 5, 0, 255, 255, 255, 255],
        &[16, 0, 7, 0, 255, 255, 255, 255],
        &[32, 0, 0, 0, 255, 255, 255, 255],
    ]
    .concat();
    rustix::fs::setxattr(&scene.etc, "system.posix_acl_default", &acl, rustix::fs::XattrFlags::empty())
        .unwrap();
    fs::write(&scene.path, BAD).unwrap();
    let done = scene.restore().unwrap();
    assert_eq!(done.note, None);
    scene.assert_clean();
}

#[test]
fn a_missing_file_comes_back() {
    let scene = scene();
    fs::remove_file(&scene.path).unwrap();
    let done = scene.restore().unwrap();
    scene.assert_clean();
    assert_eq!(done.quarantined, None);
}

#[test]
fn a_link_a_folder_and_a_pipe_are_displaced_not_followed() {
    let canary = tempfile::NamedTempFile::new().unwrap();
    fs::write(canary.path(), "canary").unwrap();
    for what in ["symlink", "directory", "fifo"] {
        let scene = scene();
        fs::remove_file(&scene.path).unwrap();
        match what {
            "symlink" => symlink(canary.path(), &scene.path).unwrap(),
            "directory" => {
                fs::create_dir(&scene.path).unwrap();
                fs::write(scene.path.join("in it"), "x").unwrap();
            }
            _ => rustix::fs::mknodat(
                rustix::fs::CWD,
                &scene.path,
                rustix::fs::FileType::Fifo,
                Mode::from_raw_mode(0o600),
                0,
            )
            .unwrap(),
        }
        let state = look(&scene.path, Some(&scene.known));
        assert!(matches!(&state, FileState::NotRegular { what: w, .. } if w == what), "{state:?}");
        let kept = scene.restore().unwrap().quarantined.unwrap();
        scene.assert_clean();
        let meta = fs::symlink_metadata(&kept).unwrap();
        assert_eq!(meta.is_dir(), what == "directory");
        assert_eq!(meta.is_symlink(), what == "symlink");
        if what == "directory" {
            assert_eq!(fs::read(kept.join("in it")).unwrap(), b"x");
        }
    }
    assert_eq!(fs::read(canary.path()).unwrap(), b"canary");
}

#[test]
fn an_object_that_was_not_judged_is_put_back() {
    let scene = scene();
    fs::write(&scene.path, BAD).unwrap();
    let judged = look(&scene.path, Some(&scene.known)).id();
    // Somebody puts a new version there the usual way, between judging and repairing.
    let newer = scene.etc.join("newer");
    fs::write(&newer, "a new version").unwrap();
    fs::rename(&newer, &scene.path).unwrap();
    let err = scene.restore_judged(judged).unwrap_err();
    assert!(matches!(err, RestoreError::LostRace { kept: None, .. }), "{err:?}");
    assert_eq!(fs::read(&scene.path).unwrap(), b"a new version");
    scene.assert_nothing_left();
    assert!(scene.quarantined().is_empty());
}

#[test]
fn what_appeared_or_vanished_since_is_left_alone() {
    let scene = scene();
    let err = scene.restore_judged(None).unwrap_err();
    assert!(matches!(err, RestoreError::LostRace { .. }), "{err:?}");
    let judged = look(&scene.path, None).id();
    fs::remove_file(&scene.path).unwrap();
    let err = scene.restore_judged(judged).unwrap_err();
    assert!(matches!(err, RestoreError::LostRace { .. }), "{err:?}");
    assert!(scene.names().is_empty(), "{:?}", scene.names());
}

#[test]
fn a_damaged_object_is_never_put_anywhere() {
    let scene = scene();
    fs::write(&scene.path, BAD).unwrap();
    let object = scene.state.objects().join(&scene.known.digest.0[..2]).join(&scene.known.digest.0);
    for damage in [&b"listen = 8081\n"[..], b"", b"listen = 8080\nand more"] {
        fs::set_permissions(&object, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&object, damage).unwrap();
        let err = scene.restore().unwrap_err();
        assert!(
            matches!(&err, RestoreError::DamagedObject { digest } if *digest == scene.known.digest),
            "{err:?}"
        );
        assert_eq!(fs::read(&scene.path).unwrap(), BAD);
        scene.assert_nothing_left();
    }
    fs::remove_file(&object).unwrap();
    assert!(matches!(scene.restore(), Err(RestoreError::Object(ObjectError::Missing { .. }))));
    scene.assert_nothing_left();
}

#[test]
fn recover_removes_known_good_copies_and_keeps_everything_else() {
    let scene = scene();
    let left = |name: &str, content: &[u8]| fs::write(scene.etc.join(name), content).unwrap();
    left(".grace-restore-f-7-0123abcd", GOOD);
    left(".grace-restore-f-8-0123abcd", b"displaced");
    left(".grace-restore-f-9-0123abcd", &GOOD[..5]);
    left(".grace-restore-mine", b"not one of Grace's names");
    left(".grace-restore-linked-0123abcd", GOOD);
    fs::hard_link(scene.etc.join(".grace-restore-linked-0123abcd"), scene.etc.join("other name")).unwrap();
    symlink("/etc/passwd", scene.etc.join(".grace-restore-link-0123abcd")).unwrap();
    fs::create_dir(scene.etc.join(".grace-restore-dir-0123abcd")).unwrap();
    fs::write(scene.state.quarantine().join(".copying-0123abcd"), "half").unwrap();
    let said = scene.recover();
    assert_eq!(said.len(), 6, "{said:#?}");
    assert_eq!(scene.names(), [".grace-restore-mine", "app.conf", "other name"]);
    assert_eq!(
        scene.quarantined(),
        [
            "recovered-.grace-restore-dir-0123abcd",
            "recovered-.grace-restore-f-8-0123abcd",
            "recovered-.grace-restore-f-9-0123abcd",
            "recovered-.grace-restore-link-0123abcd",
            "recovered-.grace-restore-linked-0123abcd",
        ]
    );
    assert_eq!(scene.recover(), Vec::<String>::new());
}

#[test]
fn a_folder_that_became_a_link_is_not_entered() {
    let scene = scene();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("app.conf"), "canary").unwrap();
    let judged = look(&scene.path, None).id();
    fs::rename(&scene.etc, scene.etc.with_extension("moved")).unwrap();
    symlink(elsewhere.path(), &scene.etc).unwrap();
    let state = look(&scene.path, Some(&scene.known));
    assert!(matches!(state, FileState::NotRegular { .. }), "replaced, so a drift: {state:?}");
    let err = scene.restore_judged(judged).unwrap_err();
    assert!(matches!(err, RestoreError::Walk(PathError::LinkOnTheWay { .. })), "{err:?}");
    assert_eq!(names(elsewhere.path()), ["app.conf"]);
    assert_eq!(fs::read(elsewhere.path().join("app.conf")).unwrap(), b"canary");
}

#[test]
fn links_swapped_in_by_somebody_else_lead_nowhere() {
    // In memory, so that syncing does not keep the two apart.
    let scene = scene_in(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap());
    let outside = tempfile::tempdir().unwrap();
    let canary = outside.path().join("app.conf");
    fs::write(&canary, "canary").unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mischief = {
        let (stop, path, etc) = (stop.clone(), scene.path.clone(), scene.etc.clone());
        let (outside, canary) = (outside.path().to_owned(), canary.clone());
        std::thread::spawn(move || {
            let (moved, link) = (etc.with_extension("moved"), etc.with_extension("link"));
            symlink(&outside, &link).unwrap();
            let mut swaps = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                // The file becomes a link (the usual atomic way), then its folder does, for a moment.
                let next = etc.join("next");
                if symlink(&canary, &next).is_ok() {
                    fs::rename(&next, &path).ok();
                }
                if swaps.is_multiple_of(4) && fs::rename(&etc, &moved).is_ok() {
                    fs::rename(&link, &etc).ok();
                    std::thread::yield_now();
                    fs::rename(&etc, &link).ok();
                    fs::rename(&moved, &etc).ok();
                }
                swaps += 1;
            }
            swaps
        })
    };
    let (mut done, mut raced, mut refused) = (0, 0, 0);
    while done + raced < 2000 {
        match scene.restore() {
            Ok(_) => done += 1,
            Err(RestoreError::LostRace { .. }) => raced += 1,
            Err(RestoreError::Walk(_)) => refused += 1,
            Err(err) => panic!("{err:?}"),
        }
    }
    stop.store(true, Ordering::Relaxed);
    let swaps = mischief.join().unwrap();
    println!("restores against {swaps} swaps: {done} done, {raced} lost races, {refused} folders refused");
    assert!(done > 0 && raced + refused > 0, "the two never met");
    assert_eq!(names(outside.path()), ["app.conf"]);
    assert_eq!(fs::read(&canary).unwrap(), b"canary");
    scene.assert_nothing_left();
}

#[test]
fn a_restore_is_fast() {
    let scene = scene();
    fs::write(&scene.path, vec![b'x'; 4096]).unwrap();
    let known = scene.store.take(&scene.path, Take::default()).unwrap().snapshot.known;
    let scene = Scene { known, ..scene };
    let (mut visible, mut durable, mut whole, mut looked) = (vec![], vec![], vec![], vec![]);
    for n in 0..200 {
        fs::write(&scene.path, vec![b'y'; 4000 + n % 200]).unwrap();
        let judged = look(&scene.path, Some(&scene.known)).id();
        let watch = Stopwatch::start();
        let done = scene.restore_judged(judged).unwrap();
        whole.push(micros(&watch));
        visible.push(done.visible_us);
        durable.push(done.durable_us);
        let watch = Stopwatch::start();
        let state = look(&scene.path, Some(&scene.known));
        looked.push(micros(&watch));
        assert!(state.digest().is_some());
    }
    for (name, mut us) in [("visible", visible), ("durable", durable), ("whole", whole), ("look", looked)] {
        us.sort_unstable();
        println!("{name}: p50 {} us, p90 {} us, p99 {} us, max {} us", us[100], us[180], us[198], us[199]);
    }
    scene.assert_clean();
}
