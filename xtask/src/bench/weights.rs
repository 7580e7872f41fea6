//! Weights: a page of a large file is changed, how long until it is repaired; how fast such a file is hashed when it is first
//! owned, beside tools that hash it once and beside what memory allows; what a reader loses while the file is scrubbed.
//!
//! Everything is read from the page cache, by Grace as by its peers.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use sha2::{Digest as _, Sha256};

use super::agent::Agent;
use super::guard::{Scratch, signal, wait_until};
use super::report::{Row, Table};
use super::stats::Samples;
use super::{Bench, brief, ms, now_ns, say};
use crate::places::on_path;
use crate::process;

/// The file of which everything is measured.
const SIZE: u64 = 1 << 30;
/// A larger one, full of holes, to see that a repair does not take longer.
const LARGE: u64 = 16 << 30;
const PAGE: usize = 4096;
const BLOCK: usize = 4 << 20;
/// Where the tensors begin: behind the length and a header of this many bytes.
const HEADER: u64 = 4096 - 8;
/// Not repaired within this time is not repaired.
const LIMIT_NS: i64 = 10_000_000_000;
/// All of a large file is compared again within this time, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(600);

const REPAIR: &str = "Grace, a page of 1 GiB changed: until it reads as it should";
const MANIFEST: &str = "Grace, 1 GiB hashed: the file, its chunks, its tensors";
const QUIET: &str = "a reader streams 1 GiB, nothing is scrubbed";

pub(super) fn measure(bench: &Bench) -> Result<Table> {
    let scratch = Scratch::new("weights")?;
    let mut table = Table::new("weights", "Weights: repair, first hash, and what a reader loses", "ms");
    let path = scratch.dir("models")?.join("m.safetensors");
    write_model(&path, SIZE, true)?;
    let mut agent = Running::start(bench, &scratch, "one", &path, "copy = \"always\"")?;

    let (mut seen, mut own) = (Samples::default(), Samples::default());
    agent.change_pages(SIZE, bench.rounds(100, 15), &mut seen, &mut own)?;
    table.row(Row::new(REPAIR, seen).target("< 25"));
    table.row(Row::new("… until every byte that was mended is verified and on disk", own).beside(REPAIR));

    hashing(bench, &agent, &path, &mut table)?;
    reader(bench, &mut agent, &path, &mut table)?;
    agent.agent.stop();

    let large = "Grace, a page of 16 GiB changed: until it reads as it should";
    if bench.quick {
        table.row(Row::missing(large, "not with --quick"));
    } else {
        match of_a_large_one(bench, &scratch) {
            Ok(found) => table.row(Row::new(large, found).beside(REPAIR).target("as 1 GiB")),
            Err(err) => table.row(Row::missing(large, brief(&err))),
        }
    }
    table.note(
        "The page is written by this process, which then reads it over and over. Between two changes the agent compares all of \
         the file. The 16 GiB are holes, and are mended from a replica that is holes, too.",
    );
    table.note(
        "Grace hashes each byte three times: for the file's own digest, which hubs publish and which cannot be split; for its \
         chunks; for its tensors. The ceiling is what the same three take of the same bytes in memory over all processors that are \
         allowed.",
    );
    Ok(table)
}

/// A safetensors file of `size` bytes with tensors of 64 MiB; `full`: of bytes that differ, else of holes.
fn write_model(path: &Path, size: u64, full: bool) -> Result<()> {
    let data = size - HEADER - 8;
    let mut entries = Vec::new();
    let mut begin = 0;
    while begin < data {
        let end = data.min(begin + (64 << 20));
        entries.push(format!(
            r#""model.layers.{}.weight":{{"dtype":"U8","shape":[{}],"data_offsets":[{begin},{end}]}}"#,
            entries.len(),
            end - begin
        ));
        begin = end;
    }
    let mut header = format!("{{{}}}", entries.join(",")).into_bytes();
    let room = usize::try_from(HEADER)?;
    let room = if header.len() <= room { room } else { bail!("too many tensors for the header") };
    header.resize(room, b' ');
    let failed = || path.display().to_string();
    let mut file = File::create(path).with_context(failed)?;
    file.write_all(&HEADER.to_le_bytes())?;
    file.write_all(&header)?;
    if !full {
        return file.set_len(size).with_context(failed);
    }
    let mut block = vec![0; BLOCK];
    let mut state = 1_u64;
    let mut left = data;
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            word.copy_from_slice(&state.to_le_bytes());
        }
        let n = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        file.write_all(&block[..n]).with_context(failed)?;
        left -= n as u64;
    }
    file.sync_all().with_context(failed)
}

