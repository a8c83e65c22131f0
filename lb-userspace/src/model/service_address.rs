//! The addresses of a Service: ClusterIPs, external IPs, load balancer addresses and their source ranges.
//!
//! Source: kube-proxy `pkg/proxy/util/utils.go` (families, `ipMode`, KEP-1860), API validation.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{self as core, Service};

use super::address::{Family, PerFamily, parse_address, parse_range, unusable_endpoint, unusable_frontend};
use super::object::{Report, quoted};
use super::service::AddressField;

/// The first address of each family. The API server keeps `clusterIP`, `clusterIPs` and `ipFamilies` in step; in a file
/// any one of the first two will do, and families that are not given are those of the addresses.
pub(super) fn cluster_ips(spec: &core::ServiceSpec, report: &mut Report<'_>) -> PerFamily<Option<IpAddr>> {
    let mut found = PerFamily::default();
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let single = spec.cluster_ip.as_slice();
    let (texts, field) = if listed.is_empty() {
        (single, "spec.clusterIP")
    } else {
        (listed, "spec.clusterIPs")
    };
    if texts.iter().all(String::is_empty) {
        report.reject(
            "spec.clusterIP",
            "is not set and there is nobody to allocate it; set it, or None for no proxying",
        );
        return found;
    }
    let families = spec.ip_families.as_deref().unwrap_or_default();
    for (index, text) in texts.iter().enumerate() {
        let path = if listed.is_empty() {
            field.to_owned()
        } else {
            format!("{field}[{index}]")
        };
        let Some(address) = frontend_address(text, &path, unusable_frontend, report) else {
            continue;
        };
        let family = Family::of(address);
        match families.get(index) {
            Some(given) if Family::parse(given) != Some(family) => report.reject(
                format!("spec.ipFamilies[{index}]"),
                format!("{} does not fit the address {address}; use {family}", quoted(given)),
            ),
            None if !families.is_empty() => {
                report.reject(
                    path,
                    format!("{address} has no entry in spec.ipFamilies; add {family} or remove it"),
                );
            }
            _ if found.get(family).is_some() => {
                report.reject(path, format!("a second {family} address is not used; remove {address}"));
            }
            _ => *found.get_mut(family) = Some(address),
        }
    }
    found
}

pub(super) fn external_ips(spec: &core::ServiceSpec, report: &mut Report<'_>) -> Box<[AddressField]> {
    let texts = spec.external_ips.as_deref().unwrap_or_default();
    let read = |(index, text): (usize, &String)| {
        let address = frontend_address(text, &format!("spec.externalIPs[{index}]"), unusable_endpoint, report)?;
        Some(AddressField {
            address,
            index: index as u16,
        })
    };
    texts.iter().enumerate().filter_map(read).collect()
}

/// The captured ingress addresses. `ipMode: Proxy` leaves the traffic to the load balancer (KEP-1860), and an entry
/// with a host name alone has nothing to capture.
pub(super) fn load_balancer_ips(object: &Service, report: &mut Report<'_>) -> Box<[AddressField]> {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    let read = |(index, entry): (usize, &core::LoadBalancerIngress)| {
        let path = format!("status.loadBalancer.ingress[{index}]");
        match entry.ip_mode.as_deref() {
            None | Some("VIP") => {}
            Some("Proxy") => return None,
            Some(other) => {
                report.reject(
                    format!("{path}.ipMode"),
                    format!("{} is unknown; use VIP or Proxy", quoted(other)),
                );
                return None;
            }
        }
        let text = entry.ip.as_deref().unwrap_or_default();
        let address = frontend_address(text, &format!("{path}.ip"), unusable_frontend, report)?;
        Some(AddressField {
            address,
            index: index as u16,
        })
    };
    ingress.iter().enumerate().filter_map(read).collect()
}

/// The source ranges of each family; none, or one of length 0, allows every source.
///
/// A range that cannot be read allows nobody, but it does restrict its family: a slip of the pen in the only range must
/// not open the load balancer's address to the world. (The API server refuses such objects, so kube-proxy never meets them.)
pub(super) fn source_ranges(spec: &core::ServiceSpec, report: &mut Report<'_>) -> PerFamily<Option<Box<[IpNet]>>> {
    let mut ranges: PerFamily<Option<Vec<IpNet>>> = PerFamily::default();
    let texts = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    for (index, text) in texts.iter().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        if let Some(range) = parse_range(text.trim()) {
            ranges
                .get_mut(Family::of_range(&range))
                .get_or_insert_default()
                .push(range);
        } else {
            let family = if text.contains(':') { Family::V6 } else { Family::V4 };
            ranges.get_mut(family).get_or_insert_default();
            let reason = format!(
                "{} is not a range and allows nobody; write it as 192.0.2.0/24",
                quoted(text)
            );
            report.reject(format!("spec.loadBalancerSourceRanges[{index}]"), reason);
        }
    }
    let finish = |ranges: Option<Vec<IpNet>>| {
        let ranges = ranges.filter(|ranges| ranges.iter().all(|range| range.prefix_len() != 0))?;
        Some(IpNet::aggregate(&ranges).into())
    };
    PerFamily {
        v4: finish(ranges.v4),
        v6: finish(ranges.v6),
    }
}

/// Reads an address that may become a frontend. Blank text is skipped without a word, as kube-proxy does.
fn frontend_address(
    text: &str,
    path: &str,
    unusable: fn(IpAddr) -> Option<&'static str>,
    report: &mut Report<'_>,
) -> Option<IpAddr> {
    if text.trim().is_empty() {
        return None;
    }
    let Some(address) = parse_address(text) else {
        report.reject(path, not_an_address(text));
        return None;
    };
    if let Some(reason) = unusable(address) {
        report.reject(path, format!("{address} {reason}; use a host address"));
        return None;
    }
    Some(address)
}

/// The reason for text that is no address.
pub(super) fn not_an_address(text: &str) -> String {
    format!(
        "{} is not an IP address; write it as 192.0.2.1 or 2001:db8::1",
        quoted(text)
    )
}
