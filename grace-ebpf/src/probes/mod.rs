//! One file per probe, with the same stem as its record in grace-common.

mod exec;
mod exit;
mod file;
mod fork;
mod name;
mod signal;
mod syscall;
