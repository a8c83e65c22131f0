//! The front: starts the stage, passes on signals, and returns with its exit status.
//!
//! The socket between them is the stage's standard input. One byte from the stage is its exit status while it lives on
//! (a kept cluster); the end of the stream tells either side that the other is gone. What a stage leaves that died
//! without taking its cluster down (by SIGKILL) is removed here.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};
use std::{env, io};

use anyhow::{Context as _, Result, ensure};
use lb_tests::agent::mount_bpffs;
use lb_tests::netns::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use crate::stop;

/// Runs the stage behind the caller's terminal.
pub(crate) fn main() -> Result<ExitCode> {
    ensure!(geteuid().is_root(), "root is needed to make network namespaces");
    let (mut ours, theirs) = UnixStream::pair().context("cannot make a pair of sockets")?;
    let mut stage = Command::new(env::current_exe().context("cannot find this program")?)
        .args(env::args_os().skip(1))
        .arg("--stage")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .context("cannot start the stage")?;
    let pid = Pid::from_raw(stage.id().cast_signed());
    // A stage that has just ended needs no signal.
    stop::on_signals(move || _ = kill(pid, Signal::SIGTERM))?;
    if let Some(code) = told(&mut ours)? {
        return Ok(code.into());
    }
    let status = stage.wait().context("cannot wait for the stage")?;
    let Some(code) = status.code() else {
        // Making a namespace removes those of processes that are gone, with the agents in them; then their pins go.
        drop(Netns::new("sweep"));
        mount_bpffs();
        anyhow::bail!("the stage ended by {status}");
    };
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The stage's status if it lives on, `None` if it has ended.
fn told(stream: &mut UnixStream) -> Result<Option<u8>> {
    let mut code = [0];
    match stream.read_exact(&mut code) {
        Ok(()) => Ok(Some(code[0])),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
        Err(error) => Err(error).context("cannot listen to the stage"),
    }
}
