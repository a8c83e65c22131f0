//! What this process takes, as Prometheus' client libraries tell of any: processor time, memory, open files, start.
//!
//! In: the texts of /proc (proc_pid_stat(5) and its neighbours). Out: names and values of series; what cannot be read has none.

use std::fs;

/// Ticks a second of times in /proc: USER_HZ, the same on every architecture that has eBPF.
const USER_HZ: f64 = 100.0;

/// A series without labels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Series {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) help: &'static str,
    pub(super) value: f64,
}

/// The texts that everything is read from.
#[derive(Debug, Default)]
struct Texts {
    stat: String,
    status: String,
    limits: String,
    /// `/proc/stat`, for the time of boot.
    system: String,
    open_files: Option<u32>,
}

/// What this process takes now.
pub(super) fn series() -> Vec<Series> {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    Texts {
        stat: text("/proc/self/stat"),
        status: text("/proc/self/status"),
        limits: text("/proc/self/limits"),
        system: text("/proc/stat"),
        // The directory that is read is open itself.
        open_files: fs::read_dir("/proc/self/fd")
            .ok()
            .and_then(|files| u32::try_from(files.count().saturating_sub(1)).ok()),
    }
    .series()
}

impl Texts {
    fn series(&self) -> Vec<Series> {
        let ticks = |field| self.stat_field(field).map(|ticks| ticks / USER_HZ);
        let bytes = |name| value(&self.status, name).map(|kib| kib * 1024.0);
        let all = [
            (
                "process_cpu_seconds_total",
                "counter",
                "Processor time, user and system.",
                ticks(14).zip(ticks(15)).map(|(user, system)| user + system),
            ),
            (
                "process_resident_memory_bytes",
                "gauge",
                "Memory that is resident, files and tables that are mapped included.",
                bytes("VmRSS:"),
            ),
            (
                "process_virtual_memory_bytes",
                "gauge",
                "Addresses that are in use.",
                bytes("VmSize:"),
            ),
            (
                "process_open_fds",
                "gauge",
                "Open file descriptors.",
                self.open_files.map(f64::from),
            ),
            (
                "process_max_fds",
                "gauge",
                "The most file descriptors.",
                value(&self.limits, "Max open files"),
            ),
            (
                "process_start_time_seconds",
                "gauge",
                "When the process started.",
                value(&self.system, "btime")
                    .zip(ticks(22))
                    .map(|(boot, after)| boot + after),
            ),
        ];
        let known = |(name, kind, help, value): (_, _, _, Option<f64>)| {
            Some(Series {
                name,
                kind,
                help,
                value: value?,
            })
        };
        all.into_iter().filter_map(known).collect()
    }

    /// A field of stat, counted from 1; the second is the program's name, which may hold anything.
    fn stat_field(&self, field: usize) -> Option<f64> {
        let (_, rest) = self.stat.rsplit_once(") ")?;
        rest.split(' ').nth(field - 3)?.parse().ok()
    }
}

/// The number after a name at the start of a line.
fn value(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_series_is_read_where_it_stands_and_missing_where_it_does_not() {
        let texts = Texts {
            stat: "7 (a ) b) S 1 7 7 0 -1 4194560 9 0 0 0 150 50 0 0 20 0 4 0 12345 99 9 1".to_owned(),
            status: "Name:\ta\nVmSize:\t    2048 kB\nVmRSS:\t     512 kB\n".to_owned(),
            limits: "Limit                     Soft Limit           Hard Limit           Units     \nMax open files            1024                 4096                 files     \n".to_owned(),
            system: "cpu 1 2 3\nbtime 1000\n".to_owned(),
            open_files: Some(12),
        };
        let values: Vec<(&str, f64)> = texts.series().iter().map(|one| (one.name, one.value)).collect();
        assert_eq!(
            values,
            [
                ("process_cpu_seconds_total", 2.0),
                ("process_resident_memory_bytes", 524_288.0),
                ("process_virtual_memory_bytes", 2_097_152.0),
                ("process_open_fds", 12.0),
                ("process_max_fds", 1024.0),
                ("process_start_time_seconds", 1123.45),
            ]
        );
        assert_eq!(Texts::default().series(), []);
    }

    #[test]
    fn this_process_has_all_of_them() {
        let all = series();
        assert_eq!(all.len(), 6, "{all:?}");
        assert!(
            all.iter()
                .all(|one| one.value > 0.0 || one.name == "process_cpu_seconds_total"),
            "{all:?}"
        );
    }
}
