//! The source of the host's pressure: how full processors, memory, disks and tables are, how long work waits for them, how hot
//! it is, and what each declared process takes of it. It reads /proc, /sys and cgroups and asks local file systems; it never
//! touches one that a network could hang.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::processes::Processes;
use crate::event::{ProcessLoad, Reading};

/// Bytes read of one file in /proc: more is not what it should be.
const READ_MAX: u64 = 256 << 10;

/// Mounts looked at.
const MOUNTS_MAX: usize = 64;

/// Samples that are apart in time.
#[derive(Debug, Default)]
pub struct Sampler {
    /// Busy and all processor time so far, in ticks.
    cpu: Option<(u64, u64)>,
}

impl Sampler {
    /// Processors, memory, waiting and tables. The first sample has no processors: their load is a difference.
    pub fn quick(&mut self) -> Vec<Reading> {
        let mut out = Vec::new();
        if let Some((busy, all)) = read("/proc/stat").and_then(|text| cpu_ticks(&text))
            && let Some((busy_before, all_before)) = self.cpu.replace((busy, all))
            && all > all_before
        {
            add(&mut out, "cpu", busy.saturating_sub(busy_before) as f64 / (all - all_before) as f64);
        }
        if let Some(text) = read("/proc/meminfo") {
            let fields = meminfo(&text);
            if let (Some(total), Some(free)) = (fields.get("MemTotal"), fields.get("MemAvailable")) {
                add(&mut out, "memory", 1.0 - *free as f64 / *total as f64);
            }
            if let (Some(total), Some(free)) =
                (fields.get("SwapTotal").filter(|t| **t > 0), fields.get("SwapFree"))
            {
                add(&mut out, "swap", 1.0 - *free as f64 / *total as f64);
            }
        }
        for resource in ["memory", "io"] {
            if let Some(percent) = read(&format!("/proc/pressure/{resource}")).and_then(|text| stalled(&text))
            {
                add(&mut out, &format!("{resource}_stall"), percent / 100.0);
            }
        }
        if let Some((used, most)) = read("/proc/sys/fs/file-nr").and_then(|text| file_table(&text)) {
            add(&mut out, "files", used / most);
        }
        if let (Some(tasks), Some(most)) = (
            read("/proc/loadavg").and_then(|text| task_count(&text)),
            read("/proc/sys/kernel/pid_max").and_then(|text| text.trim().parse::<f64>().ok()),
        ) {
            add(&mut out, "pids", tasks / most);
        }
        // Where connections are tracked at all.
        let table =
            |name: &str| read(&format!("/proc/sys/net/netfilter/nf_conntrack_{name}"))?.trim().parse().ok();
        if let (Some(used), Some(most)) = (table("count"), table("max").filter(|most: &f64| *most > 0.0)) {
            let used: f64 = used;
            add(&mut out, "conntrack", used / most);
        }
        out
    }

    /// How near each thermal zone is to the temperature at which the kernel switches the host off, from 0 °C on.
    pub fn thermal(&self) -> Vec<Reading> {
        let zones = fs::read_dir("/sys/class/thermal").into_iter().flatten().flatten().take(MOUNTS_MAX);
        let mut hottest: BTreeMap<String, f64> = BTreeMap::new();
        for zone in zones.filter(|zone| zone.file_name().to_string_lossy().starts_with("thermal_zone")) {
            let Some((name, share)) = zone_heat(&zone.path()) else { continue };
            let known = hottest.entry(name).or_default();
            *known = known.max(share);
        }
        let mut out = Vec::new();
        for (name, share) in hottest {
            add(&mut out, &format!("thermal {name}"), share);
        }
        out
    }

    /// Space and inodes of local file systems on block devices: those that fill up.
    pub fn disks(&self) -> Vec<Reading> {
        let Some(text) = read("/proc/self/mounts") else { return Vec::new() };
        let mut out = Vec::new();
        for path in local_mounts(&text) {
            let Ok(fs) = rustix::fs::statvfs(&path) else { continue };
            let name = path.display();
            // What only root may use counts as used: for everybody else the disk is full without it.
            let used = fs.f_blocks.saturating_sub(fs.f_bfree);
            let usable = used.saturating_add(fs.f_bavail);
            if usable > 0 {
                add(&mut out, &format!("disk {name}"), used as f64 / usable as f64);
            }
            if fs.f_files > 0 {
                let free = fs.f_ffree as f64 / fs.f_files as f64;
                add(&mut out, &format!("inodes {name}"), 1.0 - free);
            }
        }
        out
    }
}

