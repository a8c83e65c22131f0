//! A cable between two namespaces whose ends are devices without a link header: two tun devices, and threads that carry
//! packets from one to the other (Documentation/networking/tuntap.rst).

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::netns::Netns;

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
            let file = netns.run(|| open(name));
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

/// `struct ifreq` with flags.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Makes a tun device in the calling thread's namespace; it lives as long as the file is open.
#[expect(unsafe_code, reason = "only ioctl(2) makes a tun device of an open file")]
fn open(name: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        flags: (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short,
        rest: [0; 22],
    };
    let room = request.name.iter_mut().take(libc::IFNAMSIZ - 1);
    room.zip(name.bytes()).for_each(|(place, byte)| *place = byte);
    // SAFETY: the request is a whole `struct ifreq`, which is all that the call reads and writes.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}
