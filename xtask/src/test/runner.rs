//! Runs one test binary: shows its output as it comes, reads it, and ends it when it hangs.

use std::{
    io::{BufRead as _, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::libtest::Parser;
use crate::exec;

/// A binary that prints nothing for this long hangs: libtest itself reports a slow test after a minute, once.
const STALL: Duration = Duration::from_mins(15);

/// How long a process that a test left behind may hold the output open after the binary's end.
const LEFT_BEHIND: Duration = Duration::from_secs(5);

/// What a test binary did.
#[derive(Debug)]
pub(crate) struct Run {
    /// What it printed, read.
    pub(crate) parser: Parser,
    /// What is wrong with the run as a whole, apart from its tests.
    pub(crate) trouble: Option<String>,
    /// Whether it claims that all its tests passed.
    pub(crate) success: bool,
}

/// Runs `command`, shows its lines on standard output as they come, and reads them.
pub(crate) fn run(command: &mut Command) -> Result<Run> {
    run_with(command, STALL, LEFT_BEHIND)
}

fn run_with(command: &mut Command, stall: Duration, left_behind: Duration) -> Result<Run> {
    let described = exec::describe(command);
    let shown: String = described.chars().take(200).collect();
    eprintln!("  $ {shown}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {described}"))?;
    let lines = lines(child.stdout.take().context("the output is no pipe")?);
    let mut parser = Parser::default();
    let trouble = read(&lines, &mut child, &mut parser, stall, left_behind)?;
    let status: ExitStatus = child.wait().with_context(|| format!("cannot wait for {described}"))?;
    Ok(Run {
        parser,
        trouble,
        success: status.success(),
    })
}

/// Reads lines until the end of output; returns what is wrong with the way it ended.
fn read(
    lines: &Receiver<String>,
    child: &mut Child,
    parser: &mut Parser,
    stall: Duration,
    left_behind: Duration,
) -> Result<Option<String>> {
    let mut last_line = Instant::now();
    let mut ended: Option<Instant> = None;
    loop {
        match lines.recv_timeout(left_behind.min(Duration::from_secs(1))) {
            Ok(line) => {
                last_line = Instant::now();
                if parser.line(&line) {
                    println!("{line}");
                }
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                if ended.is_none()
                    && child
                        .try_wait()
                        .context("cannot ask for the end of a test binary")?
                        .is_some()
                {
                    ended = Some(Instant::now());
                }
                if ended.is_some_and(|ended| ended.elapsed() > left_behind) {
                    return Ok(Some(
                        "it ended, but a process that it started still holds its output".to_owned(),
                    ));
                }
                if last_line.elapsed() > stall {
                    child.kill().context("cannot end a test binary that hangs")?;
                    return Ok(Some(format!(
                        "it printed nothing for {} s and was ended",
                        stall.as_secs()
                    )));
                }
            }
        }
    }
}

/// The lines of `output` as they come. The channel closes at its end.
fn lines(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line);
            if sender.send(text.trim_end_matches('\n').to_owned()).is_err() {
                break;
            }
            line.clear();
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::{super::libtest::Outcome, *};

    const SHORT: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_mins(1);

    fn shell(script: &str, stall: Duration) -> Run {
        run_with(Command::new("sh").args(["-c", script]), stall, SHORT).unwrap()
    }

    #[test]
    fn an_ordinary_run_is_read_to_its_end() {
        let run = shell("echo 'test a ... ok'; printf 'test b ... FAILED'; exit 101", LONG);
        let expected = [("a".to_owned(), Outcome::Passed), ("b".to_owned(), Outcome::Failed)];
        assert_eq!(run.parser.outcomes, expected);
        assert_eq!((run.trouble, run.success), (None, false));
    }

    #[test]
    fn a_binary_that_hangs_is_ended_and_said_to_hang() {
        let run = shell("echo 'test a ... ok'; exec sleep 1000", SHORT);
        assert!(run.trouble.unwrap().contains("printed nothing"));
        assert!(!run.success);
    }

    #[test]
    fn a_process_left_behind_does_not_hold_up_the_run() {
        let run = shell("sleep 5 & echo 'test a ... ok'", LONG);
        assert!(run.trouble.unwrap().contains("still holds its output"));
        assert!(run.success);
    }
}
