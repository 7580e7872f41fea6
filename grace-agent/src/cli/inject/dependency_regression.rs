//! The fault for `dependency_regression`: a package in a folder laid out as a venv gets another version.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::task::{Watcher, pause};
use super::{PATIENCE, Stop, Teller};
use crate::api::client::Client;
use crate::api::view::DependencyView;
use crate::cli::ask::Failure;
use crate::clock::Stopwatch;
use crate::firing::Subject;

/// Lays the packages down; what the agent needs to know.
pub(super) fn config(scratch: &Path) -> Result<String, Failure> {
    lay(scratch, "1.0").context("cannot lay down the packages")?;
    Ok(format!(
        "[[environment]]\nname = \"inject\"\nkind = \"python\"\npaths = [{:?}]\n[triggers.dependency_regression]\npoll = \"100ms\"\n",
        scratch.join("venv").display().to_string()
    ))
}

fn site(scratch: &Path) -> PathBuf {
    scratch.join("venv/lib/python3.11/site-packages")
}

fn lay(scratch: &Path, version: &str) -> std::io::Result<()> {
    let site = site(scratch);
    fs::create_dir_all(site.join("alpha"))?;
    fs::write(site.join("alpha/__init__.py"), "")?;
    for entry in fs::read_dir(&site)?.flatten() {
        if entry.file_name().to_string_lossy().ends_with(".dist-info") {
            fs::remove_dir_all(entry.path())?;
        }
    }
    let info = site.join(format!("alpha-{version}.dist-info"));
    fs::create_dir(&info)?;
    fs::write(info.join("METADATA"), format!("Metadata-Version: 2.1\nName: alpha\nVersion: {version}\n"))
}

/// The story.
pub(super) async fn tell(
    agent: &Client,
    scratch: &Path,
    teller: &mut Teller<'_>,
    stop: &mut Stop,
) -> Result<(), Failure> {
    let began = Stopwatch::start();
    loop {
        let views: Vec<DependencyView> = agent.get("/v1/deps/diff").await?;
        if views.first().is_some_and(|view| view.snapshot.is_some() && view.total > 0) {
            break;
        }
        if began.elapsed() > PATIENCE {
            return Err(Failure::No("the agent takes no snapshot of the packages".to_owned()));
        }
        pause(stop).await?;
    }
    teller.tell("snapshot", "alpha 1.0 is installed")?;
    let mut watcher = Watcher::new(agent, Subject::Environment("inject".to_owned())).await?;
    teller.fault = Some(Stopwatch::start());
    lay(scratch, "1.1").context("cannot make the fault")?;
    teller.tell("fault", "alpha 1.1 is installed in its place")?;
    watcher.task(teller, stop).await?;
    lay(scratch, "1.0").context("cannot undo the fault")?;
    teller.tell("undone", "alpha 1.0 is installed again")?;
    watcher.cleared(teller, stop).await
}
