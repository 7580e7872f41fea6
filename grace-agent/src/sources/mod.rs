//! The sources: each reads the host and produces events. A source never writes to the host and never judges.

mod cgroup;
pub mod ebpf;
pub mod fanotify;
pub mod files;
pub mod gpu;
pub mod inode;
pub mod lineage;
pub mod listeners;
pub mod look;
pub mod mapped;
pub mod processes;
mod progress;
pub mod who;
