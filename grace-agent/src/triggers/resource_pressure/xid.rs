//! What the faults of NVIDIA GPUs mean and call for, by their number (Xid): data.
//!
//! Numbers and what they call for are those of NVIDIA's Xid catalogue (the section "Analyzing Xid Errors with the Xid
//! Catalog" of its Xid documentation, as of October 2025, "immediate resolution"); the words are Grace's. Where the
//! catalogue names a workflow the bucket is where the workflow begins, and the driver's own word (the recovery action
//! that NVML tells) counts more. Two numbers differ from it: 43 is a fault of the application that ends its work on the
//! GPU, so it is restarted; and what the catalogue calls unused is looked into.

use std::time::Duration;

/// What a fault calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bucket {
    /// Nothing: it is told, and that is all.
    Ignore,
    /// The application whose fault it is, or that lost its work, is started anew; the GPU is well.
    RestartApp,
    /// Somebody looks into it.
    Inspect,
    /// The GPU is reset, when nobody uses it any more.
    ResetGpu,
    /// The host is started anew.
    Reboot,
}

impl Bucket {
    /// In words, for people.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::Ignore => "nothing to do",
            Self::RestartApp => "restart the application",
            Self::Inspect => "inspect the GPU and its driver",
            Self::ResetGpu => "drain and reset the GPU",
            Self::Reboot => "reboot the host",
        }
    }

    /// Not seen again for so long, while the GPU is seen to work, it is over. A restart that helped is shorter than the
    /// ladder's time until help is asked for (`incident::SETTLE`).
    #[must_use]
    pub(super) fn settle(self) -> Duration {
        Duration::from_secs(match self {
            Self::Ignore | Self::RestartApp => 20,
            Self::ResetGpu => 300,
            Self::Inspect | Self::Reboot => 3600,
        })
    }
}

/// The same fault on the same GPU within this time is a repetition.
pub(super) const WINDOW: Duration = Duration::from_secs(24 * 3600);

/// A fault, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Xid {
    /// Its number.
    pub code: u32,
    /// What it means.
    pub meaning: &'static str,
    /// What it calls for.
    pub bucket: Bucket,
}

macro_rules! xids {
    ($($code:literal $bucket:ident $meaning:literal)+) => {
        &[$(Xid { code: $code, meaning: $meaning, bucket: Bucket::$bucket }),+]
    };
}

