//! One connection to rtnetlink (rtnetlink(7)) of the calling thread's network namespace, with its background task.

use std::io;

use futures_util::TryStreamExt as _;
use rtnetlink::Handle;
use rtnetlink::packet_route::link::LinkAttribute;
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

    /// Index and name of every interface.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) async fn interfaces(&self) -> Result<Vec<(u32, String)>, rtnetlink::Error> {
        let mut links = self.handle.link().get().execute();
        let mut found = Vec::new();
        while let Some(link) = links.try_next().await? {
            let name = link.attributes.into_iter().find_map(|attribute| {
                if let LinkAttribute::IfName(name) = attribute {
                    Some(name)
                } else {
                    None
                }
            });
            found.extend(name.map(|name| (link.header.index, name)));
        }
        Ok(found)
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
