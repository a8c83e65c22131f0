//! Many requests to rtnetlink at once (netlink(7), rtnetlink(7)): up to 128 in one datagram, each acknowledged by itself.
//!
//! The kernel has worked on a whole datagram when sendmsg(2) returns (`netlink_unicast_kernel` and `netlink_rcv_skb` in
//! `net/netlink/af_netlink.c`), one request after the other, whatever became of those before. All answers lie in the
//! receive buffer then, which has room for those of one datagram: nothing is waited for. An answer that is not there was
//! lost, and what became of its request is not known; that is told as the error that the kernel has for it.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt, socket,
    sockopt,
};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;

/// Requests of a datagram: some 10 KiB of routes, a few milliseconds of the kernel's time.
const REQUESTS: usize = 128;

/// Bytes of receive buffer to ask for; the kernel gives twice that, or twice `net.core.rmem_max`. An answer takes less than
/// 1 KiB of it, most of that the kernel's own.
const RECEIVE_BUFFER: usize = 128 << 10;

/// Bytes of an answer that are read: an acknowledgement, or an error with the request that it is for.
const ANSWER: usize = 4 << 10;

/// A socket of the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Bulk {
    socket: OwnedFd,
    /// Number of the next request.
    next: u32,
}

impl Bulk {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self::with_buffer(RECEIVE_BUFFER)?)
    }

    fn with_buffer(bytes: usize) -> nix::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        setsockopt(&socket, sockopt::RcvBuf, &bytes)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { socket, next: 0 })
    }

    /// Sends the requests, in order; returns what the kernel said to each: [`Errno::ENOBUFS`] where its answer was lost.
    pub(super) async fn ask(
        &mut self,
        requests: impl IntoIterator<Item = NetlinkMessage<RouteNetlinkMessage>>,
    ) -> Vec<nix::Result<()>> {
        let mut requests = requests.into_iter();
        let mut answers = Vec::new();
        loop {
            let first = self.next;
            let mut datagram = Vec::new();
            for mut request in requests.by_ref().take(REQUESTS) {
                request.header.flags |= NLM_F_REQUEST | NLM_F_ACK;
                request.header.sequence_number = self.next;
                request.finalize();
                let start = datagram.len();
                datagram.resize(start + request.buffer_len().next_multiple_of(4), 0);
                request.serialize(&mut datagram[start..]);
                self.next = self.next.wrapping_add(1);
            }
            if datagram.is_empty() {
                return answers;
            }
            answers.extend(self.exchange(&datagram, first, self.next.wrapping_sub(first) as usize));
            // Other tasks of this thread waited as long as the kernel took.
            tokio::task::yield_now().await;
        }
    }

    /// Sends a datagram with this many requests, numbered from `first`, and takes the answers.
    fn exchange(&self, datagram: &[u8], first: u32, requests: usize) -> Vec<nix::Result<()>> {
        let kernel = NetlinkAddr::new(0, 0);
        if let Err(error) = sendto(self.socket.as_raw_fd(), datagram, &kernel, MsgFlags::empty()) {
            return vec![Err(error); requests];
        }
        let mut answers = vec![Err(Errno::ENOBUFS); requests];
        let mut buffer = [0; ANSWER];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    let Some((number, result)) = buffer.get(..length).and_then(answer) else {
                        continue;
                    };
                    if let Some(answer) = answers.get_mut(number.wrapping_sub(first) as usize) {
                        *answer = result;
                    }
                }
                // That some were lost is told once, before those that were not.
                Err(Errno::ENOBUFS | Errno::EINTR) => {}
                // No more.
                Err(_) => return answers,
            }
        }
    }
}

/// Number of a request and what became of it.
fn answer(bytes: &[u8]) -> Option<(u32, nix::Result<()>)> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes).ok()?;
    let NetlinkPayload::Error(error) = message.payload else {
        return None;
    };
    let result = match error.raw_code() {
        0 => Ok(()),
        code => Err(Errno::from_raw(-code)),
    };
    Some((message.header.sequence_number, result))
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::NetlinkHeader;
    use rtnetlink::packet_route::link::LinkMessage;

    use super::*;

    /// Asks for nothing, which anybody may, and for an interface that is not there in each place of `refused`.
    async fn ask(bulk: &mut Bulk, requests: usize, refused: &[usize]) -> Vec<nix::Result<()>> {
        let request = |place| {
            if refused.contains(&place) {
                let mut link = LinkMessage::default();
                link.header.index = i32::MAX as u32;
                NetlinkMessage::from(RouteNetlinkMessage::GetLink(link))
            } else {
                NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::Noop)
            }
        };
        bulk.ask((0..requests).map(request)).await
    }

    #[tokio::test]
    async fn each_of_many_requests_gets_its_own_answer() {
        let mut bulk = Bulk::open().unwrap();
        // The numbers begin anew on the way.
        bulk.next = u32::MAX - 500;
        let refused = [0, 127, 128, 700, 1999];
        let answers = ask(&mut bulk, 2000, &refused).await;
        let expected = |place| {
            if refused.contains(&place) {
                Err(Errno::ENODEV)
            } else {
                Ok(())
            }
        };
        assert_eq!(answers, (0..2000).map(expected).collect::<Vec<_>>());
        assert_eq!(ask(&mut bulk, 0, &[]).await, []);
    }

    #[tokio::test]
    async fn an_answer_that_found_no_room_is_told_as_lost() {
        let mut bulk = Bulk::with_buffer(0).unwrap();
        let answers = ask(&mut bulk, REQUESTS, &[]).await;
        assert_eq!((answers.len(), answers[0]), (REQUESTS, Ok(())));
        assert_eq!(answers.last(), Some(&Err(Errno::ENOBUFS)));
        assert_eq!(
            ask(&mut bulk, 1, &[]).await,
            [Ok(())],
            "the next request is none the worse"
        );
    }

    #[tokio::test]
    async fn a_datagram_that_the_kernel_does_not_take_fails_each_of_its_requests() {
        let mut bulk = Bulk::open().unwrap();
        setsockopt(&bulk.socket, sockopt::SndBuf, &0).unwrap();
        let large = |_| NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::Overrun(vec![0; 100]));
        let answers = bulk.ask((0..=REQUESTS).map(large)).await;
        assert_eq!(answers[..REQUESTS], [Err(Errno::EMSGSIZE); REQUESTS]);
        assert_eq!(answers[REQUESTS..], [Ok(())], "the next datagram is none the worse");
    }
}
