//! Grace, the library: see ARCHITECTURE.md for the rooms and the one-way flow between them.

pub mod action;
pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod event;
pub mod file_state;
pub mod firing;
pub mod triggers;
pub mod sources;
pub mod engine;
pub mod incident;
pub mod policy;
pub mod journal;
