//! One declared process: whether it runs, is heard of, and makes progress; and what is said of it, which is the worst of
//! what is wrong.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::super::lasting;
use super::busy::{self, Busy};
use super::pulse::{Beat, Pulse, Rule};
use super::work::{Flat, Output, Work};
use super::{heartbeats, logs};
use crate::action::Action;
use crate::baseline::Baseline;
use crate::config;
use crate::event::{Doing, Exit, Restart, RestartPolicy, Timestamp};
use crate::firing::{Finding, Subject, Verdict, who};
use crate::gpu_facts::GpuSample;

/// Facts kept in `lately`, and how long they have to do with what happens.
const LATELY: usize = 5;
const LATELY_FOR: Duration = Duration::from_secs(60);

/// A restarted process that may need longer than this until it is heard of gets its own time before help is asked for;
/// else the ladder's is enough (see `incident::SETTLE`).
const SOON: Duration = Duration::from_secs(25);

/// What is wrong with a process that runs, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ail {
    /// Its log is silent.
    Quiet,
    /// An output stands still.
    Flat,
    /// It is blocked or spins.
    Stalled,
    /// Its GPU says that it is busy, and does nothing.
    Hung,
    /// Its heartbeats are missing.
    Silent,
}

/// What must be so before a process is started, and what makes it run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// These are up.
    pub(super) after: Vec<String>,
    /// It says when it is ready.
    pub(super) awaits: bool,
    /// Grace cannot start it.
    pub(super) watched_only: bool,
}

/// What a process waits for that is not up yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Wait {
    /// For nothing.
    #[default]
    None,
    /// To be started for the first time.
    First,
    /// To be started again.
    Again,
}

/// So many processes that are down at the same time are a storm: they are started one after the other.
const STORM: usize = 8;
/// How far apart, on average.
const APART: Duration = Duration::from_millis(5);
/// GPUs that one process has for itself at most.
const GPUS_MAX: usize = 256;
/// A process that waits for others is started again so much later: their end may be told after its own.
const BEHIND: Duration = Duration::from_millis(50);

/// A declared process.
pub(super) struct Process {
    policy: RestartPolicy,
    pid: Option<u32>,
    /// When Grace started it; none: an earlier agent did.
    began: Option<Timestamp>,
    /// It has ended, and the firing holds since then.
    since: Option<Timestamp>,
    /// What is said while it holds.
    last: Option<(u32, Exit, Vec<String>)>,
    /// When it was, or will be, started again, within the window of the budget; oldest first.
    restarts: VecDeque<Timestamp>,
    /// Restarts in a row without a stable run between.
    streak: u32,
    /// When a run is seen as running again.
    settled: Option<Timestamp>,
    /// When the budget is free again.
    retry: Option<Timestamp>,
    /// It is blocked or spins: since when, and what it waits for.
    stuck: Option<(Doing, Timestamp, Option<String>)>,
    /// What was slow or went wrong below it lately, oldest first.
    lately: VecDeque<(Timestamp, String)>,
    /// What must be so before it is started, and what makes it run.
    pub(super) needs: Needs,
    /// It runs, and is ready where it says so.
    pub(super) up: bool,
    /// It is to be started once what it needs is up.
    pub(super) waits: Wait,
    /// Load was taken from it: it cannot be heard of, or get on, as it normally does.
    shed: bool,
    /// What is wrong with it while it runs, and the worst that was said.
    ails: BTreeSet<Ail>,
    said: Option<Ail>,
    /// How far apart its heartbeats are, where that is declared.
    declared: Option<Duration>,
    heart: Pulse,
    log: Pulse,
    pub(super) work: Work,
    /// GPUs that it has for itself, by UUID.
    gpus: BTreeMap<String, Busy>,
}

