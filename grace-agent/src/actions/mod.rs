//! The hands: one file per verb of [`crate::action::Action`]. They change the host and say what they did; they never
//! decide, and never read events.

pub mod quarantine;
pub mod restore_file;
