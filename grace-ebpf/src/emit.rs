//! The one way into the ring. It counts what it sends and what the ring refuses, so no loss goes uncounted.

use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_boot_ns};
use grace_common::{Header, Record};

use crate::maps::{COUNTS, EVENTS};

/// A header for a record of type `R`, stamped now.
#[inline(always)]
pub fn header<R: Record>() -> Header {
    Header {
        at_ns: unsafe { bpf_ktime_get_boot_ns() },
        kind: R::KIND,
        cpu: unsafe { bpf_get_smp_processor_id() },
    }
}

/// Sends `record`, or counts it as lost.
#[inline(always)]
pub fn emit<R: Record + 'static>(record: R) {
    let class = R::CLASS as usize;
    let counts = COUNTS.get_ptr_mut(0);
    if let Some(counts) = counts {
        unsafe { (*counts).produced[class] += 1 };
    }
    match EVENTS.reserve::<R>(0) {
        Some(mut slot) => {
            slot.write(record);
            slot.submit(0);
        }
        None => {
            if let Some(counts) = counts {
                unsafe { (*counts).lost[class] += 1 };
            }
        }
    }
}