impl Process {
    pub(super) fn new(policy: RestartPolicy, pid: Option<u32>, learn: u32) -> Self {
        let never = Rule { declared: None, factor: 1.0, at_least: Duration::MAX };
        Self {
            policy,
            pid,
            began: None,
            since: None,
            last: None,
            restarts: VecDeque::new(),
            streak: 0,
            settled: None,
            retry: None,
            stuck: None,
            lately: VecDeque::new(),
            needs: Needs::default(),
            up: pid.is_some(),
            waits: Wait::None,
            shed: false,
            ails: BTreeSet::new(),
            said: None,
            declared: None,
            heart: Pulse::new(Baseline::new(learn), &never),
            log: Pulse::new(Baseline::new(learn), &never),
            work: Work::default(),
            gpus: BTreeMap::new(),
        }
    }

    pub(super) fn set_policy(&mut self, policy: RestartPolicy) {
        self.policy = policy;
    }

    /// What earlier runs learned of it.
    pub(super) fn learn_from(
        &mut self,
        heart: Option<Baseline>,
        log: Option<Baseline>,
        settings: &config::HealthGap,
    ) {
        if let Some(gaps) = heart {
            self.heart = Pulse::new(gaps, &heartbeats(settings, self.declared));
        }
        if let Some(gaps) = log {
            self.log = Pulse::new(gaps, &logs(settings));
        }
    }

    /// How far apart its heartbeats are from now on; none: as learned.
    pub(super) fn expects(&mut self, gap: Option<Duration>, now: Timestamp, settings: &config::HealthGap) {
        if gap == self.declared {
            return;
        }
        self.declared = gap;
        self.heart.set(&heartbeats(settings, gap));
        if self.pid.is_some() && self.heart.last().is_none() && gap.is_some() {
            self.heart.expect(now, settings.startup.get());
        }
    }

    pub(super) fn note(&mut self, now: Timestamp, line: String) {
        if self.lately.len() >= LATELY {
            self.lately.pop_front();
        }
        self.lately.push_back((now, line));
    }

