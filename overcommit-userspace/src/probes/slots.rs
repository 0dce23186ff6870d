//! The table of VMs and threads that the programs look into: who has a slot.

use crate::kernel::{TICK_NS, exit_reasons};
use crate::probes::chunks::Chunks;
use crate::probes::evictions::EvictionTable;
use crate::probes::free::{FreeList, Supplies};
use crate::probes::object::{self, Sizes};
use crate::probes::shared::SharedArray;
use anyhow::{Context, Result, anyhow};
use aya::maps::{HashMap, MapData};
use aya::programs::Iter;
use aya::{Btf, Ebpf};
use overcommit_ebpf::layout::{
    FaultBacking, Histogram, Metric, SWAP_DEVICES_MAX, SwapDevice, Thread, Vm, Word, fault_of_key,
};
use overcommit_recording::model::metric::MetricName;
use overcommit_recording::model::vm::Mapping;
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

/// Processes asked for in one walk, of the 1,024 for which `WANTED` has room: they all begin to
/// count at once, and take chunks.
pub(super) const WANTED_AT_ONCE: usize = 128;

/// Slots of VMs and threads, and the maps by which the programs find them.
pub struct Slots {
    /// Slot → VM.
    pub vms: SharedArray<Vm>,
    /// Slot × metrics + metric → latencies.
    pub histograms: SharedArray<Histogram>,
    /// Where their buckets are.
    pub chunks: Chunks,
    /// Threads that have faulted.
    pub threads: SharedArray<Thread>,
    threads_used: usize,
    mms: HashMap<MapData, u64, u32>,
    lock_waits: SharedArray<Word>,
    tgids: HashMap<MapData, u32, u32>,
    tids: HashMap<MapData, u32, u32>,
    cgroups: HashMap<MapData, u64, u32>,
    wanted: HashMap<MapData, u32, u32>,
    swap_devices: SharedArray<SwapDevice>,
    /// What each was called when that was last told.
    swap_names: BTreeMap<usize, String>,
    /// Whether the programs cannot find those names.
    lacks_swap_names: bool,
    /// In their place.
    only_swap_device: Option<String>,
    /// Place in the pool → its owner.
    pool_owners: SharedArray<Word>,
    pool_at: usize,
    pooled: HashMap<MapData, u64, u32>,
    free_pooled: FreeList,
    /// Who takes pages of whom.
    pub evictions: EvictionTable,
    free_vms: FreeList,
    free_threads: FreeList,
}

/// What belongs to a slot beside itself.
#[derive(Debug, Default)]
pub struct Holdings {
    /// Entries of its threads.
    pub threads: Vec<u32>,
    /// Its histograms in the pool: place and key.
    pooled: Vec<(usize, u64)>,
}

/// What the latencies of a histogram are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A metric that every VM has.
    Own(Metric),
    /// Exits for a reason, by its key.
    Exit(u32),
    /// Faults that took that: a metric of their own, and minor or major.
    Fault(FaultBacking, bool),
}

impl Kind {
    fn of_key(key: u32) -> Self {
        fault_of_key(key)
            .map_or(Self::Exit(key), |(backing, is_major)| Self::Fault(backing, is_major))
    }

    /// The metrics in which they count.
    pub fn metrics(self) -> Vec<MetricName> {
        match self {
            Self::Own(metric) => vec![metric.into()],
            Self::Exit(key) => vec![MetricName::exit(&exit_reasons::name(key))],
            Self::Fault(backing, is_major) => {
                let fault = if is_major { Metric::FaultMajor } else { Metric::FaultMinor };
                vec![fault.into(), backing.into()]
            }
        }
    }
}

