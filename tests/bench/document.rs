//! The results as documents: for each section a table with date, machine and command, and a plot beside it where there is one.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::packet::{SERVICES, SIZES, established_row, services_row, yardstick_row};
use crate::plot::{Plot, svg};
use crate::publish;
use crate::report::Report;

/// Writes `SECTION.md` of a report into a folder, and `SECTION.svg` where it has a plot. Those of other sections stay.
pub(crate) fn write(folder: &Path, report: &Report, rounds: usize) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let (date, machine) = (said("date", &["-u", "+%Y-%m-%d"])?, machine()?);
    let arguments: Vec<String> = env::args().skip(1).collect();
    let plots: Vec<Plot> = [flows(report), services(report), publication(report)]
        .into_iter()
        .filter(|plot| !plot.lines.is_empty())
        .collect();
    let mut picture = String::new();
    if !plots.is_empty() {
        let file = format!("{}.svg", report.section);
        write_file(&folder.join(&file), &svg(&plots))?;
        picture = format!("![{}]({file})\n\n", report.section);
    }
    let text = format!(
        "# Bench: {}\n\nWritten by `cargo xtask bench {}` on {date}; {rounds} rounds of each comparison, fewer where it says so.\n\
         Machine: {machine}.\n\nMedians; `±` is the distance between quartiles over the median. Ratios are taken round by round; one \
         whose rounds differ by more than 5 % counts as missed.\n\n{picture}{}",
        report.section,
        arguments.join(" "),
        report.markdown()
    );
    write_file(&folder.join(format!("{}.md", report.section)), &text)
}

fn write_file(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Processor, how many of them, kernel.
fn machine() -> Result<String> {
    let text = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let processors = text.lines().filter(|line| line.starts_with("processor")).count();
    Ok(format!(
        "{processors} × {}, Linux {}",
        model.map_or("an unnamed processor", |(_, name)| name),
        said("uname", &["-r"])?
    ))
}

fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The medians of rows named after numbers; nothing where a row is missing.
fn line(
    report: &Report,
    name: &str,
    numbers: &[usize],
    row: impl Fn(usize) -> String,
) -> Option<(String, Vec<(f64, f64)>)> {
    let median = |number: &usize| {
        let figures = report.figures(&row(*number))?;
        Some((*number as f64, figures.median()))
    };
    let points = numbers.iter().map(median).collect::<Option<Vec<_>>>()?;
    Some((name.to_owned(), points))
}

fn flows(report: &Report) -> Plot {
    let kinds = ["TCP v4", "TCP v6", "UDP v4"].map(|kind| {
        line(report, &format!("established {kind}, forward, XDP"), &SIZES, |flows| {
            established_row(kind, "forward", flows, "XDP")
        })
    });
    let yardstick = line(report, "one look-up, kernel LRU hash", &SIZES, |flows| {
        yardstick_row(flows, "TCP v4")
    });
    Plot {
        title: "a packet by the number of flows".to_owned(),
        across: "flows",
        unit: "ns",
        logarithmic: false,
        lines: kinds.into_iter().chain([yardstick]).flatten().collect(),
    }
}

fn services(report: &Report) -> Plot {
    let kinds = [
        ("established", "TCP v4", "XDP"),
        ("established", "TCP v6", "XDP"),
        ("established", "TCP v4", "tc"),
        ("new", "TCP v4", "tc"),
        ("new", "TCP v6", "tc"),
    ]
    .map(|(what, traffic, place)| {
        line(report, &format!("{what} {traffic}, {place}"), &SERVICES, |services| {
            services_row(what, traffic, services, place)
        })
    });
    Plot {
        title: "a packet by the number of Services".to_owned(),
        across: "Services",
        unit: "ns",
        logarithmic: false,
        lines: kinds.into_iter().flatten().collect(),
    }
}

fn publication(report: &Report) -> Plot {
    let sizes = publish::SIZES.map(|(services, _)| services);
    let mut lines = Vec::new();
    for side in publish::SIDES {
        for what in [publish::FIRST, publish::CHANGE] {
            let endpoints = publish::SIZES[0].1;
            lines.extend(line(report, &format!("{what}, {side}"), &sizes[..3], |services| {
                publish::row(what, side, services, endpoints)
            }));
        }
    }
    Plot {
        title: "objects to forwarding by the number of Services".to_owned(),
        across: "Services",
        unit: "ms",
        logarithmic: true,
        lines,
    }
}
