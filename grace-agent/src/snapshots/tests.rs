//! What the store keeps, drops and refuses, one by one and against a model.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use proptest::prelude::*;
use rusqlite::params;

use super::*;

struct Scene {
    dir: tempfile::TempDir,
    state: StateDir,
    store: Store,
}

fn scene() -> Scene {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let state = StateDir::open(&dir.path().join("state")).unwrap();
    let store = Store::open(&state).unwrap();
    Scene { dir, state, store }
}

impl Scene {
    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().canonicalize().unwrap().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn take(&self, path: &Path) -> Taken {
        self.store.take(path, Take { reason: "test".into(), ..Take::default() }).unwrap()
    }

    /// As after a restart of the agent.
    fn reopened(self) -> Self {
        let Self { dir, state, store } = self;
        drop((store, state));
        let state = StateDir::open(&dir.path().join("state")).unwrap();
        let store = Store::open(&state).unwrap();
        Self { dir, state, store }
    }

    fn object(&self, digest: &Digest) -> PathBuf {
        self.state.objects().join(&digest.0[..2]).join(&digest.0)
    }

    fn objects(&self) -> BTreeSet<String> {
        let folders = fs::read_dir(self.state.objects()).unwrap().map(|entry| entry.unwrap().path());
        let files = folders.flat_map(|folder| fs::read_dir(folder).unwrap());
        files.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn content(store: &Store, digest: &Digest) -> Vec<u8> {
    let mut out = Vec::new();
    store.read(digest).unwrap().read_to_end(&mut out).unwrap();
    out
}

#[test]
fn a_version_is_kept_with_all_that_is_needed_to_put_it_back() {
    let scene = scene();
    let path = scene.file("a.conf", b"one");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4750)).unwrap();
    let take = Take {
        kind: ContentKind::Secret,
        writers: vec!["/usr/bin/dpkg".into()],
        reason: "why".into(),
        author: "who".into(),
    };
    let taken = scene.store.take(&path, take).unwrap();
    assert!(taken.added);
    let scene = scene.reopened();
    let kept = scene.store.current_of(&path).unwrap().unwrap();
    assert_eq!(kept, taken.snapshot);
    assert_eq!((kept.reason.as_str(), kept.current, kept.known.snapshot), ("why", true, kept.id));
    assert_eq!((kept.known.meta.mode, kept.known.meta.size), (0o4750, 3));
    assert_eq!((kept.known.kind, kept.known.writers.len()), (ContentKind::Secret, 1));
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(kept.known.mtime_ns, meta.mtime() * 1_000_000_000 + meta.mtime_nsec());
    assert_eq!(content(&scene.store, &kept.known.digest), b"one");
    assert_eq!(kept.author, "who");
    let sealed = scene.object(&kept.known.digest).with_extension("age");
    assert_eq!(fs::metadata(sealed).unwrap().mode() & 0o7777, 0o400);
}

#[test]
fn the_same_state_again_is_no_new_version_and_another_one_is() {
    let scene = scene();
    let path = scene.file("a.conf", b"one");
    let first = scene.take(&path);
    let again = scene.take(&path);
    assert_eq!((again.snapshot, again.added), (first.snapshot.clone(), false));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let second = scene.take(&path);
    assert!(second.added && second.snapshot.id > first.snapshot.id);
    let versions = scene.store.all().unwrap();
    assert_eq!(versions.iter().map(|s| s.current).collect::<Vec<_>>(), [false, true]);
    let back = scene.store.make_current(first.snapshot.id).unwrap();
    assert_eq!(back, first.snapshot);
    assert_eq!(scene.store.current().unwrap(), [back]);
    assert!(matches!(scene.store.make_current(99), Err(StoreError::NoSuchSnapshot { id: 99 })));
    assert_eq!(scene.store.get(99).unwrap(), None);
    assert_eq!(scene.store.get(u64::MAX).unwrap(), None);
}

#[test]
fn equal_contents_are_kept_once_and_as_long_as_one_needs_them() {
    let scene = scene();
    let (a, b) = (scene.file("a", b"same"), scene.file("b", b"same"));
    let digest = scene.take(&a).snapshot.known.digest;
    scene.take(&b);
    assert_eq!(scene.objects().len(), 1);
    assert_eq!(scene.store.forget(&a).unwrap(), 1);
    scene.store.check_object(&digest).unwrap();
    assert_eq!(scene.store.forget(&a).unwrap(), 0);
    assert_eq!(scene.store.forget(&b).unwrap(), 1);
    assert!(scene.objects().is_empty());
    assert!(matches!(scene.store.check_object(&digest), Err(ObjectError::Missing { .. })));
    // A number is never used again.
    assert!(scene.take(&a).snapshot.id > 2);
}