/// Sorted by number.
const CATALOGUE: &[Xid] = xids! {
    8 RestartApp "the GPU stopped processing"
    11 RestartApp "invalid or corrupted commands"
    13 RestartApp "exception of the graphics engine"
    14 Ignore "an unused number"
    25 RestartApp "invalid commands"
    31 RestartApp "memory page fault of a program"
    32 RestartApp "invalid or corrupted commands"
    37 Ignore "error of driver firmware"
    38 Ignore "error of driver firmware"
    39 RestartApp "exception of a copy engine"
    40 RestartApp "exception of a copy engine"
    41 RestartApp "exception of a copy engine"
    43 RestartApp "the GPU stopped processing a program"
    44 Ignore "fault while contexts were switched"
    45 Ignore "work removed because of an earlier fault"
    46 ResetGpu "the GPU stopped processing"
    48 ResetGpu "memory error that could not be corrected"
    54 Inspect "auxiliary power is not connected"
    60 RestartApp "exception of the video processor"
    62 ResetGpu "an internal micro-controller halted"
    63 Ignore "a row of memory was remapped"
    64 ResetGpu "a row of memory could not be remapped"
    66 Ignore "illegal access by the driver"
    67 Ignore "illegal access by the driver"
    68 RestartApp "exception of a video decoder"
    69 RestartApp "class error of the graphics engine"
    70 RestartApp "error of a copy engine"
    71 RestartApp "error of a copy engine"
    72 RestartApp "error of a copy engine"
    74 Inspect "NVLink error"
    75 RestartApp "error of a copy engine"
    76 RestartApp "error of a copy engine"
    77 RestartApp "error of a copy engine"
    78 Inspect "a virtual GPU could not be started: driver versions"
    79 Reboot "the GPU has fallen off the bus"
    80 RestartApp "corrupted data was sent to the GPU"
    82 RestartApp "error of an image decoder"
    83 RestartApp "error of a video decoder"
    84 RestartApp "error of a video decoder"
    85 RestartApp "error of a copy engine"
    86 RestartApp "exception of the optical-flow engine"
    88 RestartApp "error of a video decoder"
    89 RestartApp "error of a video decoder"
    92 Ignore "many single-bit memory errors"
    93 Ignore "the InfoROM is written more often than it should be"
    94 RestartApp "memory error, contained to one program"
    95 ResetGpu "memory error that was not contained"
    96 RestartApp "error of a video decoder"
    97 RestartApp "error of a video decoder"
    98 RestartApp "error of a video decoder"
    99 RestartApp "error of an image decoder"
    100 RestartApp "error of an image decoder"
    101 RestartApp "error of an image decoder"
    102 RestartApp "error of an image decoder"
    103 RestartApp "error of an image decoder"
    104 RestartApp "error of an image decoder"
    105 RestartApp "error of an image decoder"
    106 Ignore "a test message"
    107 Ignore "a test message"
    108 Ignore "NVLink translation error of another GPU"
    109 ResetGpu "switching contexts took too long"
    110 ResetGpu "security fault"
    119 ResetGpu "the GPU system processor does not answer"
    120 ResetGpu "error of the GPU system processor"
    121 Ignore "error on the link between chips, corrected"
    126 RestartApp "error of a copy engine"
    127 RestartApp "error of a copy engine"
    128 RestartApp "error of a copy engine"
    129 RestartApp "error of a copy engine"
    130 RestartApp "error of a copy engine"
    131 RestartApp "error of a copy engine"
    132 RestartApp "error of a copy engine"
    133 RestartApp "error of a copy engine"
    134 RestartApp "error of a copy engine"
    135 RestartApp "error of a copy engine"
    136 ResetGpu "NVLink training failed"
    137 Ignore "NVLink privilege error of a program"
    139 RestartApp "error of the optical-flow engine"
    140 ResetGpu "memory error that was not recovered from"
    141 Ignore "error on CUDA's fast path"
    143 ResetGpu "the GPU could not be initialised"
    144 Inspect "NVLink error"
    145 Inspect "NVLink error"
    146 Inspect "NVLink error"
    147 Inspect "NVLink error"
    148 Inspect "NVLink error"
    149 Inspect "NVLink error"
    150 Inspect "NVLink error"
    151 Reboot "keys could not be changed (the virtual machine is to be started anew)"
    152 Ignore "error of the deep-learning accelerator"
    153 Ignore "timeout of the deep-learning accelerator"
    154 Ignore "the recovery that the driver asks for has changed"
    155 ResetGpu "NVLink error, defined by software"
    156 ResetGpu "a part of the GPU was retired"
    157 Ignore "a part of the GPU could not be retired"
    158 ResetGpu "fatal timeout"
    160 Ignore "a channel was retired"
    161 Ignore "a channel could not be retired"
};

/// What is known of the fault `code`. An unknown one is looked into.
#[must_use]
pub fn of(code: u32) -> Xid {
    let known = CATALOGUE.binary_search_by_key(&code, |xid| xid.code).ok().and_then(|at| CATALOGUE.get(at));
    known.copied().unwrap_or(Xid {
        code,
        meaning: "a fault that this Grace does not know",
        bucket: Bucket::Inspect,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_is_sorted_and_every_number_is_found_once() {
        assert!(CATALOGUE.is_sorted_by(|a, b| a.code < b.code));
        assert!(CATALOGUE.iter().all(|xid| of(xid.code) == *xid));
    }

    #[test]
    fn what_is_unknown_is_looked_into() {
        assert_eq!((of(999).bucket, of(999).code), (Bucket::Inspect, 999));
        assert_eq!(of(79).bucket, Bucket::Reboot);
        assert_eq!(of(31).bucket, Bucket::RestartApp);
        assert_eq!(of(95).bucket, Bucket::ResetGpu);
    }
}
