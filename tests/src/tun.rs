//! A cable between two namespaces whose ends are devices without a link header: two tun devices, and threads that carry
//! packets from one to the other (Documentation/networking/tuntap.rst).

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::netns::Netns;
use crate::syscall::open_tun;

/// How long a carrier waits before it looks whether the cable is still there, in milliseconds.
const LOOK: u16 = 20;
/// The largest packet.
const MAX: usize = 1 << 16;

/// A cable; dropping it takes both devices away.
#[derive(Debug)]
pub struct TunCable {
    gone: Arc<AtomicBool>,
    carriers: Vec<JoinHandle<()>>,
}

impl TunCable {
    /// Joins two namespaces by devices of these names, which are set up and have no address.
    #[track_caller]
    pub fn lay(ends: [(&Netns, &str); 2]) -> Self {
        let files = ends.map(|(netns, name)| {
            let file = netns.run(|| open_tun(name));
            let file = file.unwrap_or_else(|error| panic!("a tun device {name} in {}: {error}", netns.name()));
            netns.ip(&format!("link set {name} up"));
            Arc::new(file)
        });
        let gone = Arc::<AtomicBool>::default();
        let [one, other] = &files;
        let carriers = [(one, other), (other, one)].map(|(from, to)| {
            let (from, to, gone) = (Arc::clone(from), Arc::clone(to), Arc::clone(&gone));
            thread::spawn(move || carry(&from, &to, &gone))
        });
        Self {
            gone,
            carriers: carriers.into(),
        }
    }
}

impl Drop for TunCable {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
        for carrier in self.carriers.drain(..) {
            // A panic has printed itself already.
            drop(carrier.join());
        }
    }
}

fn carry(mut from: &File, mut to: &File, gone: &AtomicBool) {
    let mut packet = vec![0; MAX];
    while !gone.load(Ordering::Relaxed) {
        let ready = poll(
            &mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)],
            PollTimeout::from(LOOK),
        );
        if ready.is_ok_and(|ready| ready > 0)
            && let Ok(length) = from.read(&mut packet)
        {
            // As on a wire, a packet that the other end does not take is lost.
            drop(to.write(&packet[..length]));
        }
    }
}