#[test]
fn a_damaged_object_is_named_and_the_next_snapshot_heals_it() {
    let scene = scene();
    let path = scene.file("a", b"content");
    let digest = scene.take(&path).snapshot.known.digest;
    let object = scene.object(&digest);
    fs::set_permissions(&object, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&object, "conTent").unwrap();
    let err = scene.store.check_object(&digest).unwrap_err();
    assert!(err.to_string().contains(digest.short()), "{err}");
    assert!(!scene.take(&path).added);
    scene.store.check_object(&digest).unwrap();
}

#[test]
fn a_digest_that_is_none_reads_nothing() {
    let scene = scene();
    for bad in ["", "../../../etc/passwd", &"A".repeat(64), &"/".repeat(64)] {
        let err = scene.store.read(&Digest(bad.into())).err().unwrap();
        assert!(matches!(err, ObjectError::NotADigest { .. }), "{err:?}");
    }
}

#[test]
fn what_cannot_be_kept_is_refused_and_leaves_nothing() {
    let scene = scene();
    let path = scene.file("a", b"");
    let folder = path.parent().unwrap();
    let take = |path: &Path| scene.store.take(path, Take::default()).unwrap_err();
    fs::File::create(folder.join("huge")).unwrap().set_len(MAX_CONTENT + 1).unwrap();
    std::os::unix::fs::symlink(&path, folder.join("link")).unwrap();
    assert!(
        matches!(take(&folder.join("huge")), StoreError::TooLarge { size, .. } if size == MAX_CONTENT + 1)
    );
    assert!(matches!(take(&folder.join("link")), StoreError::NotRegular { what: "symlink", .. }));
    assert!(matches!(take(&folder.join("none")), StoreError::Missing { .. }));
    assert!(matches!(take(folder), StoreError::NotRegular { what: "directory", .. }));
    assert!(scene.store.all().unwrap().is_empty());
    assert_eq!(fs::read_dir(scene.state.objects()).unwrap().count(), 0);
}

#[test]
fn a_name_that_is_not_text_is_a_name_like_any_other() {
    use std::os::unix::ffi::OsStrExt;
    let scene = scene();
    let folder = scene.dir.path().canonicalize().unwrap();
    let path = folder.join(std::ffi::OsStr::from_bytes(b"\xff\n\x1b[31m"));
    fs::write(&path, "x").unwrap();
    scene.take(&path);
    assert_eq!(scene.store.current_of(&path).unwrap().unwrap().path, path);
    assert_eq!(scene.store.forget(&path).unwrap(), 1);
}

#[test]
fn left_overs_of_a_crash_are_cleared_at_the_next_start() {
    let scene = scene();
    let path = scene.file("a", b"kept");
    let digest = scene.take(&path).snapshot.known.digest;
    fs::write(scene.state.objects().join("incoming-0123"), "half").unwrap();
    // A forget that crashed after its commit, of a content that is still needed and of one that is not.
    let gone = Digest("0".repeat(64));
    fs::create_dir(scene.state.objects().join("00")).unwrap();
    fs::write(scene.object(&gone), "forgotten").unwrap();
    for digest in [&digest, &gone] {
        lock(&scene.store.db).execute("INSERT INTO doomed VALUES (?1)", [&digest.0]).unwrap();
    }
    let scene = scene.reopened();
    assert!(!scene.state.objects().join("incoming-0123").exists());
    assert_eq!(scene.objects(), BTreeSet::from([digest.0]));
}

/// The tables as the first version made them, and contents in the open.
#[test]
fn the_state_folder_of_an_older_agent_is_brought_up_to_date() {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let state = StateDir::open(&dir.path().join("state")).unwrap();
    let content = "hunter2 ".repeat(2000);
    let digest = crate::sha256::of_bytes(content.as_bytes());
    let folder = state.objects().join(&digest.0[..2]);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join(&digest.0), &content).unwrap();
    let db = state.db().unwrap();
    db.execute_batch(
        "CREATE TABLE snapshots (
             id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL, at TEXT NOT NULL, reason TEXT NOT NULL,
             digest TEXT NOT NULL, mtime_ns INTEGER NOT NULL, meta TEXT NOT NULL, kind TEXT NOT NULL, writers TEXT NOT NULL
         ) STRICT;
         CREATE TABLE owned (path BLOB PRIMARY KEY, id INTEGER NOT NULL REFERENCES snapshots (id)) STRICT, WITHOUT ROWID;
         CREATE TABLE doomed (digest TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;",
    )
    .unwrap();
    let meta = format!("{{\"size\":{},\"mode\":384,\"uid\":0,\"gid\":0}}", content.len());
    db.execute(
        "INSERT INTO snapshots (path, at, reason, digest, mtime_ns, meta, kind, writers)
         VALUES (?1, '2026-01-02T03:04:05.000006Z', 'why', ?2, 0, ?3, '\"secret\"', '[]')",
        params![b"/etc/token", digest.0, meta],
    )
    .unwrap();
    db.execute("INSERT INTO owned VALUES (?1, 1)", [b"/etc/token"]).unwrap();
    // Before the new agent came by, and after.
    assert_eq!(peek(state.path()).unwrap()[0].author, "");
    for _ in 0..2 {
        let store = Store::open(&state).unwrap();
        let owned = store.current().unwrap();
        assert_eq!((owned.len(), owned[0].author.as_str(), owned[0].reason.as_str()), (1, "", "why"));
        assert_eq!(content, String::from_utf8(super::tests::content(&store, &digest)).unwrap());
        let names: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(names, [format!("{digest}.age")], "a secret that lay in the open is sealed");
    }
}

