//! placeholder until merge
use std::path::Path; use crate::file_state::{FileState,KnownGood};
pub fn look(_p:&Path,_k:Option<&KnownGood>)->FileState{FileState::Missing}
