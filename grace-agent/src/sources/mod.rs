//! The sources: one file per source. They read the host and report facts; they never write to it and never judge.

pub mod look;
