//! The driver's lines about faults in the kernel's messages: `NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python3, …`.
//!
//! A line is untrusted: names of processes stand in it. Its beginning must be exactly what the driver writes, numbers
//! must be numbers, and anything else is no Xid.

use crate::gpu_facts::{GpuFault, Teller};

/// Characters of the driver's words that are kept.
const TEXT_MAX: usize = 256;

/// The fault that `message` tells of; none: it is another message.
#[must_use]
pub fn parse(message: &str) -> Option<GpuFault> {
    let rest = message.strip_prefix("NVRM: Xid (PCI:")?;
    let (place, rest) = rest.split_once("): ")?;
    // Of a GPU that is cut: `0000:3b:00 GPU-I:05`.
    let (pci, gpu_instance) = match place.split_once(" GPU-I:") {
        Some((pci, instance)) => (pci, Some(instance.parse::<u32>().ok().filter(|_| digits(instance))?)),
        None => (place, None),
    };
    let pci = pci_place(pci)?;
    let (code, text) = rest.split_once(',').unwrap_or((rest, ""));
    let xid = code.parse::<u32>().ok().filter(|_| digits(code) && code.len() <= 5)?;
    let text = text.trim();
    // Only at its place: a process may be called `pid=1`.
    let pid = text.strip_prefix("pid=").and_then(|rest| {
        let number = rest.split(',').next()?;
        number.parse::<u32>().ok().filter(|pid| digits(number) && *pid > 0)
    });
    let text = text.chars().take(TEXT_MAX).collect();
    Some(GpuFault { pci, xid, pid, process: None, gpu_instance, via: Teller::Kmsg, text })
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// `0000:3B:00`, `00000000:3b:00.0` or `3b:00` as `0000:3b:00`: domain, bus and device in hex.
#[must_use]
pub fn pci_place(text: &str) -> Option<String> {
    let text = text.split_once('.').map_or(text, |(place, _function)| place);
    let hex = |part: &str| {
        let fits = (1..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        u32::from_str_radix(part, 16).ok().filter(|_| fits)
    };
    let parts: Vec<&str> = text.split(':').collect();
    let (domain, bus, device) = match parts[..] {
        [domain, bus, device] => (hex(domain)?, hex(bus)?, hex(device)?),
        [bus, device] => (0, hex(bus)?, hex(device)?),
        _ => return None,
    };
    (bus <= 0xff && device <= 0x1f).then(|| format!("{domain:04x}:{bus:02x}:{device:02x}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_drivers_lines_are_read() {
        let fault = parse(
            "NVRM: Xid (PCI:0000:3b:00): 31, pid=4711, name=python3, Ch 00000010, intr 10000000. MMU Fault",
        );
        let fault = fault.unwrap();
        assert_eq!((fault.pci.as_str(), fault.xid, fault.pid), ("0000:3b:00", 31, Some(4711)));
        let fallen = parse("NVRM: Xid (PCI:0000:C1:00): 79, GPU has fallen off the bus.").unwrap();
        assert_eq!((fallen.pci.as_str(), fallen.xid, fallen.pid), ("0000:c1:00", 79, None));
        let unknown =
            parse("NVRM: Xid (PCI:0000:3b:00): 74, pid='<unknown>', name=<unknown>, NVLink: fatal").unwrap();
        assert_eq!((unknown.xid, unknown.pid), (74, None));
        let cut = parse("NVRM: Xid (PCI:0000:3b:00 GPU-I:05): 94, pid=7, name=a, Contained: CE User Channel")
            .unwrap();
        assert_eq!((cut.gpu_instance, cut.pid), (Some(5), Some(7)));
        assert_eq!(parse("NVRM: Xid (PCI:0000:3b:00): 8").unwrap().xid, 8);
    }

    #[test]
    fn what_is_not_exactly_a_line_of_the_driver_is_none() {
        for line in [
            "",
            "python3: NVRM: Xid (PCI:0000:3b:00): 79, x",
            "NVRM: Xid (PCI:0000:3b:00): , pid=1",
            "NVRM: Xid (PCI:0000:3b:00): +79, pid=1",
            "NVRM: Xid (PCI:0000:3b:00): 79x, pid=1",
            "NVRM: Xid (PCI:zzzz:3b:00): 79, pid=1",
            "NVRM: Xid (PCI:0000:3b:ff): 79, pid=1",
            "NVRM: Xid (PCI:0000:3b:00 GPU-I:+5): 94",
            "NVRM: Xid (PCI:0000:3b:00): 4294967296, pid=1",
            "nvidia-nvswitch0: SXid (PCI:0000:05:00): 12028, Non-fatal",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
        // A process that is called so cannot pass itself off as another.
        let named = parse("NVRM: Xid (PCI:0000:3b:00): 31, pid=12, name=pid=1, pid=1").unwrap();
        assert_eq!(named.pid, Some(12));
        assert_eq!(parse("NVRM: Xid (PCI:0000:3b:00): 31, name=x, pid=1").unwrap().pid, None);
        assert_eq!(parse("NVRM: Xid (PCI:0000:3b:00): 31, pid=0, name=x").unwrap().pid, None);
    }

    proptest! {
        #[test]
        fn any_line_is_survived_and_what_is_read_is_bounded(line in ".{0,600}") {
            prop_assert!(parse(&line).is_none_or(|fault| fault.text.chars().count() <= TEXT_MAX));
        }

        #[test]
        fn what_the_driver_writes_comes_back(
            domain in 0u32..=0xffff, bus in 0u32..=0xff, device in 0u32..=0x1f, xid in 0u32..100_000,
            pid in proptest::option::of(1u32..=u32::MAX), instance in proptest::option::of(0u32..100), name in "[^\n]{0,15}",
        ) {
            let of = instance.map(|i| format!(" GPU-I:{i:02}")).unwrap_or_default();
            let who = pid.map_or_else(|| "pid='<unknown>'".to_owned(), |pid| format!("pid={pid}"));
            let line = format!("NVRM: Xid (PCI:{domain:04x}:{bus:02x}:{device:02x}{of}): {xid}, {who}, name={name}, Ch 1");
            let fault = parse(&line).unwrap();
            prop_assert_eq!(fault.pci, format!("{domain:04x}:{bus:02x}:{device:02x}"));
            prop_assert_eq!((fault.xid, fault.pid, fault.gpu_instance), (xid, pid, instance));
        }

        #[test]
        fn a_changed_line_never_names_another_process(at in 0usize..60, byte in 32u8..127) {
            let line = "NVRM: Xid (PCI:0000:3b:00): 31, pid=4711, name=a, MMU Fault";
            let mut changed = line.as_bytes().to_vec();
            prop_assume!(at < changed.len() && !byte.is_ascii_digit());
            changed[at] = byte;
            let text = String::from_utf8(changed).unwrap();
            if let Some(pid) = parse(&text).and_then(|fault| fault.pid) {
                // A comma within the number ends it; nothing else may be taken for its end.
                prop_assert!(pid == 4711 || (byte == b',' && "4711".starts_with(&pid.to_string())));
            }
        }
    }
}
