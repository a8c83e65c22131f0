//! The packets of one flow as they look at the four places that matter.

use std::net::IpAddr;

use lb_tests::packet::Packet;

use super::node::Addresses;
use super::objects::{BACKEND_PORT, PORT};

/// Port of the clients.
pub(super) const CLIENT_PORT: u16 = 40_000;

/// A transport that flows have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    pub(super) const BOTH: [Self; 2] = [Self::Tcp, Self::Udp];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }

    /// A packet between two sockets; `flags` are TCP's alone.
    pub(super) fn packet(self, from: (IpAddr, u16), to: (IpAddr, u16), flags: &str) -> Packet {
        let packet = Packet::new(from.0, to.0);
        match self {
            Self::Tcp => packet.tcp(from.1, to.1, flags),
            Self::Udp => packet.udp(from.1, to.1),
        }
    }
}

/// A flow by its ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    pub(super) transport: Transport,
    pub(super) client: (IpAddr, u16),
    pub(super) frontend: (IpAddr, u16),
    /// The client as the backend sees it.
    pub(super) source: (IpAddr, u16),
    pub(super) backend: (IpAddr, u16),
}

impl Flow {
    /// From the client pod to the local backend.
    pub(super) fn from_pod(family: Addresses, transport: Transport) -> Self {
        Self {
            transport,
            client: (family.pod(), CLIENT_PORT),
            frontend: (family.vip(), PORT),
            source: (family.pod(), CLIENT_PORT),
            backend: (family.local_pod(), BACKEND_PORT),
        }
    }

    /// From the client, as the client sends it.
    pub(super) fn ask(&self, flags: &str) -> Packet {
        self.transport
            .packet(self.client, self.frontend, flags)
            .payload(b"an odd question, it")
    }

    /// From the client, as the backend gets it.
    pub(super) fn asked(&self, flags: &str) -> Packet {
        self.transport
            .packet(self.source, self.backend, flags)
            .payload(b"an odd question, it")
    }

    /// From the backend, as the backend sends it.
    pub(super) fn answer(&self, flags: &str) -> Packet {
        self.transport
            .packet(self.backend, self.source, flags)
            .payload(b"an even answer it")
    }

    /// From the backend, as the client gets it.
    pub(super) fn answered(&self, flags: &str) -> Packet {
        self.transport
            .packet(self.frontend, self.client, flags)
            .payload(b"an even answer it")
    }
}
