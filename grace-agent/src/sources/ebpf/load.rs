//! Brings the kernel side up: offsets from the running kernel's types, maps and programs new or taken over from an earlier
//! agent, each probe by itself in the first form that this kernel takes.

use super::*;

/// Every map of the object that outlives an agent where pins are used. Not the loader's own.
const MAPS: [&str; 20] = [
    "FILES",
    "EXITS",
    "PROCESSES",
    "SLOW",
    "COUNTS",
    "TOLD",
    "INODES",
    "TOUCHED",
    "TASKS",
    "MAYBE_WATCHED",
    "PROCS",
    "SIGNALS",
    "SYSCALL_COUNTS",
    "STARTS",
    "SYSCALL_LAT",
    "SYSCALL_CLASS",
    "TIMING",
    "PROC_STATS",
    "SLOW_FROM",
    "STACKS",
];

/// Loads and attaches the probes.
pub fn load(options: Options<'_>) -> Result<(Probes, Rings), ProbeError> {
    if !embedded() {
        return Err(ProbeError::NotEmbedded);
    }
    let (pins, unpinned) = match options.pin.map(|state| Pins::open(state, OBJECT)) {
        Some(Ok(pins)) => (Some(pins), None),
        Some(Err(why)) => (None, Some(why)),
        None => (None, Some("[probes] pin is off".to_owned())),
    };
    match load_with(options, pins, unpinned) {
        // Pins that look complete and are not: begin anew without them, once.
        Err(err @ (ProbeError::Pinned(..) | ProbeError::Map(..) | ProbeError::Load(_))) => {
            let Some(state) = options.pin else { return Err(err) };
            let cleared = Pins::open(state, OBJECT).map(|pins| pins.clear());
            tracing::warn!(why = %chain(&err), ?cleared, "pinned probes are not used; starting without them");
            load_with(options, None, Some(chain(&err)))
        }
        other => other,
    }
}

