//! What was measured, as Markdown for the README and as JSON for programs.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::stats::{Samples, ratio, short};
use crate::process;

/// One benchmark's outcome.
pub(super) struct Table {
    name: &'static str,
    title: &'static str,
    unit: &'static str,
    rows: Vec<Row>,
    notes: Vec<String>,
}

/// One line of it.
pub(super) struct Row {
    who: String,
    found: Result<Samples, String>,
    /// The row that this one is compared with.
    base: Option<String>,
    target: Option<&'static str>,
}

impl Row {
    pub(super) fn new(who: impl Into<String>, samples: Samples) -> Self {
        Self { who: who.into(), found: Ok(samples), base: None, target: None }
    }

    /// One that could not be measured.
    pub(super) fn missing(who: impl Into<String>, why: impl Into<String>) -> Self {
        Self { who: who.into(), found: Err(why.into()), base: None, target: None }
    }

    /// Compares its median with the one of the row named `base`.
    pub(super) fn beside(mut self, base: &str) -> Self {
        self.base = Some(base.to_owned());
        self
    }

    pub(super) fn target(mut self, target: &'static str) -> Self {
        self.target = Some(target);
        self
    }
}

impl Table {
    pub(super) fn new(name: &'static str, title: &'static str, unit: &'static str) -> Self {
        Self { name, title, unit, rows: Vec::new(), notes: Vec::new() }
    }

    pub(super) fn row(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// How many times the base's median the median is.
    fn ratio(&self, row: &Row) -> Option<f64> {
        let base = self.rows.iter().find(|other| Some(&other.who) == row.base.as_ref())?;
        ratio(row.found.as_ref().ok()?.median()?, base.found.as_ref().ok()?.median()?)
    }

    pub(super) fn markdown(&self) -> String {
        let unit = self.unit;
        let mut out = format!("### {}\n\n", self.title);
        // What was measured once has nothing but a value.
        let once = self.rows.iter().flat_map(|row| &row.found).all(|samples| samples.len() < 2);
        out += &if once {
            format!("| | {unit} | ratio | target |\n|---|--:|--:|---|\n")
        } else {
            format!("| | median ({unit}) | p99 ({unit}) | n | ratio | target |\n|---|--:|--:|--:|--:|---|\n")
        };
        for row in &self.rows {
            let target = row.target.unwrap_or_default();
            let shown = match &row.found {
                Err(why) => {
                    let rest = if once { " | |" } else { " | | | |" };
                    format!("not measured: {}{rest}", why.replace(['|', '\n'], " "))
                }
                Ok(samples) => {
                    let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), short);
                    let times =
                        self.ratio(row).map_or_else(String::new, |ratio| format!("{} ×", short(ratio)));
                    let (median, p99) = (number(samples.median()), number(samples.p99()));
                    if once {
                        format!("{median} | {times} |")
                    } else {
                        format!("{median} | {p99} | {} | {times} |", samples.len())
                    }
                }
            };
            let _ = writeln!(out, "| {} | {shown} {target} |", row.who);
        }
        for note in &self.notes {
            let _ = write!(out, "\n{note}\n");
        }
        out
    }

    pub(super) fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| match &row.found {
                Err(why) => json!({ "who": row.who, "not_measured": why, "target": row.target }),
                Ok(samples) => json!({
                    "who": row.who,
                    "median": samples.median(),
                    "p99": samples.p99(),
                    "min": samples.range().map(|(min, _)| min),
                    "max": samples.range().map(|(_, max)| max),
                    "n": samples.len(),
                    "beside": row.base,
                    "ratio": self.ratio(row),
                    "target": row.target,
                }),
            })
            .collect();
        json!({ "name": self.name, "title": self.title, "unit": self.unit, "rows": rows, "notes": self.notes })
    }
}

/// How busy the machine has been, to tell how much of a figure is noise.
pub(super) struct Strain {
    since: Instant,
    before: [f64; 3],
}

impl Strain {
    pub(super) fn start() -> Self {
        Self { since: Instant::now(), before: Self::totals() }
    }

