//! The agent: joins every room. Threads and channels stand here, judgement does not.
//!
//! Threads: `grace-ring` reads the probes · `grace-files` looks at files · `grace-processes` waits on pidfds ·
//! `grace-records` reads what applications say · `grace-logs`, `grace-kmsg`
//! and `grace-journald` look for errors · `grace-engine` judges · `grace-journal` makes it durable · `grace-upkeep` keeps time · tokio serves the socket and
//! its blocking pool carries out orders.

mod boot_scan;
mod canaries;
mod code;
mod control;
mod executor;
mod filing;
mod gate;
mod gauges;
mod judge;
mod models;
mod owning;
mod pauses;
mod scrub;
mod store;
mod supervisor;
mod upkeep;
mod workers;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast;

use crate::actions::own_cgroup::Cgroups;
use crate::actions::restore_file;
use crate::actions::shed_load;
use crate::actions::start_process::Adopted;
use crate::api::listen;
use crate::api::server;
use crate::api::view::{
    ConfigView, CostView, FiringView, Health, LatencyView, ProbeView, ScanView, SourceView,
};
use crate::cli::run::RunOptions;
use crate::cli::show;
use crate::clock::{self, Stopwatch};
use crate::config::{self, Config, Process};
use crate::confine;
use crate::endure;
use crate::engine::Engine;
use crate::error_chain::chain;
use crate::event::{Event, Kind, RestartPolicy};
use crate::firing::State;
use crate::host;
use crate::journal::Journal;
use crate::known::Known;
use crate::prompt::prompt;
use crate::recording::Recorder;
use crate::sinks::{Sinks, Surroundings};
use crate::snapshots::Store;
use crate::sources::ebpf;
use crate::sources::ebpf::reader::Reader;
use crate::sources::ebpf::self_test;
use crate::sources::files;
use crate::sources::gpu::Gpus;
use crate::sources::journald::Journald;
use crate::sources::kmsg::Kmsg;
use crate::sources::logs::Logs;
use crate::sources::processes::Processes;
use crate::sources::records::{Records, Socket};
use crate::sources::round::Rounds;
use crate::sources::units::Units;
use crate::sources::weights_scrub::WeightsScrub;
use crate::state_dir::StateDir;
use crate::tasks::Queue;
use crate::triggers;
use crate::weights::hash::Progress;
use boot_scan::BootScan;
use code::Code;
use control::Agent;
use executor::{Executor, lock};
use filing::Desk;
use gauges::Latest;
use judge::Judge;
use models::Models;
use owning::{Owned, own_configured};
use scrub::Scrub;
use supervisor::{Supervisor, Watchdog};
use upkeep::Upkeep;

/// Events between sources and engine. A full channel makes the sources wait; what the kernel then drops it counts.
const CHANNEL: usize = 8192;

/// The datagram socket, beside the other one.
const DATAGRAMS: &str = "grace.dgram";

/// Runs the agent until it is told to stop.
pub fn run(options: RunOptions) -> anyhow::Result<()> {
    let started = Stopwatch::start();
    // Before any thread: what a thread gives up, only those that it starts give up with it.
    if let Err(err) = confine::agent() {
        tracing::warn!(why = %chain(&err), "goes on with all that it was started with");
    }
    if let Err(err) = endure::chosen_last()
        && rustix::process::geteuid().is_root()
    {
        tracing::warn!(%err, "the kernel may choose the agent where memory runs out");
    }
    let supervisor = Supervisor::from_env();
    let since = clock::wall_rfc3339();
    let (mut config, config_file) = Config::load(options.config.as_deref())?;
    if let Some(mode) = options.mode {
        config.mode = mode;
    }
    let state = StateDir::open(&options.state_dir)?;
    // Before any thread: the umask that makes the socket private is the whole program's.
    let listener = server::bind(&options.socket)?;
    let start = Start { started, since, supervisor };
    let result = serve(&options, config, config_file, state, listener, start);
    // Only what this agent bound: the lock on the state folder is still held.
    drop(std::fs::remove_file(&options.socket));
    result
}

/// How the agent began.
struct Start {
    started: Stopwatch,
    since: String,
    supervisor: Supervisor,
}

