//! The agent: joins every room. Threads and channels stand here, judgement does not.
//!
//! Threads: `grace-ring` reads the probes · `grace-files` looks at files · `grace-processes` waits on pidfds ·
//! `grace-engine` judges · `grace-journal` makes it durable · `grace-upkeep` keeps time · tokio serves the socket and
//! its blocking pool carries out orders.

mod code;
mod control;
mod executor;
mod gate;
mod judge;
mod upkeep;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast;

use crate::actions::restore_file;
use crate::actions::start_process::{self, Adopted};
use crate::api::server;
use crate::api::view::{ConfigView, CostView, FiringView, Health, LatencyView, ProbeView, SourceView};
use crate::cli::run::RunOptions;
use crate::cli::show;
use crate::clock::{self, Stopwatch};
use crate::config::{Config, Process};
use crate::engine::Engine;
use crate::error_chain::chain;
use crate::event::{Event, Kind};
use crate::file_state::ContentKind;
use crate::host;
use crate::journal::Journal;
use crate::known::Known;
use crate::prompt::prompt;
use crate::recording::Recorder;
use crate::safe_path::own_name;
use crate::snapshots::{Snapshot, Store, StoreError, Take};
use crate::sources::ebpf;
use crate::sources::ebpf::reader::Reader;
use crate::sources::ebpf::self_test;
use crate::sources::processes::Processes;
use crate::sources::{files, gpu};
use crate::state_dir::StateDir;
use code::Code;
use control::Agent;
use executor::{Executor, lock};
use judge::Judge;
use upkeep::Upkeep;

/// Events between sources and engine. A full channel makes the sources wait; what the kernel then drops it counts.
const CHANNEL: usize = 8192;

/// Runs the agent until it is told to stop.
pub fn run(options: RunOptions) -> anyhow::Result<()> {
    let started = Stopwatch::start();
    let since = clock::wall_rfc3339();
    let (mut config, config_file) = Config::load(options.config.as_deref())?;
    if let Some(mode) = options.mode {
        config.mode = mode;
    }
    let state = StateDir::open(&options.state_dir)?;
    // Before any thread: the umask that makes the socket private is the whole program's.
    let listener = server::bind(&options.socket)?;
    let result = serve(&options, config, config_file, state, listener, started, since);
    // Only what this agent bound: the lock on the state folder is still held.
    drop(std::fs::remove_file(&options.socket));
    result
}

