//! The rings' reading end: decodes records, counts what arrives, and notices from their sequence numbers what did not.

use std::collections::HashMap;

use aya::maps::{MapData, RingBuf};
use grace_common::{
    ALL_CLASSES, CLASSES, Class, FileDirty, KIND_EXEC, KIND_FILE_DIRTY, KIND_FORK, KIND_SLOW, KIND_TASK_EXIT,
    ProcExec, ProcFork, Record, SlowCall, TaskExit,
};

/// An event from a ring.
#[derive(Debug, Clone, Copy)]
pub enum RingEvent {
    /// A watched inode was made dirty.
    Dirty(FileDirty),
    /// A watched process has ended, or a descendant of one.
    Exit(TaskExit),
    /// A watched process has a child.
    Fork(ProcFork),
    /// A watched process runs another program.
    Exec(ProcExec),
    /// A call of a watched process was slow.
    Slow(SlowCall),
}

/// Names of the rings' maps, by class.
pub(super) const MAPS: [&str; CLASSES] = ["FILES", "EXITS", "PROCESSES", "SLOW"];

/// The reading end of all rings.
pub struct Rings {
    pub(super) rings: [RingBuf<MapData>; CLASSES],
    /// The sequence number that comes next, by class and processor. An adopted ring begins anywhere.
    next: HashMap<(u32, u32), u64>,
    /// True: the rings are new, so every sequence begins at 0.
    fresh: bool,
    /// Records that arrived, by class.
    delivered: [u64; CLASSES],
    /// Records that are missing before those that arrived, by class.
    gaps: [u64; CLASSES],
    /// Records that could not be decoded: another version's.
    undecoded: u64,
}

impl Rings {
    pub(super) fn new(rings: [RingBuf<MapData>; CLASSES], fresh: bool) -> Self {
        let zero = [0; CLASSES];
        Self { rings, next: HashMap::new(), fresh, delivered: zero, gaps: zero, undecoded: 0 }
    }

    /// The next event of `class`, if there is one.
    pub fn take(&mut self, class: Class) -> Option<RingEvent> {
        let index = class as usize;
        loop {
            let item = self.rings[index].next()?;
            let event = match grace_common::kind(&item) {
                Some(KIND_FILE_DIRTY) => FileDirty::from_bytes(&item).map(RingEvent::Dirty),
                Some(KIND_TASK_EXIT) => TaskExit::from_bytes(&item).map(RingEvent::Exit),
                Some(KIND_FORK) => ProcFork::from_bytes(&item).map(RingEvent::Fork),
                Some(KIND_EXEC) => ProcExec::from_bytes(&item).map(RingEvent::Exec),
                Some(KIND_SLOW) => SlowCall::from_bytes(&item).map(RingEvent::Slow),
                _ => None,
            };
            let (Some(event), Some(header)) = (event, grace_common::header(&item)) else {
                self.undecoded += 1;
                continue;
            };
            self.delivered[index] += 1;
            let begin = if self.fresh { 0 } else { header.seq };
            let next = self.next.entry((class as u32, header.cpu)).or_insert(begin);
            self.gaps[index] += header.seq.saturating_sub(*next);
            *next = header.seq + 1;
            return Some(event);
        }
    }

    /// Records that arrived, by class.
    #[must_use]
    pub fn delivered(&self) -> [u64; CLASSES] {
        self.delivered
    }

    /// Records that are missing, by class, as far as later ones show it.
    #[must_use]
    pub fn gaps(&self) -> u64 {
        ALL_CLASSES.iter().map(|class| self.gaps[*class as usize]).sum()
    }

    /// Records of another version, which could not be decoded.
    #[must_use]
    pub fn undecoded(&self) -> u64 {
        self.undecoded
    }
}
