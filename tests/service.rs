//! A real service under a real client: redis, whose configuration is broken and which is killed while it is used. What the
//! client was told is kept is there afterwards.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod harness;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use harness::{Agent, program, run, wait_until};

/// Counts up by one, and what it counted to; none: no answer.
fn count(stream: &mut Option<TcpStream>, port: u16) -> Option<u64> {
    let answer = (|| {
        if stream.is_none() {
            *stream = Some(TcpStream::connect(("127.0.0.1", port)).ok()?);
        }
        let open = stream.as_mut()?;
        open.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        open.write_all(b"INCR counter\r\n").ok()?;
        let mut text = [0; 64];
        let n = open.read(&mut text).ok()?;
        std::str::from_utf8(text.get(..n)?).ok()?.strip_prefix(':')?.trim().parse().ok()
    })();
    if answer.is_none() {
        *stream = None;
    }
    answer
}

#[test]
fn a_client_of_a_broken_and_killed_server_goes_on_where_it_was() {
    let name = "a_client_of_a_broken_and_killed_server_goes_on_where_it_was";
    // One program by two names, of which Debian's redis-tools has the other.
    let found = ["redis-server", "redis-check-rdb"].map(|name| Path::new("/usr/bin").join(name));
    let Some(found) = found.iter().find(|path| path.exists()) else {
        return harness::skip(name, "neither redis-server nor redis-tools is installed");
    };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut agent = Agent::start("");
    let data = agent.path("etc");
    let server = agent.path("redis-server");
    std::os::unix::fs::symlink(found, &server).unwrap();
    let good = format!(
        "bind 127.0.0.1\nport {port}\ndir {}\nsave \"\"\nappendonly yes\nappendfsync always\n",
        data.display()
    );
    let conf = agent.file("redis.conf", &good);
    agent.config(&format!(
        "[[process]]\nname = \"redis\"\ncommand = [\"{}\", \"{}\"]\n[[file]]\npath = \"{}\"\n",
        server.display(),
        conf.display(),
        conf.display()
    ));
    agent.stop();
    agent.run();
    let pid = || agent.json(&["status", "--json"])["processes"][0]["pid"].as_u64();
    let (acknowledged, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let (mut stream, mut last) = (None, 0);
            while !stop.load(Ordering::Acquire) {
                if let Some(now) = count(&mut stream, port) {
                    // One that was counted and not answered any more may be there as well.
                    assert!(now > last, "{now} after {last}: what was acknowledged is lost");
                    last = now;
                    acknowledged.fetch_add(1, Ordering::AcqRel);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let answered = |more: u64| {
            let before = acknowledged.load(Ordering::Acquire);
            wait_until("the client is answered", || acknowledged.load(Ordering::Acquire) >= before + more);
        };
        answered(20);
        let first = pid().unwrap();
        // The configuration alone: the running server does not notice.
        run(&program("sed"), &["-i", "s/^port .*/port 1/", conf.to_str().unwrap()]);
        wait_until("it is restored", || fs::read_to_string(&conf).is_ok_and(|text| text == good));
        answered(20);
        assert_eq!(pid(), Some(first));
        // Both at once: started again with what is right.
        run(&program("sed"), &["-i", "s/^port .*/port 1/", conf.to_str().unwrap()]);
        run(&program("kill"), &["-9", &first.to_string()]);
        wait_until("another one runs", || pid().is_some_and(|pid| pid != first));
        answered(50);
        assert_eq!(fs::read_to_string(&conf).unwrap(), good);
        stop.store(true, Ordering::Release);
        client.join().unwrap();
    });
    let killed = agent.wait_firing("the killer is named", |f| f["trigger"] == "health_gap");
    assert!(killed["summary"].as_str().unwrap().contains("SIGKILL"), "{killed:#}");
    let last = pid().unwrap();
    agent.stop();
    run(&program("kill"), &["-9", &last.to_string()]);
}
