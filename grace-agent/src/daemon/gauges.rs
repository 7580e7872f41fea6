//! What `grace gpu` and `grace pressure` show: the last readings, beside the firings that are about them.

use std::sync::Mutex;

use super::control::Agent;
use super::executor::lock;
use crate::actions::shed_load;
use crate::api::control::{Control as _, ControlError, FiringsQuery};
use crate::api::gpu::{GpuView, GpusView, LoadView, PressureView, ProblemView, ReadingView};
use crate::api::view::FiringView;
use crate::clock;
use crate::event::{Reading, Timestamp};
use crate::firing::{State, Subject};
use crate::sources::pressure::{self, Load};

/// The host's pressure as it was last seen, and when.
#[derive(Default)]
pub(super) struct Latest(Mutex<Vec<(Reading, Timestamp)>>);

impl Latest {
    /// Takes in what was read now.
    pub(super) fn note(&self, readings: &[Reading]) {
        let now = clock::boottime();
        let mut latest = lock(&self.0);
        for reading in readings {
            match latest.iter_mut().find(|(known, _)| known.resource == reading.resource) {
                Some(known) => *known = (reading.clone(), now),
                None => latest.push((reading.clone(), now)),
            }
        }
        // A mount that is gone is not shown for ever.
        latest.retain(|(_, at)| now.since(*at) < std::time::Duration::from_secs(60));
    }
}

impl Agent {
    fn holding(&self) -> Result<Vec<FiringView>, ControlError> {
        let trigger = Some("resource_pressure".to_owned());
        let mut firings = self.firings(&FiringsQuery { trigger, ..FiringsQuery::default() })?;
        firings.retain(|firing| firing.state == State::Holds);
        Ok(firings)
    }

    /// See [`crate::api::control::Control::gpus`].
    pub(super) fn show_gpus(&self) -> Result<GpusView, ControlError> {
        let state = self.gpus.state();
        let holding = self.holding()?;
        let about = |wanted: &dyn Fn(&str) -> bool| -> Vec<ProblemView> {
            let of = |firing: &&FiringView| matches!(&firing.subject, Subject::Gpu(what) if wanted(what));
            holding
                .iter()
                .filter(of)
                .map(|firing| ProblemView {
                    firing: firing.id,
                    summary: firing.summary.clone(),
                    advice: crate::triggers::resource_pressure::advice(&firing.subject).to_owned(),
                })
                .collect()
        };
        let gpus = state.gpus.into_iter().map(|(sample, at)| {
            let (index, pci) = (format!("{} ", sample.index), format!("{} ", sample.pci));
            let problems = about(&|what| what.starts_with(&index) || what.starts_with(&pci));
            GpuView::new(sample, clock::rfc3339(at), problems)
        });
        Ok(GpusView {
            state: state.health.0,
            detail: state.health.1,
            driver: state.driver,
            missing: state.missing.into_iter().map(str::to_owned).collect(),
            period_ms: state.period_ms,
            look_us: state.look_us,
            look_cpu_us: state.look_cpu_us,
            problems: about(&|what| what == "driver"),
            gpus: gpus.collect(),
        })
    }

    /// See [`crate::api::control::Control::pressure`].
    pub(super) fn show_pressure(&self) -> Result<PressureView, ControlError> {
        let settings = lock(&self.config).pressure.clone();
        let holding = self.holding()?;
        let readings = lock(&self.latest.0).clone();
        let seen = readings.iter().map(|(_, at)| *at).max().map(clock::rfc3339);
        let of = |(reading, _): (Reading, Timestamp)| {
            let subject = Subject::Host(reading.resource.clone());
            ReadingView {
                limit: settings.limit(&reading.resource),
                firing: holding.iter().find(|firing| firing.subject == subject).map(|firing| firing.id),
                percent: reading.percent,
                resource: reading.resource,
            }
        };
        let executor = &self.executor;
        let importance: Vec<(String, u8)> =
            lock(&executor.specs).values().map(|p| (p.name.clone(), p.importance)).collect();
        let mut loads: Vec<(u8, Load)> = importance
            .into_iter()
            .map(|(name, importance)| (importance, pressure::load(&executor.processes, &name)))
            .collect();
        loads.sort_by(|(a, x), (b, y)| {
            a.cmp(b).then_with(|| x.order().cmp(&y.order())).then_with(|| x.process.cmp(&y.process))
        });
        let processes = loads.into_iter().map(|(importance, load)| LoadView {
            importance,
            memory_bytes: load.memory,
            memory_wait_percent: load.memory_wait,
            cpu_wait_percent: load.cpu_wait,
            io_wait_percent: load.io_wait,
            preference: load.preference().map(str::to_owned),
            shed: shed_load::taken(&executor.running, &load.process).and_then(|taken| taken.step()),
            process: load.process,
        });
        Ok(PressureView {
            seen,
            readings: readings.into_iter().map(of).collect(),
            steps: settings.steps.clone(),
            processes: processes.collect(),
        })
    }
}
