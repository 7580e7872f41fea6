//! The gate between judgement and host: opened when the journal holds the decision.
//!
//! An order's thread is woken and prepares while the journal still commits; what changes the host waits here.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// A gate that is opened once.
#[derive(Clone, Default)]
pub(super) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// One that is open: for what a person orders, which is written down when it is done.
    pub(super) fn opened() -> Self {
        let gate = Self::default();
        gate.open();
        gate
    }

    /// Lets everybody through from now on.
    pub(super) fn open(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// Waits until it is open.
    pub(super) fn pass(&self) {
        let shut = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.1.wait_while(shut, |open| !*open));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn nobody_passes_before_it_opens_and_everybody_after() {
        let gate = Gate::default();
        let passed = Arc::new(AtomicBool::new(false));
        let waiting: Vec<_> = (0..2)
            .map(|_| {
                let (gate, passed) = (gate.clone(), Arc::clone(&passed));
                std::thread::spawn(move || {
                    gate.pass();
                    assert!(passed.load(Ordering::Acquire), "through a shut gate");
                })
            })
            .collect();
        std::thread::sleep(std::time::Duration::from_millis(5));
        passed.store(true, Ordering::Release);
        gate.open();
        for thread in waiting {
            thread.join().expect("passed in order");
        }
        Gate::opened().pass();
    }
}
