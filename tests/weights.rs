//! Weights through the front door: real files, some by the libraries that people write them with, a server that has one
//! mapped; what is damaged is told by its tensors and mended in place.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod harness;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use harness::{Agent, skip, wait_until};
use serde_json::{Value, json};

/// A safetensors file: layers of 1 MiB each.
fn safetensors(path: &Path, layers: usize) -> Vec<u8> {
    const SIZE: usize = 1 << 20;
    let entry = |i: usize| {
        let (from, to) = (i * SIZE, (i + 1) * SIZE);
        format!(r#""model.layers.{i}.weight":{{"dtype":"U8","shape":[{SIZE}],"data_offsets":[{from},{to}]}}"#)
    };
    let header = format!("{{{}}}", (0..layers).map(entry).collect::<Vec<_>>().join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..layers * SIZE).map(|i| (i % 251) as u8));
    fs::write(path, &bytes).unwrap();
    bytes
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}

/// The last firing about the file at `path`, once it has cleared.
#[track_caller]
fn mended(agent: &Agent, path: &Path, state: &str) -> Value {
    let name = path.to_str().unwrap().to_owned();
    agent.wait_firing(&format!("{name} {state}"), move |f| {
        // That the file is right may be seen before the repair has said what it did.
        let running = f["remedy"].as_array().unwrap().iter().any(|rung| rung["state"] == "running");
        f["trigger"] == "model_integrity"
            && f["subject"]["name"] == name.as_str()
            && f["state"] == state
            && (!running || state != "cleared")
    })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[test]
fn a_flipped_byte_is_told_by_its_tensor_and_mended_in_place() {
    let agent = Agent::start("");
    let path = agent.path("etc/m.safetensors");
    let good = safetensors(&path, 11);
    let said = agent.ok(&["snapshot", path.to_str().unwrap()]);
    assert!(said.contains("safetensors, 11 tensors, 11.0 MiB in 3 chunks"), "{said}");
    let inode = path.metadata().unwrap().ino();
    let mtime = path.metadata().unwrap().modified().unwrap();
    flip(&path, (good.len() - (5 << 20) - 77) as u64);
    let fired = mended(&agent, &path, "cleared");
    let summary = text(&fired["summary"]);
    assert!(summary.contains("1 of 3 chunks") && summary.contains("`model.layers.5.weight`"), "{summary}");
    assert!(summary.contains("layers"), "{summary}");
    if harness::root() {
        assert!(
            fired["writer"]["pid"].as_u64().is_some_and(|pid| pid == u64::from(std::process::id())),
            "{fired:#}"
        );
    }
    let done = text(&fired["remedy"][0]["why"]);
    assert!(done.contains("1 of 3 chunks mended in place, 1 pages written, from the store's copy"), "{done}");
    assert!(fs::read(&path).unwrap() == good, "not what it was");
    assert_eq!(path.metadata().unwrap().ino(), inode, "replaced");
    assert_eq!(path.metadata().unwrap().modified().unwrap(), mtime);
    let kept = fs::read_dir(agent.path("state/quarantine")).unwrap().count();
    assert_eq!(kept, 1, "the damaged chunk is kept");
    agent.ok(&["verify", path.to_str().unwrap()]);
}

#[test]
fn what_is_cut_replaced_or_gone_comes_back_whole() {
    let agent = Agent::start("");
    let path = agent.path("etc/m.safetensors");
    let good = safetensors(&path, 9);
    agent.ok(&["snapshot", path.to_str().unwrap()]);
    let back = |what: &str| {
        wait_until(what, || fs::read(&path).is_ok_and(|now| now == good));
        wait_until("cleared", || {
            agent.firings().iter().all(|f| f["trigger"] != "model_integrity" || f["state"] == "cleared")
        });
    };
    File::options().write(true).open(&path).unwrap().set_len(5 << 20).unwrap();
    back("cut");
    fs::remove_file(&path).unwrap();
    back("gone");
    let other = agent.path("etc/other");
    fs::write(&other, vec![1; good.len()]).unwrap();
    fs::rename(&other, &path).unwrap();
    back("replaced");
    let firings = agent.firings();
    let summaries: Vec<&str> = firings.iter().map(|f| text(&f["summary"])).collect();
    assert!(summaries.iter().any(|s| s.contains("bytes instead of")), "{summaries:?}");
}

#[test]
fn without_a_copy_it_is_mended_from_a_replica_and_not_from_a_wrong_one() {
    let config = "[[model]]\nname = \"m\"\npath = \"$DIR/etc/*.safetensors\"\ncopy = \"never\"\nreplica = \"$DIR/replica\"\n\
                  hub = \"$DIR/hub\"\n[policy]\nbreaker_failures = 0\n";
    let mut agent = Agent::start("");
    let path = agent.path("etc/m.safetensors");
    let good = safetensors(&path, 9);
    fs::create_dir(agent.path("replica")).unwrap();
    fs::create_dir_all(agent.path("hub/blobs")).unwrap();
    agent.stop();
    agent.config(config);
    agent.run();
    wait_until("owned", || agent.ok(&["snapshots", "--json"]).contains("m.safetensors"));
    let digest = agent.lines(&["snapshots", "--json"])[0]["digest"].as_str().unwrap().to_owned();
    assert!(!agent.path("state/objects").join(&digest[..2]).join(&digest).exists(), "a copy is kept");

    // Nobody has it: told, and a task.
    flip(&path, 3 << 20);
    let failed = agent.wait_firing("a failed repair", |f| f["remedy"][0]["state"] == "failed");
    assert!(text(&failed["remedy"][0]["why"]).contains("none of the 0 places"), "{failed:#}");

    // The replica is damaged in the same chunk, the hub is not.
    let mut bad = good.clone();
    bad[(3 << 20) + 1] ^= 1;
    fs::write(agent.path("replica/m.safetensors"), &bad).unwrap();
    fs::write(agent.path("hub/blobs").join(&digest), &good).unwrap();
    flip(&path, (3 << 20) + 9);
    wait_until("mended from the hub", || fs::read(&path).unwrap() == good);
    let cleared = agent.wait_firing("cleared", |f| f["state"] == "cleared");
    // In the journal: the repair may have been asked for twice, and then the second found nothing to do.
    assert!(agent.ok(&["explain", text(&cleared["id"])]).contains("hub/blobs"), "{cleared:#}");

    // Another chunk: the replica comes first.
    flip(&path, 6 << 20);
    wait_until("mended from the replica", || fs::read(&path).unwrap() == good);
    wait_until("told", || {
        agent
            .firings()
            .iter()
            .any(|f| agent.ok(&["explain", text(&f["id"])]).contains("replica/m.safetensors"))
    });
}

#[test]
fn a_hubs_cache_and_sharded_models_are_owned_by_their_files() {
    let mut agent = Agent::start("");
    let cache = agent.path("etc/models--o--n");
    for folder in ["blobs", "snapshots/abc"] {
        fs::create_dir_all(cache.join(folder)).unwrap();
    }
    let blobs: Vec<PathBuf> = ["1", "2"]
        .iter()
        .map(|n| {
            let temp = cache.join("temp");
            safetensors(&temp, 1 + n.parse::<usize>().unwrap());
            let out = Command::new("sha256sum").arg(&temp).output().unwrap();
            let digest = String::from_utf8(out.stdout).unwrap()[..64].to_owned();
            let blob = cache.join("blobs").join(&digest);
            fs::rename(&temp, &blob).unwrap();
            let shard = cache.join(format!("snapshots/abc/model-{n}.safetensors"));
            std::os::unix::fs::symlink(format!("../../blobs/{digest}"), shard).unwrap();
            blob
        })
        .collect();
    let index =
        json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "../../../x"}});
    fs::write(cache.join("snapshots/abc/model.safetensors.index.json"), index.to_string()).unwrap();
    agent.stop();
    agent.config("[[model]]\nname = \"m\"\npath = \"$DIR/etc/models--o--n/snapshots/*/*.index.json\"\n");
    agent.run();
    wait_until("both owned", || agent.lines(&["snapshots", "--json"]).len() == 2);
    for blob in &blobs {
        flip(blob, 900_000);
        let fired = mended(&agent, blob, "cleared");
        assert!(text(&fired["summary"]).contains("`model.layers.0.weight`"), "{fired:#}");
    }
    // Without an agent: against the names of the blobs, a list, a pointer.
    let shard = cache.join("snapshots/abc/model-1.safetensors");
    let shard = shard.to_str().unwrap();
    let verify = |against: &str| agent.grace(&["verify", shard, "--against", against]);
    assert!(verify("hub").status.success(), "{:?}", verify("hub"));
    let digest = blobs[0].file_name().unwrap().to_str().unwrap();
    let list = agent.path("SHA256SUMS");
    fs::write(&list, format!("{digest}  dir/model-1.safetensors\n")).unwrap();
    assert!(verify(list.to_str().unwrap()).status.success());
    let pointer =
        format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 5\n", "0".repeat(64));
    fs::write(&list, pointer).unwrap();
    let out = verify(list.to_str().unwrap());
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stdout).contains("as in a Git LFS pointer"), "{out:?}");
    fs::write(&list, "nothing\n").unwrap();
    assert_eq!(verify(list.to_str().unwrap()).status.code(), Some(1));
}

