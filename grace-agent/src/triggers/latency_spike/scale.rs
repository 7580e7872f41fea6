//! How many replicas of something there are, and shall be: more while it is too slow, fewer when it has been quick for long
//! enough.

use std::time::Duration;

use crate::action::Action;
use crate::event::Timestamp;

/// Rungs of a remedy that ask for more, at most: where more replicas than that are allowed they are added several at a time.
const RUNGS: u32 = 8;

/// Replicas of a declared process, or of what a hook scales.
#[derive(Debug)]
pub(super) struct Scale {
    base: u32,
    max: u32,
    now: u32,
    /// When one of them is taken back.
    down_at: Option<Timestamp>,
}

impl Scale {
    /// There are `now` of them; one is taken back at `down`, where there are too many.
    pub(super) fn new(base: u32, max: u32, now: u32, down: Timestamp) -> Self {
        Self { base, max, now, down_at: (now > base).then_some(down) }
    }

    /// There are `now` of them.
    pub(super) fn now(&mut self, now: u32, down: Timestamp) {
        self.now = now;
        self.down_at = self.is_up().then_some(down);
    }

    /// There are more than normally.
    pub(super) fn is_up(&self) -> bool {
        self.now > self.base
    }

    /// When one of them may be taken back.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.down_at
    }

    /// What lets more of `name` run, the least first.
    pub(super) fn rungs(&self, name: &str) -> Vec<Action> {
        let room = self.max.saturating_sub(self.now);
        let step = room.div_ceil(RUNGS).max(1);
        let rung = |i: u32| self.now.saturating_add(i.saturating_mul(step)).min(self.max);
        (1..=room.div_ceil(step)).map(|i| Action::Scale { name: name.to_owned(), to: rung(i) }).collect()
    }

    /// How many there shall be where one is to be taken back at `now`; `fires`: it is too slow.
    pub(super) fn down(&mut self, fires: bool, now: Timestamp, after: Duration) -> Option<u32> {
        if fires || !self.is_up() {
            self.down_at = None;
            return None;
        }
        let at = *self.down_at.get_or_insert(now.after(after));
        if at > now {
            return None;
        }
        // Held or failed, it is asked for again; done, `now` says so.
        self.down_at = Some(now.after(after));
        Some((self.now - 1).max(self.base))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Timestamp {
        Timestamp(s * 1_000_000_000)
    }

    #[test]
    fn rungs_go_up_one_by_one_and_several_at_a_time_where_there_is_much_room() {
        let to = |scale: Scale| -> Vec<u32> {
            let rungs = scale.rungs("w");
            rungs.iter().map(|a| if let Action::Scale { to, .. } = a { *to } else { 0 }).collect()
        };
        assert_eq!(to(Scale::new(1, 4, 1, at(0))), [2, 3, 4]);
        assert_eq!(to(Scale::new(1, 4, 4, at(0))), [0u32; 0]);
        assert_eq!(to(Scale::new(1, 21, 1, at(0))), [4, 7, 10, 13, 16, 19, 21]);
    }

    #[test]
    fn it_goes_down_one_by_one_and_never_while_it_is_too_slow() {
        let after = Duration::from_secs(60);
        let mut scale = Scale::new(1, 4, 1, at(0));
        scale.now(3, at(60));
        assert_eq!(scale.down(true, at(100), after), None, "too slow");
        assert_eq!(scale.down(false, at(110), after), None, "only now it is quick");
        assert_eq!(scale.down(false, at(169), after), None);
        assert_eq!(scale.down(false, at(170), after), Some(2));
        assert_eq!(scale.down(false, at(171), after), None, "asked for once");
        assert_eq!(scale.down(false, at(230), after), Some(2), "it was not done: again");
        scale.now(2, at(290));
        assert_eq!(scale.down(false, at(290), after), Some(1));
        scale.now(1, at(350));
        assert_eq!((scale.down(false, at(900), after), scale.due()), (None, None));
    }
}
