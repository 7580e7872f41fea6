//! `grace syntax-worker`, hidden: the process in which a scan parses sources.

use anyhow::Context;

use super::Answer;
use crate::syntax;

pub(super) fn go() -> Answer {
    syntax::serve().context("parsing for a scan")?;
    Ok(0)
}
