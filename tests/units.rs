//! systemd units over D-Bus: a small service that speaks as systemd does, with real processes behind it, on a bus of its own. (No
//! systemd runs where this is developed; the agent's way to it is the real one.)

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr, reason = "tests")]

mod harness;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use harness::{Agent, program, wait_until};
use serde_json::Value;
use zbus::fdo;

/// A bus of its own, ended with the test.
struct Bus {
    daemon: Child,
    address: String,
}

impl Bus {
    fn start(dir: &Path) -> Option<Self> {
        let daemon = Path::new("/usr/bin/dbus-daemon");
        if !daemon.exists() {
            return None;
        }
        let address = format!("unix:path={}", dir.join("bus").display());
        let child = Command::new(daemon)
            .args(["--session", "--nofork", "--nopidfile", &format!("--address={address}")])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("the bus is there", || dir.join("bus").exists());
        Some(Self { daemon: child, address })
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// The units that run, by name; what they were asked, in order.
#[derive(Default)]
struct World {
    units: BTreeMap<String, Child>,
    asked: Vec<String>,
}

impl World {
    fn start(&mut self, unit: &str) {
        let child = Command::new(program("sleep")).arg("1000").stdin(Stdio::null()).spawn().unwrap();
        self.units.insert(unit.to_owned(), child);
    }

    fn stop(&mut self, unit: &str) {
        if let Some(mut child) = self.units.remove(unit) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The pid of a unit that runs.
    fn pid(&mut self, unit: &str) -> u32 {
        let Some(child) = self.units.get_mut(unit) else { return 0 };
        if child.try_wait().unwrap().is_some() { 0 } else { child.id() }
    }
}

/// Ends the units with the test, whoever still knows them.
struct End(Arc<Mutex<World>>);

impl Drop for End {
    fn drop(&mut self) {
        let mut world = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for child in world.units.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

struct Manager(Arc<Mutex<World>>, zbus::Connection);
struct Unit(Arc<Mutex<World>>, String);
struct Service(Arc<Mutex<World>>, String);

fn path_of(unit: &str) -> zbus::OwnedObjectPath {
    let name: String = unit.bytes().map(|b| format!("_{b:02x}")).collect();
    zbus::OwnedObjectPath::try_from(format!("/org/freedesktop/systemd1/unit/{name}")).unwrap()
}

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    async fn load_unit(&self, name: &str) -> fdo::Result<zbus::OwnedObjectPath> {
        let path = path_of(name);
        let server = self.1.object_server();
        server.at(&path, Unit(Arc::clone(&self.0), name.to_owned())).await?;
        server.at(&path, Service(Arc::clone(&self.0), name.to_owned())).await?;
        Ok(path)
    }

    fn start_unit(&self, name: &str, mode: &str) -> zbus::OwnedObjectPath {
        let mut world = self.0.lock().unwrap();
        world.asked.push(format!("start {name} {mode}"));
        if world.pid(name) == 0 {
            world.start(name);
        }
        path_of("job")
    }

    fn restart_unit(&self, name: &str, mode: &str) -> zbus::OwnedObjectPath {
        let mut world = self.0.lock().unwrap();
        world.asked.push(format!("restart {name} {mode}"));
        world.stop(name);
        world.start(name);
        path_of("job")
    }

    fn stop_unit(&self, name: &str, mode: &str) -> zbus::OwnedObjectPath {
        let mut world = self.0.lock().unwrap();
        world.asked.push(format!("stop {name} {mode}"));
        world.stop(name);
        path_of("job")
    }
}

#[zbus::interface(name = "org.freedesktop.systemd1.Unit")]
impl Unit {
    #[zbus(property)]
    fn load_state(&self) -> String {
        if self.1.starts_with("none") { "not-found" } else { "loaded" }.to_owned()
    }

    #[zbus(property)]
    fn active_state(&self) -> String {
        if self.0.lock().unwrap().pid(&self.1) == 0 { "failed" } else { "active" }.to_owned()
    }
}

#[zbus::interface(name = "org.freedesktop.systemd1.Service")]
impl Service {
    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> u32 {
        self.0.lock().unwrap().pid(&self.1)
    }
}

/// Serves until it is dropped.
fn systemd(bus: &Bus, world: &Arc<Mutex<World>>) -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let world = Arc::clone(world);
    let address = bus.address.clone();
    let connection = runtime.block_on(async {
        let connection = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
        let manager = Manager(world, connection.clone());
        connection.object_server().at("/org/freedesktop/systemd1", manager).await.unwrap();
        connection.request_name("org.freedesktop.systemd1").await.unwrap();
        connection
    });
    // As long as the runtime.
    runtime.spawn(async move {
        let _connection = connection;
        std::future::pending::<()>().await;
    });
    runtime
}

fn process(agent: &Agent, name: &str) -> Option<Value> {
    let status = agent.json(&["status", "--json"]);
    status["processes"].as_array().unwrap().iter().find(|p| p["name"] == name).cloned()
}

fn pid_of(agent: &Agent, name: &str) -> Option<u32> {
    process(agent, name)?["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())
}

#[test]
fn units_are_started_watched_started_again_and_scaled_through_systemd() {
    let dir = tempfile::tempdir().unwrap();
    let Some(bus) = Bus::start(dir.path()) else {
        harness::skip("units_are_started_watched_started_again_and_scaled", "dbus-daemon is not installed");
        return;
    };
    let world = Arc::new(Mutex::new(World::default()));
    let _end = End(Arc::clone(&world));
    let _systemd = systemd(&bus, &world);
    world.lock().unwrap().start("web.service");
    let web = world.lock().unwrap().pid("web.service");
    let address = format!("DBUS_SYSTEM_BUS_ADDRESS={}", bus.address);
    let config = "[triggers.latency_spike]\nsustained = \"2s\"\nclear_for = \"2s\"\nscale_down_after = \"2s\"\n\
                  [[queue]]\nname = \"jobs\"\nlimit = 10\nprocess = \"worker\"\n\
                  [[process]]\nname = \"web\"\nunit = \"web.service\"\n\
                  [[process]]\nname = \"worker\"\nunit = \"worker@\"\nmax_replicas = 2\n";
    let agent = Agent::start_as(config, "repair", &[&program("env"), &address]);
    wait_until("both run", || pid_of(&agent, "web") == Some(web) && pid_of(&agent, "worker").is_some());
    assert_eq!(world.lock().unwrap().asked, ["start worker@1.service replace"], "one ran already");

    rustix::process::kill_process(
        rustix::process::Pid::from_raw(i32::try_from(web).unwrap()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    wait_until("it runs again", || pid_of(&agent, "web").is_some_and(|pid| pid != web));
    assert_eq!(world.lock().unwrap().asked.last().unwrap(), "start web.service replace");
    agent.wait_firing("killed", |f| f["subject"]["name"] == "web" && f["remedy"][0]["state"] == "done");

    let queue = |depth: u32| {
        agent.ok(&["queue", "jobs", &depth.to_string()]);
        std::thread::sleep(std::time::Duration::from_millis(200));
    };
    wait_until("another instance runs", || {
        queue(50);
        pid_of(&agent, "worker@2").is_some()
    });
    assert_eq!(world.lock().unwrap().asked.last().unwrap(), "start worker@2.service replace");
    wait_until("it is stopped again", || {
        queue(1);
        world.lock().unwrap().asked.last().unwrap() == "stop worker@2.service replace"
    });
    let status = agent.json(&["status", "--json"]);
    let source = status["sources"].as_array().unwrap().iter().find(|s| s["name"] == "systemd").unwrap();
    assert_eq!(source["state"], "ok", "{source:#}");
}

#[test]
fn a_unit_that_is_silent_is_restarted_by_systemd() {
    let dir = tempfile::tempdir().unwrap();
    let Some(bus) = Bus::start(dir.path()) else {
        harness::skip("a_unit_that_is_silent_is_restarted_by_systemd", "dbus-daemon is not installed");
        return;
    };
    let world = Arc::new(Mutex::new(World::default()));
    let _end = End(Arc::clone(&world));
    let _systemd = systemd(&bus, &world);
    world.lock().unwrap().start("web.service");
    let web = world.lock().unwrap().pid("web.service");
    let address = format!("DBUS_SYSTEM_BUS_ADDRESS={}", bus.address);
    let config = "[triggers.health_gap]\nstartup = \"2s\"\n\
                  [[process]]\nname = \"web\"\nunit = \"web.service\"\nheartbeat = \"1s\"\n";
    let agent = Agent::start_as(config, "repair", &[&program("env"), &address]);
    // It says nothing, ever.
    let firing = agent.wait_firing("silent, restarted", |f| {
        f["subject"]["name"] == "web" && f["remedy"][0]["state"] == "done"
    });
    assert_eq!(firing["remedy"][0]["action"], "restart_process", "{firing:#}");
    wait_until("another one is watched", || pid_of(&agent, "web").is_some_and(|pid| pid != web));
    let asked = world.lock().unwrap().asked.clone();
    assert!(
        asked.iter().all(|asked| asked == "restart web.service replace") && !asked.is_empty(),
        "{asked:?}"
    );
    // That it ended for that is no end of its own.
    assert!(agent.firings().iter().all(|f| !f["summary"].to_string().contains("was killed")));
}

#[test]
fn where_there_is_no_systemd_it_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("DBUS_SYSTEM_BUS_ADDRESS=unix:path={}", dir.path().join("none").display());
    let config = "[[process]]\nname = \"web\"\nunit = \"web.service\"\nburst = 1\n";
    let agent = Agent::start_as(config, "repair", &[&program("env"), &address]);
    let firing = agent.wait_firing("not started", |f| f["subject"]["name"] == "web");
    assert!(firing["evidence"].to_string().contains("systemd cannot be asked"), "{firing:#}");
    let status = agent.json(&["status", "--json"]);
    let source = status["sources"].as_array().unwrap().iter().find(|s| s["name"] == "systemd").unwrap();
    assert_eq!(source["state"], "degraded", "{source:#}");
    assert!(status["degraded"].to_string().contains("source systemd"), "{status:#}");
}
