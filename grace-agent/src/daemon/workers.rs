//! Orders about processes: start, restart, stop, scale, shed and give back, and the commands of hooks.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use super::executor::{Executor, lock};
use crate::action::{Order, Shed};
use crate::actions::restart_process::{self, RestartError, Restarted};
use crate::actions::run_hook::{self, Arguments};
use crate::actions::shed_load::{self, Taken};
use crate::actions::start_process::{self, Adopted, Place, StartError, Started};
use crate::actions::stop_process::{self, How};
use crate::clock::Stopwatch;
use crate::config::{self, Hook, Process};
use crate::error_chain::chain;
use crate::event::{Event, Exit, Kind, Timestamp};
use crate::sources::processes::{Ending, pidfd_of};
use crate::sources::units::{Job, UnitState};
use crate::sources::{matching, ready};

/// How long replicas that were asked for may take until they run.
const SCALED: Duration = Duration::from_secs(10);

impl Executor {
    /// Where what is kept of processes lies.
    pub(super) fn place(&self) -> Place<'_> {
        Place { logs: &self.logs, running: &self.running, boot_id: &self.boot_id, cgroups: &self.cgroups }
    }

    /// The process `name` as it is to be started: it is told who it is and where to report to.
    fn spec(&self, name: &str) -> Result<Process, String> {
        let Some(mut process) = lock(&self.specs).get(name).cloned() else {
            return Err("not declared any more".to_owned());
        };
        for (variable, value) in &self.tells {
            process.env.entry(variable.clone()).or_insert_with(|| value.clone());
        }
        process.env.entry("GRACE_PROCESS".to_owned()).or_insert_with(|| name.to_owned());
        Ok(process)
    }

    pub(super) fn start(&self, name: &str) -> Result<String, String> {
        let process = self.spec(name)?;
        if let Some((pid, _)) = self.processes.running(name) {
            return Ok(format!("runs already as pid {pid}"));
        }
        if let Some(done) = self.look_for(&process) {
            return done;
        }
        if let Some(unit) = &process.unit {
            let started = self.unit(&process, unit, Job::Start);
            return self.begun(&process, started);
        }
        let started = start_process::start(&process, self.place());
        self.begun(&process, started)
    }

    /// Has systemd start the unit of `process`, unless it runs already.
    fn unit(&self, process: &Process, unit: &str, job: Job) -> Result<Started, StartError> {
        let state = match self.units.state(unit) {
            Ok(state) if job == Job::Start && state.active == "active" => Ok(state),
            Ok(_) => self.units.run(job, unit),
            Err(why) => Err(why),
        };
        let state = state.map_err(StartError::Unit)?;
        self.of_unit(process, &state)
            .ok_or_else(|| StartError::Unit(format!("{unit} is active and has no main process")))
    }

    /// The main process of a unit.
    fn of_unit(&self, process: &Process, state: &UnitState) -> Option<Started> {
        // Who it is said to be may have ended: then nobody is watched, and that is told.
        let pidfd = pidfd_of(state.main_pid).ok().filter(|_| state.main_pid > 1)?;
        Some(self.found(process, state.main_pid, pidfd))
    }

    /// Watches `process` where somebody else has started it. None: nobody has, or Grace starts it itself.
    pub(super) fn look_for(&self, process: &Process) -> Option<Result<String, String>> {
        let (pid, pidfd) = matching::find(&process.matches()?)?;
        Some(self.begun(process, Ok(self.found(process, pid, pidfd))))
    }

    fn found(&self, process: &Process, pid: u32, pidfd: std::os::fd::OwnedFd) -> Started {
        let [_, stderr] = start_process::log_files(&self.logs, &process.name);
        Started { pid, pidfd, stderr, cgroup: None }
    }

    /// Finds `process` where it runs already.
    pub(super) fn adopt(&self, process: &Process) -> Adopted {
        if let Some(unit) = &process.unit {
            let state = self.units.state(unit).ok().filter(|state| state.active == "active");
            return match state.and_then(|state| self.of_unit(process, &state)) {
                Some(started) => Adopted::Runs(started),
                None => Adopted::Never,
            };
        }
        match start_process::adopt(&process.name, self.place()) {
            Adopted::Runs(started) => Adopted::Runs(started),
            gone => match process.matches().and_then(|wanted| matching::find(&wanted)) {
                Some((pid, pidfd)) => Adopted::Runs(self.found(process, pid, pidfd)),
                None => gone,
            },
        }
    }

    /// Looks for processes that somebody else starts, and that do not run.
    pub(super) fn look_for_all(&self) {
        let missing: Vec<Process> = lock(&self.specs)
            .values()
            .filter(|p| (p.match_exe.is_some() || p.match_cmdline.is_some()) && p.command.is_empty())
            .filter(|p| self.processes.running(&p.name).is_none())
            .cloned()
            .collect();
        for process in missing {
            if let Some(Err(why)) = self.look_for(&process) {
                tracing::warn!(process = %process.name, %why, "was found");
            }
        }
    }

    pub(super) fn restart(&self, name: &str, judged: Timestamp) -> Result<String, String> {
        let process = self.spec(name)?;
        if let Some(unit) = &process.unit {
            let old = self.processes.running(name);
            if let Some((pid, _)) = old.filter(|(_, since)| *since > judged) {
                return Ok(format!("was started meanwhile and runs as pid {pid}"));
            }
            self.processes.expect_end(name, Ending::Restart);
            let started = self.unit(&process, unit, Job::Restart);
            return self.begun(&process, started);
        }
        if process.command.is_empty() {
            return Err("Grace was not told how to start it".to_owned());
        }
        match restart_process::restart(&self.processes, &process, judged, self.place()) {
            Ok(Restarted::Done(old, started)) => {
                let was = old.map(|pid| format!("pid {pid} was ended; ")).unwrap_or_default();
                self.begun(&process, Ok(started)).map(|now| format!("{was}{now}"))
            }
            Ok(Restarted::Meanwhile(pid)) => Ok(format!("was started meanwhile and runs as pid {pid}")),
            Err(RestartError::Start(err)) => self.begun(&process, Err(err)),
            Err(err) => Err(chain(&err)),
        }
    }

    /// A process was started, or could not be.
    fn begun(&self, process: &Process, started: Result<Started, StartError>) -> Result<String, String> {
        let name = process.name.as_str();
        match started {
            Ok(started) => {
                let pid = started.pid;
                *lock(&self.starts).entry(name.to_owned()).or_default() += 1;
                self.send(Kind::ProcessStarted { name: name.to_owned(), pid });
                if shed_load::taken(&self.running, name).is_some() {
                    // What was taken was the last one's.
                    shed_load::forget(&self.running, name);
                    self.send(Kind::LoadGivenBack { process: name.to_owned() });
                }
                self.watch(name, started)?;
                self.await_ready(process, pid);
                Ok(format!("runs as pid {pid}"))
            }
            Err(err) => {
                let why = chain(&err);
                // For the trigger this is an end like any other: it counts and backs off.
                self.send(Kind::ProcessExited {
                    name: name.to_owned(),
                    pid: 0,
                    exit: Exit::default(),
                    stderr_tail: vec![why.clone()],
                });
                Err(why)
            }
        }
    }

    /// Tells when `process`, which runs as `pid`, is ready, and ends it where it does not get ready. On a thread of its own:
    /// orders do not wait for it.
    fn await_ready(&self, process: &Process, pid: u32) {
        let Some(wanted) = process.ready() else { return };
        let (processes, events) = (Arc::clone(&self.processes), self.events.clone());
        let (name, patience, how) = (process.name.clone(), process.ready_timeout.get(), How::of(process));
        let wait = move || {
            let began = Stopwatch::start();
            // Gone: then its end is told.
            while let Some(said) = processes.is_ready(&name, pid) {
                if ready::accepts(&wanted).unwrap_or(said) {
                    let after_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                    let kind = Kind::ProcessReady { name, pid, after_ms };
                    // Fails only when the engine has ended, with the agent.
                    drop(events.send(Event { at: crate::clock::boottime(), kind }));
                    return;
                }
                if began.elapsed() > patience {
                    if let Err(err) = stop_process::stop(&processes, &name, how, Ending::NotReady) {
                        tracing::error!(process = %name, why = %chain(&err), "is not ready");
                    }
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        if let Err(err) = std::thread::Builder::new().name("grace-ready".into()).spawn(wait) {
            tracing::error!(process = %process.name, %err, "nobody waits until it is ready");
        }
    }

    /// Watches a process that runs.
    pub(super) fn watch(&self, name: &str, started: Started) -> Result<(), String> {
        let pid = started.pid;
        self.processes
            .watch(name, started)
            .map_err(|err| format!("runs as pid {pid}, but cannot be watched: {err}"))
    }

    /// Ends a declared process.
    pub(super) fn stop(&self, name: &str) -> Result<(), String> {
        let process = lock(&self.specs).get(name).cloned().ok_or("not declared any more")?;
        self.end(&process)
    }

    fn end(&self, process: &Process) -> Result<(), String> {
        let Some(unit) = &process.unit else {
            return stop_process::stop(&self.processes, &process.name, How::of(process), Ending::Stop)
                .map(drop)
                .map_err(|err| chain(&err));
        };
        self.processes.expect_end(&process.name, Ending::Stop);
        self.units.run(Job::Stop, unit).map(drop)
    }

    /// The process `name` and its replicas, as far as they are declared, the last one first.
    pub(super) fn replicas_of(&self, name: &str) -> Vec<String> {
        let of = format!("{name}@");
        let specs = lock(&self.specs);
        let mut names: Vec<(u32, String)> = specs
            .keys()
            .filter_map(|other| Some((other.strip_prefix(&of)?.parse().ok()?, other.clone())))
            .collect();
        names.sort_unstable();
        names
            .into_iter()
            .rev()
            .map(|(_, name)| name)
            .chain(specs.get_key_value(name).map(|(k, _)| k.clone()))
            .collect()
    }

    /// Owns the one process `name` no more, which is ended or runs on.
    pub(super) fn disown(&self, name: &str, end: bool) -> Result<(), String> {
        let Some(process) = lock(&self.specs).remove(name) else { return Ok(()) };
        self.send(Kind::ProcessForgotten { name: name.to_owned() });
        let taken = shed_load::taken(&self.running, name);
        // What somebody else started, and only Grace watched, is his. A replica was started for Grace.
        let own = !process.command.is_empty() || (process.unit.is_some() && name.contains('@'));
        let stopped = if end && own { self.end(&process) } else { Ok(()) };
        if let Some(taken) = taken.filter(|_| self.processes.running(name).is_some())
            && let Err(err) = shed_load::give_back(&self.processes, name, &taken)
        {
            tracing::error!(process = %name, why = %chain(&err), "what was shed cannot be given back");
        }
        shed_load::forget(&self.running, name);
        self.followed.forget(name);
        start_process::forget(name, &self.running);
        if !(end && own) {
            self.processes.unwatch(name);
        }
        stopped
    }

    pub(super) fn shed(&self, name: &str, step: Shed) -> Result<String, String> {
        let why = |err: shed_load::ShedError| chain(&err);
        shed_load::may(&self.processes, name).map_err(why)?;
        shed_load::note(&self.running, name, step).map_err(why)?;
        // Said first: that it makes no progress from now on is no news.
        self.send(Kind::LoadShed { process: name.to_owned(), step });
        let done = match step {
            Shed::Notify => {
                let signal = lock(&self.specs).get(name).and_then(|p| p.shed_signal.clone());
                shed_load::notify(&self.processes, name, signal.as_deref()).map_err(why)?
            }
            Shed::Throttle => shed_load::throttle(&self.processes, name).map_err(why)?,
            Shed::Freeze => shed_load::freeze(&self.processes, name).map_err(why)?,
            Shed::Terminate => {
                // A stopped process would not hear that it shall end.
                shed_load::give_back(&self.processes, name, &Taken::default()).map_err(why)?;
                self.stop(name)?;
                "has ended".to_owned()
            }
        };
        Ok(format!("{name} {done}, until there is room"))
    }

    pub(super) fn give_back(&self, name: &str) -> Result<String, String> {
        let Some(taken) = shed_load::taken(&self.running, name) else {
            return Ok("nothing was taken".to_owned());
        };
        let done = match self.processes.running(name) {
            Some(_) => shed_load::give_back(&self.processes, name, &taken)
                .map(|()| "runs on")
                .map_err(|err| chain(&err))?,
            None if taken.terminated => self.start(name).map(|_runs| "runs again")?,
            None => "does not run",
        };
        shed_load::forget(&self.running, name);
        self.send(Kind::LoadGivenBack { process: name.to_owned() });
        Ok(format!("{name} {done}"))
    }

    /// So many of `name` are to run, as was noted when that was changed last.
    pub(super) fn noted_scale(&self, name: &str, base: u32, most: u32) -> u32 {
        let noted = fs::read_to_string(self.running.join(format!("{name}.scale"))).ok();
        noted.and_then(|text| text.trim().parse().ok()).unwrap_or(base).clamp(base, most.max(base))
    }

    fn note_scale(&self, name: &str, to: u32, base: u32) -> Result<(), String> {
        let path = self.running.join(format!("{name}.scale"));
        let write = || {
            if to == base {
                return match fs::remove_file(&path) {
                    Err(err) if err.kind() != std::io::ErrorKind::NotFound => Err(err),
                    _ => Ok(()),
                };
            }
            fs::create_dir_all(&self.running)?;
            let temp = self.running.join(format!(".{name}.scale"));
            fs::write(&temp, to.to_string())?;
            fs::rename(temp, &path)
        };
        write().map_err(|err| format!("cannot note it in {}: {err}", path.display()))
    }

    /// Forgets how many of `name` were to run.
    pub(super) fn forget_scale(&self, name: &str) {
        // There may be nothing to forget.
        drop(fs::remove_file(self.running.join(format!("{name}.scale"))));
    }

    /// Lets `to` of `name` run. For a firing never less than run now, else never more: what was judged may be over.
    pub(super) fn scale(&self, name: &str, to: u32, order: &Order) -> Result<String, String> {
        let _one_at_a_time = lock(&self.scaling);
        let up = order.firing.is_some();
        let bound = |now: u32, base: u32, most: u32| {
            if up { to.max(now) } else { to.min(now) }.clamp(base, most.max(base))
        };
        if let Some(hook) = lock(&self.hooks).get(name).cloned() {
            let now = self.noted_scale(name, hook.replicas, hook.most());
            let to = bound(now, hook.replicas, hook.most());
            let said = self.run(&hook, &Arguments { replicas: Some(to), ..Arguments::default() })?;
            self.note_scale(name, to, hook.replicas)?;
            self.send(Kind::Scaled { name: name.to_owned(), to });
            return Ok(format!("{to} instead of {now}: {said}"));
        }
        let Some(template) = lock(&self.templates).get(name).cloned() else {
            return Err("not declared any more".to_owned());
        };
        let now = self.noted_scale(name, template.replicas, template.most());
        let to = bound(now, template.replicas, template.most());
        // Noted first: a next agent must know what it finds.
        self.note_scale(name, to, template.replicas)?;
        for index in now + 1..=to {
            super::declare_one(self, template.replica(index));
        }
        let mut failed = Vec::new();
        for index in (to + 1..=now).rev() {
            failed.extend(self.disown(&template.replica(index).name, true).err());
        }
        self.send(Kind::Scaled { name: name.to_owned(), to });
        let began = Stopwatch::start();
        let missing =
            || (now + 1..=to).find(|i| self.processes.running(&template.replica(*i).name).is_none());
        while let Some(index) = missing() {
            if began.elapsed() > SCALED {
                failed.push(format!("{} does not run", template.replica(index).name));
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if failed.is_empty() {
            Ok(format!("{to} of {name} run instead of {now}"))
        } else {
            Err(failed.join("; "))
        }
    }

    /// Runs the hook `name` for the firing of `order`.
    pub(super) fn hook(&self, name: &str, trigger: &str, order: &Order) -> Result<String, String> {
        let Some(hook) = lock(&self.hooks).get(name).cloned() else {
            return Err("not declared any more".to_owned());
        };
        let arguments = Arguments {
            replicas: Some(hook.replicas),
            trigger: trigger.to_owned(),
            subject: order.subject.to_string(),
            firing: order.firing.map(|id| id.to_string()).unwrap_or_default(),
        };
        self.run(&hook, &arguments).map(|said| format!("{name} {said}"))
    }

    fn run(&self, hook: &Hook, arguments: &Arguments) -> Result<String, String> {
        run_hook::run(hook, arguments, &self.cgroups).map_err(|err| format!("{}: {}", hook.name, chain(&err)))
    }

    /// Owns the hooks of `config` from now on.
    pub(super) fn set_hooks(&self, hooks: &[config::Hook]) {
        let mut known = lock(&self.hooks);
        let gone: Vec<Hook> =
            known.values().filter(|old| !hooks.iter().any(|hook| hook.name == old.name)).cloned().collect();
        *known = hooks.iter().map(|hook| (hook.name.clone(), hook.clone())).collect();
        drop(known);
        for hook in gone.into_iter().filter(Hook::scales) {
            let base = hook.replicas;
            self.send(Kind::ScaleDeclared { name: hook.name, base, max: base, now: base });
        }
        for hook in hooks.iter().filter(|hook| hook.scales()) {
            let (base, max) = (hook.replicas, hook.most());
            let now = self.noted_scale(&hook.name, base, max);
            self.send(Kind::ScaleDeclared { name: hook.name.clone(), base, max, now });
        }
    }
}
