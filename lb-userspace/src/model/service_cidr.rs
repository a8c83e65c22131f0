//! The ranges of a ServiceCIDR, from which the cluster allocates ClusterIPs (KEP-1880).

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::ServiceCIDR;

use super::address::parse_range;
use super::object::{ObjectKind, Rejection, Report, quoted};

/// The readable ranges of the object; the others are rejected.
pub fn service_ranges(object: &ServiceCIDR, rejections: &mut Vec<Rejection>) -> Vec<IpNet> {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let mut report = Report::new(ObjectKind::ServiceCIDR, "", name, rejections);
    if !report.name_is_valid() {
        return Vec::new();
    }
    let texts = object
        .spec
        .as_ref()
        .and_then(|spec| spec.cidrs.as_deref())
        .unwrap_or_default();
    let mut ranges = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match parse_range(text) {
            Some(range) => ranges.push(range),
            None => report.reject(format!("spec.cidrs[{index}]"), not_a_range(text)),
        }
    }
    ranges
}

/// The reason for text that is no range.
fn not_a_range(text: &str) -> String {
    format!(
        "{} is not a range; write it as 10.0.0.0/16 or 2001:db8::/64",
        quoted(text)
    )
}
