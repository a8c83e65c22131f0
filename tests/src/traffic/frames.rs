//! Raw frames on an interface: sending any bytes, and seeing what passes, with its offload state (packet(7)).
//!
//! A socket sees what its interface receives *before* any tc program there, and what it sends *after* any. Frames that
//! the socket itself sends are not shown to it. With `PACKET_VNET_HDR` each frame carries a `virtio_net_hdr`: on the way
//! in it makes the kernel build a CHECKSUM_PARTIAL or GSO packet, on the way out it tells whether a captured one is.
//! A VLAN tag that the device has taken off is not shown.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use nix::{setsockopt_impl, sockopt_impl};

use super::server::SOCKET_BUFFER_BYTES;
use crate::netns::Netns;

sockopt_impl!(
    /// Whether frames carry a `virtio_net_hdr`.
    PacketVnetHdr, SetOnly, libc::SOL_PACKET, libc::PACKET_VNET_HDR, libc::c_int
);

const PACKET_OUTGOING: u8 = 4;
const NEEDS_CSUM: u8 = 1;
const VNET_HEADER_BYTES: usize = 10;
const LARGEST_FRAME_BYTES: usize = 1 << 17;

/// Which way a captured frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Received by the interface (in promiscuous spirit: also for other MAC addresses).
    Incoming,
    /// Sent by the interface.
    Outgoing,
}

/// Offload state of a frame, as in `struct virtio_net_hdr` (include/uapi/linux/virtio_net.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// CHECKSUM_PARTIAL: the bytes from `checksum_start` on are still to be summed.
    pub partial: bool,
    /// Where summing starts, from the first byte of the frame.
    pub checksum_start: u16,
    /// Where the sum goes, from `checksum_start`.
    pub checksum_offset: u16,
    /// `VIRTIO_NET_HDR_GSO_*`: 0 none, 1 TCP over IPv4, 4 TCP over IPv6, 5 UDP (segmentation).
    pub gso_type: u8,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Length of all headers, with GSO.
    pub header_length: u16,
}

impl VnetHeader {
    fn to_bytes(self) -> [u8; VNET_HEADER_BYTES] {
        let mut bytes = [0; VNET_HEADER_BYTES];
        bytes[0] = u8::from(self.partial) * NEEDS_CSUM;
        bytes[1] = self.gso_type;
        bytes[2..4].copy_from_slice(&self.header_length.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.checksum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.checksum_offset.to_ne_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; VNET_HEADER_BYTES]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            partial: bytes[0] & NEEDS_CSUM != 0,
            gso_type: bytes[1],
            header_length: word(2),
            gso_size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        }
    }
}

/// A frame seen on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Which way it went.
    pub direction: Direction,
    /// Its offload state.
    pub offload: VnetHeader,
    /// Its bytes, from the Ethernet header on.
    pub frame: Vec<u8>,
}

/// A packet socket on one interface. It records from the moment it is opened.
#[derive(Debug)]
pub struct FrameSocket {
    fd: OwnedFd,
    address: LinkAddr,
    interface: String,
}

impl FrameSocket {
    /// Opens a socket on `interface`.
    #[track_caller]
    pub fn open(place: &impl AsRef<Netns>, interface: &str) -> Self {
        let netns = place.as_ref();
        let opened = netns.run(|| open(interface));
        let (fd, address) =
            opened.unwrap_or_else(|error| panic!("packet socket on {interface} of {}: {error}", netns.name()));
        Self {
            fd,
            address,
            interface: interface.to_owned(),
        }
    }

    /// Sends a frame whose checksums are what its bytes say.
    #[track_caller]
    pub fn send(&self, frame: &[u8]) {
        self.send_with(VnetHeader::default(), frame);
    }

    /// Sends a frame with an offload state: a CHECKSUM_PARTIAL or GSO packet.
    #[track_caller]
    pub fn send_with(&self, offload: VnetHeader, frame: &[u8]) {
        let bytes = [&offload.to_bytes(), frame].concat();
        let sent = nix::unistd::write(&self.fd, &bytes);
        assert_eq!(sent, Ok(bytes.len()), "send a frame on {}", self.interface);
    }

    /// The first frame, recorded or to come, for which `wanted` holds; `None` when `timeout` has passed.
    pub fn next_matching(&self, timeout: Duration, mut wanted: impl FnMut(&Captured) -> bool) -> Option<Captured> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(left) {
                Some(captured) if wanted(&captured) => return Some(captured),
                Some(_) => {}
                None => return None,
            }
        }
    }

    /// Every frame for which `wanted` holds, until `count` were seen or `timeout` has passed.
    pub fn collect(&self, count: usize, timeout: Duration, mut wanted: impl FnMut(&Captured) -> bool) -> Vec<Captured> {
        let deadline = Instant::now() + timeout;
        let mut found = Vec::new();
        while found.len() < count {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(captured) = self.next_matching(left, &mut wanted) else {
                break;
            };
            found.push(captured);
        }
        found
    }

    /// Everything recorded so far.
    pub fn drain(&self) -> Vec<Captured> {
        std::iter::from_fn(|| self.receive(Duration::ZERO)).collect()
    }

    /// Takes one frame of this interface, waiting at most `timeout`; what is queued is taken even with none.
    fn receive(&self, timeout: Duration) -> Option<Captured> {
        let deadline = Instant::now() + timeout;
        let mut buffer = vec![0; LARGEST_FRAME_BYTES];
        loop {
            // Zero would mean "no time-out" to the system.
            let left = deadline
                .saturating_duration_since(Instant::now())
                .max(Duration::from_micros(1));
            let limit = TimeVal::new(left.as_secs().cast_signed(), i64::from(left.subsec_micros()));
            setsockopt(&self.fd, sockopt::ReceiveTimeout, &limit).expect("SO_RCVTIMEO");
            let (length, source) = match recvfrom::<LinkAddr>(self.fd.as_raw_fd(), &mut buffer) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return None,
                Err(Errno::EINTR | Errno::ENETDOWN) => continue,
                Err(error) => panic!("receive on {}: {error}", self.interface),
            };
            let source = source.expect("the link address of a received frame");
            let Some((header, frame)) = buffer[..length].split_first_chunk::<VNET_HEADER_BYTES>() else {
                continue;
            };
            // Until it was bound, the socket heard every interface.
            if source.ifindex() == self.address.ifindex() {
                let outgoing = source.pkttype() == PACKET_OUTGOING;
                let direction = if outgoing {
                    Direction::Outgoing
                } else {
                    Direction::Incoming
                };
                return Some(Captured {
                    direction,
                    offload: VnetHeader::from_bytes(*header),
                    frame: frame.to_vec(),
                });
            }
        }
    }
}

fn open(interface: &str) -> io::Result<(OwnedFd, LinkAddr)> {
    let address = getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .ok_or(io::ErrorKind::NotFound)?;
    let fd = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )?;
    setsockopt(&fd, PacketVnetHdr, &1)?;
    setsockopt(&fd, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES)?;
    bind(fd.as_raw_fd(), &address)?;
    Ok((fd, address))
}
