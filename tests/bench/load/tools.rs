//! The load tools and what they tell: wrk for requests and connections, iperf3 for one stream.

use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_tests::assert::eventually;
use lb_tests::netns::Netns;
use serde_json::Value;

use crate::processors;

/// Connections of wrk at once.
const CONNECTIONS: &str = "32";
/// How long iperf3 may take to listen.
const START: Duration = Duration::from_secs(10);

/// What wrk tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Load {
    /// Requests a second, and all of them.
    pub(super) rate: f64,
    pub(super) requests: f64,
    /// Half of the requests took no longer, in microseconds.
    pub(super) median: f64,
    /// 99 of 100 took no longer, in microseconds.
    pub(super) tail: f64,
}

/// Asks for the same page for some seconds; each request on a connection of its own, or all on kept ones.
pub(super) fn wrk(place: &Netns, to: SocketAddr, seconds: u32, each_connects: bool, processor: usize) -> Result<Load> {
    let (url, duration) = (format!("http://{to}/"), format!("{seconds}s"));
    let mut arguments = vec!["wrk", "-t1", "-c", CONNECTIONS, "-d", &duration, "--latency"];
    if each_connects {
        arguments.extend(["-H", "Connection: close"]);
    }
    arguments.push(&url);
    let output = processors::on(processor..processor + 1, || place.cmd(&arguments))?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{arguments:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    of_wrk(&text).with_context(|| format!("wrk said:\n{text}"))
}

/// Reads wrk's report. Errors of the sockets make it worthless.
fn of_wrk(text: &str) -> Result<Load> {
    let after = |label: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(label));
        line.map(str::trim).with_context(|| format!("no line {label}"))
    };
    for errors in ["Socket errors:", "Non-2xx or 3xx responses:"] {
        ensure!(after(errors).is_err(), "requests failed");
    }
    let all = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .context("no line of all requests")?;
    Ok(Load {
        requests: all.0.parse()?,
        rate: after("Requests/sec:")?.parse()?,
        median: microseconds(after("50%")?)?,
        tail: microseconds(after("99%")?)?,
    })
}

fn microseconds(text: &str) -> Result<f64> {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let factor = match &text[digits.len()..] {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        unit => anyhow::bail!("{unit} is no unit of time"),
    };
    Ok(digits.parse::<f64>()? * factor)
}

/// A server for one stream; dropping it ends it.
pub(super) struct StreamServer(Child);

impl StreamServer {
    /// Starts it.
    pub(super) fn start(place: &Netns, address: IpAddr, port: u16, processor: usize) -> Result<Self> {
        let mut command = place.command("iperf3");
        command.args(["-s", "-B", &address.to_string(), "-p", &port.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = processors::on(processor..processor + 1, || command.spawn())?
            .context("start iperf3: cargo xtask setup brings it")?;
        let server = Self(child);
        let listening = format!("sport = :{port}");
        eventually(START, "iperf3 listens", || {
            let found = place.ok(&["ss", "-Hltn", &listening]);
            if found.is_empty() { Err("not yet") } else { Ok(()) }
        });
        Ok(server)
    }
}

impl Drop for StreamServer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// What iperf3 tells of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Stream {
    /// Gbit a second, as received.
    pub(super) rate: f64,
    /// Percent of a processor that the sending and the receiving program had.
    pub(super) sender: f64,
    pub(super) receiver: f64,
}

/// One stream for some seconds.
pub(super) fn stream(place: &Netns, to: SocketAddr, seconds: u32, processor: usize) -> Result<Stream> {
    let (address, port, seconds) = (to.ip().to_string(), to.port().to_string(), seconds.to_string());
    let arguments = ["iperf3", "-c", &address, "-p", &port, "-t", &seconds, "-J"];
    let output = processors::on(processor..processor + 1, || place.cmd(&arguments))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let stream = serde_json::from_str(&text).ok().and_then(|told| of_iperf(&told));
    stream
        .filter(|_| output.status.success())
        .with_context(|| format!("iperf3 said:\n{text}"))
}

/// Reads iperf3's report.
fn of_iperf(told: &Value) -> Option<Stream> {
    let end = |path: &str| told.pointer(&format!("/end/{path}"))?.as_f64();
    Some(Stream {
        rate: end("sum_received/bits_per_second")? / 1e9,
        sender: end("cpu_utilization_percent/host_total")?,
        receiver: end("cpu_utilization_percent/remote_total")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "Running 1s test @ http://10.0.0.1:80/\n  1 threads and 32 connections\n  Thread Stats   Avg      Stdev     Max   +/- Stdev\n    \
                        Latency   250.00us  100.00us   3.00ms   90.00%\n    Req/Sec   120.00k     3.00k  125.00k    60.00%\n  Latency Distribution\n     \
                        50%  241.00us\n     75%  300.00us\n     90%  400.00us\n     99%    1.25ms\n  120000 requests in 1.00s, 5.00MB read\n\
                        Requests/sec: 119876.54\nTransfer/sec:      5.00MB\n";

    #[test]
    fn the_report_of_wrk_is_read() {
        let load = of_wrk(SAID).unwrap();
        assert_eq!((load.rate, load.requests), (119_876.54, 120_000.0));
        assert_eq!((load.median, load.tail), (241.0, 1250.0));
    }

    #[test]
    fn the_report_of_iperf_is_read() {
        let told = serde_json::json!({ "end": {
            "sum_received": { "bits_per_second": 20.5e9 },
            "cpu_utilization_percent": { "host_total": 61.5, "host_user": 0.5, "remote_total": 98.25 },
        } });
        let stream = Stream {
            rate: 20.5,
            sender: 61.5,
            receiver: 98.25,
        };
        assert_eq!(of_iperf(&told), Some(stream));
        assert_eq!(of_iperf(&serde_json::json!({ "error": "refused" })), None);
    }

    #[test]
    fn a_run_with_failed_requests_counts_for_nothing() {
        let failed = format!("{SAID}  Socket errors: connect 0, read 5, write 0, timeout 0\n");
        assert!(of_wrk(&failed).is_err());
    }
}
