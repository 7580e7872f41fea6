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
pub mod lineage;
pub mod look;
pub mod mapped;
pub mod processes;
mod progress;
pub mod repos;
mod tests_for;
pub mod who;
