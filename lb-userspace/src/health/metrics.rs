//! `/metrics` in Prometheus' text format, and what else kube-proxy's metrics port answers.
//!
//! Names of kube-proxy (`kubeproxy_*`) are kept where they mean the same here, so that dashboards and alerts go on; both families
//! are programmed together and told alike, and so are those of a process. Everything else begins with `steerway_`. There are series of each
//! service port on request alone: a scrape stays below 500 series.

use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use ::http::StatusCode;

use super::Told;
use super::facts::Facts;
use super::http::{self, Answer};
use super::probe::Probe;
use super::process;
use crate::observe::{Changes, Histogram, verdict_of};
use crate::status::report::{Report, ServiceItem};

const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// Answers of the probes so far, by probe and status.
#[derive(Debug, Default)]
pub(super) struct ProbeCounts {
    healthz: [AtomicU64; 2],
    livez: [AtomicU64; 2],
}

impl ProbeCounts {
    /// Counts an answer.
    pub(super) fn count(&self, probe: Probe, status: StatusCode) {
        let counts = match probe {
            Probe::Ready => &self.healthz,
            Probe::Live => &self.livez,
        };
        counts[usize::from(status != StatusCode::OK)].fetch_add(1, Ordering::Relaxed);
    }
}

/// Answers a request to the metrics port.
pub(super) fn answer(path: &str, told: &Told, facts: &Facts, probes: &ProbeCounts) -> Answer {
    match path {
        "/metrics" => {
            let services = told.services.as_ref().map(|services| services());
            let page = metrics(&(told.report)(), services.as_deref(), facts, probes);
            http::answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page)
        }
        "/healthz" => http::text(StatusCode::OK, "ok"),
        "/configz" => http::json(StatusCode::OK, told.configz.to_string()),
        "/proxyMode" => http::text(StatusCode::OK, "steerway"),
        _ => http::not_found(),
    }
}

/// A page under construction.
#[derive(Default)]
struct Page(String);

impl Page {
    /// Begins the series of one name.
    fn begin(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _written = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels.iter().map(|(label, text)| format!("{label}={text:?}")).collect();
        let labels = labels.join(",");
        let braces = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{labels}}}")
        };
        let _written = writeln!(self.0, "{name}{braces} {value}");
    }

    /// One series without labels.
    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.begin(name, kind, help);
        self.sample(name, &[], value);
    }

    /// One series for each family, all alike.
    fn families(&mut self, name: &str, help: &str, value: f64) {
        self.begin(name, "gauge", help);
        for family in FAMILIES {
            self.sample(name, &[("ip_family", family)], value);
        }
    }

    /// A histogram of each family.
    fn histograms(&mut self, name: &str, help: &str, [v4, v6]: [&Histogram; 2]) {
        self.begin(name, "histogram", help);
        let (bucket, sum, count) = (format!("{name}_bucket"), format!("{name}_sum"), format!("{name}_count"));
        for (family, times) in FAMILIES.into_iter().zip([v4, v6]) {
            for (bound, count) in times.cumulative() {
                let bound = bound.as_secs_f64().to_string();
                self.sample(&bucket, &[("ip_family", family), ("le", &bound)], count);
            }
            self.sample(&bucket, &[("ip_family", family), ("le", "+Inf")], times.count);
            self.sample(&sum, &[("ip_family", family)], times.sum.as_secs_f64());
            self.sample(&count, &[("ip_family", family)], times.count);
        }
    }
}

