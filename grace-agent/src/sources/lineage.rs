//! The living descendants of declared processes, as the fork, exec and exit probes tell of them. Bounded; names are
//! chosen by the processes.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use grace_common::{ProcExec, ProcFork};

use crate::event::Timestamp;

/// Living descendants kept for one process. A fork bomb has more; they are counted.
const ALIVE: usize = 1024;

/// Descendants that ended are remembered for this long, at most so many: what they said last may still be on its way. Not longer:
/// their numbers are used again.
const LATELY: Duration = Duration::from_secs(2);
const ENDED: usize = 256;

/// All declared processes by thread group.
#[derive(Debug, Default)]
pub(super) struct Lineage {
    roots: BTreeMap<u32, Family>,
    /// Descendants that ended, the last one at the end: when, which, and whose.
    ended: VecDeque<(Timestamp, u32, u32)>,
}

/// The descendants of one declared process.
#[derive(Debug, Default)]
struct Family {
    alive: BTreeMap<u32, Descendant>,
    /// Descendants ever seen to begin.
    total: u64,
}

/// A living descendant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descendant {
    /// Process id.
    pub pid: u32,
    /// Its name, or its parent's until it runs a program of its own.
    pub comm: String,
    /// When it was forked.
    pub since: Timestamp,
}

impl Lineage {
    pub(super) fn begin(&mut self, root: u32) {
        self.roots.insert(root, Family::default());
    }

    pub(super) fn end(&mut self, root: u32) {
        self.roots.remove(&root);
    }

    pub(super) fn forked(&mut self, record: &ProcFork) {
        let Some(family) = self.roots.get_mut(&record.root) else { return };
        family.total += 1;
        if family.alive.len() < ALIVE {
            let comm = text(&record.task.comm);
            let since = Timestamp(record.header.at_ns);
            family.alive.insert(record.child, Descendant { pid: record.child, comm, since });
        }
    }

    /// A descendant that was there before its family was watched.
    pub(super) fn found(&mut self, root: u32, descendant: Descendant) {
        let Some(family) = self.roots.get_mut(&root) else { return };
        if family.alive.len() < ALIVE && family.alive.insert(descendant.pid, descendant).is_none() {
            family.total += 1;
        }
    }

    pub(super) fn execed(&mut self, record: &ProcExec) {
        let family = self.roots.get_mut(&record.root);
        if let Some(child) = family.and_then(|family| family.alive.get_mut(&record.task.tgid)) {
            child.comm = text(&record.task.comm);
        }
    }

    /// A descendant has ended.
    pub(super) fn ended(&mut self, root: u32, pid: u32, at: Timestamp) {
        if let Some(family) = self.roots.get_mut(&root) {
            family.alive.remove(&pid);
            if self.ended.len() >= ENDED {
                self.ended.pop_front();
            }
            self.ended.push_back((at, pid, root));
        }
    }

    /// The declared process that `pid` descended from, where it has ended of late.
    pub(super) fn root_of_ended(&self, pid: u32, now: Timestamp) -> Option<u32> {
        let of = |(at, ended, _): &&(Timestamp, u32, u32)| *ended == pid && now.since(*at) <= LATELY;
        self.ended.iter().rev().find(of).map(|(_, _, root)| *root)
    }

    /// The declared process that `pid` descends from.
    pub(super) fn root_of(&self, pid: u32) -> Option<u32> {
        self.roots.iter().find(|(_, family)| family.alive.contains_key(&pid)).map(|(root, _)| *root)
    }

    /// The living descendants of `root` by age, oldest first, and how many there ever were.
    pub(super) fn of(&self, root: u32) -> (Vec<Descendant>, u64) {
        let Some(family) = self.roots.get(&root) else { return Default::default() };
        let mut alive: Vec<_> = family.alive.values().cloned().collect();
        alive.sort_by_key(|d| d.since);
        (alive, family.total)
    }
}

/// A task's name as text.
fn text(comm: &[u8]) -> String {
    let end = comm.iter().position(|b| *b == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(&comm[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use grace_common::{Header, Task};

    use super::*;

    fn header(kind: u32) -> Header {
        Header { at_ns: 5, kind, cpu: 0, seq: 0 }
    }

    #[test]
    fn a_family_is_followed_and_bounded() {
        let mut lineage = Lineage::default();
        lineage.begin(1);
        let sh = Task { comm: *b"sh\0\0\0\0\0\0\0\0\0\0\0\0\0\0", ..Task::NONE };
        for child in 2..3002 {
            let header = header(grace_common::KIND_FORK);
            lineage.forked(&ProcFork { header, root: 1, child, depth: 1, _pad: 0, task: sh });
        }
        assert_eq!((lineage.of(1).0.len(), lineage.of(1).1), (ALIVE, 3000));
        let task = Task { tgid: 2, comm: *b"cat\0\0\0\0\0\0\0\0\0\0\0\0\0", ..Task::NONE };
        lineage.execed(&ProcExec { header: header(grace_common::KIND_EXEC), root: 1, ppid: 1, task });
        assert!(lineage.of(1).0.iter().any(|d| (d.pid, d.comm.as_str()) == (2, "cat")));
        (2..102).for_each(|pid| lineage.ended(1, pid, Timestamp(1_000)));
        let soon = Timestamp(1_000).after(LATELY);
        assert_eq!((lineage.root_of(2), lineage.root_of_ended(2, soon)), (None, Some(1)));
        assert_eq!(
            (lineage.root_of_ended(2, soon.after(LATELY)), lineage.root_of_ended(500, soon)),
            (None, None)
        );
        assert_eq!(lineage.of(1).0.len(), ALIVE - 100);
        lineage.end(1);
        assert_eq!(lineage.of(1).0, []);
    }
}
