//! The kernel's clock as the programs read it: the low 32 bits of jiffies, and how many there are in a second.
//!
//! A program of two instructions calls `bpf_jiffies64` in a test run, so that ages of flows can be told while no other
//! program is loaded. HZ is a compile-time constant of the kernel that user space cannot read; it is measured.

use std::thread;
use std::time::Duration;

use thiserror::Error;

use super::probe::{Insn, TinyError, TinyProgram};
use crate::clock::{Instant, now};

/// Helper number of `bpf_jiffies64`.
const JIFFIES64: i32 = 118;
/// What the kernel can be built with (kernel/Kconfig.hz).
const KNOWN_HZ: [u32; 4] = [100, 250, 300, 1000];
/// A frame as short as a test run takes.
const FRAME: [u8; 14] = [0; 14];
/// Between the edges of two ticks while measuring.
const MEASURE: Duration = Duration::from_millis(200);
/// How exactly the time of an edge must be known: a thread that loses its CPU in between says nothing.
const EDGE_WINDOW: Duration = Duration::from_millis(3);
/// Ticks come at least every 10 ms; edges that cannot be seen for so long are none.
const EDGE_LIMIT: Duration = Duration::from_secs(5);
const TRIES: usize = 5;

/// Why the clock cannot be read.
#[derive(Debug, Error)]
pub enum ClockError {
    /// The program cannot be loaded or run.
    #[error("cannot read jiffies")]
    Program(#[source] TinyError),
    /// Several measurements did not come near a known value.
    #[error("measured {measured:.1} jiffies a second, which no kernel is built with")]
    UnknownHz {
        /// The last measurement.
        measured: f64,
    },
    /// Jiffies do not advance, or this thread is hardly ever run.
    #[error("no tick of jiffies was seen in {} s", EDGE_LIMIT.as_secs())]
    Still,
}

/// Reads jiffies.
#[derive(Debug)]
pub struct Clock {
    program: TinyProgram,
}

impl Clock {
    /// Loads the program.
    ///
    /// # Errors
    /// The kernel or our rights do not allow it.
    pub fn open() -> Result<Self, ClockError> {
        let insns = [Insn::call(JIFFIES64), Insn::exit()];
        Ok(Self {
            program: TinyProgram::load("jiffies", &insns).map_err(ClockError::Program)?,
        })
    }

    /// The low 32 bits of jiffies, now. They wrap minutes after boot: subtract wrapping. Costs a system call.
    ///
    /// # Errors
    /// The test run fails.
    pub fn jiffies(&self) -> Result<u32, ClockError> {
        self.program.run(&FRAME).map_err(ClockError::Program)
    }

    /// Jiffies a second, measured. Blocks for about 200 ms.
    ///
    /// # Errors
    /// The clock cannot be read, or gives no sensible rate.
    pub fn measure_hz(&self) -> Result<u32, ClockError> {
        let mut measured = 0.0;
        for _ in 0..TRIES {
            let (first, began) = self.edge()?;
            thread::sleep(MEASURE);
            let (last, ended) = self.edge()?;
            measured = f64::from(last.wrapping_sub(first)) / (ended - began).as_secs_f64();
            if let Some(hz) = snap(measured) {
                return Ok(hz);
            }
        }
        Err(ClockError::UnknownHz { measured })
    }

    /// Waits for a tick and returns it with its time. Only one that was seen in a short window counts. A tick that comes late,
    /// as on a virtual CPU that did not run, makes up for those before it, so that jiffies are right when they just changed.
    fn edge(&self) -> Result<(u32, Instant), ClockError> {
        let began = now();
        let (mut before, mut asked) = (self.jiffies()?, began);
        loop {
            let asking = now();
            let jiffies = self.jiffies()?;
            let answered = now();
            if jiffies != before && answered - asked < EDGE_WINDOW {
                return Ok((jiffies, answered));
            }
            if answered - began > EDGE_LIMIT {
                return Err(ClockError::Still);
            }
            (before, asked) = (jiffies, asking);
        }
    }
}

/// The known value within a twelfth of the measured one; 250 and 300 differ by a fifth.
fn snap(measured: f64) -> Option<u32> {
    KNOWN_HZ
        .into_iter()
        .find(|&hz| (measured - f64::from(hz)).abs() * 12.0 < f64::from(hz))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_snap_to_known_values_or_not_at_all() {
        for (measured, expected) in [
            (100.4, Some(100)),
            (249.0, Some(250)),
            (262.0, Some(250)),
            (288.0, Some(300)),
            (1000.9, Some(1000)),
            (275.0, None),
            (0.0, None),
            (500.0, None),
        ] {
            assert_eq!(snap(measured), expected, "{measured}");
        }
    }
}