impl Slots {
    /// Takes the maps out of the object.
    ///
    /// # Errors
    /// The kernel refuses to map one of them.
    pub fn open(
        ebpf: &mut Ebpf,
        sizes: Sizes,
        supplies: Supplies,
        lacks_swap_names: bool,
    ) -> Result<Self> {
        let Sizes { vms, threads, .. } = sizes;
        let Supplies { free, chunks } = supplies;
        Ok(Self {
            vms: SharedArray::open(ebpf, "VMS", vms)?,
            histograms: SharedArray::open(ebpf, "HISTOGRAMS", sizes.histograms())?,
            chunks,
            threads: SharedArray::open(ebpf, "THREADS", threads)?,
            threads_used: 0,
            mms: HashMap::try_from(object::take(ebpf, "MMS")?)?,
            lock_waits: SharedArray::open(ebpf, "LOCK_WAITS", 1)?,
            tgids: HashMap::try_from(object::take(ebpf, "TGIDS")?)?,
            tids: HashMap::try_from(object::take(ebpf, "TIDS")?)?,
            cgroups: HashMap::try_from(object::take(ebpf, "CGROUPS")?)?,
            wanted: HashMap::try_from(object::take(ebpf, "WANTED")?)?,
            swap_devices: SharedArray::open(ebpf, "SWAP_DEVICES", SWAP_DEVICES_MAX as u32)?,
            swap_names: BTreeMap::new(),
            lacks_swap_names,
            only_swap_device: None,
            pool_owners: SharedArray::open(ebpf, "POOL_OWNERS", sizes.pooled())?,
            pool_at: sizes.pool_at() as usize,
            pooled: HashMap::try_from(object::take(ebpf, "POOLED")?)?,
            free_pooled: free.pooled,
            evictions: EvictionTable::open(ebpf, sizes, free.evictions)?,
            free_vms: free.vms,
            free_threads: free.threads,
        })
    }

    /// Asks for a slot for each of these processes, beside the VMs that are recorded already, and
    /// has the kernel's own list of tasks walked.
    ///
    /// A process that is gone, or that shares its memory with a VM that has a
    /// slot, gets none.
    ///
    /// # Errors
    /// The walk fails, or there is no memory for a single histogram.
    pub fn adopt(&mut self, ebpf: &mut Ebpf, pids: &[i32], recorded: usize) -> Result<()> {
        for (done, pids) in pids.chunks(WANTED_AT_ONCE).enumerate() {
            self.chunks.top_up(recorded + done * WANTED_AT_ONCE, pids.len())?;
            for pid in pids {
                self.wanted.insert(pid.cast_unsigned(), 0, 0).context("cannot ask for a slot")?;
            }
            let walked = walk_tasks(ebpf).context("cannot walk the kernel's tasks");
            for pid in pids {
                self.wanted.remove(&pid.cast_unsigned())?;
            }
            walked?;
        }
        Ok(())
    }

    /// The slot of the process with that start time, if it has one.
    pub fn find(&self, pid: i32, start_ticks: u64) -> Option<u32> {
        let slot = self.tgids.get(&pid.cast_unsigned(), 0).ok()?;
        let vm = self.vms.get(slot as usize)?;
        let is_it = vm.start_boottime_ns.load(Relaxed) / TICK_NS == start_ticks;
        (is_it && self.runs(slot)).then_some(slot)
    }

    /// Whether that is the slot of a VM whose end the kernel has not announced.
    pub fn runs(&self, slot: u32) -> bool {
        self.vms.get(slot as usize).is_some_and(|vm| vm.ended_ns.load(SeqCst) == 0)
    }

    /// What each slot holds, in one pass over the host's threads and the pool.
    pub fn holdings(&self) -> BTreeMap<u32, Holdings> {
        let mut holdings: BTreeMap<u32, Holdings> = BTreeMap::new();
        for (index, thread) in self.used_threads() {
            let slot = thread.vm.load(SeqCst) as u32;
            holdings.entry(slot).or_default().threads.push(index);
        }
        for (place, owner) in self.pool_owners.iter().enumerate() {
            if let Some(key) = owner.0.load(Relaxed).checked_sub(1) {
                holdings.entry((key >> 32) as u32).or_default().pooled.push((place, key));
            }
        }
        holdings
    }

