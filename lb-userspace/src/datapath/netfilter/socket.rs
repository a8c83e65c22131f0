//! Requests to netfilter by netlink (`linux/netfilter/nfnetlink.h`): messages as bytes, one socket a request.
//!
//! Lengths and types of netlink's own headers are in the machine's byte order, what netfilter puts into attributes mostly in network order.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use thiserror::Error;

/// Flags of a message: a request, one to be acknowledged, one for everything.
pub(super) const REQUEST: u16 = 1;
pub(super) const ACK: u16 = 4;
pub(super) const DUMP: u16 = 0x300;
/// Types of messages that end an answer.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Bytes of a message's header, and with netfilter's own.
const HEAD: usize = 16;
pub(super) const HEADS: usize = HEAD + 4;
/// An attribute that has attributes.
const NESTED: u16 = 0x8000;
/// How long the kernel may take.
const SECONDS: i64 = 10;

/// Netfilter refuses, or cannot be asked.
#[derive(Debug, Error)]
#[error("netfilter: cannot {what}")]
pub struct NetfilterError {
    /// What was asked.
    pub what: &'static str,
    /// The cause.
    #[source]
    pub source: io::Error,
}

impl NetfilterError {
    /// Whether what was asked about is not there.
    pub(super) fn is_absent(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// Messages one after the other.
#[derive(Debug, Default)]
pub(super) struct Messages(Vec<u8>);

impl Messages {
    /// Begins a message; `resource` is the last field of netfilter's header.
    pub(super) fn begin(&mut self, kind: u16, flags: u16, family: u8, resource: u16) -> usize {
        let start = self.0.len();
        self.0.extend_from_slice(&0_u32.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.0.extend_from_slice(&[0; 8]);
        self.0.extend_from_slice(&[family, 0]);
        self.0.extend_from_slice(&resource.to_be_bytes());
        start
    }

    /// Adds a text.
    pub(super) fn text(&mut self, kind: u16, text: &str) {
        let length = 4 + text.len() + 1;
        self.0.extend_from_slice(&(length as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(text.as_bytes());
        self.0.resize(self.0.len() + 1 + (4 - length % 4) % 4, 0);
    }

    /// Ends the message that began at `start`.
    pub(super) fn end(&mut self, start: usize) {
        let length = ((self.0.len() - start) as u32).to_ne_bytes();
        if let Some(field) = self.0.get_mut(start..start + 4) {
            field.copy_from_slice(&length);
        }
    }
}

/// Sends messages and hands each message of the answer to `each`, netfilter's header included, until the last of `acks` acknowledgements or
/// the end of a dump.
pub(super) fn ask(
    what: &'static str,
    messages: &Messages,
    mut acks: usize,
    mut each: impl FnMut(&[u8]),
) -> Result<(), NetfilterError> {
    let fail = |source: io::Error| NetfilterError { what, source };
    let fd = open().map_err(|error| fail(error.into()))?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(fd.as_raw_fd(), &messages.0, &kernel, MsgFlags::empty()).map_err(|error| fail(error.into()))?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let length = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(|error| fail(error.into()))?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some((kind, message, after)) = split(rest) {
            rest = after;
            match kind {
                DONE => return Ok(()),
                ERROR => {
                    let code = message.get(HEAD..HEAD + 4).and_then(|bytes| bytes.try_into().ok());
                    match code.map_or(0, i32::from_ne_bytes) {
                        0 => acks = acks.saturating_sub(1),
                        code => return Err(fail(io::Error::from_raw_os_error(-code))),
                    }
                    if acks == 0 {
                        return Ok(());
                    }
                }
                _ => each(message.get(HEADS..).unwrap_or_default()),
            }
        }
    }
}

fn open() -> nix::Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(SECONDS))?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(fd)
}

/// The first message of several: its type, its bytes, and what follows.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let message = bytes.get(..length).filter(|message| message.len() >= HEAD)?;
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, message, after))
}

/// The value of the first attribute of this type.
pub(super) fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & !NESTED;
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_attributes_are_read_as_they_are_written() {
        let mut messages = Messages::default();
        for (kind, text) in [(7, "abc"), (8, "defgh")] {
            let start = messages.begin(kind, ACK, 2, 10);
            messages.text(1, "x");
            messages.text(2, text);
            messages.end(start);
        }
        let (kind, first, rest) = split(&messages.0).unwrap();
        assert_eq!((kind, first.len() % 4), (7, 0));
        assert_eq!(attribute(&first[HEADS..], 2), Some(&b"abc\0"[..]));
        let (kind, second, rest) = split(rest).unwrap();
        assert_eq!((kind, rest.len()), (8, 0));
        assert_eq!(attribute(&second[HEADS..], 2), Some(&b"defgh\0"[..]));
        assert_eq!(attribute(&second[HEADS..], 3), None);
        assert_eq!(attribute(&[4, 0], 1), None);
        assert!(split(&[200, 0, 0, 0, 1, 0]).is_none());
    }
}
