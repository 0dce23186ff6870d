//! The chunks in which the buckets of histograms lie. They are made as VMs need them: memory of the
//! kernel that cannot be swapped out, on a host that is short of it.

use crate::probes::free::{self, FreeList};
use crate::probes::object::{self, Sizes};
use crate::probes::shared::SharedArray;
use crate::probes::slots::WANTED_AT_ONCE;
use anyhow::{Context, Result, bail};
use aya::Ebpf;
use aya::maps::{ArrayOfMaps, Map, MapData};
use aya_obj::generated::{BPF_F_MMAPABLE, bpf_map_type};
use overcommit_ebpf::layout::{BLOCK_CHUNKS, Chunk, Stock};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

/// Free chunks from which on more are made, whatever runs.
const FEW: u64 = 256;
/// The same for each VM.
const FEW_OF_VM: u64 = 4;
/// Chunks that a VM may have where they cannot become more.
const MOST_OF_VM: u64 = 256;
/// Time after which the kernel is asked again for memory that it did not have.
const AGAIN: Duration = Duration::from_secs(1);
/// Chunks that a VM takes in its first moment.
const OF_NEW_VM: u64 = 32;

/// Every chunk that there is, and which are free.
pub struct Chunks {
    blocks: Vec<SharedArray<Chunk>>,
    outer: ArrayOfMaps<MapData>,
    sizes: Sizes,
    /// When the kernel had no memory for more, since the last time that it had.
    refused: Option<Instant>,
    free: FreeList,
    stock: SharedArray<Stock>,
    /// Kept open until the programs are loaded.
    _stock: MapData,
}

/// Free chunks from which on more are made for so many VMs.
const fn few(vms: usize) -> u64 {
    FEW + FEW_OF_VM * vms as u64
}

/// Free chunks that are enough for so many VMs and for some that are to begin.
const fn enough(vms: usize, new: usize) -> u64 {
    let low = few(vms + new);
    low + low / 2 + OF_NEW_VM * new as u64
}

/// Blocks that are made when so many VMs are taken up, some after the others.
pub(super) fn blocks_at_start(vms: usize) -> u64 {
    let last = vms.saturating_sub(1) / WANTED_AT_ONCE * WANTED_AT_ONCE;
    let most = enough(0, vms.min(WANTED_AT_ONCE)).max(enough(last, vms - last));
    most / u64::from(BLOCK_CHUNKS) + 1
}

impl Chunks {
    /// Takes the maps out of the object. There is no chunk yet.
    ///
    /// # Errors
    /// The kernel refuses to map one of them.
    pub(super) fn open(ebpf: &mut Ebpf, sizes: Sizes) -> Result<Self> {
        let outer = ArrayOfMaps::try_from(object::take(ebpf, "BLOCKS")?)?;
        let Map::Array(stock) = object::take(ebpf, "STOCK")? else { bail!("STOCK is no array") };
        Ok(Self {
            blocks: Vec::new(),
            outer,
            sizes,
            refused: None,
            free: free::open(ebpf, "FREE_CHUNKS")?,
            stock: SharedArray::map(&stock, 1).context("cannot map the eBPF array STOCK")?,
            _stock: stock,
        })
    }

    /// A chunk by its number.
    pub fn get(&self, number: u32) -> Option<&Chunk> {
        let block = self.blocks.get((number / BLOCK_CHUNKS) as usize)?;
        block.get((number % BLOCK_CHUNKS) as usize)
    }

    /// Makes chunks until there are enough for the next moment of so many VMs, and of some that
    /// are to begin. Where the kernel has no memory for them, latencies that need one are lost, and
    /// counted as such; the next call tries again.
    ///
    /// # Errors
    /// There is not a single one.
    pub fn top_up(&mut self, vms: usize, new: usize) -> Result<()> {
        let low = few(vms + new);
        if let Some(stock) = self.stock.get(0) {
            stock.low.store(low, SeqCst);
        }
        if self.refused.is_some_and(|then| then.elapsed() < AGAIN) {
            return Ok(());
        }
        self.refused = None;
        let enough = enough(vms, new);
        while self.left() <= enough && (self.blocks.len() as u32) < self.sizes.blocks() {
            match self.add_block() {
                Err(error) if self.blocks.is_empty() => return Err(error),
                Err(_) => {
                    self.refused = Some(Instant::now());
                    break;
                }
                Ok(()) => {}
            }
        }
        // Where no more can be made, no VM is to have what all others need.
        let is_all = self.refused.is_some() || self.blocks.len() as u32 >= self.sizes.blocks();
        let are_few = is_all && self.left() <= enough;
        if let Some(stock) = self.stock.get(0) {
            stock.most.store(if are_few { MOST_OF_VM } else { u64::MAX }, SeqCst);
        }
        Ok(())
    }

    /// How many there are.
    pub fn made(&self) -> u64 {
        self.blocks.len() as u64 * u64::from(BLOCK_CHUNKS)
    }

    /// How many are free. The programs take one before they say so.
    pub fn left(&self) -> u64 {
        self.stock.get(0).map_or(0, |stock| stock.free.load(SeqCst))
    }

    fn add_block(&mut self) -> Result<()> {
        let number = self.blocks.len() as u32;
        let block = aya_obj::Map::new_from_params(
            bpf_map_type::BPF_MAP_TYPE_ARRAY as u32,
            size_of::<u32>() as u32,
            size_of::<Chunk>() as u32,
            BLOCK_CHUNKS,
            BPF_F_MMAPABLE,
        );
        let block = MapData::create(block, "BLOCK", None);
        let block = block.map_err(|error| object::refused(error.into()))?;
        let chunks = SharedArray::map(&block, BLOCK_CHUNKS as usize)
            .context("cannot map a block of histograms")?;
        self.outer.set(number, &block, 0).context("the kernel refuses a block of histograms")?;
        self.blocks.push(chunks);
        (number * BLOCK_CHUNKS..(number + 1) * BLOCK_CHUNKS).try_for_each(|chunk| self.push(chunk))
    }

    /// Takes back a chunk that no histogram has any more.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(super) fn give_back(&mut self, number: u32) -> Result<()> {
        if let Some(chunk) = self.get(number) {
            chunk.clear();
        }
        self.push(number)
    }

    fn push(&mut self, number: u32) -> Result<()> {
        // Counted first: what is taken has been counted then.
        if let Some(stock) = self.stock.get(0) {
            stock.free.fetch_add(1, SeqCst);
        }
        let pushed = self.free.push(number, 0);
        if let (Err(_), Some(stock)) = (&pushed, self.stock.get(0)) {
            stock.free.fetch_sub(1, SeqCst);
        }
        pushed.context("cannot fill the list of free chunks")
    }
}
