//! The vocabulary of code, packages and answers: what `sources/endpoints.rs`, `dependencies.rs`, `repos.rs` and `history.rs`
//! report.
//!
//! Plain data. Names, versions and paths come from files that others write: hostile text, capped by the sources and
//! escaped by whoever shows it.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shape::{Schema, Shape};

/// What an endpoint answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// JSON, with a status that says that all is well.
    Json(Box<Shape>),
    /// Something else, or nothing, and why that cannot be judged.
    None(String),
}

/// What the answers of an endpoint are measured by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KnownAnswers {
    /// What was learned from so many answers.
    Learned {
        /// How many.
        answers: u32,
        /// All of them in one.
        shape: Box<Shape>,
    },
    /// What a document declares.
    Declared {
        /// The document's path.
        document: PathBuf,
        /// What it says.
        schema: Box<Schema>,
    },
}

/// Where packages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ecosystem {
    /// Distributions below a `site-packages` folder.
    Python,
    /// `node_modules`, or else `package-lock.json`.
    Npm,
    /// `Cargo.lock`.
    Cargo,
    /// Packages of the operating system: dpkg, or rpm where its database is SQLite.
    System,
    /// Programs and the shared libraries that they load.
    Binary,
}

impl Ecosystem {
    /// As the configuration names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Npm => "npm",
            Self::Cargo => "cargo",
            Self::System => "system",
            Self::Binary => "binary",
        }
    }
}

/// One package or program that is not what it was when the snapshot was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DependencyChange {
    /// Its name; a program's path.
    pub name: String,
    /// Its version in the snapshot; a program's digest. None: it is new.
    pub was: Option<String>,
    /// Its version now. None: it is gone.
    pub is: Option<String>,
    /// The command that puts the version of the snapshot back, where names and versions allow one.
    pub undo: Option<String>,
}

/// A critical file that is not what it is in the known-good commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CodeChange {
    /// Path below the repo.
    pub path: String,
    /// What was done to it.
    pub how: CodeHow,
    /// How far the change has got.
    pub at: CodeAt,
}

/// What was done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CodeHow {
    /// It was not there.
    Added,
    /// Its content or kind differs.
    Modified,
    /// It is not there any more.
    Removed,
}

/// How far a change has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CodeAt {
    /// In HEAD.
    Committed,
    /// In the index.
    Staged,
    /// Only in the working tree.
    Working,
}

impl CodeAt {
    /// In one word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Staged => "staged",
            Self::Working => "in the working tree",
        }
    }
}

/// The risk of one file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FileRisk {
    /// Path below the repo.
    pub path: String,
    /// How likely the next changes include a repair of it: 0 to 1.
    pub risk: f64,
    /// Share of the repo's files that have a lower risk, in percent.
    pub percentile: f64,
    /// What raises it, the heaviest first.
    pub reasons: Vec<String>,
}
