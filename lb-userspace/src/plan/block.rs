//! The block of a service port: what packets read of it after its frontend. Layout: [`lb_common::layout::block`].
//!
//! A header, then the ids of the cluster set and of the local set, each in the order of address and port, which is the same
//! on every node of the cluster. Where both sets are the same they share a run. Immutable once published.

use lb_common::layout::{
    BACKEND_IN_CLUSTER, BACKEND_IN_LOCAL, BLOCK_EXTERNAL_DROP, BLOCK_EXTERNAL_LOCAL, BLOCK_HEADER_WORDS,
    BLOCK_INSIDE_DROP, BLOCK_INSIDE_LOCAL, BLOCK_INTERNAL_DROP, BLOCK_INTERNAL_LOCAL, BLOCK_RANGES, Run, block,
    owner_word,
};

use super::arena::{Block, UNIT};
use crate::model::{BackendSet, Choice, ServicePort, SourceRanges, WhenEmpty};

/// How many ids the two sets of a block have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Members of the cluster set.
    pub(super) cluster: u32,
    /// Members of the local set.
    pub(super) local: u32,
    /// Whether both have the same members; then they share a run.
    pub(super) same: bool,
}

impl Shape {
    /// A block without backends.
    pub(super) const EMPTY: Self = Self {
        cluster: 0,
        local: 0,
        same: true,
    };

    /// Counts a backend in.
    pub(super) fn add(&mut self, state: u8) {
        let (cluster, local) = (state & BACKEND_IN_CLUSTER != 0, state & BACKEND_IN_LOCAL != 0);
        self.cluster += u32::from(cluster);
        self.local += u32::from(local);
        self.same &= cluster == local;
    }

    /// Ids in the block.
    pub(super) fn ids(self) -> u32 {
        if self.same {
            self.cluster
        } else {
            self.cluster + self.local
        }
    }

    fn run(self, set: BackendSet) -> Run {
        match set {
            BackendSet::Cluster => Run {
                offset: 0,
                length: self.cluster,
            },
            BackendSet::Local if self.same => Run {
                offset: 0,
                length: self.local,
            },
            BackendSet::Local => Run {
                offset: self.cluster,
                length: self.local,
            },
        }
    }
}

/// The header of a block.
fn header(id: u32, generation: u16, wanted: &ServicePort, shape: Shape) -> [u64; BLOCK_HEADER_WORDS as usize] {
    let mut flags = if matches!(wanted.source_ranges, SourceRanges::AllowAll) {
        0
    } else {
        BLOCK_RANGES
    };
    let mut run = |choice: Choice, local: u16, drop: u16| {
        let run = shape.run(choice.set);
        if choice.set == BackendSet::Local {
            flags |= local;
        }
        // Only an empty run can drop: the flag of another would change the block for nothing.
        if run.length == 0 && choice.when_empty == WhenEmpty::Drop {
            flags |= drop;
        }
        run.word()
    };
    let mut words = [0; BLOCK_HEADER_WORDS as usize];
    words[block::INTERNAL as usize] = run(wanted.internal, BLOCK_INTERNAL_LOCAL, BLOCK_INTERNAL_DROP);
    words[block::EXTERNAL as usize] = run(wanted.external, BLOCK_EXTERNAL_LOCAL, BLOCK_EXTERNAL_DROP);
    words[block::INSIDE as usize] = run(wanted.external_from_inside, BLOCK_INSIDE_LOCAL, BLOCK_INSIDE_DROP);
    words[block::AFFINITY as usize] = u64::from(wanted.affinity_seconds.unwrap_or(0));
    words[block::OWNER as usize] = owner_word(id, generation, flags);
    words
}