fn serve(
    options: &RunOptions,
    config: Config,
    config_file: Option<PathBuf>,
    state: StateDir,
    listener: std::os::unix::net::UnixListener,
    start: Start,
) -> anyhow::Result<()> {
    let Start { started, since, supervisor } = start;
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
    let datagrams = Socket::bind(&options.socket.with_file_name(DATAGRAMS));
    let store = Arc::new(Store::open(&state)?);
    let tell = firings.clone();
    let journal = Arc::new(Journal::open(state.db()?, state.db()?, move |view| {
        // Nobody listens: then nobody misses it.
        drop(tell.send(view));
    })?);
    let next_firing = journal.next_firing()?;
    journal.close_old(next_firing)?;
    let leftovers = recover(&store, &state, &journal);
    let Owned { files: owned, folders } = own_configured(&config, &store, &journal)?;
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
    let (files, files_threads) =
        files::start(probes.clone(), sweep, store.manifests().clone(), events.clone())
            .context("cannot start to watch files")?;
    let (weights_scrub, weights_scrub_thread) =
        WeightsScrub::start(config.weights.scrub_mib_s, files.clone(), store.manifests().clone())
            .context("cannot start to scrub weights")?;
    if let Some(reader) = &reader {
        reader.tell(files.clone());
    }
    let processes = Processes::start(probes.clone(), reader.clone(), events.clone())
        .context("cannot start to watch processes")?;
    if let Some(reader) = &reader {
        reader.tell_processes(Arc::clone(&processes));
    }
    let records = Records::start(datagrams, Arc::clone(&processes), events.clone())
        .context("cannot start to read records")?;
    let note = state.path().canonicalize().context("the state folder")?.join("log-places.json");
    let (followed, logs_thread) = Logs::start(note, events.clone()).context("cannot start to follow logs")?;
    let feed = &config.triggers.error_feed;
    let (kmsg, kmsg_thread) =
        Kmsg::start(feed.kmsg, config.gpu.injected, Arc::clone(&processes), events.clone())
            .context("cannot start to follow the kernel's messages")?;
    let (journald, journald_thread) =
        Journald::start(feed.journald, events.clone()).context("cannot start to follow the journal")?;
    let gpus = Gpus::start(config.gpu.clone(), Arc::clone(&processes), events.clone())
        .context("cannot start to watch GPUs")?;
    let known = Arc::new(Known::open(state.db()?)?);
    let known_answers = Arc::clone(&known);
    let code = Code::start(known, Arc::clone(&journal), events.clone());
    let code = Arc::new(code.context("cannot start to watch code")?);
    let tasks = Arc::new(Queue::open(state.db()?, &boot_id, config.tasks.clone())?);
    let around = host::describe();
    let sinks = Arc::new(Sinks::new(Surroundings {
        queue: Arc::clone(&tasks),
        host: around.get("name").cloned().unwrap_or_default(),
        cgroups: Cgroups::open(state.path()),
        state: state.path().to_owned(),
    }));
    let desk = Desk::new(task_facts(&around, &boot_id), Arc::clone(&sinks));
    let http = listen::bind(&config.http, state.path())?;
    let executor = Arc::new(Executor {
        store: Arc::clone(&store),
        journal: Arc::clone(&journal),
        files: files.clone(),
        processes: Arc::clone(&processes),
        followed: Arc::clone(&followed),
        specs: Mutex::new(BTreeMap::new()),
        templates: Mutex::new(BTreeMap::new()),
        hooks: Mutex::new(BTreeMap::new()),
        scaling: Mutex::new(()),
        cgroups: Cgroups::open(state.path()),
        units: Units::new(runtime.handle().clone()),
        starts: Mutex::new(BTreeMap::new()),
        quiet: Mutex::new(None),
        quarantine: state.quarantine(),
        // By its real name: links on the way to a log are not followed.
        logs: state.logs().canonicalize().context("the folder of captured output")?,
        running: state.path().join("running"),
        boot_id: boot_id.clone(),
        events: events.clone(),
        tells: tells(&options.socket, records.path()),
        code: Arc::clone(&code),
        folders: Mutex::new(folders.clone()),
        hard_links: Mutex::new(config.snapshots.hard_links),
        models: Models::default(),
        canaries: Arc::default(),
        hashing: Progress::default(),
        tasks,
        desk,
    });
    executor.desk.set(&config);
    executor.models.set(&config, &journal);

    let engine = Engine::new(&config);
    let duties = Arc::new(Mutex::new(engine.duties()));
    let notes = Arc::new(Mutex::new(BTreeMap::new()));
    let judged = judge::Judged::default();
    let reloaded = Arc::new(Mutex::new(None));
    let stop = Arc::new(AtomicBool::new(false));
    let judge = Judge {
        engine,
        inbox,
        recorder: Recorder::new(&state.events(), &config),
        journal: Arc::clone(&journal),
        executor: Arc::clone(&executor),
        judged: Arc::clone(&judged),
        duties: Arc::clone(&duties),
        notes: Arc::clone(&notes),
        pool: runtime.handle().clone(),
        reloaded: Arc::clone(&reloaded),
    };
    executor.send(Kind::Start { boot_id, version: env!("CARGO_PKG_VERSION").to_owned(), next_firing });
    let known = learned(&journal);
    known.into_iter().for_each(|kind| executor.send(kind));
    executor.send(Kind::Mode { mode: config.mode });
    pauses::recall(&executor);
    pauses::check_quiet(&executor, &config.policy.quiet);
    declare_work(&executor, &Config::default(), &config);
    let engine_stop = Arc::clone(&stop);
    let engine_thread = std::thread::Builder::new().name("grace-engine".into()).spawn(move || {
        prompt();
        judge.run(&engine_stop);
    })?;
    executor.send(Kind::ErrorSource {
        source: "api".to_owned(),
        process: None,
        works: true,
        count: None,
        window_ms: None,
    });
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
    files.watch_folders(folders);
    models::declare(&executor);
    executor.set_hooks(&config.hook);
    for process in &config.process {
        declare(&executor, process.clone());
    }
    code.set(&config, None);
    let canary_thread =
        canaries::start(Arc::clone(&executor), known_answers).context("cannot start to ask canaries")?;

    let cost = Arc::new(Mutex::new(CostView { rss_bytes: host::rss_bytes(), ..CostView::default() }));
    let latency = Arc::new(Mutex::new(LatencyView::default()));
    let probe_settings = Arc::new(Mutex::new(config.probes.clone()));
    let quiet = Arc::new(Mutex::new(config.policy.quiet.clone()));
    let (rounds, blind) = (Rounds::default(), Arc::new(Mutex::new(None)));
    let latest = Arc::new(Latest::default());
    let upkeep = Upkeep {
        rounds: rounds.clone(),
        judged: Arc::clone(&judged),
        watchdog: Watchdog::new(Supervisor::from_env()),
        blind: Arc::clone(&blind),
        pressure: config.pressure.clone(),
        gpus: Arc::clone(&gpus),
        latest: Arc::clone(&latest),
        quiet: Arc::clone(&quiet),
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
    let (filing, tasks_stop, started_ns) = (Arc::clone(&executor), Arc::clone(&stop), clock::wall_ns());
    let tasks_thread = std::thread::Builder::new()
        .name("grace-tasks".into())
        .spawn(move || filing.look_after_tasks(started_ns, &tasks_stop))?;
    let scrub = Arc::new(Scrub::new(
        Arc::clone(&store),
        Arc::clone(&journal),
        state.quarantine(),
        config.snapshots.clone(),
        Arc::clone(&stop),
    ));
    let scrubbing = Arc::clone(&scrub);
    let scrub_thread =
        std::thread::Builder::new().name("grace-scrub".into()).spawn(move || scrubbing.run())?;
    let scan_settings = config.clone();
    let boot_scan = Arc::new(BootScan::new(Arc::clone(&executor), state.path(), &config, Arc::clone(&stop)));
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
        quiet,
        gpus: Arc::clone(&gpus),
        latest,
        journal: Arc::clone(&journal),
        executor: Arc::clone(&executor),
        kmsg: Arc::clone(&kmsg),
        journald: Arc::clone(&journald),
        judged,
        rounds,
        blind,
        duties,
        notes,
        firings: firings.clone(),
        config: Mutex::new(config),
        config_view: Mutex::new(ConfigView { file: config_file, refused: None }),
        cost,
        records,
        boot_scan: Arc::clone(&boot_scan),
        scrub,
        weights_scrub: Arc::clone(&weights_scrub),
    });
    agent.admit_senders();
    trim_memory();
    let (tell_scan, scanned) = tokio::sync::oneshot::channel();
    let scanning = std::thread::Builder::new().name("grace-scan".into()).spawn(move || {
        boot_scan.run(&scan_settings, |view| {
            // The main thread shows it, which holds the terminal; none listens at the end.
            drop(tell_scan.send(view));
        });
    })?;

    let (hang_up, hung_up) = tokio::sync::oneshot::channel::<()>();
    let http = http.map(|listening| {
        tracing::info!(address = %listening.address, "serves the Model Context Protocol at /mcp");
        runtime.spawn(listen::serve(listening, options.socket.clone(), async move {
            // Dropped or sent: both mean the end.
            drop(hung_up.await);
        }))
    });
    let again = runtime.block_on(until_told(options, &agent, listener, &reloaded, scanned, &supervisor))?;
    drop(hang_up);
    if let Some(http) = http {
        // It ends what is under way at once.
        drop(runtime.block_on(http));
    }
    supervisor.tell("STOPPING=1");

    // In the order of the flow: no new facts, then what was judged becomes durable.
    followed.stop();
    kmsg.stop();
    journald.stop();
    // They tell what they have read, so while the engine still listens.
    let followers = [Some(logs_thread), kmsg_thread, journald_thread];
    for thread in followers.into_iter().flatten() {
        if thread.join().is_err() {
            tracing::error!("a thread that follows logs panicked");
        }
    }
    stop.store(true, Ordering::Release);
    gpus.stop();
    weights_scrub.stop();
    weights_scrub_thread.thread().unpark();
    executor.canaries.stop();
    executor.hashing.stop();
    files.stop();
    agent.records.stop();
    code.stop();
    executor.send(Kind::Tick);
    let [small, weights] = files_threads;
    for thread in [small, weights, weights_scrub_thread, canary_thread, engine_thread] {
        if thread.join().is_err() {
            tracing::error!("a thread panicked");
        }
    }
    upkeep_thread.thread().unpark();
    tasks_thread.thread().unpark();
    sinks.stop();
    scanning.thread().unpark();
    scrub_thread.thread().unpark();
    // A stopped agent leaves nothing in the kernel. One that is stopped to be started again leaves its probes.
    if !again && let Some(Err(err)) = probes_at_end.map(|probes| probes.unpin()) {
        tracing::error!(%err, "the probes' pins cannot be taken away: they run on");
    }
    journal.note("stop", "grace stopped".to_owned());
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    executor.cgroups.close();
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
    mut scanned: tokio::sync::oneshot::Receiver<ScanView>,
    supervisor: &Supervisor,
) -> anyhow::Result<bool> {
    // Before anybody gets an answer: whoever has one may tell the agent to end.
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut hup = signal(SignalKind::hangup())?;
    let mut usr1 = signal(SignalKind::user_defined1())?;
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
    supervisor.tell("READY=1");
    let (mut again, mut scan_told) = (false, false);
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = usr1.recv() => { again = true; break; }
            _ = hup.recv() => {
                supervisor.tell("RELOADING=1");
                reload(options, agent, reloaded);
                supervisor.tell("READY=1");
            }
            // Ends without a word where there was no scan.
            view = &mut scanned, if !scan_told => {
                scan_told = true;
                if let Some(view) = view.ok().filter(|_| !options.quiet) {
                    print(&show::scan_picture(&view, options.color));
                }
            }
            firing = follow.recv() => match firing {
                // The scan's own picture tells what it found.
                Ok(firing) if firing.trigger == "syntax" && firing.state == State::Holds => {}
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
        Ok(Owned { files, folders }) => {
            files.into_iter().for_each(|snapshot| executor.own(&snapshot.path, snapshot.known));
            lock(&executor.folders).clone_from(&folders);
            executor.files.watch_folders(folders);
        }
        Err(err) => tracing::error!(why = %chain(&err), "the owned files cannot be listed"),
    }
    let gone: Vec<String> = {
        let old = lock(&agent.config);
        let kept = |name: &str| config.process.iter().any(|p| p.name == name);
        old.process.iter().map(|p| p.name.clone()).filter(|name| !kept(name)).collect()
    };
    for name in gone {
        // Not owned any more is not the same as not wanted any more: it runs on.
        lock(&executor.templates).remove(&name);
        executor.forget_scale(&name);
        for name in executor.replicas_of(&name) {
            if let Err(why) = executor.disown(&name, false) {
                tracing::error!(process = %name, %why, "not owned any more");
            }
        }
    }
    agent.scrub.set(config.snapshots.clone());
    *lock(&executor.hard_links) = config.snapshots.hard_links;
    executor.models.set(&config, &agent.journal);
    models::declare(executor);
    agent.weights_scrub.set_rate(config.weights.scrub_mib_s);
    executor.set_hooks(&config.hook);
    for process in &config.process {
        declare(executor, process.clone());
    }
    let before = lock(&agent.config).clone();
    declare_work(executor, &before, &config);
    executor.code.set(&config, Some(&before));
    *lock(&agent.probe_settings) = config.probes.clone();
    lock(&agent.quiet).clone_from(&config.policy.quiet);
    executor.tasks.set(config.tasks.clone());
    executor.desk.set(&config);
    agent.journal.note("config", "reloaded".to_owned());
    *lock(&agent.config_view) = ConfigView { file, refused: None };
    *lock(reloaded) = Some(config.clone());
    *lock(&agent.config) = config;
    agent.admit_senders();
}