    /// What it was since then, in words.
    pub(super) fn note(&self) -> String {
        let wall = self.since.elapsed().as_secs_f64();
        let now = Self::totals();
        let [cpu, io, stolen] = [0, 1, 2].map(|at| (now[at] - self.before[at]) / wall * 100.0);
        format!(
            "Meanwhile, on the whole machine: something waited for a processor {cpu:.0} % of the time and for the \
             disk {io:.0} %; the hypervisor took {stolen:.0} % of a core. This benchmark is a part of that."
        )
    }

    /// Seconds: waited for a processor, for the disk, stolen.
    fn totals() -> [f64; 3] {
        let pressure = |what: &str| {
            let text = fs::read_to_string(format!("/proc/pressure/{what}")).unwrap_or_default();
            let total =
                text.lines().next().and_then(|line| line.rsplit_once("total=")?.1.parse::<f64>().ok());
            total.unwrap_or_default() / 1e6
        };
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let steal = stat.split_whitespace().nth(8).and_then(|ticks| ticks.parse::<f64>().ok());
        [pressure("cpu"), pressure("io"), steal.unwrap_or_default() / 100.0]
    }
}

/// The machine that all of it is true of.
pub(super) fn host(grace: &Path) -> Result<Value> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let uname = rustix::system::uname();
    let temp = std::env::temp_dir();
    let disk =
        process::text(process::program("stat").args(["-f", "-c", "%T"]).arg(&temp)).unwrap_or_default();
    // What stat calls them all.
    let disk = if disk == "ext2/ext3" { file_system(&temp).unwrap_or(disk) } else { disk };
    Ok(json!({
        "cpu": model.map_or("unknown", |(_, name)| name.trim()),
        "cores": cores,
        "arch": std::env::consts::ARCH,
        "kernel": uname.release().to_string_lossy(),
        "file_system": disk,
        "date": process::text(process::program("date").args(["-u", "+%F"])).context("the date")?,
        "grace": process::text(process::program(grace).arg("--version"))?,
        "load": fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next(),
    }))
}

/// The type of the file system that `path` lies on.
fn file_system(path: &Path) -> Option<String> {
    let shown = process::text(process::program("df").arg("--output=fstype").arg(path)).ok()?;
    shown.lines().nth(1).map(str::to_owned)
}

/// [`host`] in one line.
pub(super) fn headline(host: &Value) -> String {
    let text = |key: &str| host[key].as_str().unwrap_or("?").to_owned();
    format!(
        "{} on {}, {} cores, {}; Linux {}; {}; {}; load {} at the start",
        text("grace"),
        text("cpu"),
        host["cores"],
        text("arch"),
        text("kernel"),
        text("file_system"),
        text("date"),
        text("load"),
    )
}

#[cfg(test)]
mod tests {
    use super::{Row, Table};

    fn table() -> Table {
        let mut table = Table::new("some", "Some", "ms");
        table.row(Row::new("grace", [2.0].into_iter().collect()).target("< 3"));
        table.row(Row::new("peer", [5.0, 7.0].into_iter().collect()).beside("grace"));
        table.row(Row::missing("none", "not there | at all").beside("grace"));
        table.note("A note.");
        table
    }

    #[test]
    fn a_table_for_the_readme() {
        let wanted = "### Some\n\n| | median (ms) | p99 (ms) | n | ratio | target |\n|---|--:|--:|--:|--:|---|\n\
            | grace | 2.00 | 2.00 | 1 |  | < 3 |\n| peer | 6.00 | 7.00 | 2 | 3.00 × |  |\n\
            | none | not measured: not there   at all | | | |  |\n\nA note.\n";
        assert_eq!(table().markdown(), wanted);
    }

    #[test]
    fn what_was_measured_once_is_a_value() {
        let mut table = Table::new("some", "Some", "MiB");
        table.row(Row::new("grace", [2.0].into_iter().collect()));
        table.row(Row::missing("none", "why"));
        let wanted = "### Some\n\n| | MiB | ratio | target |\n|---|--:|--:|---|\n\
            | grace | 2.00 |  |  |\n| none | not measured: why | |  |\n";
        assert_eq!(table.markdown(), wanted);
    }

    #[test]
    fn a_document_for_programs() {
        let json = table().json();
        assert_eq!(json["rows"][1]["ratio"], 3.0);
        assert_eq!(json["rows"][2]["not_measured"], "not there | at all");
        assert!(json["rows"][0]["ratio"].is_null());
    }
}