#[test]
fn an_agent_that_observes_tells_and_mends_nothing() {
    let agent = Agent::start_as("", "observe", &[]);
    let path = agent.path("etc/m.safetensors");
    safetensors(&path, 5);
    agent.ok(&["snapshot", path.to_str().unwrap()]);
    flip(&path, 12);
    let fired = mended(&agent, &path, "holds");
    let summary = text(&fired["summary"]);
    assert!(summary.contains("the header"), "{summary}");
    assert!(summary.contains("malformed") || summary.contains("model.layers"), "{summary}");
    let damaged = fs::read(&path).unwrap();
    let seen = agent.grace(&["verify", path.to_str().unwrap(), "--json"]);
    let seen: Value = serde_json::from_slice(&seen.stdout).unwrap();
    assert_eq!(seen["verdict"], "drift");
    assert!(fs::read(&path).unwrap() == damaged, "it was touched");
    agent.ok(&["restore", path.to_str().unwrap()]);
    agent.ok(&["verify", path.to_str().unwrap()]);
}

#[test]
fn a_canary_that_answers_otherwise_is_told_with_the_state_of_the_weights() {
    let mut agent = Agent::start("");
    let path = agent.path("etc/m.safetensors");
    safetensors(&path, 2);
    fs::write(agent.path("answer"), "4.00\n").unwrap();
    agent.stop();
    agent.config(
        "[[model]]\nname = \"m\"\npath = \"$DIR/etc/m.safetensors\"\n[model.canary]\n\
         command = [\"/bin/cat\", \"$DIR/answer\"]\nevery = \"1s\"\ntolerance_percent = 1\n",
    );
    agent.run();
    let kept =
        || {
            agent.path("state/events").read_dir().unwrap().any(|e| {
                fs::read_to_string(e.unwrap().path()).unwrap().contains("known-good ones from now on")
            })
        };
    wait_until("asked once", kept);
    fs::write(agent.path("answer"), "4.01\n").unwrap();
    fs::write(agent.path("answer"), "5.00\n").unwrap();
    let fired =
        agent.wait_firing("a wrong answer", |f| f["subject"]["kind"] == "model" && f["state"] == "holds");
    let summary = text(&fired["summary"]);
    assert!(summary.contains("`5.00` instead of `4.00`; its weights are intact"), "{summary}");
    fs::write(agent.path("answer"), "4.02\n").unwrap();
    agent.wait_firing("well again", |f| f["subject"]["kind"] == "model" && f["state"] == "cleared");
}

