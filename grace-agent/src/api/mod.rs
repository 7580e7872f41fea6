//! The socket: HTTP/1.1 and JSON on a Unix stream socket, for the command line and for scripts.
//!
//! `view.rs` the documents · `control.rs` what can be asked · `server.rs` the listening side (`code.rs` its routes about code, `gpu.rs` about GPUs and pressure) · `client.rs` the
//! asking side.

pub mod brief;
pub mod client;
pub mod code;
pub mod control;
pub mod gpu;
pub mod listen;
pub mod mcp;
pub mod server;
pub mod store;
pub mod tasks;
pub mod view;
