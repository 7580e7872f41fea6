//! The kernel's messages: faults of programs, memory that ran out, disks, file systems, GPUs, and the kernel's own.

use super::{Draft, Frame, Language};

/// The error that a message is, if it is one.
pub(super) fn line(text: &str) -> Option<Draft> {
    let draft = |kind: &str, message: &str| Some(Draft::new(Language::Kernel, kind, message));
    // `NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python3, GPU has fallen off the bus.`
    if let Some((_, rest)) = text.split_once("NVRM: Xid (") {
        let (device, rest) = rest.split_once("): ")?;
        let number = rest.split([',', ' ']).next()?;
        number.parse::<u32>().ok()?;
        let what = rest
            .split(", ")
            .skip(1)
            .filter(|part| {
                !part.starts_with("pid=") && !part.starts_with("name=") && !part.starts_with("Ch ")
            })
            .collect::<Vec<_>>()
            .join(", ");
        let mut found = Draft::new(Language::Kernel, &format!("Xid {number}"), &what);
        // Which GPU it is says as much as what happened.
        found.frames.push(Frame { function: format!("GPU {}", letters(device)), file: String::new() });
        return Some(found);
    }
    // `a.out[123]: segfault at 0 ip 0000555 sp 00007ffe error 4 in a.out[555000+1000]`
    if let Some((who, rest)) = text.split_once("]: segfault at ") {
        return Some(fault("segfault", who, rest));
    }
    if let Some(rest) = text.strip_prefix("traps: ") {
        // `a.out[123] general protection fault ip:555 sp:7ffe error:0 in a.out[555000+1000]`
        let (who, rest) = rest.split_once("] ")?;
        let kind = rest.split(" ip:").next().unwrap_or(rest);
        return Some(fault(kind, who, rest));
    }
    // `Out of memory: Killed process 123 (python3) total-vm:…`
    if let Some((before, rest)) = text.split_once("Killed process ") {
        let name = rest.split_once('(').and_then(|(_, r)| r.split_once(')')).map_or("", |(n, _)| n);
        let memory = before.trim_end_matches([':', ' ']);
        let mut found = Draft::new(Language::Kernel, "out of memory", memory);
        found.frames.push(Frame { function: format!("process {name}"), file: String::new() });
        return Some(found);
    }
    // `blk_update_request: I/O error, dev sda, sector 123 op …`, `Buffer I/O error on dev sda1, …`
    if let Some((_, rest)) = text.split_once("I/O error") {
        let device = rest.split_once("dev ").map_or("", |(_, d)| d.split([',', ' ']).next().unwrap_or(d));
        let mut found = Draft::new(Language::Kernel, "I/O error", text.split(", ").next().unwrap_or(text));
        found.frames.push(Frame { function: format!("device {device}"), file: String::new() });
        return Some(found);
    }
    for (begin, kind) in [
        ("EXT4-fs error", "EXT4-fs error"),
        ("XFS (", "XFS error"),
        ("BTRFS error", "BTRFS error"),
        ("BTRFS critical", "BTRFS error"),
    ] {
        if text.starts_with(begin)
            && (kind != "XFS error" || text.contains("rror") || text.contains("orrupt"))
        {
            return draft(kind, text);
        }
    }
    if text.starts_with("BUG: ") || text.starts_with("kernel BUG at ") || text.starts_with("Oops: ") {
        return draft("kernel BUG", text);
    }
    if let Some(rest) = text.strip_prefix("watchdog: ") {
        return draft("watchdog", rest);
    }
    // `INFO: task kworker:123 blocked for more than 120 seconds.`
    if let Some(rest) = text.strip_prefix("INFO: task ") {
        let name = rest.split(':').next().unwrap_or(rest);
        return rest.contains(" blocked for more than ").then(|| {
            let mut found = Draft::new(Language::Kernel, "hung task", "blocked");
            found.frames.push(Frame { function: format!("process {name}"), file: String::new() });
            found
        });
    }
    if text.contains("[Hardware Error]") {
        return draft("hardware error", text);
    }
    if text.starts_with("EDAC ") && (text.contains(" CE ") || text.contains(" UE ")) {
        return draft("memory error", text);
    }
    if text.starts_with("nvme ") && (text.contains("timeout") || text.contains("controller is down")) {
        return draft("nvme", text);
    }
    if text.contains("AER: ") && text.contains("rror") {
        return draft("PCIe error", text);
    }
    None
}

/// A program's fault: its name, the mapping and the place in it. The place does not depend on where the mapping lies.
fn fault(kind: &str, who: &str, rest: &str) -> Draft {
    let name = who.rsplit_once('[').map_or(who, |(name, _)| name);
    let (mapping, base) = match rest.rsplit_once(" in ") {
        Some((_, place)) => {
            let (name, range) = place.split_once('[').unwrap_or((place, ""));
            (name, range.split('+').next().and_then(|b| u64::from_str_radix(b, 16).ok()))
        }
        None => ("", None),
    };
    let ip = rest
        .split_once("ip ")
        .or_else(|| rest.split_once("ip:"))
        .and_then(|(_, ip)| u64::from_str_radix(ip.split(' ').next()?, 16).ok());
    let place = match (ip, base) {
        (Some(ip), Some(base)) => letters(&format!("{:x}", ip.wrapping_sub(base))),
        _ => String::new(),
    };
    let mut draft = Draft::new(Language::Kernel, kind, "");
    draft.frames.push(Frame { function: format!("{name} {mapping} {place}"), file: String::new() });
    draft
}

/// `text` with its digits kept through what takes numbers out of names: a device and a place are not counters.
fn letters(text: &str) -> String {
    text.replace('.', ":")
}
