//! One connection to rtnetlink (rtnetlink(7)) of the calling thread's network namespace, with its background task.

use std::io;

use rtnetlink::Handle;
use tokio::task::JoinHandle;

/// A connection; its task ends when it is dropped.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Netlink {
    /// Opens a connection. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self {
            handle,
            task: tokio::spawn(connection),
        })
    }

    /// Sends requests.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The kernel's error number in an answer, positive; `None` for other errors.
pub(super) fn errno(error: &rtnetlink::Error) -> Option<i32> {
    if let rtnetlink::Error::NetlinkError(message) = error {
        message.to_io().raw_os_error()
    } else {
        None
    }
}
