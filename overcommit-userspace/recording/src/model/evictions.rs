//! Who took pages of whom.

use serde::{Deserialize, Serialize};

/// On whose behalf reclaim ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AggressorClass {
    /// A VM: its threads, or workers that fill its memory.
    Vm,
    /// Another process.
    Process,
    /// The kernel's own reclaim, when the host as a whole runs short.
    Kswapd,
    /// DAMON's proactive reclaim.
    Damon,
    /// Another thread of the kernel.
    Kernel,
    /// Several of whom none is known, because the matrix was full; or what a later version knows.
    #[serde(other)]
    Other,
}

impl AggressorClass {
    const ALL: [Self; 6] =
        [Self::Vm, Self::Process, Self::Kswapd, Self::Damon, Self::Kernel, Self::Other];

    /// The name in all files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Process => "process",
            Self::Kswapd => "kswapd",
            Self::Damon => "damon",
            Self::Kernel => "kernel",
            Self::Other => "other",
        }
    }

    /// The class of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }

    /// Of a thread of the kernel by its name, which nobody else can give it.
    pub fn of_thread(name: &str) -> Self {
        if name.starts_with("kswapd") {
            Self::Kswapd
        } else if name.starts_with("kdamond") {
            Self::Damon
        } else {
            Self::Kernel
        }
    }
}

/// Who runs reclaim.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Aggressor {
    /// What it is.
    pub class: AggressorClass,
    /// PID-STARTTIME of a VM, else a process or thread id; empty of workers.
    pub id: String,
    /// What it is called, as it may be shown.
    pub name: String,
}

/// Pages taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvictionCounts {
    /// Folios handed to swap.
    pub written_folios: u64,
    /// Their pages.
    pub written_pages: u64,
    /// Folios dropped that had not just been written.
    pub dropped_folios: u64,
    /// Their pages.
    pub dropped_pages: u64,
}

impl EvictionCounts {
    /// What was added since.
    pub fn since(self, before: Self) -> Self {
        Self {
            written_folios: self.written_folios - before.written_folios,
            written_pages: self.written_pages - before.written_pages,
            dropped_folios: self.dropped_folios - before.dropped_folios,
            dropped_pages: self.dropped_pages - before.dropped_pages,
        }
    }

    /// Adds others.
    pub fn add(&mut self, other: Self) {
        self.written_folios += other.written_folios;
        self.written_pages += other.written_pages;
        self.dropped_folios += other.dropped_folios;
        self.dropped_pages += other.dropped_pages;
    }

    /// Pages in all.
    pub fn pages(self) -> u64 {
        self.written_pages + self.dropped_pages
    }
}

/// What one took of another in an interval.
#[derive(Clone, Debug)]
pub struct Eviction {
    /// Whose pages, as an index into the VMs of the recording; `None` of memory that is
    /// no recorded VM's own.
    pub victim: Option<usize>,
    /// Who took them.
    pub aggressor: Aggressor,
    /// How much.
    pub counts: EvictionCounts,
}

impl Eviction {
    /// Nothing, before a row is read into it.
    pub fn none() -> Self {
        let (id, name) = (String::new(), String::new());
        let aggressor = Aggressor { class: AggressorClass::Kernel, id, name };
        Self { victim: None, aggressor, counts: EvictionCounts::default() }
    }
}