#[test]
fn many_threads_at_once_agree() {
    let scene = scene();
    let paths: Vec<_> = (0..4).map(|n| scene.file(&format!("f{n}"), b"same for all")).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for path in paths.iter().cycle().take(20) {
                    scene.take(path);
                }
            });
        }
        scope.spawn(|| {
            for path in paths.iter().cycle().take(20) {
                scene.store.forget(path).unwrap();
            }
        });
    });
    for path in &paths {
        scene.take(path);
    }
    let current = scene.store.current().unwrap();
    assert_eq!(current.len(), 4);
    for snapshot in scene.store.all().unwrap() {
        scene.store.check_object(&snapshot.known.digest).unwrap();
    }
    assert_eq!(scene.objects().len(), 1);
}

/// One step of a random history over three files with three contents.
#[derive(Debug, Clone)]
enum Step {
    Write { file: usize, content: u8 },
    Take { file: usize },
    Forget { file: usize },
    MakeCurrent { nth: usize },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..3_usize, 0..3_u8).prop_map(|(file, content)| Step::Write { file, content }),
        4 => (0..3_usize).prop_map(|file| Step::Take { file }),
        1 => (0..3_usize).prop_map(|file| Step::Forget { file }),
        2 => (0..8_usize).prop_map(|nth| Step::MakeCurrent { nth }),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// The store against the plainest model: a list of versions a file, and which one is current.
    #[test]
    fn any_history_ends_as_the_model_says(steps in proptest::collection::vec(step(), 1..40)) {
        let mut scene = scene();
        let mut on_disk = [0_u8; 3];
        let files: Vec<_> = (0..3).map(|n| scene.file(&format!("f{n}"), &[0])).collect();
        // (id, content) by file, and the current id.
        let mut model: BTreeMap<usize, (Vec<(u64, u8)>, u64)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Write { file, content } => {
                    fs::write(&files[file], [content]).unwrap();
                    on_disk[file] = content;
                }
                Step::Take { file } => {
                    let taken = scene.take(&files[file]);
                    let (versions, current) = model.entry(file).or_default();
                    let is_new = versions.iter().find(|(id, _)| id == current).is_none_or(|(_, c)| *c != on_disk[file]);
                    prop_assert_eq!(taken.added, is_new);
                    if is_new {
                        versions.push((taken.snapshot.id, on_disk[file]));
                        *current = taken.snapshot.id;
                    }
                    prop_assert_eq!(taken.snapshot.id, *current);
                }
                Step::Forget { file } => {
                    let dropped = scene.store.forget(&files[file]).unwrap();
                    prop_assert_eq!(dropped, model.remove(&file).map_or(0, |(versions, _)| versions.len()));
                }
                Step::MakeCurrent { nth } => {
                    let all: Vec<_> =
                        model.iter().flat_map(|(file, (versions, _))| versions.iter().map(|(id, _)| (*file, *id))).collect();
                    if let Some((file, id)) = all.get(nth).copied() {
                        prop_assert_eq!(scene.store.make_current(id).unwrap().id, id);
                        model.get_mut(&file).unwrap().1 = id;
                    }
                }
                Step::Reopen => scene = scene.reopened(),
            }
            let expect: Vec<_> = model
                .iter()
                .flat_map(|(file, (versions, current))| {
                    let files = &files;
                    versions.iter().map(move |(id, content)| (files[*file].clone(), *id, *content, id == current))
                })
                .collect();
            let all = scene.store.all().unwrap();
            let found: Vec<_> = all
                .iter()
                .map(|s| (s.path.clone(), s.id, content(&scene.store, &s.known.digest)[0], s.current))
                .collect();
            prop_assert_eq!(&found, &expect);
            prop_assert_eq!(scene.store.current().unwrap().len(), model.len());
            let needed: BTreeSet<_> = all.iter().map(|s| s.known.digest.0.clone()).collect();
            prop_assert_eq!(scene.objects(), needed);
        }
    }
}