/// An agent that owns one model.
struct Running {
    agent: Agent,
    path: PathBuf,
    config: PathBuf,
    model: String,
}

impl Running {
    fn start(bench: &Bench, scratch: &Scratch, name: &str, path: &Path, how: &str) -> Result<Self> {
        let dir = scratch.dir(name)?;
        let model = format!(
            "[policy]\nhost_burst = 1000000\n[triggers.model_integrity]\nconflict_count = 1000\n\
             [[model]]\nname = \"m\"\npath = \"{}\"\n{how}\n",
            path.display()
        );
        let agent = Agent::start(&bench.grace, &dir, &model)?;
        let this = Self { agent, path: path.to_owned(), config: dir.join("grace.toml"), model };
        wait_until("the model is owned", PATIENCE, || {
            this.agent.ask(&["snapshots", "--json"]).is_ok_and(|out| out.len() > 2)
        })?;
        this.settle()?;
        Ok(this)
    }

    /// Waits until all of the file was compared and nothing is wrong.
    fn settle(&self) -> Result<()> {
        wait_until("the model is whole", PATIENCE, || {
            thread::sleep(Duration::from_millis(20));
            // The host may be busy, which is told, too.
            let ours = |f: &&serde_json::Value| f["trigger"] == "model_integrity";
            let clear = |firings: Vec<serde_json::Value>| {
                firings.iter().filter(ours).all(|f| f["state"] == "cleared")
            };
            let busy = |status: &serde_json::Value| {
                let sources = status["sources"].as_array().cloned().unwrap_or_default();
                sources.iter().any(|s| s["name"] == "weights" && s["detail"].to_string().contains('%'))
            };
            self.agent.firings().is_ok_and(clear) && self.agent.status().is_ok_and(|s| !busy(&s))
        })
    }

    /// Changes a page, `rounds` times, each in another place: milliseconds until it reads as it should, and until the repair
    /// had ended, as the agent says.
    fn change_pages(&self, size: u64, rounds: u32, seen: &mut Samples, own: &mut Samples) -> Result<()> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path)?;
        let pages = size / PAGE as u64;
        for round in 0..rounds {
            // Not in the header, and never twice the same chunk in a row.
            let page = (u64::from(round) * 0x9e37_79b1 + 5000) % (pages - 2) + 1;
            let at = page * PAGE as u64;
            let (mut good, mut now) = (vec![0; PAGE], vec![0; PAGE]);
            file.read_exact_at(&mut good, at)?;
            let bad: Vec<u8> = good.iter().map(|byte| !byte).collect();
            file.write_all_at(&bad, at)?;
            let began = now_ns();
            loop {
                file.read_exact_at(&mut now, at)?;
                let took = now_ns() - began;
                if now == good {
                    seen.push(ms(took));
                    break;
                }
                if took > LIMIT_NS {
                    bail!("page {page} was not repaired: {:#?}", self.agent.firings()?.last());
                }
            }
            self.settle()?;
            // The newest: `again` names the one before.
            let firings = self.agent.firings()?;
            let ours = firings.iter().filter(|f| f["trigger"] == "model_integrity");
            let newest = ours.max_by(|a, b| a["since"].as_str().cmp(&b["since"].as_str()));
            own.extend(newest.and_then(|f| f["repaired_us"].as_f64()).map(|us| us / 1e3));
        }
        Ok(())
    }

    /// Scrubs at this rate from now on.
    fn scrub(&self, mib_s: u32) -> Result<()> {
        fs::write(&self.config, format!("{}[weights]\nscrub_mib_s = {mib_s}\n", self.model))?;
        signal(self.agent.pid(), Signal::HUP);
        let shown = if mib_s == 0 { "scrub_mib_s is 0".to_owned() } else { format!("at {mib_s}.0 MiB/s") };
        wait_until("the scrub's new rate", Duration::from_secs(30), || {
            let Ok(status) = self.agent.status() else { return false };
            let sources = status["sources"].as_array().cloned().unwrap_or_default();
            sources.iter().any(|s| s["name"] == "scrub" && s["detail"].to_string().contains(&shown))
        })?;
        self.settle()
    }
}

