//! The eviction matrix that the programs fill: who takes pages of whom.

use crate::probes::free::FreeList;
use crate::probes::object::{self, Sizes};
use crate::probes::shared::SharedArray;
use anyhow::{Context, Result};
use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use overcommit_ebpf::layout::{AggressorKind, Eviction, EvictionKey};
use overcommit_recording::model::evictions::EvictionCounts;
use std::sync::atomic::Ordering::Relaxed;

/// Looks without anything new after which an entry is given back: processes come and go.
const IDLE_LOOKS: u32 = 60;

/// What one took of another since the last look.
#[derive(Debug)]
pub struct Taken {
    /// Who, of whom.
    pub key: EvictionKey,
    /// Name of the thread that did it first.
    pub thread: String,
    /// How much.
    pub counts: EvictionCounts,
}

/// The matrix, and how its entries are found and given back.
pub struct EvictionTable {
    entries: SharedArray<Eviction>,
    /// Those of them that whoever needs one takes; the others are each of one slot.
    shared: usize,
    looks: Vec<Look>,
    index: HashMap<MapData, [u32; 4], u32>,
    free: FreeList,
}

/// What was seen of an entry.
#[derive(Clone, Copy, Default)]
struct Look {
    before: EvictionCounts,
    idle: u32,
    /// No program finds it any more.
    is_closed: bool,
}

impl EvictionTable {
    /// Takes the maps out of the object; `free` are the entries that nobody has.
    ///
    /// # Errors
    /// The kernel refuses to map one of them.
    pub fn open(ebpf: &mut Ebpf, sizes: Sizes, free: FreeList) -> Result<Self> {
        let (shared, len) = (sizes.shared_evictions(), sizes.evictions());
        let index = HashMap::try_from(object::take(ebpf, "EVICTION_INDEX")?)?;
        let entries = SharedArray::open(ebpf, "EVICTIONS", len)?;
        let looks = vec![Look::default(); len as usize];
        Ok(Self { entries, shared: shared as usize, looks, index, free })
    }

    /// What was taken since the last look.
    ///
    /// # Errors
    /// The kernel refuses to take back an entry.
    pub fn take(&mut self) -> Result<Vec<Taken>> {
        let mut taken = Vec::new();
        for (place, (entry, look)) in self.entries.iter().zip(&mut self.looks).enumerate() {
            let Some(key) = entry.key() else { continue };
            let now = counts(entry);
            let grown = now.since(look.before);
            look.before = now;
            if grown != EvictionCounts::default() {
                look.idle = 0;
                taken.push(Taken { key, thread: thread(entry), counts: grown });
            } else if place >= self.shared {
                // Its slot keeps it.
            } else if look.is_closed {
                // A look ago it could not be found any more, so nobody adds to it now.
                give_back(&mut self.free, place, entry, look)?;
            } else {
                look.idle += 1;
                if look.idle >= IDLE_LOOKS {
                    let _ = self.index.remove(&words(key));
                    look.is_closed = true;
                }
            }
        }
        Ok(taken)
    }

    /// Forgets a VM's slot, which gets another VM.
    ///
    /// # Errors
    /// The kernel refuses to take back an entry.
    pub fn forget(&mut self, slot: u32) -> Result<()> {
        for (place, (entry, look)) in self.entries.iter().zip(&mut self.looks).enumerate() {
            let Some(key) = entry.key() else { continue };
            let is_vm = key.kind == AggressorKind::Vm as u32;
            if key.victim != slot && !(is_vm && key.by == slot) {
                continue;
            }
            if place < self.shared {
                let _ = self.index.remove(&words(key));
                give_back(&mut self.free, place, entry, look)?;
            } else {
                *look = Look::default();
                entry.clear();
            }
        }
        Ok(())
    }
}

/// Empties an entry that no program finds any more, for whoever needs one next.
fn give_back(free: &mut FreeList, place: usize, entry: &Eviction, look: &mut Look) -> Result<()> {
    *look = Look::default();
    entry.clear();
    free.push(place as u32, 0).context("cannot free an eviction")
}

fn counts(entry: &Eviction) -> EvictionCounts {
    EvictionCounts {
        written_folios: entry.written_folios.load(Relaxed),
        written_pages: entry.written_pages.load(Relaxed),
        dropped_folios: entry.dropped_folios.load(Relaxed),
        dropped_pages: entry.dropped_pages.load(Relaxed),
    }
}

fn words(key: EvictionKey) -> [u32; 4] {
    [key.victim, key.kind, key.by, key.reserved]
}

fn thread(entry: &Eviction) -> String {
    let bytes = entry.name.each_ref().map(|word| word.load(Relaxed).to_ne_bytes()).concat();
    let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    overcommit_recording::model::name::escape(name)
}
