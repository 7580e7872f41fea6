//! The sources: each reads the host and produces events. A source never writes to the host and never judges.

pub mod ebpf;