/// Python with the libraries that write weights; none: `cargo xtask setup` has not made it.
fn python() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/weights-python/bin/python");
    let path = std::path::absolute(path).unwrap();
    let found = Command::new(&path).args(["-c", "import numpy, safetensors, gguf, onnx"]).output();
    found.is_ok_and(|out| out.status.success()).then_some(path)
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/weights").join(name)
}

const NO_PYTHON: &str = "no numpy, safetensors, gguf and onnx: `cargo xtask setup` gets them";

#[test]
fn files_of_the_real_libraries_are_read_and_mended_wherever_they_are_hit() {
    let Some(python) = python() else {
        return skip("files_of_the_real_libraries_are_read_and_mended_wherever_they_are_hit", NO_PYTHON);
    };
    // This test writes the same file again and again, which is a fight otherwise.
    let agent = Agent::start("[triggers.model_integrity]\nconflict_count = 100\n");
    let out = Command::new(&python).arg(script("make.py")).arg(agent.path("etc")).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    for (name, tensors, touched) in [
        ("m.safetensors", 6, "`model.layers."),
        ("m.gguf", 6, "`model.layers."),
        ("m.onnx", 6, "`model.layers."),
        ("m.pt", 8, "`m/data/"),
    ] {
        let path = agent.path("etc").join(name);
        let said = agent.ok(&["snapshot", path.to_str().unwrap()]);
        assert!(said.contains(&format!("{tensors} tensors")), "{said}");
        let good = fs::read(&path).unwrap();
        let end = good.len() as u64;
        // Header, table, the middle of the data, its end.
        for at in [3, 60, end / 2, end - 30] {
            flip(&path, at);
            wait_until("mended", || fs::read(&path).unwrap() == good);
        }
        let fired = mended(&agent, &path, "cleared");
        let all: Vec<Value> =
            agent.firings().into_iter().filter(|f| f["subject"] == fired["subject"]).collect();
        let told = all.iter().any(|f| f["summary"].to_string().contains(touched));
        assert!(told, "{name}: {all:#?}");
    }
}