/// What a declared process takes of the host.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Load {
    /// Its name.
    pub process: String,
    /// Memory of its cgroup, or of its main process, in bytes.
    pub memory: Option<u64>,
    /// Of the memory that its cgroup may have, in percent; none: it has no limit of its own.
    pub memory_percent: Option<f64>,
    /// Shares of the last 10 s in which something of it waited, in percent.
    pub memory_wait: Option<f64>,
    /// See `memory_wait`.
    pub cpu_wait: Option<f64>,
    /// See `memory_wait`.
    pub io_wait: Option<f64>,
    /// Its cgroup asks to be shed before its equals (1), or after them (-1).
    pub prefer: i8,
}

impl Load {
    /// Among those of the same importance the lowest is shed first.
    #[must_use]
    pub fn order(&self) -> (i8, u64) {
        (-self.prefer, u64::MAX - self.memory.unwrap_or(0))
    }

    /// What its cgroup asks for.
    #[must_use]
    pub fn preference(&self) -> Option<&'static str> {
        match self.prefer {
            1 => Some("prefer"),
            -1 => Some("avoid"),
            _ => None,
        }
    }

    /// As the engine hears of it.
    #[must_use]
    pub fn fact(&self) -> ProcessLoad {
        ProcessLoad { process: self.process.clone(), memory: self.memory, prefer: self.prefer }
    }
}

/// What the declared process `name` takes now.
#[must_use]
pub fn load(processes: &Processes, name: &str) -> Load {
    let mut load = Load { process: name.to_owned(), ..Load::default() };
    if let Some(cgroup) = processes.cgroup(name) {
        let number = |file: &str| read(&cgroup.join(file).to_string_lossy())?.trim().parse::<u64>().ok();
        load.memory = number("memory.current");
        let limit = [number("memory.max"), number("memory.high")].into_iter().flatten().min();
        load.memory_percent =
            load.memory.zip(limit.filter(|l| *l > 0)).map(|(now, limit)| now as f64 / limit as f64 * 100.0);
        let waits = |file: &str| waited(&read(&cgroup.join(file).to_string_lossy())?);
        (load.memory_wait, load.cpu_wait, load.io_wait) =
            (waits("memory.pressure"), waits("cpu.pressure"), waits("io.pressure"));
        load.prefer = preference(&cgroup);
    }
    if load.memory.is_none()
        && let Some((pid, _)) = processes.running(name)
    {
        let pages =
            read(&format!("/proc/{pid}/statm")).and_then(|text| text.split_whitespace().nth(1)?.parse().ok());
        load.memory = pages.map(|pages: u64| pages.saturating_mul(rustix::param::page_size() as u64));
    }
    load
}

/// What all declared processes take, and readings of those whose cgroups have limits of their own.
#[must_use]
pub fn loads(processes: &Processes) -> (Vec<Load>, Vec<Reading>) {
    let loads: Vec<Load> = processes.families().into_iter().map(|(name, _)| load(processes, &name)).collect();
    let mut readings = Vec::new();
    for of in &loads {
        if let Some(percent) = of.memory_percent {
            add(&mut readings, &format!("memory of {}", of.process), percent / 100.0);
        }
    }
    (loads, readings)
}

/// What the attributes of a cgroup ask for, by the names that systemd-oomd and oomd know: `user.oomd_prefer`,
/// `user.oomd_avoid`. Whoever owns the cgroup sets them, so they count among equals only.
fn preference(cgroup: &Path) -> i8 {
    let has = |name: &str| rustix::fs::getxattr(cgroup, name, &mut [0_u8; 16][..]).is_ok();
    if has("user.oomd_avoid") { -1 } else { i8::from(has("user.oomd_prefer")) }
}

/// A zone's type and how near it is to its critical temperature.
fn zone_heat(zone: &Path) -> Option<(String, f64)> {
    let text = |file: &str| read(&zone.join(file).to_string_lossy());
    let name: String = text("type")?.trim().chars().take(32).collect();
    let now: f64 = text("temp")?.trim().parse().ok()?;
    let critical = (0..16).find_map(|point| {
        let kind = text(&format!("trip_point_{point}_type"))?;
        (kind.trim() == "critical")
            .then(|| text(&format!("trip_point_{point}_temp"))?.trim().parse::<f64>().ok())?
    })?;
    (critical > 0.0 && now > 0.0).then(|| (name, now / critical))
}

fn add(out: &mut Vec<Reading>, resource: &str, share: f64) {
    if share.is_finite() {
        // A tenth of a percent is as exact as any decision here.
        let percent = (share.clamp(0.0, 1.0) * 1000.0).round() / 10.0;
        out.push(Reading { resource: resource.to_owned(), percent });
    }
}

