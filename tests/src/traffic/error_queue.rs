//! What ICMP told a socket: path MTU and queued errors (`IP_MTU`, `IP_RECVERR`; ip(7), ipv6(7)).

use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, getsockopt, recvmsg, setsockopt, sockopt};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};
use socket2::SockRef;

use super::udp::unspecified;
use crate::netns::Netns;

/// Payload of a datagram that only has to be noticed.
const PROBE_BYTES: usize = 8;

sockopt_impl!(
    /// Path MTU of a connected IPv6 socket (`IPV6_MTU`).
    Ipv6Mtu, GetOnly, libc::IPPROTO_IPV6, libc::IPV6_MTU, libc::c_int
);
sockopt_impl!(
    /// Whether IPv4 datagrams may be fragmented (`IP_MTU_DISCOVER`).
    IpMtuDiscover, SetOnly, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::c_int
);
sockopt_impl!(
    /// Whether IPv6 datagrams may be fragmented (`IPV6_MTU_DISCOVER`).
    Ipv6MtuDiscover, SetOnly, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::c_int
);

/// An error that ICMP, or the kernel itself, queued for a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedError {
    /// The errno that it stands for.
    pub errno: i32,
    /// Whether it came by ICMP or ICMPv6; otherwise the local kernel made it.
    pub by_icmp: bool,
    /// ICMP type.
    pub icmp_type: u8,
    /// ICMP code.
    pub icmp_code: u8,
    /// The MTU in a too-big message.
    pub info: u32,
    /// Source of the ICMP message.
    pub offender: Option<IpAddr>,
    /// Where the datagram in question had been sent: its quoted destination.
    pub about: Option<SocketAddr>,
}

/// What a path does to a datagram that must not be fragmented.
#[derive(Clone, Debug)]
pub struct PathMtuReport {
    /// The errors, in order.
    pub errors: Vec<QueuedError>,
    /// The path MTU that the kernel then held for the destination.
    pub path_mtu: u32,
    /// Whether a datagram came back.
    pub answered: bool,
}

/// The path MTU that the kernel holds for `to`, as a new socket sees it.
#[track_caller]
pub fn path_mtu(from: &impl AsRef<Netns>, to: impl Into<SocketAddr>) -> u32 {
    let to = to.into();
    let known = from.as_ref().run(|| {
        let socket = UdpSocket::bind(unspecified(to))?;
        socket.connect(to)?;
        socket_mtu(&socket, to.is_ipv6())
    });
    known.unwrap_or_else(|error| panic!("path MTU to {to}: {error}"))
}

/// Sends one unfragmentable datagram of `payload` bytes and waits for an error or an answer, at most `timeout`.
#[track_caller]
pub fn probe_path_mtu(
    from: &impl AsRef<Netns>,
    to: impl Into<SocketAddr>,
    payload: usize,
    timeout: Duration,
) -> PathMtuReport {
    let to = to.into();
    let probed = from.as_ref().run(|| probe(to, payload, timeout));
    probed.unwrap_or_else(|error| panic!("probe the path MTU to {to}: {error}"))
}

/// Sends one datagram that fewer than `hops` routers pass on, and waits for errors or an answer, at most `timeout`; the errors.
#[track_caller]
pub fn probe_hops(
    from: &impl AsRef<Netns>,
    to: impl Into<SocketAddr>,
    hops: u8,
    timeout: Duration,
) -> Vec<QueuedError> {
    let to = to.into();
    let probed = from.as_ref().run(|| -> std::io::Result<_> {
        let socket = UdpSocket::bind(unspecified(to))?;
        match to {
            SocketAddr::V4(_) => SockRef::from(&socket).set_ttl_v4(hops.into())?,
            SocketAddr::V6(_) => SockRef::from(&socket).set_unicast_hops_v6(hops.into())?,
        }
        Ok(question(&socket, to, PROBE_BYTES, timeout)?.0)
    });
    probed.unwrap_or_else(|error| panic!("probe the hops to {to}: {error}"))
}

fn probe(to: SocketAddr, payload: usize, timeout: Duration) -> std::io::Result<PathMtuReport> {
    let socket = UdpSocket::bind(unspecified(to))?;
    match to {
        SocketAddr::V4(_) => setsockopt(&socket, IpMtuDiscover, &libc::IP_PMTUDISC_DO)?,
        SocketAddr::V6(_) => setsockopt(&socket, Ipv6MtuDiscover, &libc::IPV6_PMTUDISC_DO)?,
    }
    let (errors, answered) = question(&socket, to, payload, timeout)?;
    Ok(PathMtuReport {
        errors,
        path_mtu: socket_mtu(&socket, to.is_ipv6())?,
        answered,
    })
}

/// Sends one datagram; the errors that came before an answer or the time-out, and whether an answer did.
fn question(
    socket: &UdpSocket,
    to: SocketAddr,
    payload: usize,
    timeout: Duration,
) -> std::io::Result<(Vec<QueuedError>, bool)> {
    report_errors(socket, to.is_ipv6())?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    // EMSGSIZE is also queued, so the send's own result adds nothing.
    let _queued_too = socket.send(&vec![0x55; payload]);
    let deadline = Instant::now() + timeout;
    let mut answer = vec![0; 1 << 16];
    let mut errors = Vec::new();
    let mut answered = false;
    while errors.is_empty() && !answered && Instant::now() < deadline {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        poll(
            &mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN | PollFlags::POLLERR)],
            wait,
        )?;
        while let Some(error) = take_error(socket) {
            errors.push(error);
        }
        answered = socket.recv(&mut answer).is_ok();
    }
    Ok((errors, answered))
}

/// Has ICMP errors queued for the socket, and reported even when it is not connected.
pub(super) fn report_errors(socket: &impl AsFd, ipv6: bool) -> std::io::Result<()> {
    if ipv6 {
        setsockopt(socket, sockopt::Ipv6RecvErr, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv4RecvErr, &true)?;
    }
    Ok(())
}

/// Path MTU of a connected socket.
pub(super) fn socket_mtu(socket: &impl AsFd, ipv6: bool) -> std::io::Result<u32> {
    let mtu = if ipv6 {
        getsockopt(socket, Ipv6Mtu)?
    } else {
        getsockopt(socket, sockopt::IpMtu)?
    };
    Ok(mtu.cast_unsigned())
}

/// Takes the next error off a socket's queue.
fn take_error(socket: &UdpSocket) -> Option<QueuedError> {
    let mut quoted = [0; 256];
    let mut control = nix::cmsg_space!([u8; 256]);
    let mut buffers = [IoSliceMut::new(&mut quoted)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut buffers, Some(&mut control), flags).ok()?;
    let about = message.address.and_then(socket_address);
    let (error, offender) = message.cmsgs().ok()?.find_map(|control| {
        if let ControlMessageOwned::Ipv4RecvErr(error, from) = control {
            Some((error, from.map(|from| IpAddr::from(from.sin_addr.s_addr.to_ne_bytes()))))
        } else if let ControlMessageOwned::Ipv6RecvErr(error, from) = control {
            Some((error, from.map(|from| IpAddr::from(from.sin6_addr.s6_addr))))
        } else {
            None
        }
    })?;
    let by_icmp = [libc::SO_EE_ORIGIN_ICMP, libc::SO_EE_ORIGIN_ICMP6].contains(&error.ee_origin);
    Some(QueuedError {
        errno: error.ee_errno.cast_signed(),
        by_icmp,
        icmp_type: error.ee_type,
        icmp_code: error.ee_code,
        info: error.ee_info,
        offender: offender.filter(|_| by_icmp),
        about,
    })
}

fn socket_address(address: SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}
