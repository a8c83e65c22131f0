//! What to change in the tables, in order: [`OpList`], and carrying it out.
//!
//! An operation is plain data. Carrying out a list twice, or its rest after a failure, gives the same tables.

use std::sync::Arc;

use lb_common::layout::Device;

use super::{MapError, MapStore, SourceRange, Table};

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapOp {
    /// Stores `count` words of the list, from `first` on, at `index` of the table, in ascending order.
    Write {
        /// The table.
        table: Table,
        /// Index of the first word in the table.
        index: u32,
        /// Index of the first word in [`OpList::words`].
        first: u32,
        /// Number of words.
        count: u32,
    },
    /// Adds source ranges.
    PutRanges(Box<[SourceRange]>),
    /// Removes source ranges.
    RemoveRanges(Box<[SourceRange]>),
    /// Sets what packets know of a device.
    PutDevice(u32, Box<Device>),
    /// Forgets a device.
    RemoveDevice(u32),
    /// Names service ports.
    PutNames(Box<[(u32, Arc<str>)]>),
    /// Removes names.
    RemoveNames(Box<[u32]>),
    /// Deletes session affinity to these backends (references, sorted).
    ForgetAffinity(Box<[u64]>),
}

/// Operations in order, with the words that they store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpList {
    ops: Vec<MapOp>,
    words: Vec<u64>,
}

impl OpList {
    /// Number of operations.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// True when there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// The operations.
    pub fn ops(&self) -> &[MapOp] {
        &self.ops
    }

    /// The words of a write.
    pub fn words(&self, first: u32, count: u32) -> &[u64] {
        self.words
            .get(first as usize..first as usize + count as usize)
            .unwrap_or_default()
    }

    /// Adds an operation that stores no words.
    pub fn push(&mut self, op: MapOp) {
        self.ops.push(op);
    }

    /// Adds a write; one that continues the last operation becomes part of it.
    pub fn write(&mut self, table: Table, index: u32, words: &[u64]) {
        let first = self.words.len() as u32;
        self.words.extend_from_slice(words);
        if let Some(MapOp::Write {
            table: of,
            index: start,
            count,
            ..
        }) = self.ops.last_mut()
            && *of == table
            && *start + *count == index
        {
            *count += words.len() as u32;
        } else {
            self.ops.push(MapOp::Write {
                table,
                index,
                first,
                count: words.len() as u32,
            });
        }
    }

    /// Carries out all operations; stops at the first that fails.
    pub fn apply(&self, store: &dyn MapStore) -> Result<(), MapError> {
        self.ops.iter().try_for_each(|op| match op {
            MapOp::Write {
                table,
                index,
                first,
                count,
            } => store.write(*table, *index, self.words(*first, *count)),
            MapOp::PutRanges(ranges) => store.put_ranges(ranges),
            MapOp::RemoveRanges(ranges) => store.remove_ranges(ranges),
            MapOp::PutDevice(ifindex, device) => store.put_device(*ifindex, **device),
            MapOp::RemoveDevice(ifindex) => store.remove_device(*ifindex),
            MapOp::PutNames(names) => store.put_names(names),
            MapOp::RemoveNames(ids) => store.remove_names(ids),
            MapOp::ForgetAffinity(backends) => store.forget_affinity(backends),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maps::MemoryStore;

    #[test]
    fn writes_that_continue_each_other_are_one_operation() {
        let mut list = OpList::default();
        list.write(Table::Backends, 4, &[1, 2, 3, 4]);
        list.write(Table::Backends, 8, &[5]);
        list.write(Table::Services, 9, &[6]);
        list.write(Table::Services, 11, &[7]);
        assert_eq!(list.len(), 3);
        let store = MemoryStore::default();
        list.apply(&store).unwrap();
        assert_eq!(store.words(Table::Backends).copy(3, 7), [0, 1, 2, 3, 4, 5, 0]);
        assert_eq!(store.words(Table::Services).copy(9, 3), [6, 0, 7]);
        assert_eq!(store.operations(), 3);
    }
}