fn read(path: &str) -> Option<String> {
    use std::io::Read as _;
    let mut text = String::new();
    fs::File::open(Path::new(path)).ok()?.take(READ_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Busy and all ticks of all processors: user, nice, system, idle, iowait, irq, softirq, steal (proc_stat(5)).
fn cpu_ticks(text: &str) -> Option<(u64, u64)> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|word| word.parse().ok()).collect();
    let all: u64 = ticks.iter().fold(0, |sum, n| sum.saturating_add(*n));
    let idle = ticks.get(3)?.saturating_add(*ticks.get(4)?);
    Some((all.saturating_sub(idle), all))
}

fn meminfo(text: &str) -> BTreeMap<&str, u64> {
    text.lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            Some((name, rest.split_whitespace().next()?.parse().ok()?))
        })
        .collect()
}

/// The share of the last 10 s in which no task got on for want of the resource, in percent (Documentation/accounting/psi).
fn stalled(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("full "))?;
    line.split_whitespace().find_map(|word| word.strip_prefix("avg10=")?.parse().ok())
}

/// The share of the last 10 s in which some task waited for the resource, in percent.
fn waited(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split_whitespace().find_map(|word| word.strip_prefix("avg10=")?.parse().ok())
}

/// Open files and how many there may be.
fn file_table(text: &str) -> Option<(f64, f64)> {
    let mut words = text.split_whitespace().map(|word| word.parse::<f64>().ok());
    let (used, _, most) = (words.next()??, words.next()??, words.next()??);
    (most > 0.0).then_some((used, most))
}

/// Tasks that exist: `running/all` in /proc/loadavg.
fn task_count(text: &str) -> Option<f64> {
    text.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

/// Mount points of block devices, each device once.
fn local_mounts(text: &str) -> Vec<PathBuf> {
    let mut seen = std::collections::BTreeSet::new();
    let mut out = Vec::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let (Some(device), Some(path)) = (words.next(), words.next()) else { continue };
        // Read-only images are full by nature.
        let (kind, options) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let image = matches!(kind, "squashfs" | "iso9660" | "erofs" | "cramfs")
            || options.split(',').any(|o| o == "ro");
        if device.starts_with("/dev/") && !image && seen.insert(device) && out.len() < MOUNTS_MAX {
            out.push(PathBuf::from(unescape(path)));
        }
    }
    out
}

/// Blanks in /proc/self/mounts are written `\040`.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| after.get(..3)).flatten();
        match octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &after[3..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_read() {
        let mut sampler = Sampler::default();
        sampler.quick();
        let now = || crate::clock::boottime();
        let until = now().after(std::time::Duration::from_secs(20));
        let mut second = sampler.quick();
        // Ticks are 10 ms apart: no difference, no share.
        while !second.iter().any(|r| r.resource == "cpu") && now() < until {
            second = sampler.quick();
        }
        for name in ["cpu", "memory", "files", "pids"] {
            let reading = second.iter().find(|r| r.resource == name);
            assert!(reading.is_some_and(|r| (0.0..=100.0).contains(&r.percent)), "{name}: {second:?}");
        }
    }

    #[test]
    fn odd_files_give_no_reading_and_no_panic() {
        for text in
            ["", "cpu ", "cpu  1 2", "cpu x y", "full avg10=", "full avg10=x", "1 2", "1 2 0", "a/b", "\\04"]
        {
            let _ = (cpu_ticks(text), stalled(text), file_table(text), task_count(text), meminfo(text));
            let _ = (local_mounts(text), unescape(text));
        }
        assert_eq!(cpu_ticks("cpu  10 0 5 80 5 0 0 0 9 9\n"), Some((15, 100)));
        assert_eq!(stalled("some avg10=9.00\nfull avg10=1.50 avg60=0.00\n"), Some(1.5));
        assert_eq!(file_table("100\t0\t1000\n"), Some((100.0, 1000.0)));
        assert_eq!(task_count("0.1 0.2 0.3 2/345 678\n"), Some(345.0));
        let mounts = "/dev/a / ext4 rw 0 0\n/dev/a /again ext4 rw 0 0\n/dev/b /snap squashfs ro 0 0\n\
                      /dev/c /with\\040blank xfs rw 0 0\nhost:/x /net nfs rw 0 0\n";
        assert_eq!(local_mounts(mounts), [Path::new("/"), Path::new("/with blank")]);
    }
}
