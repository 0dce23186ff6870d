//! Tracepoints by their arguments: they need no tracefs.

use anyhow::{Context, Result, anyhow};
use aya::Ebpf;
use aya::programs::RawTracePoint;

/// What is written out by reclaim, and its program.
pub const SWAPOUTS: &[(&str, &str)] = &[("swapout", "mm_vmscan_write_folio")];

/// Where threads reclaim themselves. The ends first: whatever is seen to begin can end.
pub const RECLAIM: &[(&str, &str)] = &[
    ("direct_reclaim_end", "mm_vmscan_direct_reclaim_end"),
    ("memcg_reclaim_end", "mm_vmscan_memcg_reclaim_end"),
    ("direct_reclaim_begin", "mm_vmscan_direct_reclaim_begin"),
    ("memcg_reclaim_begin", "mm_vmscan_memcg_reclaim_begin"),
];

/// Programs that belong together and that a recording can do without.
pub struct Optional {
    programs: &'static [(&'static str, &'static str)],
    /// Why they do not run, if so.
    absent: Option<String>,
}

impl Optional {
    /// Loads them, unless something that they need is missing.
    pub fn load(
        ebpf: &mut Ebpf,
        programs: &'static [(&'static str, &'static str)],
        needs: Result<()>,
    ) -> Self {
        let loaded = needs.and_then(|()| load(ebpf, programs));
        Self { programs, absent: loaded.err().map(|error| format!("{error:#}")) }
    }

    /// Attaches them.
    pub fn attach(&mut self, ebpf: &mut Ebpf) {
        if self.absent.is_none() {
            self.absent = attach(ebpf, self.programs).err().map(|error| format!("{error:#}"));
        }
    }

    /// Why they do not run, if so.
    pub fn absent(&self) -> Option<&str> {
        self.absent.as_deref()
    }
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

fn refuses(tracepoint: &str) -> String {
    format!("the kernel refuses the tracepoint {tracepoint}")
}
