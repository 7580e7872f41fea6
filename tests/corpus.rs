//! The labelled corpus of faults: how well signatures group what is the same and keep apart what is not.
//!
//! `corpus/errors/recorded.jsonl` is what real programs wrote when they failed (`cargo xtask corpus` records it anew);
//! `written.jsonl` holds CUDA, NCCL and kernel messages in their documented formats, written by hand.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use grace_agent::event::Timestamp;
use grace_agent::faults::{Assembler, Fault, Lines, of_report};
use proptest::prelude::*;
use serde_json::Value;

struct Record {
    label: String,
    text: String,
}

fn corpus(file: &str) -> Vec<Record> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus/errors").join(file);
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| {
            let value: Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| value[key].as_str().unwrap().to_owned();
            Record { label: text("label"), text: text("text") }
        })
        .collect()
}

fn faults(record: &Record) -> Vec<Fault> {
    let mut assembler =
        if record.label.starts_with("kernel/") { Assembler::of_kernel() } else { Assembler::default() };
    let (mut lines, mut found) = (Lines::default(), Vec::new());
    lines.push(record.text.as_bytes(), |line| assembler.push(line, Timestamp(1), &mut found));
    lines.finish(|line| assembler.push(line, Timestamp(1), &mut found));
    assembler.finish(&mut found);
    found
}

/// Which group a record falls into: its signature, or all of them where it was taken for more than one fault.
fn group(record: &Record) -> String {
    let language = record.label.split('/').next();
    faults(record).iter().map(|f| f.signature_in(language)).collect::<Vec<_>>().join("+")
}

#[derive(Debug)]
#[expect(dead_code, reason = "read by those who read the test's output")]
struct Figures {
    records: usize,
    labels: usize,
    /// Records that gave exactly one fault.
    single: usize,
    precision: f64,
    recall: f64,
    f1: f64,
    /// Share of labels whose records are one group and alone in it.
    exact: f64,
}

fn measure(records: &[Record]) -> (Figures, Vec<String>) {
    let groups: Vec<String> = records.iter().map(group).collect();
    let (mut both, mut grouped, mut labelled) = (0_u64, 0_u64, 0_u64);
    for i in 0..records.len() {
        for j in 0..i {
            let (label, group) = (records[i].label == records[j].label, groups[i] == groups[j]);
            both += u64::from(label && group);
            grouped += u64::from(group);
            labelled += u64::from(label);
        }
    }
    let mut by_label: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut by_group: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (record, group) in records.iter().zip(&groups) {
        by_label.entry(&record.label).or_default().insert(group);
        by_group.entry(group).or_default().insert(&record.label);
    }
    let mut wrong = Vec::new();
    let mut exact = 0;
    for (label, groups) in &by_label {
        let others: BTreeSet<&str> =
            groups.iter().flat_map(|g| by_group[g].iter().copied()).filter(|l| l != label).collect();
        let empty = groups.contains("");
        if groups.len() == 1 && others.is_empty() && !empty {
            exact += 1;
        } else {
            wrong.push(format!("{label}: {} groups {groups:?}, shared with {others:?}", groups.len()));
        }
    }
    let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
    let (precision, recall) = (share(both, grouped), share(both, labelled));
    let figures = Figures {
        records: records.len(),
        labels: by_label.len(),
        single: groups.iter().filter(|g| !g.is_empty() && !g.contains('+')).count(),
        precision,
        recall,
        f1: 2.0 * precision * recall / (precision + recall).max(1e-9),
        exact: f64::from(exact) / by_label.len() as f64,
    };
    (figures, wrong)
}

#[test]
fn the_same_fault_gives_one_signature_and_others_stay_apart() {
    let (recorded, written) = (corpus("recorded.jsonl"), corpus("written.jsonl"));
    for (name, records) in [("recorded", recorded), ("written", written)] {
        let (figures, wrong) = measure(&records);
        println!("{name}: {figures:.4?}\n{}", wrong.join("\n"));
        assert!(figures.f1 >= 0.95 && figures.exact >= 0.95, "{name}: {figures:.4?}\n{}", wrong.join("\n"));
        // With sanitizers some programs really report two: a null store and the signal, an overflow and a leak.
        assert!(figures.single as f64 >= 0.96 * figures.records as f64, "{name}: {figures:?}");
    }
}

