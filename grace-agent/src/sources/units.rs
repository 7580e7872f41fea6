//! systemd units over D-Bus (`org.freedesktop.systemd1`): what state they are in, which process is theirs, and the calls that
//! start and stop them.
//!
//! Each question has a time limit, and a bus that went away is asked for anew: systemd restarts it, too.

use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Mutex;
use zbus::{Connection, OwnedObjectPath, OwnedVariant};

use crate::error_chain::chain;

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "/org/freedesktop/systemd1";

/// A bus that does not answer within this time is not there.
const PATIENCE: Duration = Duration::from_secs(5);
/// Units may take long to start; systemd's own limit is 90 s.
const JOB: Duration = Duration::from_secs(120);
/// Between two looks at a unit that is on its way.
const LOOK: Duration = Duration::from_millis(20);

/// What systemd says of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitState {
    /// `active`, `inactive`, `failed`, `activating`, …
    pub active: String,
    /// Its main process; 0: none.
    pub main_pid: u32,
}

/// What systemd is asked to do with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Start it.
    Start,
    /// Stop it.
    Stop,
    /// Stop and start it.
    Restart,
}

impl Job {
    fn method(self) -> &'static str {
        match self {
            Self::Start => "StartUnit",
            Self::Stop => "StopUnit",
            Self::Restart => "RestartUnit",
        }
    }
}

/// The way to systemd.
pub struct Units {
    runtime: Handle,
    bus: Mutex<Option<Connection>>,
    /// Why it could not be asked last.
    trouble: std::sync::Mutex<Option<String>>,
}

impl Units {
    /// By the system's bus. Nothing is asked yet. To be used from threads that may block.
    #[must_use]
    pub fn new(runtime: Handle) -> Self {
        Self { runtime, bus: Mutex::new(None), trouble: std::sync::Mutex::new(None) }
    }

    /// Why systemd could not be asked last; none: it could, or was not.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// What state `unit` is in.
    ///
    /// # Errors
    /// In words: no bus, no systemd, or what it answered.
    pub fn state(&self, unit: &str) -> Result<UnitState, String> {
        self.wait(self.ask(unit))
    }

    /// Waits on a thread of its own: the caller may be one on which nothing may be waited for like this.
    fn wait<T: Send>(&self, what: impl Future<Output = Result<T, String>> + Send) -> Result<T, String> {
        std::thread::scope(|scope| scope.spawn(|| self.runtime.block_on(what)).join())
            .unwrap_or_else(|_panic| Err("asking systemd panicked".to_owned()))
    }

    /// Has systemd do `job` with `unit` and waits until it is done. What state it is in then.
    ///
    /// # Errors
    /// In words: no bus, no systemd, what it answered, or that the unit failed.
    pub fn run(&self, job: Job, unit: &str) -> Result<UnitState, String> {
        self.wait(async {
            let before = self.ask(unit).await?;
            let _job: OwnedObjectPath = self
                .call(MANAGER, "org.freedesktop.systemd1.Manager", job.method(), &(unit, "replace"))
                .await?;
            let began = tokio::time::Instant::now();
            loop {
                let now = self.ask(unit).await?;
                let done = match (job, now.active.as_str()) {
                    (Job::Stop, "inactive" | "failed") | (Job::Start, "active") => true,
                    // The same process: it was not stopped yet.
                    (Job::Restart, "active") => now.main_pid != before.main_pid || before.main_pid == 0,
                    (Job::Start | Job::Restart, "failed") => return Err(format!("{unit} failed to start")),
                    _ => false,
                };
                if done {
                    return Ok(now);
                }
                if began.elapsed() > JOB {
                    return Err(format!(
                        "{unit} is still {} after {}",
                        now.active,
                        humantime::format_duration(JOB)
                    ));
                }
                tokio::time::sleep(LOOK).await;
            }
        })
    }

    async fn ask(&self, unit: &str) -> Result<UnitState, String> {
        // Unlike GetUnit it also knows those that are not loaded.
        let path: OwnedObjectPath =
            self.call(MANAGER, "org.freedesktop.systemd1.Manager", "LoadUnit", &(unit,)).await?;
        let property = async |interface: &str, name: &str| -> Result<OwnedVariant, String> {
            self.call(path.as_str(), "org.freedesktop.DBus.Properties", "Get", &(interface, name)).await
        };
        let text = |value: OwnedVariant| String::try_from(value).map_err(|err| format!("{unit}: {err}"));
        let load = text(property("org.freedesktop.systemd1.Unit", "LoadState").await?)?;
        if load != "loaded" {
            return Err(format!("{unit}: systemd says `{}`", load.escape_debug()));
        }
        let active = text(property("org.freedesktop.systemd1.Unit", "ActiveState").await?)?;
        let pid = property("org.freedesktop.systemd1.Service", "MainPID").await?;
        let main_pid = u32::try_from(pid).map_err(|err| format!("{unit}: {err}"))?;
        Ok(UnitState { active, main_pid })
    }

    /// Calls systemd, on a new connection where the last one broke.
    async fn call<B, T>(&self, path: &str, interface: &str, method: &str, body: &B) -> Result<T, String>
    where
        B: serde::Serialize + zbus::zvariant::DynamicType,
        T: serde::de::DeserializeOwned + zbus::zvariant::Type,
    {
        let asked = tokio::time::timeout(PATIENCE, async {
            let mut bus = self.bus.lock().await;
            let connection = match bus.as_ref() {
                Some(connection) => connection.clone(),
                None => bus.insert(Connection::system().await?).clone(),
            };
            drop(bus);
            let answer = connection.call_method(Some(SYSTEMD), path, Some(interface), method, body).await?;
            answer.body().deserialize::<T>()
        });
        let result = match asked.await {
            Ok(Ok(answer)) => Ok(answer),
            // What systemd itself answers is no trouble with the bus.
            Ok(Err(zbus::Error::MethodError(name, text, _)))
                if name.as_str().starts_with("org.freedesktop.systemd1.") =>
            {
                return Err(format!("systemd: {}", text.unwrap_or_default().escape_debug()));
            }
            Ok(Err(err)) => Err(format!("systemd cannot be asked: {}", chain(&err))),
            Err(_) => Err(format!("systemd does not answer within {}", humantime::format_duration(PATIENCE))),
        };
        if result.is_err() {
            *self.bus.lock().await = None;
        }
        let trouble = result.as_ref().err().cloned();
        *self.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = trouble;
        result
    }
}