fn serve(
    options: &RunOptions,
    config: Config,
    config_file: Option<PathBuf>,
    state: StateDir,
    listener: std::os::unix::net::UnixListener,
    started: Stopwatch,
    since: String,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(64)
        .thread_name("grace-pool")
        .on_thread_start(prompt)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let boot_id = host::boot_id();
    let (events, inbox) = sync_channel::<Event>(CHANNEL);
    let (firings, _) = broadcast::channel::<FiringView>(1024);

    // Loading the probes takes most of the start: the rest is done beside it.
    let pin = (config.probes.pin && rustix::process::geteuid().is_root())
        .then(|| state.path().canonicalize())
        .transpose()
        .context("the state folder")?;
    let slow_rate = config.probes.slow_rate;
    let loading = std::thread::Builder::new()
        .name("grace-load".into())
        .spawn(move || ebpf::load(ebpf::Options { pin: pin.as_deref(), slow_rate }))?;
    let store = Arc::new(Store::open(&state)?);
    let tell = firings.clone();
    let journal = Arc::new(Journal::open(state.db()?, state.db()?, move |view| {
        // Nobody listens: then nobody misses it.
        drop(tell.send(view));
    })?);
    let next_firing = journal.next_firing()?;
    journal.close_old(next_firing)?;
    let leftovers = recover(&store, &state, &journal);
    let owned = own_configured(&config, &store, &journal)?;
    let (probes, rings, probe_views) = match loading.join() {
        Ok(Ok((probes, rings))) => {
            let probes = Arc::new(probes);
            (Some(Arc::clone(&probes)), Some(rings), probes.views())
        }
        Ok(Err(err)) => {
            tracing::warn!(why = %chain(&err), "no kernel probes: Grace works on, and sees less");
            (None, None, ebpf::unsupported(&err))
        }
        Err(_) => anyhow::bail!("loading the probes panicked"),
    };
    let reader = match (&probes, rings) {
        (Some(probes), Some(rings)) => {
            let reader =
                Reader::start(rings, probes, events.clone()).context("cannot read the probes' rings")?;
            self_test::quick(probes, &reader, state.path());
            Some(reader)
        }
        _ => None,
    };
    let ready_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);

    let sweep = config.triggers.config_drift.sweep.get();
    let (files, files_thread) =
        files::start(probes.clone(), sweep, events.clone()).context("cannot start to watch files")?;
    if let Some(reader) = &reader {
        reader.tell(files.clone());
    }
    let processes = Processes::start(probes.clone(), reader.clone(), events.clone())
        .context("cannot start to watch processes")?;
    if let Some(reader) = &reader {
        reader.tell_processes(Arc::clone(&processes));
    }
    let known = Arc::new(Known::open(state.db()?)?);
    let code = Code::start(known, Arc::clone(&journal), events.clone());
    let code = Arc::new(code.context("cannot start to watch code")?);
    let executor = Arc::new(Executor {
        store: Arc::clone(&store),
        journal: Arc::clone(&journal),
        files: files.clone(),
        processes: Arc::clone(&processes),
        specs: Mutex::new(BTreeMap::new()),
        starts: Mutex::new(BTreeMap::new()),
        quarantine: state.quarantine(),
        logs: state.logs(),
        running: state.path().join("running"),
        boot_id: boot_id.clone(),
        events: events.clone(),
        code: Arc::clone(&code),
    });

    let engine = Engine::new(&config);
    let duties = Arc::new(Mutex::new(engine.duties()));
    let reloaded = Arc::new(Mutex::new(None));
    let stop = Arc::new(AtomicBool::new(false));
    let judge = Judge {
        engine,
        inbox,
        recorder: Recorder::new(&state.events(), &config),
        journal: Arc::clone(&journal),
        executor: Arc::clone(&executor),
        duties: Arc::clone(&duties),
        pool: runtime.handle().clone(),
        reloaded: Arc::clone(&reloaded),
    };
    executor.send(Kind::Start { boot_id, version: env!("CARGO_PKG_VERSION").to_owned(), next_firing });
    executor.send(Kind::Mode { mode: config.mode });
    let engine_stop = Arc::clone(&stop);
    let engine_thread = std::thread::Builder::new().name("grace-engine".into()).spawn(move || {
        prompt();
        judge.run(&engine_stop);
    })?;
    journal.note("start", format!("grace {} started, mode {:?}", env!("CARGO_PKG_VERSION"), config.mode));
    for line in leftovers {
        journal.note("recovery", line);
    }
    for note in probes.iter().flat_map(|probes| probes.notes()) {
        journal.note("probes", note.clone());
    }
    for snapshot in owned {
        executor.own(&snapshot.path, snapshot.known);
    }
    for process in &config.process {
        declare(&executor, process.clone());
    }
    code.set(&config, None);

    let cost = Arc::new(Mutex::new(CostView { rss_bytes: host::rss_bytes(), ..CostView::default() }));
    let latency = Arc::new(Mutex::new(LatencyView::default()));
    let probe_settings = Arc::new(Mutex::new(config.probes.clone()));
    let upkeep = Upkeep {
        kernel: probes.clone().zip(reader.clone()),
        executor: Arc::clone(&executor),
        cost: Arc::clone(&cost),
        latency: Arc::clone(&latency),
        settings: Arc::clone(&probe_settings),
        stop: Arc::clone(&stop),
        scratch: state.path().to_owned(),
    };
    let upkeep_thread =
        std::thread::Builder::new().name("grace-upkeep".into()).spawn(move || upkeep.run())?;
    let probes_at_end = probes.clone();
    let agent = Arc::new(Agent {
        since,
        ready_us,
        host: host::describe(),
        probes,
        probe_views,
        reader,
        latency,
        probe_settings,
        gpu: Mutex::new(SourceView {
            name: "gpu".into(),
            state: Health::Off,
            detail: "asking the driver".into(),
        }),
        journal: Arc::clone(&journal),
        executor: Arc::clone(&executor),
        duties,
        firings: firings.clone(),
        config: Mutex::new(config),
        config_view: Mutex::new(ConfigView { file: config_file, refused: None }),
        cost,
    });
    let inventory = Arc::clone(&agent);
    runtime.spawn_blocking(move || *lock(&inventory.gpu) = gpu::inventory());
    trim_memory();

    let again = runtime.block_on(until_told(options, &agent, listener, &reloaded))?;

    // In the order of the flow: no new facts, then what was judged becomes durable.
    stop.store(true, Ordering::Release);
    files.stop();
    code.stop();
    executor.send(Kind::Tick);
    for thread in [files_thread, engine_thread] {
        if thread.join().is_err() {
            tracing::error!("a thread panicked");
        }
    }
    upkeep_thread.thread().unpark();
    // A stopped agent leaves nothing in the kernel. One that is stopped to be started again leaves its probes.
    if !again && let Some(Err(err)) = probes_at_end.map(|probes| probes.unpin()) {
        tracing::error!(%err, "the probes' pins cannot be taken away: they run on");
    }
    journal.note("stop", "grace stopped".to_owned());
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    journal.close();
    let left: Vec<String> = lock(&executor.specs)
        .keys()
        .filter_map(|name| executor.processes.running(name).map(|(pid, _)| format!("{name} (pid {pid})")))
        .collect();
    if !left.is_empty() && !options.quiet {
        print(&format!("left running: {}; the next `grace run` adopts them\n", left.join(", ")));
    }
    Ok(())
}

