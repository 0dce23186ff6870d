//! Tracepoints by their arguments: they need no tracefs.

use anyhow::{Context, Result, anyhow};
use aya::Ebpf;
use aya::programs::RawTracePoint;
use aya_obj::generated::bpf_cmd;
use nix::errno::Errno;
use nix::libc;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Programs that belong together and that a recording can do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// What is written out by reclaim.
    Swapouts,
    /// Where threads reclaim themselves.
    Reclaim,
    /// Where they do so on their own node first (`vm.zone_reclaim_mode`), on kernels with NUMA.
    NodeReclaim,
    /// Where they compact.
    Compaction,
    /// Where they wait for locks.
    Locks,
    /// Where they fall asleep.
    Sleeps,
}

impl Group {
    /// Every group.
    pub const ALL: [Self; 6] = [
        Self::Swapouts,
        Self::Reclaim,
        Self::NodeReclaim,
        Self::Compaction,
        Self::Locks,
        Self::Sleeps,
    ];

    /// Each program beside its tracepoint; the ends first: whatever is seen to begin can
    /// end.
    const fn programs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Swapouts => &[("swapout", "mm_vmscan_write_folio")],
            Self::Reclaim => &[
                ("direct_reclaim_end", "mm_vmscan_direct_reclaim_end"),
                ("memcg_reclaim_end", "mm_vmscan_memcg_reclaim_end"),
                ("direct_reclaim_begin", "mm_vmscan_direct_reclaim_begin"),
                ("memcg_reclaim_begin", "mm_vmscan_memcg_reclaim_begin"),
            ],
            Self::NodeReclaim => &[
                ("node_reclaim_end", "mm_vmscan_node_reclaim_end"),
                ("node_reclaim_begin", "mm_vmscan_node_reclaim_begin"),
            ],
            Self::Compaction => &[
                ("compaction_end", "mm_compaction_end"),
                ("compaction_begin", "mm_compaction_begin"),
            ],
            Self::Locks => {
                &[("lock_wait_end", "contention_end"), ("lock_wait_begin", "contention_begin")]
            }
            Self::Sleeps => &[("wakeup", "sched_wakeup"), ("switch", "sched_switch")],
        }
    }
}

/// Why the programs of a group do not run; what is not in it does.
pub type Absent = BTreeMap<Group, String>;

/// The groups.
#[derive(Default)]
pub struct Groups(Absent);

impl Groups {
    /// Loads the programs of each group, unless something that it needs is missing.
    pub fn load(ebpf: &mut Ebpf, needs: impl Fn(Group) -> Result<()>) -> Self {
        let mut groups = Self::default();
        for group in Group::ALL {
            groups.note(group, needs(group).and_then(|()| load(ebpf, group.programs())));
        }
        groups
    }

    /// Attaches those that are wanted.
    pub fn attach(&mut self, ebpf: &mut Ebpf, is_wanted: impl Fn(Group) -> bool) {
        for group in Group::ALL {
            if is_wanted(group) && !self.0.contains_key(&group) {
                self.note(group, attach(ebpf, group.programs()));
            }
        }
    }

    /// Why which do not run.
    pub fn absent(&self) -> &Absent {
        &self.0
    }

    fn note(&mut self, group: Group, outcome: Result<()>) {
        self.0.extend(outcome.err().map(|error| (group, format!("{error:#}"))));
    }
}

/// The names of all programs.
pub fn programs() -> impl Iterator<Item = &'static str> {
    Group::ALL.into_iter().flat_map(Group::programs).map(|(program, _)| *program)
}

/// Loads programs, each beside its tracepoint.
///
/// # Errors
/// The kernel refuses one.
pub fn load(ebpf: &mut Ebpf, programs: &[(&str, &str)]) -> Result<()> {
    programs.iter().try_for_each(|(program, tracepoint)| {
        named(ebpf, program)?.load().with_context(|| refuses(tracepoint))
    })
}

/// Attaches them, once loaded.
///
/// # Errors
/// The kernel refuses one.
pub fn attach(ebpf: &mut Ebpf, programs: &[(&str, &str)]) -> Result<()> {
    programs.iter().try_for_each(|(program, tracepoint)| {
        named(ebpf, program)?.attach(tracepoint).with_context(|| refuses(tracepoint))?;
        Ok(())
    })
}

fn named<'a>(ebpf: &'a mut Ebpf, program: &str) -> Result<&'a mut RawTracePoint> {
    let found = ebpf.program_mut(program).ok_or_else(|| anyhow!("no program {program}"))?;
    Ok(found.try_into()?)
}

/// Attaches a program to a tracepoint until what it gives is dropped: also where the module that has
/// the tracepoint came after the program.
///
/// # Errors
/// There is no such tracepoint now, or the kernel refuses.
pub fn open(tracepoint: &str, program: RawFd) -> Result<OwnedFd> {
    /// The part of `union bpf_attr` for `BPF_RAW_TRACEPOINT_OPEN`, include/uapi/linux/bpf.h.
    #[repr(C)]
    struct Attributes {
        name: u64,
        program: u32,
        reserved: u32,
    }
    let name = CString::new(tracepoint)?;
    let attributes =
        Attributes { name: name.as_ptr() as u64, program: program.cast_unsigned(), reserved: 0 };
    // SAFETY: the kernel reads the attributes and the name, which live until the call is over.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_RAW_TRACEPOINT_OPEN,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    let fd = Errno::result(fd).with_context(|| refuses(tracepoint))?;
    // SAFETY: a descriptor that the call has just made.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd)?) })
}

fn refuses(tracepoint: &str) -> String {
    format!("the kernel refuses the tracepoint {tracepoint}")
}
