//! Whether a process accepts connections: how it shows that it is ready, where it does not say so.

use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::config::Ready;

/// One that does not answer within this time is asked again.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether somebody accepts connections there. None: it says so itself.
#[must_use]
pub fn accepts(ready: &Ready) -> Option<bool> {
    match ready {
        Ready::Notify => None,
        Ready::Tcp(address) => Some(TcpStream::connect_timeout(address, PATIENCE).is_ok()),
        // One whose queue is full makes the caller wait: not ready is what that is.
        Ready::Unix(path) => Some(UnixStream::connect(path).is_ok()),
    }
}