/// A process of a test; dropped, it ends.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A server that has the model mapped.
struct Server {
    child: Started,
    answers: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Server {
    fn ask(&mut self) -> String {
        writeln!(self.child.0.stdin.as_mut().unwrap()).unwrap();
        self.answers.next().unwrap().unwrap()
    }
}

#[test]
fn a_server_that_has_the_model_mapped_answers_wrong_and_then_right_again() {
    let Some(python) = python() else {
        return skip("a_server_that_has_the_model_mapped_answers_wrong_and_then_right_again", NO_PYTHON);
    };
    let agent = Agent::start("");
    let out = Command::new(&python).arg(script("make.py")).arg(agent.path("etc")).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let path = agent.path("etc/m.safetensors");
    let mut child = Command::new(&python)
        .arg(script("serve.py"))
        .args([path.to_str().unwrap(), "model.layers.3.mlp.weight"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let answers = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut server = Server { child: Started(child), answers };
    let good = server.ask();
    assert_eq!(server.ask(), good);
    let middle = {
        // Within layer 3: layers are of equal size, and the header is small.
        let size = path.metadata().unwrap().len();
        size / 6 * 3 + size / 12
    };
    flip(&path, middle / 4 * 4 + 3);
    // Not owned yet: nobody mends it.
    assert_ne!(server.ask(), good, "the damage reaches who has it mapped");
    flip(&path, middle / 4 * 4 + 3);
    assert_eq!(server.ask(), good);

    agent.ok(&["snapshot", path.to_str().unwrap()]);
    flip(&path, middle / 4 * 4 + 3);
    let fired = mended(&agent, &path, "cleared");
    let done = text(&fired["remedy"][0]["why"]);
    assert!(done.contains(&format!("pid {}", server.child.0.id())), "who has it mapped is told: {done}");
    assert!(text(&fired["summary"]).contains("`model.layers.3.mlp.weight`"), "{fired:#}");
    assert_eq!(server.ask(), good, "the same process, without a restart");
}

#[test]
fn what_a_models_accuracy_was_is_known_after_a_restart() {
    let mut agent = Agent::start("");
    // One value a second is judged of each model: each is waited for.
    for (n, value) in ["0.84", "0.85", "0.86"].into_iter().enumerate() {
        agent.ok(&["accuracy", "m", value]);
        let heard = || {
            let files = agent.path("state/events").read_dir().unwrap();
            let count = |file: PathBuf| {
                fs::read_to_string(file).unwrap_or_default().matches(r#""event":"accuracy""#).count()
            };
            files.map(|entry| count(entry.unwrap().path())).sum::<usize>()
        };
        wait_until("the value is judged", || heard() > n);
    }
    agent.stop();
    agent.run();
    agent.ok(&["accuracy", "m", "0.5"]);
    let fired = agent.wait_firing("a fall", |f| f["subject"]["name"] == "m" && f["state"] == "holds");
    assert!(text(&fired["summary"]).contains("fell by 41.2 %"), "{fired:#}");
}

#[test]
fn what_is_replaced_is_told_to_who_has_it_mapped_and_processes_are_restarted() {
    let mut agent = Agent::start("");
    let path = agent.path("etc/m.safetensors");
    let good = safetensors(&path, 5);
    agent.stop();
    let mapper = script("mapper.py");
    let (server, other) = (agent.path("server"), agent.path("other"));
    agent.config(&format!(
        "[[model]]\nname = \"m\"\npath = \"$DIR/etc/*.safetensors\"\ncopy = \"always\"\nrepair = \"replace\"\n\
         restart = [\"server\"]\nsignal = \"HUP\"\n\
         [[process]]\nname = \"server\"\ncommand = [\"/usr/bin/python3\", {:?}, {path:?}, {server:?}]\n",
        mapper
    ));
    agent.run();
    let child = Started(Command::new("/usr/bin/python3").arg(&mapper).args([&path, &other]).spawn().unwrap());
    let lines = |of: &Path| -> Vec<Vec<String>> {
        let text = fs::read_to_string(of).unwrap_or_default();
        text.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
    };
    wait_until("both have it mapped", || lines(&server).len() == 1 && lines(&other).len() == 1);
    wait_until("owned", || agent.lines(&["snapshots", "--json"]).len() == 1);
    flip(&path, 3 << 20);
    let fired = mended(&agent, &path, "cleared");
    assert!(fs::read(&path).unwrap() == good, "not what it was");
    let inode = path.metadata().unwrap().ino().to_string();
    wait_until("the other one was told", || lines(&other).len() == 2);
    wait_until("the server was restarted", || {
        lines(&server).last().is_some_and(|l| l[0] != lines(&server)[0][0])
    });
    let done = text(&fired["remedy"][0]["why"]);
    assert!(done.contains("replaced from the store's copy") && done.contains("server restarted"), "{done}");
    assert!(done.contains(&format!("pid {} got its signal", child.0.id())), "{done}");
    // The same process, another file, the same content as at first.
    let (before, after) = (&lines(&other)[0], &lines(&other)[1]);
    assert_eq!((&before[0], &before[2]), (&after[0], &after[2]), "{before:?} {after:?}");
    assert!(before[1] != inode && after[1] == inode, "{before:?} {after:?}");
    assert_eq!(lines(&server).last().unwrap()[1], inode);
}

#[test]
fn files_that_are_no_models_are_told_and_kept_all_the_same() {
    let agent = Agent::start("[triggers.model_integrity]\nconflict_count = 100\n");
    let back = |path: &Path, good: &[u8], what: &str| {
        wait_until(what, || fs::read(path).is_ok_and(|now| now == good));
        mended(&agent, path, "cleared");
    };
    // A header that points past the end.
    let lying = agent.path("etc/lying.safetensors");
    let mut good = (1_u64 << 40).to_le_bytes().to_vec();
    good.extend(vec![b'{'; 5 << 20]);
    fs::write(&lying, &good).unwrap();
    let said = agent.ok(&["snapshot", lying.to_str().unwrap()]);
    assert!(said.contains("MALFORMED: `claims a header of 1099511627776 bytes"), "{said}");
    flip(&lying, 4_500_000);
    back(&lying, &good, "of a lying header");
    // Nothing at all.
    let empty = agent.path("etc/empty.gguf");
    fs::write(&empty, "").unwrap();
    let said = agent.ok(&["snapshot", empty.to_str().unwrap()]);
    assert!(said.contains("MALFORMED") && said.contains("0 chunks"), "{said}");
    fs::write(&empty, "GGUF").unwrap();
    back(&empty, b"", "without a byte");
    // One that has grown, and one of which nothing is left.
    let path = agent.path("etc/m.safetensors");
    let good = safetensors(&path, 6);
    agent.ok(&["snapshot", path.to_str().unwrap()]);
    let mut file = File::options().append(true).open(&path).unwrap();
    file.write_all(&[1; 100_000]).unwrap();
    drop(file);
    back(&path, &good, "has grown");
    File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    back(&path, &good, "has no byte left");
    let all = agent.firings();
    let summaries: Vec<&str> = all.iter().map(|f| text(&f["summary"])).collect();
    let size = good.len();
    for wanted in
        [format!("{} bytes instead of {size}", size + 100_000), format!("0 bytes instead of {size}")]
    {
        assert!(summaries.iter().any(|s| s.contains(&wanted)), "{wanted}: {summaries:?}");
    }
}

#[test]
fn a_file_that_goes_or_changes_while_it_is_hashed_is_no_version() {
    let agent = Agent::start("");
    let path = agent.path("etc/m.safetensors");
    let name = path.to_str().unwrap();
    for round in 0..4 {
        // Large enough that the change comes in between, or it is a version of one of the two states.
        safetensors(&path, 24);
        let mut child = Command::new(harness::GRACE)
            .arg("--socket")
            .arg(agent.socket())
            .args(["snapshot", name])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let hashing =
            || text(&agent.json(&["status", "--json"])["sources"].to_string().into()).contains("hashing: ");
        wait_until("hashing", || hashing() || child.try_wait().unwrap().is_some());
        if round % 2 == 0 {
            fs::remove_file(&path).unwrap();
        } else {
            File::options().write(true).open(&path).unwrap().set_len(1000).unwrap();
        }
        let out = child.wait_with_output().unwrap();
        let why = String::from_utf8_lossy(&out.stderr).into_owned();
        if out.status.success() {
            // It was quicker: what changed then is a damage, and comes back.
            mended(&agent, &path, "cleared");
            agent.ok(&["forget", name]);
        } else {
            assert!(
                why.contains("changes while it is read")
                    || why.contains("not there")
                    || why.contains("shorter"),
                "{why}"
            );
            assert!(agent.lines(&["snapshots", "--json"]).is_empty(), "a version of what nobody saw whole");
        }
        let _ = fs::remove_file(&path);
    }
    agent.ok(&["status"]);
}

/// What is mounted for a test; dropped, it is not any more.
struct Mounted(PathBuf);

impl Mounted {
    fn new(at: PathBuf, args: &[&str]) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let done = Command::new("mount").args(args).arg(&at).output();
        done.is_ok_and(|out| out.status.success()).then_some(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.0).output());
    }
}

#[test]
fn a_write_past_the_file_system_is_found_by_the_scrub() {
    const TEST: &str = "a_write_past_the_file_system_is_found_by_the_scrub";
    let mut agent = Agent::start("");
    let image = agent.path("image");
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).output();
    if !made.is_ok_and(|out| out.status.success()) {
        return skip(TEST, "no mkfs.ext4");
    }
    let Some(mounted) = Mounted::new(agent.path("disk"), &["-o", "loop", image.to_str().unwrap()]) else {
        return skip(TEST, "a file cannot be mounted: needs root and a loop device");
    };
    let path = mounted.0.join("m.safetensors");
    let mut good = safetensors(&path, 9);
    // To be found on the disk by.
    let mark = b"<<a mark of this test, nowhere else>>";
    let at = 6_000_000;
    good[at..at + mark.len()].copy_from_slice(mark);
    fs::write(&path, &good).unwrap();
    agent.stop();
    // Only the scrub looks again in this time.
    agent.config("[weights]\nscrub_mib_s = 500\n[triggers.config_drift]\nsweep = \"1h\"\n");
    agent.run();
    agent.ok(&["snapshot", path.to_str().unwrap()]);
    let file = File::open(&path).unwrap();
    file.sync_all().unwrap();
    let rounds = || {
        let status = agent.json(&["status", "--json"]);
        let sources = status["sources"].as_array().unwrap().clone();
        let scrub = sources.iter().find(|s| s["name"] == "scrub").map(|s| s["detail"].to_string()).unwrap();
        scrub
            .split(" rounds")
            .next()
            .and_then(|s| s.rsplit(' ').next())
            .and_then(|n| n.parse::<u64>().ok())
            .unwrap_or(0)
    };
    wait_until("a round of the scrub", || rounds() > 0);
    assert!(agent.firings().is_empty(), "{:#?}", agent.firings());
    let disk = fs::read(&image).unwrap();
    let on_disk = disk.windows(mark.len()).position(|w| w == mark).unwrap();
    drop(disk);
    File::options().write(true).open(&image).unwrap().write_all_at(b"rot!", on_disk as u64).unwrap();
    // The page cache forgets the file: what is read then comes from the disk.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let mut now = vec![0; mark.len()];
    file.read_exact_at(&mut now, at as u64).unwrap();
    let seen = now == *b"rot!mark of this test, nowhere else>>" || now.starts_with(b"rot!") || now == *mark;
    assert!(seen, "{}", String::from_utf8_lossy(&now));
    let fired = mended(&agent, &path, "cleared");
    assert!(text(&fired["summary"]).contains("1 of 3 chunks"), "{fired:#}");
    assert!(fired["writer"].is_null(), "nobody was seen: {fired:#}");
    assert!(fs::read(&path).unwrap() == good, "not what it was");
    agent.stop();
    drop((file, mounted));
}

#[test]
fn weights_in_memory_are_mended() {
    const TEST: &str = "weights_in_memory_are_mended";
    let agent = Agent::start("");
    let Some(mounted) = Mounted::new(agent.path("memory"), &["-t", "tmpfs", "grace-test"]) else {
        return skip(TEST, "no tmpfs can be mounted: needs root");
    };
    let path = mounted.0.join("m.safetensors");
    let good = safetensors(&path, 9);
    agent.ok(&["snapshot", path.to_str().unwrap()]);
    flip(&path, 5 << 20);
    let fired = mended(&agent, &path, "cleared");
    assert!(text(&fired["summary"]).contains("1 of 3 chunks"), "{fired:#}");
    assert!(fs::read(&path).unwrap() == good, "not what it was");
}

#[test]
fn files_that_torch_writes_are_read_and_mended() {
    const TEST: &str = "files_that_torch_writes_are_read_and_mended";
    let agent = Agent::start("[triggers.model_integrity]\nconflict_count = 100\n");
    let out = Command::new("/usr/bin/python3").arg(script("make_torch.py")).arg(agent.path("etc")).output();
    if !out.as_ref().is_ok_and(|out| out.status.success()) {
        return skip(TEST, "no torch: Debian's python3-torch");
    }
    for (name, found) in
        [("m.pt", "PyTorch zip"), ("script.pt", "PyTorch zip"), ("old.pth", "unknown format")]
    {
        let path = agent.path("etc").join(name);
        let said = agent.ok(&["snapshot", path.to_str().unwrap()]);
        assert!(said.contains(found) && !said.contains("MALFORMED"), "{name}: {said}");
        let good = fs::read(&path).unwrap();
        let end = good.len() as u64;
        for at in [3, 60, end / 2, end - 30] {
            flip(&path, at);
            wait_until("mended", || fs::read(&path).unwrap() == good);
        }
        let fired = mended(&agent, &path, "cleared");
        let about = |f: &&Value| f["subject"] == fired["subject"];
        let told = agent.firings().iter().filter(about).any(|f| f["summary"].to_string().contains("/data/"));
        assert!(told || found == "unknown format", "{name}: {:#?}", agent.firings());
    }
}
