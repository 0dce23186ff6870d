//! KVM's tracepoints, on whichever backend: why a vCPU left its guest, and for how
//! long.
//!
//! Tracepoints and not typed programs: kvm mostly is a module, whose BTF those cannot use. A module that
//! is loaded later is picked up by the next look, and its exits are told from the record then.

use crate::kernel::layout::ExitLayout;
use crate::probes::close_behind;
use crate::probes::functions::open_tracepoint;
use crate::probes::raw;
use crate::probes::shared::SharedArray;
use crate::probes::sight::SEEN_WITH_ALL;
use crate::probes::tracefs;
use anyhow::{Context, Result, anyhow, bail};
use aya::Ebpf;
use aya::programs::{RawTracePoint, TracePoint};
use clap::ValueEnum;
use overcommit_ebpf::layout::{ABSENT, KvmFields, RECORD_WORDS};
use perf_event::Counter;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;

/// `--exits`: which exits of guests are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Exits {
    /// Each of them
    All,
    /// Those for memory, and faults in any other: the stall share is complete, and other exits cost
    /// less, of which there are no metrics then, nor of halts
    Memory,
    /// None, so that exits cost nothing: the stall share comes from page faults, and there are no
    /// metrics of exits, halts, asynchronous faults and waits for a CPU
    Off,
}

/// How a program is attached.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It takes fields of the record.
    Classic,
    /// It takes arguments, or none: no record is made.
    Raw,
}

/// A program, how it is attached to which tracepoints, and whether exits can be told without.
/// In the order in which they are attached: what marks a window before what opens it.
const PROGRAMS: [(&str, Way, &[&str], bool); 11] = [
    ("kvm_apf_completed", Way::Raw, &["kvm_async_pf_completed"], false),
    ("kvm_apf_ready", Way::Raw, &["kvm_async_pf_ready"], false),
    ("kvm_apf_not_present", Way::Raw, &["kvm_async_pf_not_present"], false),
    ("kvm_mmio", Way::Raw, &["kvm_mmio", "kvm_fast_mmio"], false),
    ("kvm_nested_vmexit", Way::Raw, &["kvm_nested_vmexit"], false),
    ("kvm_guest_fault", Way::Classic, &["kvm_guest_fault"], false),
    ("kvm_wfx", Way::Classic, &["kvm_wfx_arm64"], false),
    ("kvm_userspace_exit", Way::Raw, &["kvm_userspace_exit"], true),
    ("kvm_entry", Way::Raw, &["kvm_entry"], true),
    (EXIT, Way::Classic, &["kvm_exit"], true),
    (EXIT_X86, Way::Raw, &["kvm_exit"], true),
];

/// The program that takes the reason of an exit from the record, and the one that takes it from where
/// KVM has it: one of them is attached.
const EXIT: &str = "kvm_exit";
const EXIT_X86: &str = "kvm_exit_x86";

/// The names of the programs.
pub fn programs() -> impl Iterator<Item = &'static str> {
    PROGRAMS.into_iter().map(|(name, ..)| name)
}

/// The tracepoints of KVM, attached or yet to come.
pub struct KvmTracepoints {
    programs: Vec<RawFd>,
    fields: SharedArray<KvmFields>,
    exits: Option<ExitLayout>,
    attached: Vec<Attached>,
    wanted: Exits,
    /// Why they are not attached.
    missing: Option<String>,
    /// Whether asynchronous page faults are told.
    has_apf: bool,
}

/// An attachment, which ends when it is dropped.
pub(super) enum Attached {
    #[expect(dead_code, reason = "held")]
    Classic(Counter),
    #[expect(dead_code, reason = "held")]
    Raw(OwnedFd),
}

/// Where tracefs is, with the tracepoints of KVM in it.
fn find() -> Result<PathBuf> {
    let root = tracefs::mount_point()?;
    if root.join("events/kvm/kvm_exit").exists() {
        return Ok(root);
    }
    bail!("no tracepoints of kvm in {}: is it loaded?", root.display())
}

/// Attaches to each tracepoint the program that its place in [`PROGRAMS`] and its way give; to kvm_exit
/// the one that needs a record, or not.
///
/// # Errors
/// The kernel refuses one that is needed.
fn attach(
    root: &Path,
    needs_record: bool,
    program: impl Fn(usize, Way) -> RawFd,
) -> Result<Vec<Attached>> {
    let left_out = if needs_record { EXIT_X86 } else { EXIT };
    let mut all = Vec::new();
    for (place, (name, way, tracepoints, is_needed)) in PROGRAMS.into_iter().enumerate() {
        if name == left_out {
            continue;
        }
        for tracepoint in tracepoints {
            let attached = match way {
                Way::Classic => tracefs::tracepoint_id(root, &format!("kvm/{tracepoint}"))
                    .and_then(|id| open_tracepoint(id, program(place, way)))
                    .map(Attached::Classic),
                Way::Raw => raw::open(tracepoint, program(place, way)).map(Attached::Raw),
            };
            match attached {
                Ok(attached) => all.push(attached),
                Err(error) if is_needed => return Err(error),
                Err(_) => {}
            }
        }
    }
    Ok(all)
}