/// Two streams whose lines come interleaved, an assembler each, cut into pieces at any place.
#[test]
fn streams_that_interleave_give_what_each_gives_alone() {
    let records = corpus("recorded.jsonl");
    for pair in records.chunks(2) {
        let [left, right] = pair else { continue };
        let alone: Vec<Vec<String>> =
            pair.iter().map(|r| faults(r).into_iter().map(|f| f.signature).collect()).collect();
        let mut streams: Vec<(Assembler, Lines, Vec<Fault>)> = (0..2).map(|_| Default::default()).collect();
        let pieces = |text: &str| text.as_bytes().chunks(37).map(<[u8]>::to_vec).collect::<Vec<_>>();
        let (left, right) = (pieces(&left.text), pieces(&right.text));
        for i in 0..left.len().max(right.len()) {
            for (stream, pieces) in streams.iter_mut().zip([&left, &right]) {
                let (assembler, lines, found) = stream;
                if let Some(piece) = pieces.get(i) {
                    lines.push(piece, |line| assembler.push(line, Timestamp(1), found));
                }
            }
        }
        for ((mut assembler, mut lines, mut found), alone) in streams.into_iter().zip(alone) {
            lines.finish(|line| assembler.push(line, Timestamp(1), &mut found));
            assembler.finish(&mut found);
            assert_eq!(found.into_iter().map(|f| f.signature).collect::<Vec<_>>(), alone);
        }
    }
}

/// What a container runtime or a launcher writes before each line changes nothing.
#[test]
fn prefixes_of_lines_change_no_signature() {
    let mut same = 0;
    let records = corpus("recorded.jsonl");
    let python: Vec<&Record> =
        records.iter().filter(|r| r.label.starts_with("python/") && !r.label.contains("logged")).collect();
    for record in &python {
        let prefixed = |prefix: &str| Record {
            label: record.label.clone(),
            text: record.text.lines().map(|line| format!("{prefix}{line}\n")).collect(),
        };
        let plain = group(record);
        for prefix in
            ["2026-11-24T20:00:00.123456789Z stderr F ", "[rank3]: ", "Nov 24 20:00:00 host app[12]: "]
        {
            same += usize::from(group(&prefixed(prefix)) == plain);
        }
    }
    assert!(same * 100 >= python.len() * 3 * 97, "{same} of {}", python.len() * 3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever is written, nothing panics, what is kept is bounded, and cutting it into pieces changes nothing.
    #[test]
    fn hostile_text_does_no_harm(text in hostile(), cut in 1..64usize) {
        let read = |size: usize| {
            let (mut assembler, mut lines, mut found) = (Assembler::default(), Lines::default(), Vec::new());
            for piece in text.as_bytes().chunks(size) {
                lines.push(piece, |line| assembler.push(line, Timestamp(1), &mut found));
            }
            lines.finish(|line| assembler.push(line, Timestamp(1), &mut found));
            assembler.finish(&mut found);
            found
        };
        let found = read(text.len().max(1));
        prop_assert_eq!(&found, &read(cut));
        for fault in &found {
            prop_assert!(fault.kind.len() <= 120 && fault.message.len() <= 500 && fault.frames.len() <= 12);
            prop_assert!(fault.trace.len() <= 48 && fault.trace.iter().all(|l| l.len() <= 240));
        }
        let mut kernel = Assembler::of_kernel();
        text.lines().for_each(|line| kernel.push(line, Timestamp(1), &mut Vec::new()));
        drop(of_report(text.get(..text.len().min(20)).unwrap_or("x"), Some(&text)));
    }
}

/// Pieces of real traces, of the words that parsers look for, and of anything, in any order.
fn hostile() -> impl Strategy<Value = String> {
    let real: Vec<String> = corpus("recorded.jsonl")
        .iter()
        .chain(&corpus("written.jsonl"))
        .flat_map(|r| r.text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let line = prop_oneof![
        4 => proptest::sample::select(real.clone()),
        2 => (proptest::sample::select(real), 0..80usize, "\\PC{0,6}").prop_map(|(line, at, more)| {
            let at = (0..=at.min(line.len())).rev().find(|i| line.is_char_boundary(*i)).unwrap_or(0);
            format!("{}{more}{}", &line[..at], &line[at..])
        }),
        1 => "\\PC{0,120}",
        1 => Just("#0".to_owned()),
        1 => Just("\u{1b}[31m  File \"".to_owned()),
    ];
    proptest::collection::vec(line, 0..60).prop_map(|lines| lines.join("\n"))
}