fn metrics(report: &Report, services: Option<&[ServiceItem]>, facts: &Facts, probes: &ProbeCounts) -> String {
    let mut page = Page::default();
    of_kube_proxy(&mut page, facts, probes);
    for series in process::series() {
        page.single(series.name, series.kind, series.help, series.value);
    }
    page.begin("steerway_build_info", "gauge", "The agent's version.");
    page.sample("steerway_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    page.single(
        "steerway_ready",
        "gauge",
        "Whether status says ready.",
        u8::from(report.ready),
    );
    if let Some(source) = &report.source {
        let help = "Whether the source has delivered everything once.";
        page.single("steerway_source_synced", "gauge", help, u8::from(source.synced));
        page.single("steerway_services", "gauge", "Services in the source.", source.services);
        let help = "EndpointSlices in the source.";
        page.single("steerway_endpoint_slices", "gauge", help, source.endpoint_slices);
    }
    let help = "Parts of objects that are not programmed; status names them.";
    page.single("steerway_rejections", "gauge", help, report.rejections.total);
    if let Some(cycles) = &report.reconcile {
        page.single(
            "steerway_cycles_total",
            "counter",
            "Cycles that ended well.",
            cycles.cycles,
        );
        page.single(
            "steerway_cycle_failures_total",
            "counter",
            "Cycles that failed.",
            cycles.failures,
        );
        page.single(
            "steerway_operations_total",
            "counter",
            "Writes into the tables.",
            cycles.operations,
        );
    }
    page.begin("steerway_table_entries", "gauge", "Entries in use.");
    for table in &report.tables {
        page.sample("steerway_table_entries", &[("table", &table.name)], table.used);
    }
    page.begin("steerway_table_capacity", "gauge", "Entries that fit.");
    for table in &report.tables {
        page.sample("steerway_table_capacity", &[("table", &table.name)], table.capacity);
    }
    page.begin("steerway_flows", "gauge", "Flows by class, as of the last sweep.");
    for flows in &report.flows {
        for (class, count) in &flows.classes {
            page.sample(
                "steerway_flows",
                &[("ip_family", &flows.family), ("class", class)],
                count,
            );
        }
    }
    page.begin("steerway_flows_expired_total", "counter", "Flows that timed out.");
    for flows in &report.flows {
        page.sample(
            "steerway_flows_expired_total",
            &[("ip_family", &flows.family)],
            flows.expired,
        );
    }
    page.begin("steerway_packets_total", "counter", "Packets by what was decided.");
    for (reason, count) in &report.reasons {
        let labels = [("verdict", verdict_of(reason)), ("reason", reason.as_str())];
        page.sample("steerway_packets_total", &labels, count);
    }
    if let Some(services) = services {
        of_services(&mut page, services);
    }
    page.0
}

/// Endpoints of each service port by whether new flows may get them, and by state; and its flows.
fn of_services(page: &mut Page, services: &[ServiceItem]) {
    const ENDPOINTS: &str = "steerway_service_endpoints";
    const FLOWS: &str = "steerway_service_flows";
    page.begin(
        ENDPOINTS,
        "gauge",
        "Endpoints of a service port, by use on this node and state.",
    );
    for service in services {
        for (used, ready) in [(true, true), (true, false), (false, true), (false, false)] {
            let endpoints = service.endpoints.iter().filter(|e| e.used == used);
            let count = endpoints.filter(|e| (e.state == "Ready") == ready).count();
            let answer = |yes| if yes { "yes" } else { "no" };
            let state = [("used", answer(used)), ("ready", answer(ready))];
            let labels: Vec<_> = port_labels(service).into_iter().chain(state).collect();
            page.sample(ENDPOINTS, &labels, count);
        }
    }
    page.begin(FLOWS, "gauge", "Flows through a service port, as of the last sweep.");
    for (service, flows) in services.iter().filter_map(|service| Some((service, service.flows?))) {
        page.sample(FLOWS, &port_labels(service), flows);
    }
}