/// Serves the socket and the terminal until a signal ends it. True: the agent is to be started again (SIGUSR1, systemd's
/// RestartKillSignal=).
async fn until_told(
    options: &RunOptions,
    agent: &Arc<Agent>,
    listener: std::os::unix::net::UnixListener,
    reloaded: &Mutex<Option<Config>>,
) -> anyhow::Result<bool> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let (closing, closed) = tokio::sync::oneshot::channel::<()>();
    let control: Arc<dyn crate::api::control::Control> = Arc::<Agent>::clone(agent);
    let owner = rustix::process::geteuid().as_raw();
    let server = tokio::spawn(server::serve(listener, control, owner, async move {
        // Dropped or sent: both mean the end.
        drop(closed.await);
    }));
    let mut follow = agent.firings.subscribe();
    if !options.quiet {
        let status = crate::api::control::Control::status(&**agent);
        print(&show::boot_picture(&status, options.color));
    }
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut hup = signal(SignalKind::hangup())?;
    let mut usr1 = signal(SignalKind::user_defined1())?;
    let mut again = false;
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = usr1.recv() => { again = true; break; }
            _ = hup.recv() => reload(options, agent, reloaded),
            firing = follow.recv() => match firing {
                Ok(firing) if !options.quiet && show::worth_a_line(&firing) => print(&format!("{}\n", show::firing_line(&firing, options.color))),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(n)) if !options.quiet => {
                    print(&format!("… {n} changes not shown: `grace firings` has them\n"));
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => break,
            },
        }
    }
    let _ = closing.send(());
    // Streams end now, answers under way within two seconds.
    drop(server.await);
    Ok(again)
}

/// SIGHUP: the new configuration where it is good, else the old one and why.
fn reload(options: &RunOptions, agent: &Agent, reloaded: &Mutex<Option<Config>>) {
    let (mut config, file) = match Config::load(options.config.as_deref()) {
        Ok(loaded) => loaded,
        Err(err) => {
            let why = chain(&err);
            tracing::error!(%why, "configuration refused; the last good one stays in force");
            agent.journal.note("config", format!("reload refused: {why}"));
            lock(&agent.config_view).refused = Some(why);
            return;
        }
    };
    if let Some(mode) = options.mode {
        config.mode = mode;
    }
    let executor = &agent.executor;
    executor.send(Kind::Mode { mode: config.mode });
    match own_configured(&config, &executor.store, &agent.journal) {
        Ok(owned) => owned.into_iter().for_each(|snapshot| executor.own(&snapshot.path, snapshot.known)),
        Err(err) => tracing::error!(why = %chain(&err), "the owned files cannot be listed"),
    }
    let gone: Vec<String> = {
        let old = lock(&agent.config);
        let kept = |name: &str| config.process.iter().any(|p| p.name == name);
        old.process.iter().map(|p| p.name.clone()).filter(|name| !kept(name)).collect()
    };
    for name in gone {
        // Not owned any more is not the same as not wanted any more: it runs on.
        lock(&executor.specs).remove(&name);
        start_process::forget(&name, &executor.running);
        executor.send(Kind::ProcessForgotten { name });
    }
    for process in &config.process {
        declare(executor, process.clone());
    }
    let before = lock(&agent.config).clone();
    executor.code.set(&config, Some(&before));
    *lock(&agent.probe_settings) = config.probes.clone();
    agent.journal.note("config", "reloaded".to_owned());
    *lock(&agent.config_view) = ConfigView { file, refused: None };
    *lock(reloaded) = Some(config.clone());
    *lock(&agent.config) = config;
}

