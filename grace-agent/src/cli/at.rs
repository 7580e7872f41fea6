//! Which version of a file: by its number, or the one that was the newest at a time.

use std::path::Path;
use std::str::FromStr;

use super::ask::Failure;
use crate::api::client::Client;
use crate::api::view::SnapshotView;

/// `--at`.
#[derive(Debug, Clone, PartialEq)]
pub enum At {
    /// A version's number.
    Version(u64),
    /// A moment.
    Time(jiff::Timestamp),
}

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(id) = text.parse() {
            return Ok(Self::Version(id));
        }
        if let Ok(time) = text.parse::<jiff::Timestamp>() {
            return Ok(Self::Time(time));
        }
        if let Ok(civil) = text.parse::<jiff::civil::DateTime>() {
            let zoned = civil.to_zoned(jiff::tz::TimeZone::system()).map_err(|err| err.to_string())?;
            return Ok(Self::Time(zoned.timestamp()));
        }
        let ago = text.strip_suffix("ago").unwrap_or(text).trim();
        if let Ok(ago) = humantime::parse_duration(ago) {
            return jiff::Timestamp::now().checked_sub(ago).map(Self::Time).map_err(|err| err.to_string());
        }
        Err("neither a snapshot's number nor a time: `12`, `2h`, `2026-11-24 10:00`, `2026-11-24T10:00:00Z`"
            .to_owned())
    }
}

impl At {
    /// The version of `path` that this means.
    pub(super) async fn version(&self, agent: &Client, path: &Path) -> Result<u64, Failure> {
        let time = match self {
            Self::Version(id) => return Ok(*id),
            Self::Time(time) => *time,
        };
        let all: Vec<SnapshotView> = agent.get("/v1/snapshots").await?;
        let real = path.parent().and_then(|folder| folder.canonicalize().ok()).zip(path.file_name());
        let real = real.map(|(folder, name)| folder.join(name));
        let mut mine = all.iter().filter(|s| s.path == path || Some(&s.path) == real.as_ref()).peekable();
        if mine.peek().is_none() {
            return Err(Failure::No(format!("{}: not owned", path.display())));
        }
        let then =
            mine.filter(|s| s.at.parse::<jiff::Timestamp>().is_ok_and(|at| at <= time)).max_by_key(|s| s.id);
        then.map(|s| s.id).ok_or_else(|| {
            Failure::No(format!("{}: no snapshot is that old (`grace snapshots` lists them)", path.display()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_told_apart() {
        assert_eq!("12".parse(), Ok(At::Version(12)));
        assert_eq!("2026-11-24T10:00:00Z".parse(), Ok(At::Time("2026-11-24T10:00:00Z".parse().unwrap())));
        for ok in ["2h", "2h ago", "90s", "2026-11-24 10:00", "2026-11-24T10:00:30"] {
            assert!(matches!(ok.parse(), Ok(At::Time(_))), "{ok}");
        }
        for bad in ["", "yesterday-ish", "-1", "f-12"] {
            assert!(bad.parse::<At>().is_err(), "{bad}");
        }
    }
}