/// A page of a file of 16 GiB.
fn of_a_large_one(bench: &Bench, scratch: &Scratch) -> Result<Samples> {
    let path = scratch.dir("large")?.join("m.safetensors");
    let replica = scratch.dir("replica")?;
    write_model(&path, LARGE, false)?;
    write_model(&replica.join("m.safetensors"), LARGE, false)?;
    say("weights: 16 GiB");
    let how = format!("copy = \"never\"\nreplica = \"{}\"", replica.display());
    let agent = Running::start(bench, scratch, "large-agent", &path, &how)?;
    let (mut seen, mut own) = (Samples::default(), Samples::default());
    agent.change_pages(LARGE, bench.rounds(5, 2), &mut seen, &mut own)?;
    Ok(seen)
}

/// How long the whole file takes: Grace, its peers, and memory.
fn hashing(bench: &Bench, agent: &Running, path: &Path, table: &mut Table) -> Result<()> {
    let name = path.to_str().context("the folder for temporary files is not UTF-8")?;
    let mut own = Samples::default();
    let (mut one, mut all) = (Samples::default(), Samples::default());
    let peers: [(&str, &[&str]); 3] = [
        ("sha256sum", &["sha256sum"]),
        ("openssl dgst -sha256", &["openssl", "dgst", "-sha256"]),
        ("b3sum, another digest", &["b3sum"]),
    ];
    let mut found = [Samples::default(), Samples::default(), Samples::default()];
    for round in 0..bench.rounds(10, 3) {
        say(&format!("weights: hashing, round {round}"));
        own.push(timed(|| agent.agent.ask(&["snapshot", name]).map(drop))?);
        for ((_, words), samples) in peers.iter().zip(&mut found) {
            let Some((program, rest)) = words.split_first() else { continue };
            if let Some(program) = on_path(program) {
                samples.push(timed(|| {
                    process::output(process::program(program).args(rest).arg(path)).map(drop)
                })?);
            }
        }
        one.push(in_memory(1, 1)?);
        let processors = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        all.push(in_memory(processors, 3)?);
    }
    table.row(Row::new(MANIFEST, own));
    table.row(Row::new("the ceiling: three times 1 GiB in memory, all processors", all).beside(MANIFEST));
    table.row(Row::new("SHA-256 of 1 GiB in memory, one processor", one).beside(MANIFEST));
    for ((who, _), samples) in peers.iter().zip(found) {
        table.row(match samples.len() {
            0 => Row::missing(*who, "it is not installed"),
            _ => Row::new(format!("{who}, once"), samples).beside(MANIFEST),
        });
    }
    Ok(())
}

/// Milliseconds that `times` times [`SIZE`] bytes of memory take, on `threads` threads, from a block that each has.
fn in_memory(threads: usize, times: u64) -> Result<f64> {
    let blocks = SIZE * times / BLOCK as u64 / threads as u64;
    timed(|| {
        thread::scope(|scope| {
            let work: Vec<_> = (0..threads)
                .map(|number| {
                    scope.spawn(move || {
                        let block = vec![u8::try_from(number % 251).unwrap_or(0); BLOCK];
                        let mut hasher = Sha256::new();
                        (0..blocks).for_each(|_| hasher.update(&block));
                        std::hint::black_box(hasher.finalize());
                    })
                })
                .collect();
            for one in work {
                if one.join().is_err() {
                    bail!("a thread that hashes panicked");
                }
            }
            Ok(())
        })
    })
}

/// What a reader that streams the file loses while it is scrubbed.
fn reader(bench: &Bench, agent: &mut Running, path: &Path, table: &mut Table) -> Result<()> {
    let rates = [(0, QUIET.to_owned()), (16, "… scrubbed at 16 MiB/s, the default".to_owned())];
    let mut found = [Samples::default(), Samples::default()];
    for round in 0..bench.rounds(6, 2) {
        say(&format!("weights: reader, round {round}"));
        for at in super::shuffled(round, rates.len()) {
            agent.scrub(rates[at].0)?;
            for _ in 0..bench.rounds(10, 5) {
                found[at].push(timed(|| stream(path))?);
            }
        }
    }
    for ((rate, who), samples) in rates.iter().zip(found) {
        let row = Row::new(who.clone(), samples);
        table.row(if *rate == 0 { row } else { row.beside(QUIET).target("< 1.03 ×") });
    }
    Ok(())
}

fn stream(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    let (mut block, mut at) = (vec![0; 1 << 20], 0);
    loop {
        match file.read_at(&mut block, at)? {
            0 => return Ok(()),
            n => at += n as u64,
        }
    }
}

/// Milliseconds that `work` takes.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}
