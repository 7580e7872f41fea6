//! The probes' programs and their links: made ready, attached, held, pinned.

use std::collections::BTreeMap;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{BtfTracePoint, FEntry, Lsm, Program};
use aya::{Btf, Ebpf};
use grace_common::Timing;

use super::ProbeError;
use super::known::Hook;
use super::pins::Pins;
use crate::error_chain::chain;

/// Programs and their links.
pub(super) struct Programs {
    pub(super) ebpf: Ebpf,
    /// Programs that an earlier agent had pinned.
    pub(super) adopted: BTreeMap<&'static str, Program>,
    /// Links that are held for as long as the agent runs, and on as pins.
    pub(super) held: Vec<PinnedLink>,
    /// Links that end with the agent.
    pub(super) loose: Vec<FdLink>,
    /// Links of the latency programs while calls are timed.
    pub(super) latency: Option<Vec<FdLink>>,
    pub(super) pins: Option<Pins>,
    pub(super) timing: Timing,
    /// Number of the last duty cycle.
    pub(super) last_phase: u32,
}

impl Programs {
    pub(super) fn get(&mut self, name: &'static str) -> Result<&mut Program, ProbeError> {
        if let Some(program) = self.adopted.get_mut(name) {
            return Ok(program);
        }
        self.ebpf.program_mut(name).ok_or(ProbeError::Missing(name))
    }

    /// Loads the program `name`, or takes over the one that an earlier agent pinned.
    pub(super) fn ready(&mut self, name: &'static str, hook: Hook, btf: &Btf) -> Result<(), ProbeError> {
        let pinned = |err| ProbeError::Pinned(name, chain(&err));
        if let Some(pins) = self.pins.as_ref().filter(|pins| pins.adopted) {
            let path = pins.program(name);
            let program = match hook {
                Hook::TpBtf(_) => BtfTracePoint::from_pin(path).map(Program::BtfTracePoint),
                Hook::Lsm(_) => Lsm::from_pin(path).map(Program::Lsm),
                Hook::Fentry(_) => FEntry::from_pin(path).map(Program::FEntry),
            }
            .map_err(pinned)?;
            self.adopted.insert(name, program);
            return Ok(());
        }
        let path = self.pins.as_ref().map(|pins| pins.program(name));
        let program = self.get(name)?;
        match (&mut *program, hook) {
            (Program::BtfTracePoint(program), Hook::TpBtf(hook)) => program.load(hook, btf),
            (Program::Lsm(program), Hook::Lsm(hook)) => program.load(hook, btf),
            (Program::FEntry(program), Hook::Fentry(hook)) => program.load(hook, btf),
            _ => return Err(ProbeError::Missing(name)),
        }
        .map_err(|err| ProbeError::Refused(name, Box::new(err)))?;
        if let Some(path) = path {
            program.pin(path).map_err(|err| ProbeError::Pinned(name, chain(&err)))?;
        }
        Ok(())
    }

    /// Attaches the program `name` for good, or takes over the link that an earlier agent pinned.
    pub(super) fn hold(&mut self, name: &'static str) -> Result<(), ProbeError> {
        let Some((path, adopted)) = self.pins.as_ref().map(|pins| (pins.link(name), pins.adopted)) else {
            let link = self.attach(name)?;
            self.loose.push(link);
            return Ok(());
        };
        if adopted {
            let link = PinnedLink::from_pin(path).map_err(|err| ProbeError::Pinned(name, chain(&err)))?;
            self.held.push(link);
            return Ok(());
        }
        let link = self.attach(name)?;
        let link = link.pin(path).map_err(|err| ProbeError::Pinned(name, chain(&err)))?;
        self.held.push(link);
        Ok(())
    }

    pub(super) fn attach(&mut self, name: &'static str) -> Result<FdLink, ProbeError> {
        match self.get(name)? {
            Program::BtfTracePoint(program) => {
                program.attach().and_then(|id| program.take_link(id)).map(FdLink::from)
            }
            Program::Lsm(program) => program.attach().and_then(|id| program.take_link(id)).map(FdLink::from),
            Program::FEntry(program) => {
                program.attach().and_then(|id| program.take_link(id)).map(FdLink::from)
            }
            _ => return Err(ProbeError::Missing(name)),
        }
        .map_err(|err| ProbeError::Refused(name, Box::new(err)))
    }

    /// Whether the form `programs` of a probe may be tried: BPF must be among the security modules for its hooks to be
    /// called, and of pinned probes the form that was pinned is taken over.
    pub(super) fn eligible(&self, programs: &[(&'static str, Hook)]) -> bool {
        if let Some(pins) = self.pins.as_ref().filter(|pins| pins.adopted) {
            return programs.iter().all(|(name, _)| pins.program(name).exists());
        }
        let lsm = programs.iter().any(|(_, hook)| matches!(hook, Hook::Lsm(_)));
        !lsm || std::fs::read_to_string("/sys/kernel/security/lsm")
            .is_ok_and(|modules| modules.trim().split(',').any(|module| module == "bpf"))
    }

    /// Makes the form `programs` of a probe ready and, unless `later`, attaches it: all of it or nothing.
    pub(super) fn bring_up(
        &mut self,
        programs: &'static [(&'static str, Hook)],
        later: bool,
        btf: &Btf,
    ) -> Result<(), ProbeError> {
        let result = programs.iter().try_for_each(|(program, hook)| {
            self.ready(program, *hook, btf)?;
            if later { Ok(()) } else { self.hold(program) }
        });
        if result.is_err()
            && let Some(pins) = &self.pins
        {
            // No half of it is left pinned, to be taken over by the next agent.
            for (name, _) in programs {
                pins.forget(name);
            }
        }
        result
    }
}
