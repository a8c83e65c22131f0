//! Numbers for things that come and go: freed ones are used again, the longest free first, before new ones are begun.

use std::collections::VecDeque;

/// The numbers from 1 to a limit.
#[derive(Clone, Debug)]
pub(super) struct IdPool {
    /// The lowest number that was never used.
    fresh: u32,
    /// One more than the highest number.
    end: u32,
    freed: VecDeque<u32>,
}

impl IdPool {
    /// All numbers from 1 to below `end` that `used` does not hold. `used` is sorted.
    pub(super) fn without(end: u32, used: &[u32]) -> Self {
        let fresh = used.last().map_or(1, |last| last + 1).min(end.max(1));
        let freed = (1..fresh).filter(|id| used.binary_search(id).is_err()).collect();
        Self { fresh, end, freed }
    }

    /// Takes a number.
    pub(super) fn take(&mut self) -> Option<u32> {
        if let Some(id) = self.freed.pop_front() {
            return Some(id);
        }
        (self.fresh < self.end).then(|| {
            self.fresh += 1;
            self.fresh - 1
        })
    }

    /// Gives a number back.
    pub(super) fn give(&mut self, id: u32) {
        self.freed.push_back(id);
    }

    /// How many can be taken.
    pub(super) fn available(&self) -> usize {
        self.freed.len() + self.end.saturating_sub(self.fresh) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_free_goes_first_and_zero_never() {
        let mut pool = IdPool::without(6, &[2, 3]);
        assert_eq!(pool.available(), 3);
        assert_eq!(pool.take(), Some(1));
        pool.give(3);
        pool.give(2);
        assert_eq!(
            [pool.take(), pool.take(), pool.take(), pool.take(), pool.take()],
            [Some(3), Some(2), Some(4), Some(5), None]
        );
        assert_eq!(IdPool::without(1, &[]).take(), None);
        assert_eq!(IdPool::without(0, &[]).take(), None);
    }
}
