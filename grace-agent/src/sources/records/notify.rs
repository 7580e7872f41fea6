//! `sd_notify` datagrams: `READY=1`, `WATCHDOG=1`, `STATUS=…`, one assignment a line, as services send them to systemd.

/// True for a datagram of this protocol: it begins with an assignment to a name in capitals. A StatsD line has its
/// colon first.
pub(super) fn is_notify(datagram: &[u8]) -> bool {
    let Some(at) = datagram.iter().position(|b| matches!(b, b'=' | b':' | b'|' | b'\n')) else {
        return false;
    };
    let name = datagram.get(..at).unwrap_or_default();
    let capital = |b: &u8| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_';
    datagram.get(at) == Some(&b'=')
        && name.first().is_some_and(u8::is_ascii_uppercase)
        && name.iter().all(capital)
}

/// True where it says that the sender is alive. `WATCHDOG=trigger` says the opposite, and of names that this does not
/// know nothing is concluded.
pub(super) fn is_sign_of_life(datagram: &[u8]) -> bool {
    let mut lines = datagram.split(|b| *b == b'\n');
    lines.any(|line| {
        matches!(line, b"READY=1" | b"WATCHDOG=1" | b"RELOADING=1" | b"STOPPING=1")
            || line.starts_with(b"STATUS=")
    })
}

/// True where it says that the sender is ready to work.
pub(super) fn is_ready(datagram: &[u8]) -> bool {
    datagram.split(|b| *b == b'\n').any(|line| line == b"READY=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_told_from_statsd() {
        for yes in ["WATCHDOG=1", "READY=1\nSTATUS=up", "MAINPID=7", "X_FOO1=a:b|c", "STATUS="] {
            assert!(is_notify(yes.as_bytes()), "{yes}");
        }
        for no in ["", "=1", "a=1", "A:1|g", "A|g=", "1A=1", "queue.A=B:1|g", "A\n=", "\u{e4}=1", "WATCHDOG"]
        {
            assert!(!is_notify(no.as_bytes()), "{no}");
        }
    }

    #[test]
    fn signs_of_life() {
        for yes in
            ["WATCHDOG=1", "READY=1", "STOPPING=1", "RELOADING=1", "STATUS=a=b", "MAINPID=7\nWATCHDOG=1\n"]
        {
            assert!(is_sign_of_life(yes.as_bytes()), "{yes}");
        }
        for no in ["WATCHDOG=trigger", "WATCHDOG=10", "READY=0", "MAINPID=7", "FDSTORE=1", "WATCHDOG_USEC=1"]
        {
            assert!(!is_sign_of_life(no.as_bytes()), "{no}");
        }
    }
}
