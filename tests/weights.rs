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
        f["trigger"] == "model_integrity" && f["subject"]["name"] == name.as_str() && f["state"] == state
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
    let fired = mended(&agent, &path, "cleared");
    assert!(fired["remedy"].to_string().contains("hub/blobs"), "{fired:#}");

    // Another chunk: the replica comes first.
    flip(&path, 6 << 20);
    wait_until("mended from the replica", || fs::read(&path).unwrap() == good);
    wait_until("told", || agent.ok(&["firings", "--json"]).contains("replica/m.safetensors"));
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

/// A server that has the model mapped.
struct Server {
    child: Child,
    answers: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Server {
    fn ask(&mut self) -> String {
        writeln!(self.child.stdin.as_mut().unwrap()).unwrap();
        self.answers.next().unwrap().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
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
    let mut server = Server { child, answers };
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
    assert!(done.contains(&format!("pid {}", server.child.id())), "who has it mapped is told: {done}");
    assert!(text(&fired["summary"]).contains("`model.layers.3.mlp.weight`"), "{fired:#}");
    assert_eq!(server.ask(), good, "the same process, without a restart");
}
