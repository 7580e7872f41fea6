//! Probe `file_name`: a watched inode loses its name. Told as a `FileDirty` with one of these flags.

/// In `FileDirty::flags`: it loses a name by a rename. Above all of the kernel's own flags.
pub const FLAG_RENAMED: u32 = 1 << 31;

/// In `FileDirty::flags`: it loses a name by an unlink.
pub const FLAG_UNLINKED: u32 = 1 << 30;
