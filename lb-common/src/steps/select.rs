//! From a destination to a backend: frontend, service block, policy, source ranges, affinity, choice.
//!
//! The kernel knows nothing of Services beyond this: a frontend names a service port, its block holds up to three runs of
//! backend ids (internal, external, inside), and a hash picks from the run that applies. Record, run and backend echo the
//! service port's id; where they disagree the tables changed meanwhile and are read again, three times at most.
//! Semantics: kube-proxy's, `docs` of the project, KEP-1669, KEP-2086, KEP-4444 (all of them decided in user space).

use crate::access::{TableFamily, Tables};
use crate::family::{Family, Side};
use crate::flow::Key;
use crate::hash;
use crate::layout::{
    AffinityKey, AffinityValue, BACKEND_IN_CLUSTER, BACKEND_IN_LOCAL, BACKEND_WORDS, BLOCK_EXTERNAL_DROP,
    BLOCK_EXTERNAL_LOCAL, BLOCK_HEADER_WORDS, BLOCK_INSIDE_DROP, BLOCK_INSIDE_LOCAL, BLOCK_INTERNAL_DROP,
    BLOCK_INTERNAL_LOCAL, BLOCK_RANGES, BackendControl, FRONTEND_CLUSTER, FRONTEND_NODE, FRONTEND_RANGES,
    FRONTEND_REFUSE, FrontendValue, Run, ServiceWord, backend_ref, block, config,
};
use crate::verdict::Reason;

impl<F: Family> Backend<F> {
    /// No backend, as room to choose into.
    pub fn empty() -> Self {
        Self {
            side: Side {
                addr: F::Addr::default(),
                port: 0,
            },
            reference: 0,
            flags: 0,
            service: 0,
        }
    }
}

/// Where a packet comes from, as policies see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A pod of this node, or the node itself.
    Inside,
    /// Everything else.
    Outside,
}

impl Source {
    /// The source of this number; everything else where there is none.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        if number == Self::Inside as u32 {
            Self::Inside
        } else {
            Self::Outside
        }
    }
}

/// Flag of a [`Backend`] that the external policy Local chose: nobody translates its clients, kube-proxy neither. In no table.
pub const KEEPS_PORT: u16 = 1 << 15;

/// A chosen backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend<F: Family> {
    /// Its address and port.
    pub side: Side<F>,
    /// `layout::backend_ref`.
    pub reference: u64,
    /// `layout::BACKEND_*` flags (not the state), and [`KEEPS_PORT`].
    pub flags: u16,
    /// Service port id.
    pub service: u32,
}

/// Looks up the frontend of a destination ([`Reason::NewFlow`] where there is one): exact, then NodePort where the address is a node's, then what the address says of
/// unknown ports.
#[inline(always)]
pub fn frontend<F: TableFamily, T: Tables>(tables: &T, dst: &Side<F>, protocol: u8) -> (FrontendValue, Reason) {
    let value = tables.find_frontend(dst, protocol);
    if value.is_some() {
        return (value, Reason::NewFlow);
    }
    let whole = Side::<F> {
        addr: dst.addr,
        port: 0,
    };
    let address = tables.find_frontend(&whole, 0);
    if !address.is_some() {
        return (address, Reason::NotOurs);
    }
    if address.flags & FRONTEND_NODE != 0 {
        let any = Side::<F> {
            addr: F::Addr::default(),
            port: dst.port,
        };
        let value = tables.find_frontend(&any, protocol);
        return (
            value,
            if value.is_some() {
                Reason::NewFlow
            } else {
                Reason::UnknownPortPassed
            },
        );
    }
    (
        address,
        if address.flags & FRONTEND_REFUSE != 0 {
            Reason::UnknownPort
        } else {
            Reason::UnknownPortPassed
        },
    )
}

/// Flags of an address of ours (its wildcard); 0 where it is none.
#[inline(always)]
pub fn address_flags<F: TableFamily, T: Tables>(tables: &T, addr: F::Addr) -> u8 {
    let side = Side::<F> { addr, port: 0 };
    tables.find_frontend(&side, 0).flags
}

/// What a backend is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted<'a, F: TableFamily> {
    /// The frontend that was met.
    pub frontend: FrontendValue,
    /// The flow as the client sends it.
    pub key: &'a Key<F>,
    /// Where it comes from.
    pub source: Source,
}

/// Chooses a backend for a new flow; [`Reason::NewFlow`] where there is one, which is then in `into`.
#[inline(always)]
pub fn backend<F: TableFamily, T: Tables>(tables: &T, wanted: &Wanted<'_, F>, into: &mut Backend<F>) -> Reason {
    for _ in 0..3 {
        let reason = tables.try_backend(wanted, into);
        if reason != Reason::TablesChanged {
            return reason;
        }
    }
    Reason::TablesChanged
}

/// [`backend`] by one reading of the tables; [`Reason::TablesChanged`] where they did meanwhile.
#[inline(always)]
pub fn attempt<F: TableFamily, T: Tables>(tables: &T, wanted: &Wanted<'_, F>, into: &mut Backend<F>) -> Reason {
    match read_once(tables, wanted) {
        Ok(backend) => {
            *into = backend;
            Reason::NewFlow
        }
        Err(reason) => reason,
    }
}

