//! The settings of netfilter's connection tracking that kube-proxy makes on a node, for what still goes through it there: host ports, network
//! policies, masquerading. Source: kube-proxy `pkg/proxy/conntrack/sysctls.go`.
//!
//! In: [`Conntrack`] and the number of CPUs. Out: settings of this network namespace, each made once, the value before it remembered
//! for cleanup. A setting that is not there yet (its module is loaded by the first rule that needs it) is looked for again; one
//! that may not be changed is told. Neither stops anything. What is changed by hand later stays changed.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::run_dir::RunDir;
use super::sysctl;
use crate::config::Conntrack;

/// How soon missing settings are looked for again.
const AGAIN: Duration = Duration::from_mins(1);
/// The most connections that kube-proxy has tracked, however many CPUs there are.
const MOST: u32 = 1 << 20;
/// Buckets of the hash that tracked connections are in; one for four of them will do.
const HASH: &str = "/sys/module/nf_conntrack/parameters/hashsize";
const MAX: &str = "nf_conntrack_max";

/// Makes the settings, now or as soon as they are there.
pub async fn keep(settings: Conntrack, run_dir: RunDir) {
    let mut pending = wanted(&settings, cpus());
    loop {
        pending.retain(|(name, value)| !make(&run_dir, name, *value));
        if pending.is_empty() {
            return;
        }
        debug!(missing = pending.len(), "netfilter's connection tracking is not loaded");
        tokio::time::sleep(AGAIN).await;
    }
}

/// Makes what can be made now, and returns the names of settings that are not there.
pub fn make_now(settings: &Conntrack, run_dir: &RunDir) -> Vec<&'static str> {
    let mut pending = wanted(settings, cpus());
    pending.retain(|(name, value)| !make(run_dir, name, *value));
    pending.into_iter().map(|(name, _)| name).collect()
}

/// Names below `net/netfilter` and their values; what is to be left is not among them.
fn wanted(settings: &Conntrack, cpus: u32) -> Vec<(&'static str, u32)> {
    let scaled = settings.max_per_core.saturating_mul(cpus).min(MOST);
    let max = if scaled == 0 || scaled == MOST {
        scaled
    } else {
        scaled.max(settings.min)
    };
    let seconds = |time: Duration| time.as_secs().min(i32::MAX as u64) as u32;
    let all = [
        (MAX, max),
        (
            "nf_conntrack_tcp_timeout_established",
            seconds(settings.tcp_established),
        ),
        ("nf_conntrack_tcp_timeout_close_wait", seconds(settings.tcp_close_wait)),
        ("nf_conntrack_tcp_be_liberal", u32::from(settings.tcp_be_liberal)),
        ("nf_conntrack_udp_timeout", seconds(settings.udp)),
        ("nf_conntrack_udp_timeout_stream", seconds(settings.udp_stream)),
    ];
    all.into_iter().filter(|(_, value)| *value > 0).collect()
}

/// Makes one setting; false if it is not there.
fn make(run_dir: &RunDir, name: &str, value: u32) -> bool {
    let key = format!("net/netfilter/{name}");
    match sysctl::ensure_remembered(run_dir, &key, &value.to_string()) {
        Ok(changed) => {
            if changed {
                info!(name, value, "netfilter's setting changed");
            }
            if name == MAX {
                widen(Path::new(HASH), value / 4);
            }
            true
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => {
            let found = sysctl::read(&key).unwrap_or_default();
            warn!(name, value, found, %error, "netfilter's setting cannot be changed; set it by hand if it matters");
            true
        }
    }
}

/// Gives the hash this many buckets at least.
fn widen(hash: &Path, buckets: u32) {
    let is_wide = |text: String| text.trim().parse::<u32>().is_ok_and(|found| found >= buckets);
    let widened = fs::read_to_string(hash).and_then(|text| {
        if is_wide(text) {
            Ok(())
        } else {
            fs::write(hash, buckets.to_string())
        }
    });
    if let Err(error) = widened {
        warn!(hash = %hash.display(), buckets, %error, "netfilter's hash cannot be widened");
    }
}

/// The CPUs of this machine, whatever the agent may use of them.
fn cpus() -> u32 {
    aya::util::online_cpus().map_or(1, |online| online.len() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: Conntrack = Conntrack {
        max_per_core: 32768,
        min: 131_072,
        tcp_established: Duration::from_hours(24),
        tcp_close_wait: Duration::from_hours(1),
        tcp_be_liberal: false,
        udp: Duration::ZERO,
        udp_stream: Duration::ZERO,
    };

    fn max(settings: Conntrack, cpus: u32) -> Option<u32> {
        let all = wanted(&settings, cpus);
        all.iter().find(|(name, _)| *name == MAX).map(|(_, value)| *value)
    }

    #[test]
    fn connections_scale_with_cpus_within_bounds() {
        assert_eq!(max(DEFAULTS, 2), Some(131_072));
        assert_eq!(max(DEFAULTS, 8), Some(262_144));
        assert_eq!(max(DEFAULTS, 128), Some(1 << 20));
        let left = Conntrack {
            max_per_core: 0,
            ..DEFAULTS
        };
        assert_eq!(max(left, 8), None);
    }

    #[test]
    fn zero_leaves_what_is_there() {
        let names = |settings: &Conntrack| {
            wanted(settings, 1)
                .into_iter()
                .map(|(name, _)| name)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names(&DEFAULTS),
            [
                MAX,
                "nf_conntrack_tcp_timeout_established",
                "nf_conntrack_tcp_timeout_close_wait"
            ]
        );
        let udp = Conntrack {
            max_per_core: 0,
            tcp_established: Duration::ZERO,
            tcp_close_wait: Duration::ZERO,
            tcp_be_liberal: true,
            udp: Duration::from_secs(45),
            ..DEFAULTS
        };
        assert_eq!(names(&udp), ["nf_conntrack_tcp_be_liberal", "nf_conntrack_udp_timeout"]);
        assert_eq!(wanted(&udp, 1)[1].1, 45);
    }

    #[test]
    fn the_hash_is_widened_and_never_narrowed() {
        let folder = tempfile::tempdir().unwrap();
        let hash = folder.path().join("hashsize");
        for (before, after) in [("1024\n", "4096"), ("65536\n", "65536")] {
            fs::write(&hash, before).unwrap();
            widen(&hash, 4096);
            assert_eq!(fs::read_to_string(&hash).unwrap().trim(), after);
        }
    }
}