/// Takes a snapshot of every `[[file]]` that has none yet, and returns all that is owned.
fn own_configured(config: &Config, store: &Store, journal: &Journal) -> Result<Vec<Snapshot>, StoreError> {
    for file in &config.file {
        let kind = if file.secret { ContentKind::Secret } else { ContentKind::Config };
        let result = match store.current_of(&file.path)? {
            Some(snapshot) => store.describe(snapshot.id, kind, &file.writers),
            None => {
                let take = Take { kind, writers: file.writers.clone(), reason: "config file".to_owned() };
                own_name(&file.path, Path::new("/"))
                    .map_err(|err| chain(&err))
                    .and_then(|path| store.take(&path, take).map_err(|err| chain(&err)))
                    .map(drop)
                    .or_else(|why| {
                        tracing::warn!(path = %file.path.display(), %why, "cannot be owned");
                        journal.note("config", format!("{} cannot be owned: {why}", file.path.display()));
                        Ok(())
                    })
            }
        };
        result?;
    }
    store.current()
}

/// Finishes or rolls back what an earlier agent left half done.
fn recover(store: &Store, state: &StateDir, journal: &Journal) -> Vec<String> {
    let owned: Vec<PathBuf> = store.current().unwrap_or_default().into_iter().map(|s| s.path).collect();
    let mut lines = restore_file::recover(store, &state.quarantine(), &owned);
    match journal.unfinished() {
        Ok(unfinished) => lines.extend(unfinished),
        Err(err) => tracing::warn!(why = %chain(&err), "the journal does not tell what was under way"),
    }
    lines
}

/// Owns `process` from now on: adopts it where an earlier agent started it.
fn declare(executor: &Executor, process: Process) {
    let name = process.name.clone();
    let policy = process.restart_policy();
    if lock(&executor.specs).insert(name.clone(), process).is_some() {
        executor.send(Kind::ProcessDeclared {
            name: name.clone(),
            policy,
            pid: executor.processes.running(&name).map(|r| r.0),
        });
        return;
    }
    match start_process::adopt(&name, &executor.logs, &executor.running, &executor.boot_id) {
        Adopted::Runs(started) => {
            executor.send(Kind::ProcessDeclared { name: name.clone(), policy, pid: Some(started.pid) });
            if let Err(why) = executor.watch(&name, started.pid, started.pidfd, started.stderr) {
                tracing::error!(process = %name, %why, "adopted");
            }
        }
        Adopted::Ended(pid) => {
            executor.send(Kind::ProcessDeclared { name: name.clone(), policy, pid: Some(pid) });
            let exit = executor.processes.ended_unseen(pid);
            executor.send(Kind::ProcessExited { name, pid, exit, stderr_tail: Vec::new() });
        }
        Adopted::Never => executor.send(Kind::ProcessDeclared { name, policy, pid: None }),
    }
}

/// Gives memory that the start needed (the kernel's type information) back.
fn trim_memory() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]
    // SAFETY: malloc_trim(3) may be called at any time from any thread and takes no pointer.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// To the terminal. A closed one is no reason to stop guarding the host.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Reasons why the agent sees or does less than it should.
fn degraded(probes: &[ProbeView], sources: &[SourceView]) -> Vec<String> {
    let probes = probes
        .iter()
        .filter(|p| matches!(p.state, Health::Degraded | Health::Unsupported))
        .map(|p| format!("probe {}: {}", p.name, p.why.as_deref().unwrap_or("not attached")));
    let sources = sources
        .iter()
        .filter(|s| matches!(s.state, Health::Degraded | Health::Unsupported))
        .map(|s| format!("source {}: {}", s.name, s.detail));
    probes.chain(sources).collect()
}
