//! `/metrics` in Prometheus' text format, and what else kube-proxy's metrics port answers.
//!
//! Names of kube-proxy (`kubeproxy_*`) are kept where they mean the same here, so that dashboards and alerts go on; both families
//! are programmed together and told alike. Everything else begins with `steerway_`. There are no series per Service.

use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::facts::Facts;
use super::http::{Answer, Asked};
use super::probe::Probe;
use crate::observe::Histogram;
use crate::status::report::Report;

const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// Answers of the probes so far, by probe and status.
#[derive(Debug, Default)]
pub(super) struct ProbeCounts {
    healthz: [AtomicU64; 2],
    livez: [AtomicU64; 2],
}

impl ProbeCounts {
    /// Counts an answer.
    pub(super) fn count(&self, probe: Probe, status: u16) {
        let counts = match probe {
            Probe::Ready => &self.healthz,
            Probe::Live => &self.livez,
        };
        counts[usize::from(status != 200)].fetch_add(1, Ordering::Relaxed);
    }
}

/// Answers a request to the metrics port.
pub(super) fn answer(asked: &Asked, report: impl FnOnce() -> Report, facts: &Facts, probes: &ProbeCounts) -> Answer {
    match asked.path.as_str() {
        "/metrics" => Answer {
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            ..Answer::text(200, &metrics(&report(), facts, probes))
        },
        "/healthz" => Answer::text(200, "ok"),
        "/proxyMode" => Answer::text(200, "steerway"),
        _ => Answer::text(404, "404 page not found\n"),
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

    fn histogram(&mut self, name: &str, help: &str, times: &Histogram) {
        self.begin(name, "histogram", help);
        for family in FAMILIES {
            let bucket = format!("{name}_bucket");
            for (bound, count) in times.cumulative() {
                let bound = bound.as_secs_f64().to_string();
                self.sample(&bucket, &[("ip_family", family), ("le", &bound)], count);
            }
            self.sample(&bucket, &[("ip_family", family), ("le", "+Inf")], times.count);
            self.sample(
                &format!("{name}_sum"),
                &[("ip_family", family)],
                times.sum.as_secs_f64(),
            );
            self.sample(&format!("{name}_count"), &[("ip_family", family)], times.count);
        }
    }
}

fn metrics(report: &Report, facts: &Facts, probes: &ProbeCounts) -> String {
    let mut page = Page::default();
    of_kube_proxy(&mut page, facts, probes);
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
        page.sample("steerway_packets_total", &[("reason", reason)], count);
    }
    page.0
}

fn of_kube_proxy(page: &mut Page, facts: &Facts, probes: &ProbeCounts) {
    page.histogram(
        "kubeproxy_sync_proxy_rules_duration_seconds",
        "Duration of cycles that ended well.",
        &facts.sync,
    );
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

    #[test]
    fn a_page_names_every_series_once_and_stays_small() {
        let mut facts = Facts {
            programmed_at: Some(UNIX_EPOCH + Duration::from_millis(1500)),
            ..Facts::default()
        };
        facts.sync.add(Duration::from_millis(3));
        let probes = ProbeCounts::default();
        probes.count(Probe::Ready, 503);
        let mut report = Report::default();
        for number in 0..200 {
            report.reasons.insert(format!("reason {number}"), number);
        }
        let text = metrics(&report, &facts, &probes);
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv6\",le=\"0.004\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.002\"} 0",
            "kubeproxy_sync_proxy_rules_duration_seconds_sum{ip_family=\"IPv4\"} 0.003",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1.5",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
            "steerway_ready 0",
            "steerway_packets_total{reason=\"reason 7\"} 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        let series: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let names: std::collections::BTreeSet<&str> = series
            .iter()
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names.len(), series.len());
        assert!(series.len() < 500, "{} series", series.len());
    }
}