    /// The histograms of a slot: where, and of what.
    pub fn histograms_of(&self, slot: u32, held: &Holdings) -> Vec<(usize, Kind)> {
        let first = slot as usize * Metric::COUNT;
        let own =
            Metric::ALL.into_iter().map(|metric| (first + metric as usize, Kind::Own(metric)));
        let pooled = held.pooled.iter();
        let pooled = pooled.map(|(place, key)| (self.pool_at + place, Kind::of_key(*key as u32)));
        own.chain(pooled).collect()
    }

    /// What the swap device of that number is called, `swap-NUMBER` if the kernel did
    /// not tell.
    pub fn swap_device(&self, number: usize) -> String {
        let now = self.swap_devices.get(number).and_then(device_name);
        let name = now.or_else(|| self.swap_names.get(&number).cloned());
        let name = name.or_else(|| self.only_swap_device.clone());
        name.unwrap_or_else(|| format!("swap-{number}"))
    }

    /// Has the names of swap devices looked up anew: numbers are used again.
    pub fn forget_swap_devices(&mut self) {
        for (number, device) in self.swap_devices.iter().enumerate() {
            self.swap_names.extend(device_name(device).map(|name| (number, name)));
            device.name[0].store(0, SeqCst);
        }
        if self.lacks_swap_names {
            self.only_swap_device = only_swap_device();
        }
    }

    /// Counts what is swapped out of a memory cgroup for a slot, from now on.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn count_swapouts(&mut self, slot: u32, cgroup: u64) -> Result<()> {
        self.cgroups.insert(cgroup, slot, 0).context("cannot count swap-outs of a cgroup")
    }

    /// Does not any more.
    pub fn forget_swapouts(&mut self, slot: u32, cgroup: u64) {
        if self.cgroups.get(&cgroup, 0).is_ok_and(|now| now == slot) {
            let _ = self.cgroups.remove(&cgroup);
        }
    }

    /// From now on counts what a VM gives back of its memory.
    pub fn count_discards(&self, slot: u32, memory: Mapping) {
        if let Some(vm) = self.vms.get(slot as usize) {
            vm.memory_end.store(memory.end, SeqCst);
            vm.memory_start.store(memory.start, SeqCst);
        }
    }

    /// Stops counting for a slot. What was counted stays until [`Self::free`].
    pub fn close(&mut self, slot: u32) {
        if let Some(vm) = self.vms.get(slot as usize) {
            // The kernel may have given the address to another VM's memory since.
            let mm = vm.mm.load(Relaxed);
            if self.mms.get(&mm, 0).is_ok_and(|now| now == slot) {
                let _ = self.mms.remove(&mm);
            }
            vm.mm.store(0, SeqCst);
            let tgid = vm.tgid.load(Relaxed) as u32;
            if self.tgids.get(&tgid, 0).is_ok_and(|now| now == slot) {
                let _ = self.tgids.remove(&tgid);
            }
        }
    }

    /// Gives the slot and its threads back, empty.
    ///
    /// Call it some time after [`Self::close`]: a program that had found the slot
    /// before must be done with it.
    ///
    /// # Errors
    /// The kernel refuses to take them back.
    pub fn free(&mut self, slot: u32) -> Result<()> {
        let held = self.holdings().remove(&slot).unwrap_or_default();
        for index in &held.threads {
            self.free_thread(*index)?;
        }
        for (index, _) in self.histograms_of(slot, &held) {
            if let Some(histogram) = self.histograms.get(index) {
                histogram.clear();
                for place in &histogram.chunks {
                    if let Some(number) = place.swap(0, SeqCst).checked_sub(1) {
                        self.chunks.give_back(number as u32)?;
                    }
                }
            }
        }
        for (place, key) in held.pooled {
            let _ = self.pooled.remove(&key);
            if let Some(owner) = self.pool_owners.get(place) {
                owner.0.store(0, Relaxed);
            }
            self.free_pooled.push(place as u32, 0).context("cannot free a histogram")?;
        }
        self.evictions.forget(slot)?;
        if let Some(vm) = self.vms.get(slot as usize) {
            vm.clear();
        }
        self.free_vms.push(slot, 0).with_context(|| format!("cannot free slot {slot}"))
    }

    /// Gives back the entry of a thread that is gone.
    ///
    /// # Errors
    /// The kernel refuses to take it back.
    pub fn free_thread(&mut self, index: u32) -> Result<()> {
        let Some(thread) = self.threads.get(index as usize) else {
            return Ok(());
        };
        let tid = thread.tid().cast_unsigned();
        // With neither no program finds the entry any more.
        thread.id.store(0, SeqCst);
        let _ = self.tids.remove(&tid);
        // Nor will any see the end of its wait.
        if thread.lock_waits.swap(0, SeqCst) != 0
            && let Some(waits) = self.lock_waits.get(0)
        {
            waits.0.fetch_sub(1, SeqCst);
        }
        thread.clear();
        self.free_threads.push(index, 0).context("cannot free a thread's entry")
    }

    /// Every entry that a thread has, with its index.
    pub fn used_threads(&self) -> impl Iterator<Item = (u32, &Thread)> {
        let used = self.threads.iter().take(self.threads_used).enumerate();
        used.filter(|(_, thread)| thread.id.load(Relaxed) != 0)
            .map(|(index, thread)| (index as u32, thread))
    }

    /// Looks for entries used since: they are handed out in order the first time.
    pub fn see_new_threads(&mut self) {
        let used = |index| self.threads.get(index).is_some_and(|t| t.id.load(Relaxed) != 0);
        while used(self.threads_used) {
            self.threads_used += 1;
        }
    }
}

