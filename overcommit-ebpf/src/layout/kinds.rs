//! What is told apart, with the names that all files and views use.

/// An enumeration whose members have a name in all files.
macro_rules! named {
    ($(#[$about:meta])* $name:ident {
        $($(#[$what:meta])* $member:ident = $number:literal => $text:literal,)*
    }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum $name {
            $($(#[$what])* $member = $number,)*
        }

        impl $name {
            /// Every one, in the order of their numbers.
            pub const ALL: [Self; [$($text),*].len()] = [$(Self::$member),*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name in all files.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$member => $text,)*
                }
            }
        }
    };
}

named! {
    /// A latency that the kernel side sums into a histogram for each VM.
    Metric {
        /// A fault that the kernel accounts as minor.
        FaultMinor = 0 => "fault.minor",
        /// A fault that the kernel accounts as major.
        FaultMajor = 1 => "fault.major",
        /// A fault's wait for a page that was swapped out.
        Swapin = 2 => "swapin",
        /// From an exit for memory to the next entry of that vCPU.
        StallMemory = 3 => "stall.memory",
        /// From a halt to the next entry, unless it waits for memory.
        Idle = 4 => "idle",
        /// An asynchronous page fault: not present → ready.
        Apf = 5 => "apf",
        /// Direct, memory cgroup or node reclaim, run by a thread of the VM or for its memory.
        Reclaim = 6 => "reclaim",
        /// A vCPU that could run waits for a CPU.
        Runq = 7 => "runq",
        /// A thread is held back because its memory cgroup holds more than its `memory.high`.
        MemoryHigh = 8 => "memory.high",
    }
}

named! {
    /// What could not be counted for a VM, by cause.
    Loss {
        /// A fault ended whose start was not seen: it began before the probe was
        /// attached, or the start program was skipped.
        EndWithoutStart = 0 => "end_without_start",
        /// A fault began and never completed: it raised a signal, or its end was
        /// skipped.
        StartWithoutEnd = 1 => "start_without_end",
        /// The thread exited inside the fault.
        ThreadExit = 2 => "thread_exit",
        /// No free entry for the thread.
        ThreadsFull = 3 => "threads_full",
        /// A slow fault found no room in the ring buffer. It is in the histogram.
        SlowDropped = 4 => "slow_dropped",
        /// The clock of the CPU on which the fault ended was behind that of its start.
        ClockBehind = 5 => "clock_behind",
        /// A fault was to be retried and the thread never came back: a signal.
        Abandoned = 6 => "abandoned",
        /// A fault ended in an error (SIGBUS, out of memory), which the kernel does not
        /// account either.
        Failed = 7 => "failed",
        /// A kvm_exit came in an open window: its kvm_entry was skipped.
        ExitWithoutEntry = 8 => "exit_without_entry",
        /// A kvm_entry came without a kvm_exit before it.
        EntryWithoutExit = 9 => "entry_without_exit",
        /// An exit, while every histogram of the pool was taken.
        ExitsFull = 10 => "exits_full",
        /// An asynchronous page fault was never reported ready.
        ApfUnfinished = 11 => "apf_unfinished",
        /// One was reported ready whose beginning was not seen.
        ApfWithoutStart = 12 => "apf_without_start",
        /// Pages were taken away, and every entry of the eviction matrix was in use: they are counted,
        /// by whom is not known.
        EvictionsFull = 13 => "evictions_full",
        /// A fault, while every histogram of the pool was taken: it is in `fault.*` and in no `backing.*`.
        BackingFull = 14 => "backing_full",
        /// A slow fault came after [`SLOW_PER_SECOND`] others of the VM in its second. It is in
        /// the histogram.
        SlowLimited = 15 => "slow_limited",
        /// A latency, while there was no memory for its bucket: it is in no histogram.
        BucketsFull = 16 => "buckets_full",
    }
}

named! {
    /// What the time of a fault went into. The parts do not overlap; what is in none of them
    /// is the rest.
    Part {
        /// The thread took pages away from somebody, to have one.
        Reclaim = 0 => "reclaim",
        /// It brought a page that was swapped out.
        Swapin = 1 => "swapin",
        /// It moved pages together, to have a large one.
        Compaction = 2 => "compaction",
        /// It waited for the lock of the VM's address space, `mmap_lock`.
        Lock = 3 => "lock",
        /// It waited for another process to bring the page.
        Userfault = 4 => "userfault",
        /// It waited for a CPU.
        Runq = 5 => "runq",
        /// It slept until a device had read, outside of a swap-in.
        Io = 6 => "io",
        /// It slept for something else.
        Sleep = 7 => "sleep",
        /// It slept in a swap-in until the device had read.
        SwapinIo = 8 => "swapin_io",
    }
}

named! {
    /// What a fault took: of a VM, each fault counts for one. A later one replaces an earlier
    /// one that a fault goes through on its way.
    FaultBacking {
        /// A new page, of zeros or part of a huge one.
        Anon = 1 => "anon",
        /// A page of a file.
        File = 2 => "file",
        /// A page of shared memory that is in no file of a disk.
        Shmem = 3 => "shmem",
        /// A page of the pool of huge pages.
        Hugetlb = 4 => "hugetlb",
        /// A copy of its own of a page that others see too: of a file, of KSM.
        Cow = 5 => "cow",
        /// A page that the kernel had marked to see which node uses it.
        Numa = 6 => "numa",
        /// A page that was swapped out.
        Swap = 7 => "swap",
        /// A page that another process brings: a migration by postcopy, a snapshot pager.
        Userfault = 8 => "userfault",
    }
}

named! {
    /// Who ran a fault, while it filled the VM's memory.
    Taker {
        /// A thread that runs a vCPU.
        Vcpu = 0 => "vcpu",
        /// Another thread of the VM.
        VmThread = 1 => "vm_thread",
        /// A kernel worker or another process.
        Outside = 2 => "outside",
    }
}

named! {
    /// On whose behalf KVM was told to drop a range of the VM's memory, so that it has to find the pages
    /// again.
    Invalidator {
        /// The VM itself: a balloon, a copy on write, a mapping that is gone, and what a fault of NUMA
        /// balancing moves.
        Own = 0 => "own",
        /// NUMA balancing, which has to see which node uses a page; or mprotect.
        Numa = 1 => "numa",
        /// KSM, which looks for pages that are the same.
        Ksm = 2 => "ksm",
        /// Compaction, which moves pages together: the kernel's own, or of a fault in a VM.
        Compaction = 3 => "compaction",
        /// khugepaged, which makes huge pages of small ones.
        HugePages = 4 => "huge_pages",
        /// Reclaim by kswapd, by DAMON or by a thread of a VM.
        Reclaim = 5 => "reclaim",
        /// Anything else, such as reclaim or compaction by other processes.
        Other = 6 => "other",
    }
}

named! {
    /// A program that runs on every fault of the host.
    HotProgram {
        /// Starts the clock.
        FaultStart = 0 => "fault_start",
        /// Ends it for a minor fault.
        FaultMinor = 1 => "fault_minor",
        /// Ends it for a major fault.
        FaultMajor = 2 => "fault_major",
        /// At the entry of `handle_mm_fault`.
        CallEntry = 3 => "call_entry",
        /// At its return.
        CallReturn = 4 => "call_return",
    }
}

impl Metric {
    /// The kernel's two kinds of fault.
    pub const FAULTS: [Self; 2] = [Self::FaultMinor, Self::FaultMajor];
}

impl FaultBacking {
    /// Histograms that a VM may have for its faults: two of each kind.
    pub const HISTOGRAMS: usize = Self::COUNT * Metric::FAULTS.len();
}
