//! Grace, the library: see ARCHITECTURE.md for the rooms and the one-way flow between them.

pub mod action;
pub mod actions;
pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod error_chain;
pub mod event;
pub mod file_meta;
pub mod file_state;
pub mod firing;
pub mod host;
pub mod incident;
pub mod journal;
mod owned;
pub mod policy;
pub mod prompt;
pub mod recording;
pub mod replay;
pub mod safe_path;
pub mod sha256;
pub mod snapshots;
pub mod sources;
pub mod state_dir;
pub mod triggers;
