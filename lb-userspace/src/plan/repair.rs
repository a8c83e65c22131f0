//! Undoing changes that somebody else made to the tables: a comparison with the image, word by word, at memory speed.

use std::collections::BTreeSet;

use lb_common::layout::{FRONTEND_VALID, FrontendValue};

use super::image::Phase;
use super::name::service_port_name;
use super::slot::Slot;
use super::{Plan, Planner};
use crate::maps::{Dump, MapOp, SourceRange, Table};

impl Planner {
    /// What leads from the tables as `dump` shows them back to what this planner has published. Empty when they are the same.
    /// To be called between two cycles, with a dump that was made after the operations of the last one.
    pub fn repair(&mut self, dump: &Dump) -> Plan {
        for table in Table::PUBLISHED {
            let phase = match table {
                Table::FrontendsV4 | Table::FrontendsV6 => {
                    self.repair_frontends(table == Table::FrontendsV6, &dump.tables[table as usize]);
                    continue;
                }
                Table::Services => Phase::Services,
                Table::Arena => Phase::Blocks,
                Table::Backends => Phase::Backends,
                Table::ForwardBits => Phase::ForwardBits,
                Table::ReplyBits => Phase::ReplyBits,
                Table::Config | Table::FlowsV4 | Table::FlowsV6 => Phase::Config,
            };
            let found = &dump.tables[table as usize];
            let length = self.draft.used(table).len().max(found.len()) as u32;
            for index in 0..length {
                let word = self.draft.word(table, index);
                if found.get(index as usize).copied().unwrap_or(0) != word {
                    self.draft.emit(phase, table, index, &[word]);
                }
            }
        }
        self.repair_ranges(dump);
        self.repair_names(dump);
        for (ifindex, device) in &self.devices {
            if dump.devices.get(ifindex) != Some(device) {
                self.draft
                    .push(Phase::Devices, MapOp::PutDevice(*ifindex, Box::new(*device)));
            }
        }
        for ifindex in dump
            .devices
            .keys()
            .filter(|ifindex| !self.devices.contains_key(ifindex))
        {
            self.draft.push(Phase::DevicesGone, MapOp::RemoveDevice(*ifindex));
        }
        Plan {
            stages: self.draft.take(),
            ..Plan::default()
        }
    }

    /// A slot is made invisible before its key is set right.
    fn repair_frontends(&mut self, v6: bool, found: &[u64]) {
        let table = Table::frontends(v6);
        let words = Slot::words(v6);
        let slots = self.draft.used(table).len().max(found.len()).div_ceil(words);
        for slot in 0..slots {
            let base = slot * words;
            let of_slot = |i: usize| found.get(base + i).copied().unwrap_or(0);
            let wanted: Vec<u64> = (0..words).map(|i| self.draft.word(table, (base + i) as u32)).collect();
            if wanted.iter().enumerate().all(|(i, word)| of_slot(i) == *word) {
                continue;
            }
            let value = (base + words - 1) as u32;
            if FrontendValue::from_word(of_slot(words - 1)).flags & FRONTEND_VALID != 0 {
                self.draft.emit(Phase::Frontends, table, value, &[0]);
            }
            self.draft.emit(Phase::Frontends, table, base as u32, &wanted);
        }
    }

    fn repair_ranges(&mut self, dump: &Dump) {
        let states = self
            .services
            .by_key()
            .filter_map(|(_, id)| Some((id, self.services.get(id)?)));
        let wanted: BTreeSet<SourceRange> = states
            .flat_map(|(service, state)| {
                state
                    .ranges
                    .iter()
                    .map(move |range| SourceRange { service, range: *range })
            })
            .collect();
        let missing: Box<[SourceRange]> = wanted.difference(&dump.ranges).copied().collect();
        let foreign: Box<[SourceRange]> = dump.ranges.difference(&wanted).copied().collect();
        if !missing.is_empty() {
            self.draft.push(Phase::Ranges, MapOp::PutRanges(missing));
        }
        if !foreign.is_empty() {
            self.draft.push(Phase::RangesGone, MapOp::RemoveRanges(foreign));
        }
    }

    fn repair_names(&mut self, dump: &Dump) {
        let wanted = self
            .names
            .iter()
            .filter_map(|id| Some((*id, service_port_name(&self.services.get(*id)?.key))));
        let wrong = wanted.filter(|(id, name)| dump.names.get(id) != Some(name));
        let wrong: Box<[_]> = wrong.map(|(id, name)| (id, name.into())).collect();
        let foreign: Box<[u32]> = dump
            .names
            .keys()
            .copied()
            .filter(|id| !self.names.contains(id))
            .collect();
        if !wrong.is_empty() {
            self.draft.push(Phase::Names, MapOp::PutNames(wrong));
        }
        if !foreign.is_empty() {
            self.draft.push(Phase::NamesGone, MapOp::RemoveNames(foreign));
        }
    }
}