/// What a task says of the host.
fn task_facts(host: &BTreeMap<String, String>, boot_id: &str) -> BTreeMap<String, String> {
    let mut facts: BTreeMap<String, String> = ["name", "kernel", "os"]
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), host.get(key)?.clone())))
        .collect();
    facts.insert("boot".into(), boot_id.to_owned());
    facts.insert("grace".into(), env!("CARGO_PKG_VERSION").to_owned());
    // Numbers alone: which driver is loaded, where one is.
    let driver = std::fs::read_to_string("/sys/module/nvidia/version").unwrap_or_default();
    if !driver.trim().is_empty() {
        facts.insert("driver".into(), driver.trim().to_owned());
    }
    facts
}

/// What processes that Grace starts find in their environment: where clients of Grace, and of systemd, report to.
fn tells(socket: &Path, datagrams: Option<&Path>) -> BTreeMap<String, String> {
    let text = |path: &Path| path.to_str().map(str::to_owned);
    let pairs = [("GRACE_SOCKET", text(socket)), ("NOTIFY_SOCKET", datagrams.and_then(text))];
    pairs.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
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

/// What triggers had learned when the last agent kept it.
fn learned(journal: &Journal) -> Vec<Kind> {
    let ignored = |what: String| {
        tracing::warn!(what, "is ignored");
        journal.note("recovery", format!("{what} is ignored"));
    };
    let kept = journal.learned().unwrap_or_else(|err| {
        ignored(format!("what triggers learned cannot be read ({}) and", chain(&err)));
        Vec::new()
    });
    let known = |name: &str| triggers::specs().iter().any(|spec| spec.name == name);
    let read = |(trigger, state): (String, String)| {
        let shown = trigger.escape_debug();
        if !known(&trigger) {
            ignored(format!("what `{shown}` learned, which is no trigger of this agent,"));
            return None;
        }
        match serde_json::from_str(&state) {
            Ok(state) => Some(Kind::Learned { trigger, state }),
            Err(err) => {
                ignored(format!("what {shown} learned is damaged ({err}) and"));
                None
            }
        }
    };
    kept.into_iter().filter_map(read).collect()
}

/// Tells of the queues and routes of `config`, and of those that only `before` had, that nothing is declared of them.
fn declare_work(executor: &Executor, before: &Config, config: &Config) {
    for queue in before.queue.iter().filter(|old| !config.queue.iter().any(|q| q.name == old.name)) {
        executor.send(Kind::QueueDeclared { name: queue.name.clone(), limit: None, process: None });
    }
    for route in before.route.iter().filter(|old| !config.route.iter().any(|r| r.name == old.name)) {
        executor.send(Kind::RouteDeclared { name: route.name.clone(), budget_ms: None, process: None });
    }
    for config::Queue { name, limit, process } in config.queue.clone() {
        let limit = limit.map(|limit| limit as f64);
        executor.send(Kind::QueueDeclared { name, limit, process });
    }
    for config::Route { name, budget_ms, process } in config.route.clone() {
        executor.send(Kind::RouteDeclared { name, budget_ms, process });
    }
}

/// Owns `process` and its replicas from now on: adopts those that an earlier agent started.
fn declare(executor: &Executor, process: Process) {
    let name = process.name.clone();
    let (base, max) = (process.replicas, process.most());
    let now = executor.noted_scale(&name, base, max);
    let before = lock(&executor.templates).insert(name.clone(), process.clone());
    if process.scales() || before.is_some_and(|old| old.scales()) {
        executor.send(Kind::ScaleDeclared { name: name.clone(), base, max, now });
    }
    let names: Vec<String> = (1..=now).map(|index| process.replica(index).name).collect();
    for more in executor.replicas_of(&name).into_iter().filter(|other| !names.contains(other)) {
        if let Err(why) = executor.disown(&more, true) {
            tracing::error!(process = %more, %why, "is one too many");
        }
    }
    for index in 1..=now {
        declare_one(executor, process.replica(index));
    }
}

/// The same of one process.
fn declare_one(executor: &Executor, process: Process) {
    let name = process.name.clone();
    let (policy, importance) = (process.restart_policy(), process.importance);
    let heartbeat_ms = process.heartbeat.map(config::Span::as_millis);
    executor.follow(&process);
    let expects = Kind::ProcessExpects { name: name.clone(), heartbeat_ms };
    let condition = process.condition();
    let adopted = process.clone();
    let old = lock(&executor.specs).insert(name.clone(), process);
    if old.as_ref().map_or(condition != config::Condition::default(), |old| old.condition() != condition) {
        executor.send(Kind::ProcessNeeds {
            name: name.clone(),
            after: condition.after,
            awaits: condition.awaits,
            watched_only: condition.watched_only,
        });
    }
    if let Some(old) = old {
        executor.send(Kind::ProcessDeclared {
            name: name.clone(),
            policy,
            importance,
            pid: executor.processes.running(&name).map(|r| r.0),
        });
        if old.heartbeat.map(config::Span::as_millis) != heartbeat_ms {
            executor.send(expects);
        }
        return;
    }
    adopt_or_start(executor, &adopted, policy, importance);
    if heartbeat_ms.is_some() {
        executor.send(expects);
    }
}

/// Declares a process that is new to this agent.
fn adopt_or_start(executor: &Executor, process: &Process, policy: RestartPolicy, importance: u8) {
    let name = process.name.clone();
    let taken = shed_load::taken(&executor.running, &name);
    shed_load::forget(&executor.running, &name);
    match executor.adopt(process) {
        Adopted::Runs(started) => {
            let pid = Some(started.pid);
            executor.send(Kind::ProcessDeclared { name: name.clone(), policy, importance, pid });
            if let Err(why) = executor.watch(&name, started) {
                tracing::error!(process = %name, %why, "adopted");
            }
            // An earlier agent shed it and did not live to give it back; whether there is pressure is found out anew.
            if let Some(Err(err)) =
                taken.map(|taken| shed_load::give_back(&executor.processes, &name, &taken))
            {
                tracing::error!(process = %name, why = %chain(&err), "what was shed cannot be given back");
            }
        }
        Adopted::Ended(pid) => {
            executor.send(Kind::ProcessDeclared { name: name.clone(), policy, importance, pid: Some(pid) });
            let exit = executor.processes.ended_unseen(pid);
            executor.send(Kind::ProcessExited { name, pid, exit, stderr_tail: Vec::new() });
        }
        Adopted::Never => executor.send(Kind::ProcessDeclared { name, policy, importance, pid: None }),
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