fn load_with(
    options: Options<'_>,
    pins: Option<Pins>,
    unpinned: Option<String>,
) -> Result<(Probes, Rings), ProbeError> {
    let blob = std::fs::read("/sys/kernel/btf/vmlinux").map_err(ProbeError::NoBtf)?;
    let offsets = offsets(&btf::Types::parse(&blob)?)?;
    let btf = Btf::parse(&blob, aya::Endianness::default()).map_err(ProbeError::Btf)?;
    drop(blob);

    let mut loader = EbpfLoader::new();
    loader.btf(Some(&btf));
    for (global, offset) in &offsets {
        loader.override_global(global, offset, true);
    }
    if let Some(pins) = &pins {
        for name in MAPS {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    let mut ebpf = loader.load(OBJECT).map_err(|err| ProbeError::Load(Box::new(err)))?;
    let adopted = pins.as_ref().is_some_and(|pins| pins.adopted);

    // Held to the end: a program cannot be loaded once the map that it names is closed.
    let mut classes: Array<_, u32> = take(&mut ebpf, "SYSCALL_CLASS")?;
    if !adopted {
        for (nr, class) in (0u32..).zip(syscalls::classes()) {
            classes.set(nr, class, 0).map_err(|err| ProbeError::Map("SYSCALL_CLASS", Box::new(err)))?;
        }
    }
    let rings = [
        take(&mut ebpf, ring::MAPS[0])?,
        take(&mut ebpf, ring::MAPS[1])?,
        take(&mut ebpf, ring::MAPS[2])?,
        take(&mut ebpf, ring::MAPS[3])?,
    ];
    let inodes = take(&mut ebpf, "INODES")?;
    let touched = take(&mut ebpf, "TOUCHED")?;
    let tasks = take(&mut ebpf, "TASKS")?;
    let maybe = take(&mut ebpf, "MAYBE_WATCHED")?;
    let procs = take(&mut ebpf, "PROCS")?;
    let counts: PerCpuArray<_, PodCounts> = take(&mut ebpf, "COUNTS")?;
    let syscall_counts = take(&mut ebpf, "SYSCALL_COUNTS")?;
    let syscall_latency = take(&mut ebpf, "SYSCALL_LAT")?;
    let timing: Array<_, PodTiming> = take(&mut ebpf, "TIMING")?;
    let proc_stats = take(&mut ebpf, "PROC_STATS")?;
    let slow_from = take(&mut ebpf, "SLOW_FROM")?;
    let stacks = take(&mut ebpf, "STACKS")?;
    let mut owner: Array<_, PodOwner> = take(&mut ebpf, "OWNER")?;
    let leftovers = if adopted { watched_by_others(&inodes, &tasks) } else { Default::default() };
    // All 0 in a new map.
    let told: Array<_, PodTold> = take(&mut ebpf, "TOLD")?;
    let before = told.get(&0, 0).map_or([0; CLASSES], |told| told.0);

    // A cycle of an earlier agent is not this one's: the next one gets the number after it.
    let last_phase = timing.get(&0, 0).map_or(0, |t| t.0.phase);
    let timing_now = Timing { phase: 0, slow_rate: options.slow_rate };
    let mut programs = Programs {
        ebpf,
        adopted: BTreeMap::new(),
        held: Vec::new(),
        loose: Vec::new(),
        latency: None,
        pins,
        timing: timing_now,
        last_phase,
    };
    let mut views = Vec::new();
    let mut latency_usable = false;
    for known in KNOWN {
        let later = known.name == LATENCY;
        let mut refused: Option<ProbeError> = None;
        let mut used = None;
        for form in known.forms {
            if !programs.eligible(form) {
                continue;
            }
            match programs.bring_up(form, later, &btf) {
                Ok(()) => used = Some(*form),
                // Half a set of pins is no set: the caller begins anew without.
                Err(err @ ProbeError::Pinned(..)) => return Err(err),
                Err(err) => {
                    refused.get_or_insert(err);
                    continue;
                }
            }
            break;
        }
        latency_usable |= later && used.is_some();
        let why = refused.as_ref().map(|err| concise(&chain(err)));
        views.push(match (used, known.optional) {
            (Some(form), _) => view(known, form, Health::Ok, None),
            (None, false) => view(known, &[], Health::Degraded, why),
            (None, true) => view(known, &[], Health::Off, Some(why.unwrap_or_else(|| NO_FORM.to_owned()))),
        });
    }
    let mut notes = Vec::new();
    if let Some(pins) = &programs.pins {
        if adopted {
            notes.push("the probes of the last agent ran on and were taken over".to_owned());
        } else if let Some(state) = options.pin {
            owner
                .set(0, PodOwner(pins::owner_bytes(state)), 0)
                .map_err(|err| ProbeError::Map("OWNER", Box::new(err)))?;
            owner.pin(pins.owner()).map_err(|err| ProbeError::Pinned("owner", chain(&err)))?;
        }
        // Only now: the new probes are attached before the old ones go.
        notes.extend(pins.sweep());
    }
    let probes = Probes {
        programs: Mutex::new(programs),
        views: Mutex::new(views),
        inodes: Mutex::new(inodes),
        touched: Mutex::new(touched),
        tasks: Mutex::new(tasks),
        maybe: Mutex::new(maybe),
        procs,
        counts,
        syscall_counts,
        syscall_latency,
        timing: Mutex::new(timing),
        proc_stats: Mutex::new(proc_stats),
        slow_from: Mutex::new(slow_from),
        stacks,
        names: stacks::Names::default(),
        cpus: aya::util::nr_cpus().map_or(1, |n| n),
        latency_usable,
        leftovers: Mutex::new(leftovers),
        unpinned,
        notes,
        before,
        told: Mutex::new(told),
    };
    probes.set_timing(timing_now);
    drop(classes);
    Ok((probes, Rings::new(rings, !adopted)))
}

/// Where the probes find what they read: `(global, offset)`.
fn offsets(types: &btf::Types<'_>) -> Result<Vec<(&'static str, u32)>, ProbeError> {
    let regs_nr = if cfg!(target_arch = "aarch64") { "syscallno" } else { "orig_ax" };
    let mut out = [
        ("OFF_INODE_SB", "inode", "i_sb"),
        ("OFF_INODE_INO", "inode", "i_ino"),
        ("OFF_INODE_GENERATION", "inode", "i_generation"),
        ("OFF_DENTRY_INODE", "dentry", "d_inode"),
        ("OFF_SB_DEV", "super_block", "s_dev"),
        ("OFF_REGS_NR", "pt_regs", regs_nr),
        ("OFF_TASK_TGID", "task_struct", "tgid"),
        ("OFF_TASK_PID", "task_struct", "pid"),
        ("OFF_TASK_EXIT_CODE", "task_struct", "exit_code"),
        ("OFF_TASK_SIGNAL", "task_struct", "signal"),
        ("OFF_TASK_START", "task_struct", "start_boottime"),
        ("OFF_TASK_PARENT", "task_struct", "real_parent"),
        ("OFF_TASK_LEADER", "task_struct", "group_leader"),
        ("OFF_SIGNAL_LIVE", "signal_struct", "live"),
        ("OFF_SIGNAL_GROUP_EXIT", "signal_struct", "group_exit_code"),
        ("OFF_SIGNAL_MAXRSS", "signal_struct", "maxrss"),
        ("OFF_SIGNAL_OOM_MM", "signal_struct", "oom_mm"),
        ("OFF_BPRM_FILENAME", "linux_binprm", "filename"),
        ("OFF_SIGINFO_CODE", "kernel_siginfo", "si_code"),
    ]
    .into_iter()
    .map(|(global, structure, member)| Ok((global, types.offset(structure, member)?)))
    .collect::<Result<Vec<_>, ProbeError>>()?;
    // Renamed in 5.14.
    let state = types.offset("task_struct", "__state").or_else(|_| types.offset("task_struct", "state"))?;
    out.push(("OFF_TASK_STATE", state));
    Ok(out)
}

/// A reason without the middle: a verifier explains itself over thousands of lines, of which the last say why.
fn concise(why: &str) -> String {
    const EACH: usize = 240;
    let chars: Vec<char> = why.chars().collect();
    if chars.len() <= 2 * EACH {
        return why.to_owned();
    }
    let (head, tail) = (&chars[..EACH], &chars[chars.len() - EACH..]);
    format!("{} … {}", head.iter().collect::<String>(), tail.iter().collect::<String>())
}

/// Keys that an earlier agent left, of inodes with their paths' tags.
fn watched_by_others(
    inodes: &HashMap<MapData, PodInode, PodInodeWatch>,
    tasks: &HashMap<MapData, u32, PodWatched>,
) -> (BTreeMap<InodeKey, u64>, BTreeSet<u32>) {
    let inodes = inodes.iter().flatten().map(|(key, watch)| (key.0, watch.0.tag)).collect();
    let roots = tasks.iter().flatten().filter(|(_, of)| of.0.depth == 0).map(|(tgid, _)| tgid).collect();
    (inodes, roots)
}

fn take<M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, ProbeError> {
    let map = ebpf.take_map(name).ok_or(ProbeError::Missing(name))?;
    M::try_from(map).map_err(|err| ProbeError::Map(name, Box::new(err)))
}
