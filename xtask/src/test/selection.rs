//! Which tests to run: all, those of one tier, those whose name contains a text.

use clap::{Args, ValueEnum};

/// The binary that holds the tests which need root.
const SUITE: &str = "lb-tests/suite";

/// The choice of tests on the command line.
#[derive(Debug, Default, Args)]
pub(crate) struct Selection {
    /// Run only tests whose name contains this.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Run only the tests of one tier.
    #[arg(long, value_enum)]
    tier: Option<Tier>,
}

/// Where tests run: on the host, or in one of the suite's top modules, which has the tier's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    /// Unit tests, property tests and documentation examples, without root.
    Host,
    /// Kernel programs run packet by packet.
    Program,
    /// Objects in, map content out.
    Reconcile,
    /// Real sockets in network namespaces.
    Netns,
    /// The agent's commands.
    Cli,
    /// A real API server.
    Kubernetes,
    /// Other kernels in virtual machines.
    Kernels,
}

impl Tier {
    /// The suite's top module of this tier, with its separator; the host's tests are no part of the suite.
    fn module(self) -> Option<&'static str> {
        match self {
            Self::Host => None,
            Self::Program => Some("program::"),
            Self::Reconcile => Some("reconcile::"),
            Self::Netns => Some("netns::"),
            Self::Cli => Some("cli::"),
            Self::Kubernetes => Some("kubernetes::"),
            Self::Kernels => Some("kernels::"),
        }
    }
}

impl Selection {
    /// Whether the test `test` of `binary` is chosen.
    pub(crate) fn takes(&self, binary: &str, test: &str) -> bool {
        let in_tier = match self.tier {
            None => true,
            Some(tier) => match tier.module() {
                None => !binary.starts_with("lb-tests/"),
                Some(module) => binary == SUITE && test.starts_with(module),
            },
        };
        in_tier && self.filter.as_deref().is_none_or(|filter| test.contains(filter))
    }

    /// The text that names have to contain, if there is one.
    pub(crate) fn filter(&self) -> Option<&str> {
        self.filter.as_deref()
    }

    /// Whether any test outside the suite can be chosen.
    pub(crate) fn wants_host(&self) -> bool {
        self.tier.is_none_or(|tier| tier == Tier::Host)
    }

    /// Whether any test of the suite can be chosen.
    pub(crate) fn wants_suite(&self) -> bool {
        self.tier != Some(Tier::Host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(tier: Option<Tier>, filter: Option<&str>) -> Selection {
        Selection {
            filter: filter.map(str::to_owned),
            tier,
        }
    }

    #[test]
    fn without_a_choice_everything_is_taken() {
        let all = Selection::default();
        assert!(
            all.takes("lb-common/lib", "flow::tests::a")
                && all.takes(SUITE, "netns::a")
                && all.takes("lb-tests/lib", "a")
        );
        assert!(all.wants_host() && all.wants_suite());
    }

    #[test]
    fn a_tier_takes_its_module_of_the_suite_and_nothing_else() {
        let netns = selection(Some(Tier::Netns), None);
        assert!(netns.takes(SUITE, "netns::cluster_ip::a"));
        assert!(!netns.takes(SUITE, "program::netns::a") && !netns.takes("lb-tests/lib", "netns::a"));
        assert!(!netns.wants_host() && netns.wants_suite());
    }

    #[test]
    fn the_host_tier_takes_everything_outside_the_suites_package() {
        let host = selection(Some(Tier::Host), None);
        assert!(host.takes("xtask/bin", "a") && host.takes("doc", "lb-common/src/lib.rs - a"));
        assert!(!host.takes(SUITE, "netns::a") && !host.takes("lb-tests/lib", "a"));
        assert!(host.wants_host() && !host.wants_suite());
    }

    #[test]
    fn tier_and_filter_have_to_agree() {
        let both = selection(Some(Tier::Netns), Some("hairpin"));
        assert!(both.takes(SUITE, "netns::hairpin::a"));
        assert!(!both.takes(SUITE, "netns::cluster_ip::a") && !both.takes(SUITE, "program::hairpin::a"));
    }
}
