//! Pauses: what a person asked for, kept over restarts, and the quiet times of the configuration. The engine hears of
//! both as events; wall time ends here.

use std::time::Duration;

use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{ToSpan as _, Zoned};

use super::executor::{Executor, lock};
use crate::api::control::{ControlError, Peer};
use crate::api::view::PauseView;
use crate::clock;
use crate::config::{Quiet, quiet_time};
use crate::error_chain::chain;
use crate::event::{Kind, Timestamp};
use crate::firing::{Scope, Subject};
use crate::journal::{JournalError, Pause};
use crate::policy::PAUSES_MAX;

/// Longest pause, in seconds: a forgotten one must end.
const LONGEST_S: u64 = 90 * 24 * 3600;
/// Longest reason, in bytes.
const WHY_MAX: usize = 500;

/// Pauses `scope` for `seconds`.
pub(super) fn pause(
    executor: &Executor,
    scope: Scope,
    seconds: u64,
    why: &str,
    peer: Peer,
) -> Result<PauseView, ControlError> {
    let why = why.trim();
    if seconds == 0 || seconds > LONGEST_S {
        return Err(ControlError::Bad("a pause lasts from a second to 90 days".to_owned()));
    }
    if why.is_empty() || why.len() > WHY_MAX {
        return Err(ControlError::Bad(format!("say why, in at most {WHY_MAX} bytes")));
    }
    if scope == Scope::Quiet {
        return Err(ControlError::Bad("quiet times stand in the configuration: pause all".to_owned()));
    }
    let now_ns = clock::wall_ns();
    let failed = |err: JournalError| ControlError::Failed(chain(&err));
    let others = executor.journal.pauses(now_ns).map_err(failed)?;
    if others.len() >= PAUSES_MAX && !others.iter().any(|p| p.scope == scope) {
        return Err(ControlError::Refused(format!(
            "there are {PAUSES_MAX} pauses already: resume some first"
        )));
    }
    let ns = i64::try_from(Duration::from_secs(seconds).as_nanos()).unwrap_or(i64::MAX);
    let pause = Pause {
        scope,
        until_ns: now_ns.saturating_add(ns),
        why: why.to_owned(),
        by: format!("uid {}", peer.uid),
    };
    executor.journal.keep_pause(&pause).map_err(failed)?;
    executor.journal.note("command", format!("pause {} by {}: {why}", pause.scope, pause.by));
    tell(executor, &pause);
    Ok(view(&pause))
}

/// Ends the pause of `scope`.
pub(super) fn resume(executor: &Executor, scope: &Scope, peer: Peer) -> Result<(), ControlError> {
    let there = executor.journal.drop_pause(scope).map_err(|err| ControlError::Failed(chain(&err)))?;
    if !there && *scope != Scope::All {
        return Err(ControlError::NotFound(format!("{scope} is not paused: `grace pause` lists what is")));
    }
    executor.journal.note("command", format!("resume {scope} by uid {}", peer.uid));
    executor.send(Kind::Unpaused { scope: scope.clone() });
    Ok(())
}

/// What rests now, quiet times too.
pub(super) fn list(executor: &Executor) -> Result<Vec<PauseView>, ControlError> {
    let now_ns = clock::wall_ns();
    let pauses = executor.journal.pauses(now_ns).map_err(|err| ControlError::Failed(chain(&err)))?;
    let quiet = lock(&executor.quiet).clone().map(|(why, until_ns)| Pause {
        scope: Scope::Quiet,
        until_ns,
        why,
        by: "the configuration".to_owned(),
    });
    Ok(quiet.iter().chain(&pauses).map(view).collect())
}

/// Tells the engine of the pauses of earlier runs.
pub(super) fn recall(executor: &Executor) {
    match executor.journal.pauses(clock::wall_ns()) {
        Ok(pauses) => pauses.iter().for_each(|pause| tell(executor, pause)),
        Err(err) => tracing::error!(why = %chain(&err), "the pauses cannot be read: nothing is paused"),
    }
}

/// Begins or ends a quiet time where the clock and `config` say so.
pub(super) fn check_quiet(executor: &Executor, config: &[Quiet]) {
    let now = jiff::Timestamp::now();
    let mut told = lock(&executor.quiet);
    let due = config
        .iter()
        .filter_map(|quiet| {
            let end = inside(quiet, now)?;
            let why =
                quiet.why.clone().unwrap_or_else(|| format!("quiet from {} to {}", quiet.from, quiet.to));
            Some((why, i64::try_from(end.as_nanosecond()).ok()?))
        })
        .max_by_key(|(_, end)| *end);
    if *told == due {
        return;
    }
    match &due {
        Some((why, until_ns)) => tell(
            executor,
            &Pause { scope: Scope::Quiet, until_ns: *until_ns, why: why.clone(), by: String::new() },
        ),
        None => executor.send(Kind::Unpaused { scope: Scope::Quiet }),
    }
    *told = due;
}