/// What tells a service port from others.
fn port_labels(service: &ServiceItem) -> [(&'static str, &str); 5] {
    [
        ("namespace", &service.namespace),
        ("service", &service.name),
        ("port", &service.port_name),
        ("protocol", &service.protocol),
        ("ip_family", &service.family),
    ]
}

fn of_kube_proxy(page: &mut Page, facts: &Facts, probes: &ProbeCounts) {
    let figures = &facts.figures;
    for (name, help, times) in [
        (
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "Duration of cycles that ended well.",
            &figures.cycles,
        ),
        (
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "Duration of cycles that looked at all tables first.",
            &figures.full_cycles,
        ),
        (
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "Duration of the other cycles.",
            &figures.partial_cycles,
        ),
    ] {
        page.histograms(name, help, [times, times]);
    }
    let [v4, v6] = &figures.programming;
    page.histograms(
        "kubeproxy_network_programming_duration_seconds",
        "From what triggered a change of endpoints, as the controller noted it, to its programming.",
        [v4, v6],
    );
    for (kind, changes) in [("service", figures.services), ("endpoint", figures.slices)] {
        let Changes { total, pending } = changes;
        let name = |what: &str| format!("kubeproxy_sync_proxy_rules_{kind}_changes_{what}");
        page.single(&name("total"), "counter", "Changes that were seen.", total);
        page.single(&name("pending"), "gauge", "Changes that are not programmed.", pending);
    }
    let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    let help = "Service ports with policy Local whose endpoints are all on other nodes.";
    page.begin(name, "gauge", help);
    for (policy, counts) in ["internal", "external"].into_iter().zip(figures.no_local_endpoints) {
        for (family, count) in FAMILIES.into_iter().zip(counts) {
            page.sample(name, &[("traffic_policy", policy), ("ip_family", family)], count);
        }
    }
    page.families(
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
        "When the tables were last brought up to date.",
        seconds(facts.programmed_at),
    );
    page.families(
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
        "When a change was last seen.",
        seconds(facts.queued_at),
    );
    for (name, counts) in [
        ("kubeproxy_proxy_healthz_total", &probes.healthz),
        ("kubeproxy_proxy_livez_total", &probes.livez),
    ] {
        page.begin(name, "counter", "Answers of the probe by status.");
        for (code, count) in ["200", "503"].iter().zip(counts) {
            page.sample(name, &[("code", code)], count.load(Ordering::Relaxed));
        }
    }
}

/// Seconds since 1970; zero for what never happened.
fn seconds(time: Option<SystemTime>) -> f64 {
    time.and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Every line that is a series; each but once.
    #[track_caller]
    fn series(text: &str) -> Vec<&str> {
        let series: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let names: std::collections::BTreeSet<&str> = series
            .iter()
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names.len(), series.len());
        series
    }

    #[test]
    fn a_page_names_every_series_once() {
        let mut facts = Facts {
            programmed_at: Some(UNIX_EPOCH + Duration::from_millis(1500)),
            ..Facts::default()
        };
        facts.figures.cycles.add(Duration::from_millis(3));
        facts.figures.programming[1].add(Duration::from_millis(700));
        facts.figures.slices = Changes { total: 7, pending: 2 };
        facts.figures.no_local_endpoints[1][0] = 3;
        let probes = ProbeCounts::default();
        probes.count(Probe::Ready, StatusCode::SERVICE_UNAVAILABLE);
        let mut report = Report::default();
        for (number, reason) in lb_common::verdict::Reason::ALL.iter().enumerate() {
            report.reasons.insert(reason.name().to_owned(), number as u64);
        }
        let text = metrics(&report, None, &facts, &probes);
        let series = series(&text);
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv6\",le=\"0.004\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.002\"} 0",
            "kubeproxy_sync_proxy_rules_duration_seconds_sum{ip_family=\"IPv4\"} 0.003",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1.5",
            "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv6\",le=\"1\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv6\",le=\"0.5\"} 0",
            "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 0",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 7",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 2",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\",ip_family=\"IPv4\"} 3",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
            "steerway_ready 0",
            "steerway_packets_total{verdict=\"dropped\",reason=\"no_local_endpoints\"} 10",
            "steerway_packets_total{verdict=\"forwarded\",reason=\"forward\"} 2",
        ] {
            assert!(series.contains(&line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn service_ports_are_told_on_request() {
        let endpoint = |used, state: &str| crate::status::report::EndpointItem {
            address: "10.244.0.1".to_owned(),
            port: 80,
            node: None,
            zone: None,
            local: true,
            state: state.to_owned(),
            used,
            why: String::new(),
        };
        let service = ServiceItem {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            protocol: "TCP".to_owned(),
            family: "IPv4".to_owned(),
            flows: Some(5),
            endpoints: vec![
                endpoint(true, "Ready"),
                endpoint(false, "NotReady"),
                endpoint(false, "Terminating"),
            ],
            ..ServiceItem::default()
        };
        let other = ServiceItem {
            name: "other".to_owned(),
            flows: None,
            ..service.clone()
        };
        let (facts, probes) = (Facts::default(), ProbeCounts::default());
        let text = metrics(&Report::default(), Some(&[service, other]), &facts, &probes);
        let labels = "namespace=\"default\",service=\"web\",port=\"\",protocol=\"TCP\",ip_family=\"IPv4\"";
        let series = series(&text);
        for line in [
            format!("steerway_service_endpoints{{{labels},used=\"yes\",ready=\"yes\"}} 1"),
            format!("steerway_service_endpoints{{{labels},used=\"no\",ready=\"no\"}} 2"),
            format!("steerway_service_flows{{{labels}}} 5"),
        ] {
            assert!(series.contains(&line.as_str()), "{line} is not in\n{text}");
        }
        let flows = series.iter().filter(|line| line.starts_with("steerway_service_flows"));
        assert_eq!(flows.count(), 1, "what is not known is not told");
    }
}