/// Attaches loaded programs that do nothing instead: a classic and a raw one.
///
/// # Errors
/// There is no KVM, or the kernel refuses.
pub(super) fn attach_empty(
    exits: Option<ExitLayout>,
    classic: RawFd,
    raw: RawFd,
) -> Result<Vec<Attached>> {
    let of = |_, way| if way == Way::Classic { classic } else { raw };
    attach(&find()?, exits.is_none(), of)
}

impl KvmTracepoints {
    /// Loads the programs; [`Self::follow`] attaches them.
    ///
    /// # Errors
    /// The kernel refuses a program.
    pub fn load(ebpf: &mut Ebpf) -> Result<Vec<RawFd>> {
        let load = |(name, way, ..): (&str, Way, &[&str], bool)| -> Result<RawFd> {
            let program = ebpf.program_mut(name).ok_or_else(|| anyhow!("no program {name}"))?;
            let refuses = || format!("the kernel refuses the program {name}");
            if way == Way::Raw {
                let program: &mut RawTracePoint = program.try_into()?;
                program.load().with_context(refuses)?;
                return Ok(program.fd()?.as_fd().as_raw_fd());
            }
            let program: &mut TracePoint = program.try_into()?;
            program.load().with_context(refuses)?;
            Ok(program.fd()?.as_fd().as_raw_fd())
        };
        PROGRAMS.into_iter().map(load).collect()
    }

    /// Takes the loaded programs, which are attached unless none are `wanted`.
    ///
    /// # Errors
    /// The kernel refuses to map the list of fields.
    pub fn new(
        ebpf: &mut Ebpf,
        programs: Vec<RawFd>,
        exits: Option<ExitLayout>,
        wanted: Exits,
    ) -> Result<Self> {
        let fields = SharedArray::open(ebpf, "KVM_FIELDS", 1)?;
        let missing = if wanted == Exits::Off { SEEN_WITH_ALL } else { "not attached yet" };
        let missing = Some(missing.to_owned());
        let attached = Vec::new();
        Ok(Self { programs, fields, exits, attached, wanted, missing, has_apf: false })
    }

    /// Which exits are wanted.
    pub fn wanted(&self) -> Exits {
        self.wanted
    }

    /// Why exits are not seen, if they are not.
    pub fn missing(&self) -> Option<&str> {
        self.missing.as_deref()
    }

    /// Whether asynchronous page faults are seen.
    pub fn has_apf(&self) -> bool {
        self.has_apf
    }

    /// Attaches to what is there by now.
    pub fn follow(&mut self) {
        if self.wanted != Exits::Off && self.missing.is_some() {
            self.missing = self.attach().err().map(|error| format!("{error:#}"));
            if self.missing.is_some() {
                self.attached.clear();
            }
        }
    }

    /// Detaches.
    pub fn stop(&mut self) {
        close_behind(std::mem::take(&mut self.attached));
    }

    fn attach(&mut self) -> Result<()> {
        let root = find()?;
        self.find_fields(&root.join("events/kvm"))?;
        self.attached = attach(&root, self.exits.is_none(), |program, _| self.programs[program])?;
        Ok(())
    }

    fn find_fields(&mut self, kvm: &Path) -> Result<()> {
        let fields = self.fields.get(0).context("the list of fields is empty")?;
        let exit = tracefs::Format::read(kvm, "kvm_exit")?;
        // arm64 has the class of the exception instead of a reason, if there was one.
        let reason = exit.offset("exit_reason").or_else(|| exit.offset("esr_ec"));
        // Not every architecture has them.
        let elsewhere = |tracepoint, name| {
            tracefs::Format::read(kvm, tracepoint).ok().and_then(|format| format.offset(name))
        };
        self.has_apf = elsewhere("kvm_async_pf_ready", "token").is_some();
        let is_read = |offset: &u64| *offset < 8 * RECORD_WORDS as u64;
        let reason = reason
            .filter(is_read)
            .context("kvm_exit has no reason, or one that lies too far on")?;
        fields.exit_reason.store(reason, SeqCst);
        for (field, name) in [
            (&fields.exit_isa, "isa"),
            (&fields.exit_ret, "ret"),
            (&fields.exit_info1, "info1"),
            (&fields.exit_vcpu, "vcpu_id"),
        ] {
            field.store(exit.offset(name).filter(is_read).unwrap_or(ABSENT), SeqCst);
        }
        for (field, place) in [
            (&fields.fault_syndrome, elsewhere("kvm_guest_fault", "hsr")),
            (&fields.wfx_is_wfe, elsewhere("kvm_wfx_arm64", "is_wfe")),
        ] {
            field.store(place.unwrap_or(ABSENT), SeqCst);
        }
        let [vmx_exit_reason, vmx_exit_qualification] =
            self.exits.and_then(|exits| exits.vmx).map_or([None; 2], |both| both.map(Some));
        for (field, place) in [
            (&fields.vcpu_id, self.exits.map(|exits| exits.vcpu_id)),
            (&fields.svm_vmcb, self.exits.and_then(|exits| exits.svm_vmcb)),
            (&fields.vmx_exit_reason, vmx_exit_reason),
            (&fields.vmx_exit_qualification, vmx_exit_qualification),
        ] {
            field.store(place.map_or(ABSENT, u64::from), SeqCst);
        }
        Ok(())
    }
}
