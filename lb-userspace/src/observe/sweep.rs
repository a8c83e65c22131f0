//! stub
use crate::datapath::clock::Clock;
use crate::maps::MapStore;
use crate::reconcile::{Sweep, Swept};

/// stub
#[derive(Debug)]
pub struct FlowSweep {
    clock: Clock,
}

impl FlowSweep {
    /// stub
    pub fn new(clock: Clock) -> Self {
        Self { clock }
    }
}

impl Sweep for FlowSweep {
    fn sweep(&self, _store: &dyn MapStore) -> Result<Swept, String> {
        self.clock.jiffies().map_err(|e| e.to_string())?;
        Err("stub".to_owned())
    }
}