    fn lately(&self, now: Timestamp) -> impl Iterator<Item = String> + '_ {
        self.lately.iter().filter(move |(at, _)| now.since(*at) < LATELY_FOR).map(move |(at, line)| {
            let ago = Duration::from_millis(u64::try_from(now.since(*at).as_millis()).unwrap_or(u64::MAX));
            format!("{line} ({} before)", humantime::format_duration(ago))
        })
    }

    pub(super) fn heart(&self) -> &Pulse {
        &self.heart
    }

    pub(super) fn log(&self) -> &Pulse {
        &self.log
    }

    pub(super) fn heart_gaps(&self) -> &Baseline {
        self.heart.gaps()
    }

    pub(super) fn log_gaps(&self) -> &Baseline {
        self.log.gaps()
    }

    /// When time alone changes what is to be said of it.
    pub(super) fn wake(&self, settings: &config::HealthGap) -> Option<Timestamp> {
        if self.shed {
            return self.settled.into_iter().chain(self.retry).min();
        }
        let stalls = self.stalls_at(settings).filter(|_| !self.ails.contains(&Ail::Stalled));
        [self.settled, self.retry, stalls, self.heart.due(), self.log.due()].into_iter().flatten().min()
    }

    /// Time passed.
    pub(super) fn tick(
        &mut self,
        name: &str,
        now: Timestamp,
        settings: &config::HealthGap,
        out: &mut Vec<Verdict>,
    ) {
        if !self.shed {
            self.listen(name, now, settings, out);
        }
        if self.settled.is_some_and(|at| at <= now) {
            self.settled = None;
            let ran = humantime::format_duration(settings.settle.get());
            let how = format!("runs again as pid {} for {ran}", self.pid.unwrap_or(0));
            // Whoever was stuck is gone; what was not heard must be heard.
            self.ails.remove(&Ail::Stalled);
            self.ails.remove(&Ail::Hung);
            if self.since.take().is_some() || self.said.is_some() {
                out.extend(self.clear(name, how));
            }
        }
        if self.retry.is_some_and(|at| at <= now) {
            self.retry = None;
            out.extend(self.start_again(name, now, 0));
        }
    }

    /// Notices what is missing, or stands still.
    fn listen(&mut self, name: &str, now: Timestamp, settings: &config::HealthGap, out: &mut Vec<Verdict>) {
        if !self.ails.contains(&Ail::Stalled) && self.stalls_at(settings).is_some_and(|at| at <= now) {
            let (doing, said) = (self.stuck.as_ref().map(|s| s.0), self.stall(name, settings, now));
            if let Some(finding) = said {
                // A signal does not reach whoever waits uninterruptibly; who computes can be started anew.
                out.extend(self.ail(Ail::Stalled, name, doing == Some(Doing::Spinning), finding, now));
            }
        }
        let last = self.heart.last();
        if self.heart.misses(now) {
            let rule = heartbeats(settings, self.declared);
            let finding = self.missing(
                name,
                "its heartbeats are missing",
                (&self.heart, &rule),
                last,
                now,
                "heartbeats come again for 10 minutes and health_gap stays clear",
            );
            out.extend(self.ail(Ail::Silent, name, true, finding, now));
        }
        let last = self.log.last();
        if self.log.misses(now) {
            let finding = self.missing(
                name,
                "its log is silent",
                (&self.log, &logs(settings)),
                last,
                now,
                "its log goes on for 10 minutes and health_gap stays clear",
            );
            // Nothing may have happened that is worth a line.
            out.extend(self.ail(Ail::Quiet, name, false, finding, now));
        }
    }

    /// Something is wrong from now on; `restart`: that would mend it. What is said, where it is worse than what was said.
    fn ail(
        &mut self,
        ail: Ail,
        name: &str,
        restart: bool,
        mut finding: Box<Finding>,
        now: Timestamp,
    ) -> Option<Verdict> {
        self.ails.insert(ail);
        if self.since.is_some() || self.said.is_some_and(|said| said >= ail) {
            return None;
        }
        self.said = Some(ail);
        if restart && self.policy.restart != Restart::Never && !self.needs.watched_only {
            let reason = finding.summary.clone();
            finding.remedy.insert(0, Action::RestartProcess { name: name.to_owned(), reason });
            let stable = Duration::from_millis(self.policy.stable_ms);
            if self.began.is_none_or(|began| now.since(began) >= stable) {
                self.streak = 0;
            }
            match self.budget(name, now, 0) {
                Ok(delay) => finding.delay = delay,
                Err(why) => finding.hold = Some(why),
            }
        }
        Some(Verdict::Holds(finding))
    }

    /// Something is right again, and how.
    fn mended(&mut self, ail: Ail, name: &str, how: &str) -> Option<Verdict> {
        if !self.ails.remove(&ail) || self.since.is_some() {
            return None;
        }
        self.clear(name, how.to_owned())
    }

    /// What is said when nothing is wrong any more.
    fn clear(&mut self, name: &str, how: String) -> Option<Verdict> {
        if !self.ails.is_empty() {
            return None;
        }
        self.said = None;
        Some(Verdict::Cleared(subject(name), how))
    }

    pub(super) fn forgotten(self, name: &str) -> Option<Verdict> {
        (self.since.is_some() || self.said.is_some())
            .then(|| Verdict::Cleared(subject(name), "not owned any more".into()))
    }

    pub(super) fn heartbeat(
        &mut self,
        name: &str,
        now: Timestamp,
        settings: &config::HealthGap,
    ) -> Option<Verdict> {
        let beat = self.heart.beat(now, &heartbeats(settings, self.declared));
        (beat == Beat::Back).then(|| self.mended(Ail::Silent, name, "its heartbeats are back"))?
    }

    pub(super) fn logged(
        &mut self,
        name: &str,
        now: Timestamp,
        settings: &config::HealthGap,
    ) -> Option<Verdict> {
        let beat = self.log.beat(now, &logs(settings));
        (beat == Beat::Back).then(|| self.mended(Ail::Quiet, name, "its log goes on"))?
    }

    pub(super) fn output(
        &mut self,
        name: &str,
        what: Output,
        output: &str,
        value: f64,
        now: Timestamp,
        rule: &Rule,
    ) -> Option<Verdict> {
        let moves = self.work.told(what, output, value, now, rule);
        moves.then(|| self.mended(Ail::Flat, name, "its outputs change again"))?
    }

    /// Load was taken from it: what is not heard of it from now on says nothing.
    pub(super) fn shed(&mut self) {
        self.shed = true;
        self.stuck = None;
    }

    /// It has back what was taken, and what it did not say meanwhile is not missing.
    pub(super) fn given_back(&mut self) {
        self.shed = false;
        self.stuck = None;
        self.heart.pause();
        self.log.pause();
        self.work.pause();
        self.gpus.values_mut().for_each(Busy::begins_anew);
    }

    /// An output stands still.
    pub(super) fn flat(&mut self, name: &str, flat: Flat, now: Timestamp) -> Option<Verdict> {
        self.pid.filter(|_| !self.shed)?;
        // Who gives another sign of life works, and what stands still may be as it should.
        let restart = !flat.alive && !self.heart.alive();
        let finding = Box::new(Finding {
            subject: subject(name),
            since: flat.since,
            summary: format!(
                "{} {} stands still while its work goes on",
                flat.what.name(),
                flat.name.escape_debug()
            ),
            measured: format!(
                "the same for {}, in which {} times work waited or was answered elsewhere",
                lasting(now.since(flat.since)),
                flat.signs
            ),
            threshold: format!("the same for {}", lasting(flat.limit)),
            baseline: format!("it changes: {}", flat.normal),
            writer: None,
            noticed_by: None,
            evidence: self.lately(now).collect(),
            remedy: vec![Action::FileTask {
                title: "Find out why an output of a declared process stands still, and fix it".into(),
                acceptance: "the output changes again and health_gap stays clear for 10 minutes".into(),
            }],
            delay: Duration::ZERO,
            hold: None,
            depends_on: Vec::new(),
        });
        self.ail(Ail::Flat, name, restart, finding, now)
    }

    /// A GPU was seen that this process has for itself.
    pub(super) fn gpu(
        &mut self,
        name: &str,
        gpu: &GpuSample,
        settings: &config::HealthGap,
        now: Timestamp,
    ) -> Option<Verdict> {
        self.pid.filter(|_| !self.shed)?;
        let (utilization, power) = (gpu.utilization?, gpu.power_w?);
        if !self.gpus.contains_key(&gpu.uuid) && self.gpus.len() >= GPUS_MAX {
            return None;
        }
        let busy = self.gpus.entry(gpu.uuid.clone()).or_insert_with(|| Busy::new(settings.learn));
        let (share, lasts) = (settings.gpu_busy_share, settings.gpu_busy_for.get());
        match busy.seen(utilization, power, share, lasts, now) {
            busy::Work::Unknown => None,
            busy::Work::Works => self.mended(Ail::Hung, name, "its GPU works again"),
            busy::Work::Hangs { .. } if self.ails.contains(&Ail::Hung) => None,
            busy::Work::Hangs { since, power, normal } => {
                let finding = Box::new(Finding {
                    subject: subject(name),
                    since,
                    summary: format!("GPU {} says that it is busy, and does next to nothing", gpu.index),
                    measured: format!("{power:.0} W at {utilization} % for {}", lasting(now.since(since))),
                    threshold: format!(
                        "below {:.0} W at 99 % and more for {}",
                        normal * share,
                        lasting(lasts)
                    ),
                    baseline: format!("{normal:.0} W when it is busy"),
                    writer: None,
                    noticed_by: None,
                    evidence: self.lately(now).collect(),
                    remedy: vec![Action::FileTask {
                        title: "Find out why a program keeps its GPU busy and does nothing: a collective that waits, or a \
                                kernel that spins"
                            .into(),
                        acceptance: "its GPU draws its normal power again and health_gap stays clear for 10 minutes"
                            .into(),
                    }],
                    delay: Duration::ZERO,
                    hold: None,
                    depends_on: vec![Subject::Gpu("driver".into())],
                });
                self.ail(Ail::Hung, name, true, finding, now)
            }
        }
    }

    pub(super) fn progress(
        &mut self,
        name: &str,
        pid: u32,
        doing: Doing,
        since: Timestamp,
        wait: Option<String>,
    ) -> Option<Verdict> {
        if self.pid != Some(pid) || self.shed {
            return None;
        }
        self.stuck = (doing != Doing::Working).then_some((doing, since, wait));
        if self.stuck.is_some() {
            return None;
        }
        self.mended(Ail::Stalled, name, "makes progress again")
    }

    /// For `away` until `now` nobody could see or hear it.
    pub(super) fn away(&mut self, away: Duration, now: Timestamp) {
        self.heart.away(away, now);
        self.log.away(away, now);
        self.work.away(away, now);
        self.gpus.values_mut().for_each(|gpu| gpu.away(away, now));
        if let Some((_, since, _)) = &mut self.stuck {
            *since = since.after(away).min(now);
        }
    }

    pub(super) fn started(
        &mut self,
        name: &str,
        pid: u32,
        now: Timestamp,
        settings: &config::HealthGap,
    ) -> Option<Verdict> {
        self.pid = Some(pid);
        self.began = Some(now);
        self.retry = None;
        self.waits = Wait::None;
        self.up = !self.needs.awaits;
        if self.up && (self.since.is_some() || self.said.is_some()) {
            self.settled = Some(now.after(settings.settle.get()));
        }
        self.log.pause();
        self.work.pause();
        if self.heart.missing() {
            return self.restarted(name, now, settings);
        }
        if self.declared.is_some() {
            self.heart.expect(now, settings.startup.get());
        } else {
            // It may need its time; how long, nobody declared.
            self.heart.pause();
        }
        None
    }

    /// It says that it is ready.
    pub(super) fn ready(&mut self, pid: u32, now: Timestamp, settings: &config::HealthGap) {
        if self.pid != Some(pid) || self.up {
            return;
        }
        self.up = true;
        if self.since.is_some() || self.said.is_some() {
            self.settled = Some(now.after(settings.settle.get()));
        }
    }

    /// It was not there when it began to be watched, and Grace cannot start it.
    pub(super) fn absent(&mut self, name: &str, now: Timestamp) -> Option<Verdict> {
        self.since.get_or_insert(now);
        self.last = Some((0, Exit::default(), Vec::new()));
        self.finding(name, now, Duration::ZERO, None).map(Verdict::Holds)
    }

    /// It was restarted because it was silent: how long it may take until it is heard of.
    fn restarted(&mut self, name: &str, now: Timestamp, settings: &config::HealthGap) -> Option<Verdict> {
        let last = self.heart.last();
        self.heart.pause();
        let patience = self.heart.limit()?.max(settings.startup.get());
        if self.said != Some(Ail::Silent) || patience <= SOON {
            return None;
        }
        let rule = heartbeats(settings, self.declared);
        let mut finding = self.missing(
            name,
            "its heartbeats are missing",
            (&self.heart, &rule),
            last,
            now,
            "heartbeats come again for 10 minutes and health_gap stays clear",
        );
        let reason = finding.summary.clone();
        finding.remedy.insert(0, Action::RestartProcess { name: name.to_owned(), reason });
        finding.delay = patience;
        finding.hold = Some(format!("it was restarted, and is silent for {} since", lasting(patience)));
        Some(Verdict::Holds(finding))
    }

    /// What is said of something regular that is missing since `last`.
    fn missing(
        &self,
        name: &str,
        what: &str,
        (pulse, rule): (&Pulse, &Rule),
        last: Option<Timestamp>,
        now: Timestamp,
        acceptance: &str,
    ) -> Box<Finding> {
        let last = last.unwrap_or(now);
        let pid = self.pid.map(|pid| format!("pid {pid}: ")).unwrap_or_default();
        Box::new(Finding {
            subject: subject(name),
            since: last,
            summary: format!("{pid}{what}"),
            measured: format!("none for {}", lasting(now.since(last))),
            threshold: format!("none for {}", lasting(pulse.limit().unwrap_or_default())),
            baseline: pulse.normal(rule),
            writer: None,
            noticed_by: None,
            evidence: self.lately(now).collect(),
            remedy: vec![Action::FileTask {
                title: "Find out why a declared process runs but is not heard of, and fix it".into(),
                acceptance: acceptance.to_owned(),
            }],
            delay: Duration::ZERO,
            hold: None,
            depends_on: Vec::new(),
        })
    }

    /// How long it may be as it is, where there is a limit.
    fn limit(doing: Doing, settings: &config::HealthGap) -> Option<Duration> {
        match doing {
            Doing::Working => None,
            Doing::Blocked => Some(settings.blocked.get()),
            Doing::Spinning => settings.spinning.map(config::Span::get),
        }
    }

    /// When it will have made no progress for too long.
    fn stalls_at(&self, settings: &config::HealthGap) -> Option<Timestamp> {
        let (doing, since, _) = self.stuck.as_ref()?;
        Some(since.after(Self::limit(*doing, settings)?))
    }

    fn stall(&self, name: &str, settings: &config::HealthGap, now: Timestamp) -> Option<Box<Finding>> {
        let (doing, since, wait) = self.stuck.as_ref()?;
        let limit = humantime::format_duration(Self::limit(*doing, settings)?);
        let pid = self.pid?;
        let how = match doing {
            Doing::Blocked => "is blocked in the kernel and cannot be interrupted",
            _ => "runs without making any system call",
        };
        let wait = wait.as_ref().map(|w| format!(", waits in {}", w.escape_debug())).unwrap_or_default();
        let lasts = humantime::format_duration(Duration::from_secs(now.since(*since).as_secs()));
        Some(Box::new(Finding {
            subject: subject(name),
            since: *since,
            summary: format!("pid {pid} makes no progress: it {how}{wait}"),
            measured: format!("for {lasts}"),
            threshold: format!("for {limit}"),
            baseline: "makes system calls".into(),
            writer: None,
            noticed_by: None,
            evidence: self.lately(now).collect(),
            remedy: vec![Action::FileTask {
                title: "Find out why a declared process makes no progress, and fix it".into(),
                acceptance: "the process makes progress for 10 minutes and health_gap stays clear".into(),
            }],
            delay: Duration::ZERO,
            hold: None,
            depends_on: Vec::new(),
        }))
    }

    pub(super) fn ended(
        &mut self,
        name: &str,
        pid: u32,
        exit: &Exit,
        stderr: &[String],
        now: Timestamp,
        down: usize,
    ) -> Vec<Verdict> {
        if exit.restarting {
            // Grace's own doing: no crash, and no recovery either. The next one may have been told of already.
            if self.pid == Some(pid) {
                (self.pid, self.settled, self.stuck, self.up) = (None, None, None, false);
            }
            return Vec::new();
        }
        self.pid = None;
        self.up = false;
        self.shed = false;
        self.settled = None;
        self.stuck = None;
        // What is said from now on is that it ended.
        self.ails.clear();
        self.heart.reset();
        self.log.reset();
        self.work.reset();
        let ailed = self.said.take().is_some();
        let over = |how: &str| Verdict::Cleared(subject(name), how.to_owned());
        if exit.asked_for {
            return ailed.then(|| over("was ended")).into_iter().collect();
        }
        let failed = exit.code != Some(0);
        if self.policy.restart == Restart::OnFailure && !failed {
            let held = self.since.take().is_some() || ailed;
            return held.then(|| over("exited with code 0")).into_iter().collect();
        }
        if exit.ran_ms >= self.policy.stable_ms {
            self.streak = 0;
        }
        self.last = Some((pid, exit.clone(), stderr.to_vec()));
        if self.policy.restart == Restart::Never {
            self.since = None;
            let happened = self.finding(name, now, Duration::ZERO, None).map(|mut finding| {
                finding.remedy.clear();
                Verdict::Happened(finding)
            });
            return ailed.then(|| over("it has ended")).into_iter().chain(happened).collect();
        }
        self.since.get_or_insert(now);
        self.start_again(name, now, down).into_iter().collect()
    }

    /// It is down and may be started again; `down`: so many others are, too.
    pub(super) fn start_again(&mut self, name: &str, now: Timestamp, down: usize) -> Option<Verdict> {
        self.waits = Wait::None;
        if self.needs.watched_only {
            return self.finding(name, now, Duration::ZERO, None).map(Verdict::Holds);
        }
        match self.budget(name, now, down) {
            Ok(delay) => self.finding(name, now, delay, None).map(Verdict::Holds),
            Err(hold) => {
                // A budget of 0 is never free: no retry then.
                self.retry = self.restarts.front().map(|at| at.after(self.interval()));
                self.finding(name, now, Duration::ZERO, Some(hold)).map(Verdict::Holds)
            }
        }
    }

    /// It is down; what it needs is down, too, and comes first.
    pub(super) fn wait_for(&mut self, name: &str, first: &str, now: Timestamp) -> Option<Verdict> {
        if self.pid.is_some() || self.since.is_none() || self.waits == Wait::Again || self.needs.watched_only
        {
            return None;
        }
        self.waits = Wait::Again;
        self.retry = None;
        // It was not done yet: it costs nothing.
        if self.restarts.back().is_some_and(|at| *at >= now) {
            self.restarts.pop_back();
            self.streak = self.streak.saturating_sub(1);
        }
        let why = format!("waits for process {}, which must be up first", first.escape_debug());
        let mut finding = self.finding(name, now, Duration::ZERO, Some(why))?;
        // There is nothing to find out about this one yet.
        finding.remedy.truncate(1);
        Some(Verdict::Holds(finding))
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.policy.interval_ms)
    }

    /// Takes one restart from the budget: after which delay it may be done, or why not.
    fn budget(&mut self, name: &str, now: Timestamp, down: usize) -> Result<Duration, String> {
        let interval = self.interval();
        while self.restarts.front().is_some_and(|at| at.after(interval) <= now) {
            self.restarts.pop_front();
        }
        if self.restarts.len() >= self.policy.burst as usize {
            return Err(format!(
                "budget: {} restarts in {} are used up",
                self.policy.burst,
                humantime::format_duration(interval)
            ));
        }
        let delay = self.delay(name) + self.turn(name, down);
        self.streak = self.streak.saturating_add(1);
        self.restarts.push_back(now.after(delay));
        Ok(delay)
    }

    /// The backoff, up to a quarter less, by its name and how often: those that fell together do not get up together again
    /// and again.
    fn delay(&self, name: &str) -> Duration {
        let Some(doublings) = self.streak.checked_sub(1) else { return Duration::ZERO };
        let factor = 1u64.checked_shl(doublings.min(62)).unwrap_or(u64::MAX);
        let most = self.policy.backoff_ms.saturating_mul(factor).min(self.policy.backoff_max_ms);
        let less = (most / 4).saturating_mul(scatter(name, self.streak) % 1000) / 1000;
        Duration::from_millis(most - less)
    }

    /// How long it waits for its turn where `down` others are down.
    fn turn(&self, name: &str, down: usize) -> Duration {
        let behind = if self.needs.after.is_empty() { Duration::ZERO } else { BEHIND };
        if down < STORM {
            return behind;
        }
        let all =
            u64::try_from((APART * u32::try_from(down).unwrap_or(u32::MAX)).as_millis()).unwrap_or(u64::MAX);
        behind + Duration::from_millis(scatter(name, self.streak) % all.max(1))
    }

    fn finding(
        &self,
        name: &str,
        now: Timestamp,
        delay: Duration,
        hold: Option<String>,
    ) -> Option<Box<Finding>> {
        let (pid, exit, stderr) = self.last.as_ref()?;
        let starts = !self.needs.watched_only;
        let start = starts.then(|| Action::StartProcess { name: name.to_owned() });
        // The host's memory was used up: this one was only chosen.
        let oom = exit.oom.as_ref().is_some_and(|why| why.starts_with("the host"));
        let memory = ["memory", "swap", "memory_stall"].into_iter().filter(|_| oom);
        let memory = memory.map(|resource| Subject::Host(resource.to_owned()));
        let first = self.needs.after.iter().map(|other| Subject::Process(other.clone()));
        Some(Box::new(Finding {
            subject: subject(name),
            since: self.since.unwrap_or(now),
            summary: if *pid == 0 && !starts {
                "no process matches: Grace was not told how to start one".to_owned()
            } else {
                describe(*pid, exit)
            },
            measured: format!(
                "ended after {}{}",
                humantime::format_duration(Duration::from_millis(exit.ran_ms)),
                exit.max_rss_bytes
                    .map(|bytes| format!(", peak memory {:.1} MiB", bytes as f64 / f64::from(1 << 20)))
                    .unwrap_or_default()
            ),
            threshold: format!(
                "{} restarts in {}",
                self.policy.burst,
                humantime::format_duration(Duration::from_millis(self.policy.interval_ms))
            ),
            baseline: "running".into(),
            writer: exit.sender.clone(),
            noticed_by: None,
            evidence: stderr.iter().cloned().chain(self.lately(now)).collect(),
            remedy: start
                .into_iter()
                .chain([Action::FileTask {
                    title: match starts {
                        true => "Find out why a declared process keeps ending, and fix it".into(),
                        false => "Start a process that must run, or tell Grace its command".into(),
                    },
                    acceptance: "the process runs for 10 minutes and health_gap stays clear".into(),
                }])
                .collect(),
            delay,
            hold,
            depends_on: first.chain(memory).collect(),
        }))
    }
}

