//! The device steer0, by which packets of host processes to VIPs leave, so that a program can translate them.
//!
//! A veth pair in one network namespace: there need not be a driver for dummy devices. Neither end has an address, a MAC table
//! or neighbours (NOARP: every packet carries steer0's own address as destination). What no program takes from steer0 arrives
//! at steer1 with a foreign MAC address and is dropped by the stack, so nothing loops. Replies are put into steer0's ingress.
//!
//! | setting | why |
//! |---|---|
//! | steer0 `rp_filter` 2 | replies come in here from VIPs; a VIP without a route any more must still pass under `all.rp_filter` 1 |
//! | steer0 `disable_ipv6` 0 | IPv6 routes and replies, where the default for new devices is off |
//! | steer0 `accept_ra` 0, both `addrgenmode none` | no addresses ever |
//! | steer1 `disable_ipv6` 1, `forwarding` 0 | nothing is taken in there |
//! | `lo` `accept_local` 1 (remembered) | replies of own NodePorts come in by lo from an own address, as do packets that the kernel is to cut |
//! | `lo` `rp_filter` 2 (remembered) | replies that the kernel is to cut come in by lo from VIPs, also under `all.rp_filter` 1 |
//!
//! MTU: the smallest of uplinks and tunnels, so that TCP's segments fit wherever the backend is; at least 1280 (IPv6).

mod routes;

use std::io;

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::{Handle, LinkUnspec, LinkVeth};
use serde::Serialize;
use thiserror::Error;

pub use routes::{RouteError, RouteNeeds, RouteReport, VipRoutes};

use super::netlink::errno;
use super::run_dir::RunDir;
use super::sysctl;

/// Both ends: where packets leave, and the far end.
pub const STEER: [&str; 2] = ["steer0", "steer1"];

/// IPv6 needs as much.
const MTU_MIN: u32 = 1280;
/// While there is neither uplink nor tunnel.
const MTU_DEFAULT: u32 = 1500;

/// Settings of the loopback, which was there before us.
const REMEMBERED: [(&str, &str); 2] = [
    ("net/ipv4/conf/lo/accept_local", "1"),
    ("net/ipv4/conf/lo/rp_filter", "2"),
];

/// Why the device is not as it should be.
#[derive(Debug, Error)]
pub enum SteerError {
    /// The name is taken.
    #[error("an interface named {name} is not Steerway's: rename it, or remove it by `ip link del {name}`")]
    Foreign {
        /// The name.
        name: &'static str,
    },
    /// A request to rtnetlink failed.
    #[error("cannot {what} the interface {name}")]
    Link {
        /// What was tried.
        what: &'static str,
        /// The name.
        name: &'static str,
        /// The cause.
        #[source]
        source: rtnetlink::Error,
    },
    /// A setting cannot be changed.
    #[error("cannot set {key}")]
    Sysctl {
        /// The setting.
        key: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It vanished right after it was made.
    #[error("the interface {name} vanished")]
    Vanished {
        /// The name.
        name: &'static str,
    },
}

/// The device as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SteerDevice {
    /// Interface index of steer0.
    pub ifindex: u32,
    /// MAC address of steer0.
    pub mac: [u8; 6],
    /// MTU of both ends.
    pub mtu: u32,
}

impl SteerDevice {
    /// Makes or adopts the device and brings it into its state; writes nothing that is so already. `mtu` as in
    /// [`super::interfaces::InterfaceTable::smallest_mtu`].
    ///
    /// # Errors
    /// The names are taken, or the kernel refuses.
    pub async fn ensure(handle: &Handle, run_dir: &RunDir, mtu: Option<u32>) -> Result<Self, SteerError> {
        let mtu = mtu.unwrap_or(MTU_DEFAULT).max(MTU_MIN);
        let ends = match Pair::find(handle).await? {
            Pair::Whole(ends) => ends,
            Pair::Absent => Self::create(handle).await?,
            Pair::Broken(name) => {
                tracing::warn!(interface = name, "the pair of steer0 is broken; it is made anew");
                delete(handle, name).await?;
                Self::create(handle).await?
            }
        };
        for (end, name) in ends.iter().zip(STEER) {
            configure(handle, end, name, mtu).await?;
        }
        for (key, value) in SETTINGS {
            set(sysctl::ensure(key, value), key)?;
        }
        for (key, value) in REMEMBERED {
            set(sysctl::ensure_remembered(run_dir, key, value), key)?;
        }
        let mac = mac_of(&ends[0]).ok_or(SteerError::Vanished { name: STEER[0] })?;
        Ok(Self {
            ifindex: ends[0].header.index,
            mac,
            mtu,
        })
    }

    async fn create(handle: &Handle) -> Result<[LinkMessage; 2], SteerError> {
        let failed = |source| SteerError::Link {
            what: "create",
            name: STEER[0],
            source,
        };
        handle
            .link()
            .add(LinkVeth::new(STEER[0], STEER[1]).build())
            .execute()
            .await
            .map_err(failed)?;
        match Pair::find(handle).await? {
            Pair::Whole(ends) => Ok(ends),
            Pair::Absent | Pair::Broken(_) => Err(SteerError::Vanished { name: STEER[0] }),
        }
    }
}

