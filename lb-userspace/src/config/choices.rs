//! Settings that offer a choice of words, and the words of each.

/// How TCP connections are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefuseWith {
    /// By a TCP reset.
    Reset,
    /// By ICMP port unreachable.
    Icmp,
}

impl RefuseWith {
    /// Words of the setting.
    pub const WORDS: [(&'static str, Self); 2] = [("rst", Self::Reset), ("icmp", Self::Icmp)];
}

/// How packets of Services go from pod to pod of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostRouting {
    /// By the host's stack.
    Kernel,
    /// Straight into the pod.
    Bpf,
}

impl HostRouting {
    /// Words of the setting.
    pub const WORDS: [(&'static str, Self); 2] = [("kernel", Self::Kernel), ("bpf", Self::Bpf)];
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// By tcx where the kernel has it, else as clsact filters.
    Auto,
    /// By tcx or not at all.
    Tcx,
    /// As clsact filters even where tcx is there.
    Clsact,
}

impl Attach {
    /// Words of the setting.
    pub const WORDS: [(&'static str, Self); 3] = [("auto", Self::Auto), ("tcx", Self::Tcx), ("clsact", Self::Clsact)];
}

/// Where programs run at XDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xdp {
    /// On uplinks whose driver takes it.
    Auto,
    /// In the driver of every uplink.
    Native,
    /// In the kernel's stack behind the driver of every uplink.
    Generic,
    /// Nowhere.
    Off,
}

impl Xdp {
    /// Words of the setting.
    pub const WORDS: [(&'static str, Self); 4] = [
        ("auto", Self::Auto),
        ("native", Self::Native),
        ("generic", Self::Generic),
        ("off", Self::Off),
    ];

    /// The word of the setting.
    pub fn word(self) -> &'static str {
        Self::WORDS
            .iter()
            .find(|(_, value)| *value == self)
            .map_or("", |(word, _)| word)
    }

    /// Whether an uplink without XDP is an error.
    pub fn insists(self) -> bool {
        matches!(self, Self::Native | Self::Generic)
    }
}