/// When the quiet time ends in which `now` lies.
fn inside(quiet: &Quiet, now: jiff::Timestamp) -> Option<jiff::Timestamp> {
    let zone = match &quiet.zone {
        Some(name) => TimeZone::get(name).ok()?,
        None => TimeZone::system(),
    };
    inside_at(quiet, now, zone)
}

fn inside_at(quiet: &Quiet, now: jiff::Timestamp, zone: TimeZone) -> Option<jiff::Timestamp> {
    let (from, to) = (quiet_time(&quiet.from)?, quiet_time(&quiet.to)?);
    let now = now.to_zoned(zone);
    // It began today, or yesterday and goes on past midnight.
    [0, 1].into_iter().find_map(|days_ago| {
        let day = now.date().checked_sub(days_ago.days()).ok()?;
        let name = format!("{:?}", day.weekday()).get(..3)?.to_lowercase();
        if !quiet.days.is_empty() && !quiet.days.contains(&name) {
            return None;
        }
        let end_day = if to > from { day } else { day.tomorrow().ok()? };
        let moment = |day: jiff::civil::Date, time: Time| -> Option<Zoned> {
            day.to_datetime(time).to_zoned(now.time_zone().clone()).ok()
        };
        let (begin, end) = (moment(day, from)?, moment(end_day, to)?);
        (begin <= now && now < end).then(|| end.timestamp())
    })
}

fn tell(executor: &Executor, pause: &Pause) {
    let left = pause.until_ns.saturating_sub(clock::wall_ns()).max(0).unsigned_abs();
    let until: Timestamp = clock::boottime().after(Duration::from_nanos(left));
    executor.send(Kind::Paused { scope: pause.scope.clone(), until, why: pause.why.clone() });
}

fn view(pause: &Pause) -> PauseView {
    PauseView {
        subject: match &pause.scope {
            Scope::All => "all".to_owned(),
            Scope::Quiet => "quiet".to_owned(),
            Scope::Trigger(name) => format!("trigger:{name}"),
            Scope::Subject(Subject::File(path)) => path.display().to_string(),
            Scope::Subject(subject) => {
                let parts = serde_json::to_value(subject).unwrap_or_default();
                let part = |key: &str| parts[key].as_str().unwrap_or_default().to_owned();
                format!("{}:{}", part("kind"), part("name"))
            }
        },
        until: clock::rfc3339_wall(pause.until_ns),
        why: pause.why.clone(),
        by: pause.by.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quiet(from: &str, to: &str, days: &[&str]) -> Quiet {
        Quiet {
            from: from.into(),
            to: to.into(),
            days: days.iter().map(|d| (*d).to_owned()).collect(),
            zone: Some("UTC".into()),
            why: None,
        }
    }

    fn end(quiet: &Quiet, now: &str) -> Option<String> {
        inside(quiet, now.parse().unwrap()).map(|t| t.to_string())
    }

    #[test]
    fn a_quiet_time_may_pass_midnight_and_begins_on_its_days() {
        let night = quiet("22:00", "06:00", &["sat"]);
        // 2026-11-21 is a Saturday.
        assert_eq!(end(&night, "2026-11-21T21:59:59Z"), None);
        assert_eq!(end(&night, "2026-11-21T22:00:00Z").as_deref(), Some("2026-11-22T06:00:00Z"));
        assert_eq!(end(&night, "2026-11-22T05:59:59Z").as_deref(), Some("2026-11-22T06:00:00Z"));
        assert_eq!(end(&night, "2026-11-22T06:00:00Z"), None);
        assert_eq!(end(&night, "2026-11-22T23:00:00Z"), None, "Sunday is not among its days");
        let noon = quiet("12:00", "13:00", &[]);
        assert_eq!(end(&noon, "2026-11-22T12:30:00Z").as_deref(), Some("2026-11-22T13:00:00Z"));
        assert_eq!(end(&noon, "2026-11-22T13:00:00Z"), None);
    }

    #[test]
    fn a_quiet_time_ends_by_the_wall_clock_also_when_the_hour_is_changed() {
        // On 2026-03-29 Berlin goes from 02:00 to 03:00: the night is an hour shorter.
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let end = inside_at(&quiet("22:00", "06:00", &[]), "2026-03-28T21:30:00Z".parse().unwrap(), berlin);
        assert_eq!(end.unwrap().to_string(), "2026-03-29T04:00:00Z");
    }
}
