//! Model weights: what a file of them is made of, what it should hold chunk by chunk, and how that is found out.
//!
//! `layout.rs` is the vocabulary: format, header, tensors, and which of them a range of bytes touches. One file for each
//! format reads untrusted bytes: `safetensors.rs`, `gguf.rs`, `torch.rs`, `onnx.rs`. `manifest.rs` is what is kept of a
//! file that is known to be good, `hash.rs` makes it and checks against it, `chunks.rs` reads without disturbing the
//! page cache, `published.rs` reads digests that others published.

pub mod chunks;
pub mod gguf;
pub mod hash;
pub mod layout;
pub mod manifest;
pub mod onnx;
pub mod published;
pub mod safetensors;
pub mod torch;

pub use layout::{Bytes, Format, Layout, Malformed, Tensor, read_layout};
pub use manifest::{CHUNK, Manifest, ManifestError, Manifests};
