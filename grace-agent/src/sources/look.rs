//! placeholder until merge
use crate::file_state::{FileState, KnownGood};
use std::path::Path;
pub fn look(_p: &Path, _k: Option<&KnownGood>) -> FileState {
    FileState::Missing
}