/// A number that is as good as any, and always the same for the same name and count (FNV-1a).
fn scatter(name: &str, count: u32) -> u64 {
    let bytes = name.bytes().chain(count.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
        >> 16
}

fn subject(name: &str) -> Subject {
    Subject::Process(name.to_owned())
}

/// How a process ended, in one phrase.
pub(super) fn describe(pid: u32, exit: &Exit) -> String {
    if pid == 0 {
        return "could not be started".to_owned();
    }
    let mut out = match (exit.code, exit.signal) {
        (Some(code), _) => format!("pid {pid} exited with code {code}"),
        (None, Some(signal)) => format!("pid {pid} was killed by {}", signal_name(signal)),
        (None, None) => format!("pid {pid} ended while Grace did not run, or unseen"),
    };
    if exit.core_dumped {
        out.push_str(", core dumped");
    }
    if let Some(why) = &exit.oom {
        out.push_str(&format!(", chosen by the out-of-memory killer: {why}"));
    } else if let Some(sender) = &exit.sender {
        out.push_str(&match sender.pid {
            0 => ", sent by the kernel".to_owned(),
            _ => format!(", sent by {}", who(sender)),
        });
    }
    out
}

/// `SIGKILL` for 9, and so on (signal(7), x86-64 and arm64).
fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}