/// Removes the device; true if it was there.
pub(super) async fn remove(handle: &Handle) -> Result<bool, SteerError> {
    match Pair::find(handle).await? {
        Pair::Absent => Ok(false),
        Pair::Whole(_) => delete(handle, STEER[0]).await.map(|()| true),
        Pair::Broken(name) => delete(handle, name).await.map(|()| true),
    }
}

/// Settings of the two ends; those of IPv6 are skipped where the kernel runs without it.
const SETTINGS: [(&str, &str); 5] = [
    ("net/ipv4/conf/steer0/rp_filter", "2"),
    ("net/ipv4/conf/steer1/forwarding", "0"),
    ("net/ipv6/conf/steer0/disable_ipv6", "0"),
    ("net/ipv6/conf/steer0/accept_ra", "0"),
    ("net/ipv6/conf/steer1/disable_ipv6", "1"),
];

fn set(result: io::Result<bool>, key: &str) -> Result<(), SteerError> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound && key.starts_with("net/ipv6/") => Ok(()),
        Err(source) => Err(SteerError::Sysctl {
            key: key.to_owned(),
            source,
        }),
    }
}

/// What stands under our names.
enum Pair {
    Absent,
    Whole([LinkMessage; 2]),
    /// A veth of one of our names, which is not the other one's peer.
    Broken(&'static str),
}

impl Pair {
    async fn find(handle: &Handle) -> Result<Self, SteerError> {
        let ends = [find(handle, STEER[0]).await?, find(handle, STEER[1]).await?];
        for (end, name) in ends.iter().zip(STEER) {
            if end.as_ref().is_some_and(|end| !is_veth(end)) {
                return Err(SteerError::Foreign { name });
            }
        }
        Ok(match ends {
            [None, None] => Self::Absent,
            [Some(near), Some(far)] if peer(&near) == Some(far.header.index) => Self::Whole([near, far]),
            [Some(_), _] => Self::Broken(STEER[0]),
            [None, Some(_)] => Self::Broken(STEER[1]),
        })
    }
}

async fn find(handle: &Handle, name: &'static str) -> Result<Option<LinkMessage>, SteerError> {
    match handle.link().get().match_name(name).execute().try_next().await {
        Ok(found) => Ok(found),
        Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
        Err(source) => Err(SteerError::Link {
            what: "find",
            name,
            source,
        }),
    }
}

async fn delete(handle: &Handle, name: &'static str) -> Result<(), SteerError> {
    let Some(link) = find(handle, name).await? else {
        return Ok(());
    };
    handle
        .link()
        .del(link.header.index)
        .execute()
        .await
        .map_err(|source| SteerError::Link {
            what: "remove",
            name,
            source,
        })
}

/// One change of a link that stands as `link`: NOARP, no generated addresses, MTU, up.
async fn configure(handle: &Handle, link: &LinkMessage, name: &'static str, mtu: u32) -> Result<(), SteerError> {
    let failed = |source| SteerError::Link {
        what: "configure",
        name,
        source,
    };
    let index = link.header.index;
    if !generates_no_addresses(link) {
        // Alone and first: addresses are generated when the link comes up.
        let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let request = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![mode]))
            .build();
        match handle.link().set(request).execute().await {
            Ok(()) => {}
            // Without IPv6 there is nothing to generate.
            Err(error) if errno(&error) == Some(libc::EAFNOSUPPORT) => {}
            Err(source) => return Err(failed(source)),
        }
    }
    let flags = LinkFlags::Noarp | LinkFlags::Up;
    let mtu_now = link.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::Mtu(mtu) = attribute {
            Some(*mtu)
        } else {
            None
        }
    });
    if link.header.flags.contains(flags) && mtu_now == Some(mtu) {
        return Ok(());
    }
    let request = LinkUnspec::new_with_index(index).arp(false).mtu(mtu).up().build();
    handle.link().set(request).execute().await.map_err(failed)
}

fn is_veth(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| {
        matches!(attribute, LinkAttribute::LinkInfo(infos) if infos.contains(&LinkInfo::Kind(InfoKind::Veth)))
    })
}

/// Interface index of the peer if it is in this network namespace.
fn peer(link: &LinkMessage) -> Option<u32> {
    if link
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::LinkNetNsId(_)))
    {
        return None;
    }
    link.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::Link(peer) = attribute {
            Some(*peer)
        } else {
            None
        }
    })
}

fn mac_of(link: &LinkMessage) -> Option<[u8; 6]> {
    link.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::Address(bytes) = attribute {
            bytes.as_slice().try_into().ok()
        } else {
            None
        }
    })
}

fn generates_no_addresses(link: &LinkMessage) -> bool {
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    link.attributes.iter().any(|attribute| {
        matches!(attribute, LinkAttribute::AfSpecUnspec(specs)
            if specs.iter().any(|spec| matches!(spec, AfSpecUnspec::Inet6(inet6) if inet6.contains(&none))))
    })
}