/// The words of a block: header, ids of the cluster set, ids of the local set unless both are the same; two ids a word, the
/// rest of the last unit zero. `ids` are in order of address and port, which is the same on every node.
pub(super) fn words(id: u32, generation: u16, wanted: &ServicePort, shape: Shape, ids: &[(u32, u8)]) -> Vec<u64> {
    let mut words = header(id, generation, wanted, shape).to_vec();
    let of_set = |bit: u8| ids.iter().filter(move |(_, state)| state & bit != 0).map(|(id, _)| *id);
    let cluster = of_set(BACKEND_IN_CLUSTER);
    let local = of_set(BACKEND_IN_LOCAL).filter(|_| !shape.same);
    let mut half = None;
    for id in cluster.chain(local) {
        match half.take() {
            None => half = Some(id),
            Some(low) => words.push(u64::from(id) << 32 | u64::from(low)),
        }
    }
    words.extend(half.map(u64::from));
    words.resize((Block::units_for(shape.ids() as usize) * UNIT) as usize, 0);
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Family;
    use crate::plan::tests::world::service_port;

    const BOTH: u8 = BACKEND_IN_CLUSTER | BACKEND_IN_LOCAL;

    fn shape(ids: &[(u32, u8)]) -> Shape {
        let mut shape = Shape::EMPTY;
        for (_, state) in ids {
            shape.add(*state);
        }
        shape
    }

    fn run(words: &[u64], index: u32) -> Run {
        Run::from_word(words[index as usize])
    }

    #[test]
    fn the_local_set_follows_the_cluster_set() {
        let mut wanted = service_port(Family::V4, 0, []);
        wanted.internal.set = BackendSet::Local;
        let ids = [
            (5, BACKEND_IN_CLUSTER),
            (6, BOTH),
            (7, 0),
            (8, BACKEND_IN_LOCAL),
            (9, BACKEND_IN_CLUSTER),
        ];
        let words = words(3, 2, &wanted, shape(&ids), &ids);
        assert_eq!(words.len(), 16);
        assert_eq!(words[8..12], [6 << 32 | 5, 6 << 32 | 9, 8, 0]);
        assert_eq!(run(&words, block::INTERNAL), Run { offset: 3, length: 2 });
        assert_eq!(run(&words, block::EXTERNAL), Run { offset: 0, length: 3 });
        assert_eq!(words[0], owner_word(3, 2, BLOCK_INTERNAL_LOCAL));
    }

    #[test]
    fn equal_sets_share_their_ids() {
        let mut wanted = service_port(Family::V4, 0, []);
        wanted.external.set = BackendSet::Local;
        let ids = [(5, BOTH), (6, BOTH), (7, BOTH)];
        let words = words(3, 1, &wanted, shape(&ids), &ids);
        assert_eq!(words[8..11], [6 << 32 | 5, 7, 0]);
        assert_eq!(run(&words, block::EXTERNAL), run(&words, block::INTERNAL));
    }

    #[test]
    fn an_empty_run_says_whether_to_drop() {
        let mut wanted = service_port(Family::V4, 0, []);
        wanted.external = Choice {
            set: BackendSet::Local,
            when_empty: WhenEmpty::Drop,
        };
        let only_cluster = [(5, BACKEND_IN_CLUSTER)];
        let with = words(1, 1, &wanted, shape(&only_cluster), &only_cluster);
        assert_eq!((with[0] >> 48) as u16, BLOCK_EXTERNAL_LOCAL | BLOCK_EXTERNAL_DROP);
        let both = [(5, BOTH)];
        let without = words(1, 1, &wanted, shape(&both), &both);
        assert_eq!((without[0] >> 48) as u16, BLOCK_EXTERNAL_LOCAL);
    }

    #[test]
    fn ranges_and_affinity_are_in_the_header() {
        let mut wanted = service_port(Family::V4, 0, []);
        wanted.source_ranges = SourceRanges::Ranges {
            ranges: Vec::new(),
            allow_node: false,
        };
        wanted.affinity_seconds = Some(10_800);
        let words = words(1, 1, &wanted, Shape::EMPTY, &[]);
        assert_eq!((words.len(), words[block::AFFINITY as usize]), (8, 10_800));
        assert_eq!((words[0] >> 48) as u16, BLOCK_RANGES);
    }
}