/// What one reading of the tables gives.
#[inline(always)]
fn read_once<F: TableFamily, T: Tables>(tables: &T, wanted: &Wanted<'_, F>) -> Result<Backend<F>, Reason> {
    let (value, client) = (wanted.frontend, wanted.key.src);
    let id = value.service;
    let Some(word) = ServiceWord::from_word(tables.service(id)) else {
        return Err(Reason::NoService);
    };
    let Some(header) = tables.block(word.offset) else {
        return Err(Reason::TablesChanged);
    };
    let owner = header(block::OWNER);
    if owner as u32 != id || (owner >> 32) as u16 != word.generation {
        return Err(Reason::TablesChanged);
    }
    let flags = (owner >> 48) as u16;
    if value.flags & FRONTEND_RANGES != 0 && flags & BLOCK_RANGES != 0 && !tables.in_ranges::<F>(id, client.addr) {
        return Err(Reason::SourceRange);
    }
    let (run_word, drop_flag, local_flag) = if value.flags & FRONTEND_CLUSTER != 0 {
        (block::INTERNAL, BLOCK_INTERNAL_DROP, BLOCK_INTERNAL_LOCAL)
    } else if wanted.source == Source::Inside {
        (block::INSIDE, BLOCK_INSIDE_DROP, BLOCK_INSIDE_LOCAL)
    } else {
        (block::EXTERNAL, BLOCK_EXTERNAL_DROP, BLOCK_EXTERNAL_LOCAL)
    };
    let run = Run::from_word(header(run_word));
    if run.length == 0 {
        return Err(if flags & drop_flag != 0 {
            Reason::NoLocalEndpoints
        } else {
            Reason::NoEndpoints
        });
    }
    let in_set = if flags & local_flag != 0 {
        BACKEND_IN_LOCAL
    } else {
        BACKEND_IN_CLUSTER
    };
    let affinity = header(block::AFFINITY) as u32;
    let key = AffinityKey {
        client: F::to_words(client.addr),
        service: id as u64,
    };
    let now = tables.now();
    if affinity != 0
        && let Some(backend) = remembered(tables, &key, id, in_set, affinity, now)
    {
        return Ok(keeping_port(backend, flags, value.flags));
    }
    let h = wanted.key.hash(tables.config(config::SELECT_SEED));
    let index = run.offset.wrapping_add(hash::scale(h, run.length));
    let pair = tables.arena(word.offset.wrapping_add(BLOCK_HEADER_WORDS + (index >> 1)));
    let backend_id = (pair >> ((index & 1) * 32)) as u32;
    let Some(record) = tables.backend(backend_id) else {
        return Err(Reason::TablesChanged);
    };
    let control = BackendControl::from_word(record[0]);
    if control.service != id {
        return Err(Reason::TablesChanged);
    }
    let reference = backend_ref(backend_id, control.generation);
    if affinity != 0 {
        tables.remember_affinity::<F>(
            &key,
            &AffinityValue {
                backend: reference,
                last_new: now as u64,
            },
        );
    }
    Ok(keeping_port(read(record, reference, id), flags, value.flags))
}

/// A backend with [`KEEPS_PORT`] where it applies: the block is of external policy Local, the frontend no ClusterIP.
#[inline(always)]
fn keeping_port<F: TableFamily>(backend: Backend<F>, block: u16, frontend: u8) -> Backend<F> {
    // No branch: the verifier would follow both ways from here.
    let keeps = (block / BLOCK_EXTERNAL_LOCAL) & !u16::from(frontend / FRONTEND_CLUSTER) & 1;
    Backend {
        flags: backend.flags | (keeps * KEEPS_PORT),
        ..backend
    }
}

/// The backend that this client was given before, if it still may have it.
#[inline(always)]
fn remembered<F: TableFamily, T: Tables>(
    tables: &T,
    key: &AffinityKey,
    service: u32,
    in_set: u8,
    timeout_seconds: u32,
    now: u32,
) -> Option<Backend<F>> {
    let value = tables.affinity::<F>(key)?;
    let age = now.wrapping_sub(value.last_new as u32) as u64;
    if age > timeout_seconds as u64 * tables.config(config::HZ) {
        return None;
    }
    let id = value.backend as u32;
    let record = tables.backend(id)?;
    let control = BackendControl::from_word(record[0]);
    let current = backend_ref(id, control.generation) == value.backend && control.service == service;
    if !current || control.state & in_set == 0 {
        return None;
    }
    tables.remember_affinity::<F>(
        key,
        &AffinityValue {
            last_new: now as u64,
            ..value
        },
    );
    Some(read(record, value.backend, service))
}

/// Reads address, port and flags of a backend.
#[inline(always)]
fn read<F: TableFamily>(record: [u64; BACKEND_WORDS], reference: u64, service: u32) -> Backend<F> {
    let [_, address @ .., last] = record;
    Backend {
        side: Side {
            addr: F::from_words(address),
            port: last as u16,
        },
        reference,
        flags: (last >> 16) as u16,
        service,
    }
}
