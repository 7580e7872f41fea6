//! `grace syntax-worker`, hidden: the process in which a scan parses sources.

use anyhow::Context;

use super::Answer;
use crate::{endure, syntax};

/// It may take 2 GiB, and can be started again: before others where memory runs out.
const BEFORE_OTHERS: i16 = 500;

pub(super) fn go() -> Answer {
    // Where it is refused there was nothing to inherit.
    drop(endure::chosen_like_others(BEFORE_OTHERS));
    syntax::serve().context("parsing for a scan")?;
    Ok(0)
}
