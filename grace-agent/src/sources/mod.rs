//! The sources: each reads the host and produces events. A source never writes to the host and never judges.

mod cgroup;
pub mod ebpf;
pub mod fanotify;
pub mod files;
pub mod gpu;
pub mod inode;
pub mod journald;
pub mod kmsg;
pub mod lineage;
pub mod logs;
pub mod look;
pub mod mapped;
pub mod processes;
mod progress;
mod tally;
pub mod who;