fn device_name(device: &SwapDevice) -> Option<String> {
    let bytes = device.name.each_ref().map(|word| word.load(SeqCst).to_ne_bytes()).concat();
    let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = std::str::from_utf8(name).ok()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// Loads the iterator; it runs when [`Slots::adopt`] reads it.
pub fn load_iterator(ebpf: &mut Ebpf, btf: &Btf) -> Result<()> {
    let program: &mut Iter = iterator(ebpf)?;
    program.load("task", btf).context("the kernel refuses the task iterator")
}

fn iterator(ebpf: &mut Ebpf) -> Result<&mut Iter> {
    let program = ebpf.program_mut("adopt_wanted").ok_or_else(|| anyhow!("no task iterator"))?;
    Ok(program.try_into()?)
}

fn walk_tasks(ebpf: &mut Ebpf) -> Result<()> {
    let program = iterator(ebpf)?;
    let link = program.attach()?;
    let mut output = program.take_link(link)?.into_file()?;
    // The iterator prints nothing; reading to the end makes it run.
    output.read_to_end(&mut Vec::new())?;
    Ok(())
}

/// The disk that is swapped to where that is one alone, as the programs name it.
fn only_swap_device() -> Option<String> {
    let name = only_name(&fs::read_to_string("/proc/swaps").ok()?)?;
    let place = fs::canonicalize(Path::new("/sys/class/block").join(&name)).ok()?;
    let disk = if place.join("partition").exists() { place.parent()? } else { &place };
    Some(disk.file_name()?.to_string_lossy().into_owned())
}

/// The name of the only device in /proc/swaps; a file lies on a device that is not named there.
fn only_name(swaps: &str) -> Option<String> {
    let mut lines = swaps.lines().skip(1);
    let place = lines.next().filter(|_| lines.next().is_none())?.split_whitespace().next()?;
    place.strip_prefix("/dev/").filter(|name| !name.contains('/')).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lone_swap_device_is_named() {
        let heading = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        let swaps = |lines: &str| only_name(&format!("{heading}{lines}"));
        let device = "/dev/nvme0n1p3                          partition\t8388604\t\t0\t\t-2\n";
        assert_eq!(swaps(device).as_deref(), Some("nvme0n1p3"));
        assert_eq!(swaps(&device.repeat(2)), None);
        assert_eq!(swaps("/dev/mapper/swap partition 1048572 0 -2\n"), None);
        assert_eq!(swaps("/swapfile file 1048572 0 -2\n"), None);
        assert_eq!(swaps(""), None);
    }
}
