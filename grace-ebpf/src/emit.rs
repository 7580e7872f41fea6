//! The one way into the rings. It counts what it sends and what is lost and why, so no loss goes uncounted.

use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_boot_ns};
use grace_common::{Cause, Class, Header, Record};

use crate::maps::{COUNTS, EXITS, FILES, PROCESSES, SLOW};

/// Sends the record that `build` makes, or counts it as lost. The class is a constant wherever this is called, so
/// only its own ring is left after compilation.
#[inline(always)]
pub fn emit<R: Record + 'static>(class: Class, build: impl FnOnce(Header) -> R) {
    let Some(counts) = COUNTS.get_ptr_mut(0) else { return };
    let seq = unsafe { (*counts).produced[class as usize] };
    unsafe { (*counts).produced[class as usize] = seq + 1 };
    let header = Header {
        at_ns: unsafe { bpf_ktime_get_boot_ns() },
        kind: R::KIND,
        cpu: unsafe { bpf_get_smp_processor_id() },
        seq,
    };
    let ring = match class {
        Class::File => &FILES,
        Class::Exit => &EXITS,
        Class::Process => &PROCESSES,
        Class::Slow => &SLOW,
    };
    match ring.reserve::<R>(0) {
        Some(mut slot) => {
            slot.write(build(header));
            slot.submit(0);
        }
        None => unsafe { (*counts).lost[Cause::Full as usize][class as usize] += 1 },
    }
}

/// Counts an event that is not even tried to be sent.
#[inline(always)]
pub fn lose(class: Class, cause: Cause) {
    if let Some(counts) = COUNTS.get_ptr_mut(0) {
        unsafe {
            (*counts).produced[class as usize] += 1;
            (*counts).lost[cause as usize][class as usize] += 1;
        }
    }
}
