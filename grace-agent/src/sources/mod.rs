//! The sources: each reads the host and produces events. A source never writes to the host and never judges.

mod cgroup;
pub mod dependencies;
pub mod ebpf;
pub mod endpoints;
pub mod fanotify;
pub mod files;
pub mod git;
pub mod gpu;
pub mod history;
pub mod inode;
mod inotify;
pub mod journald;
pub mod kmsg;
pub mod lineage;
pub mod listeners;
pub mod logs;
pub mod look;
mod mapped;
mod marks;
pub mod pressure;
pub mod processes;
mod progress;
pub mod records;
pub mod repos;
mod tally;
mod tests_for;
pub mod who;
