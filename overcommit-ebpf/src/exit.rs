//! What an exit of a vCPU means, and the account of the asynchronous page faults that it has open:
//! what the programs decide about them, without the kernel, so that it can be tested.

use crate::layout::{
    APF_OLDER_AT, HALT, ISA_ARM64, ISA_SVM, ISA_VMX, MEMORY, MMIO, PROTECTED, exit_key,
};

/// Exits that mean something to us: svm.h, vmx.h (arch/x86/include/uapi/asm) and
/// esr.h (arch/arm64/include/asm).
mod reason {
    pub(super) const SVM_HLT: u32 = 0x78;
    pub(super) const SVM_MWAIT: u32 = 0x8b;
    pub(super) const SVM_MWAIT_COND: u32 = 0x8c;
    pub(super) const SVM_IDLE_HLT: u32 = 0xa6;
    pub(super) const SVM_NPF: u32 = 0x400;
    pub(super) const VMX_HLT: u32 = 12;
    pub(super) const VMX_MWAIT: u32 = 36;
    pub(super) const VMX_EPT_VIOLATION: u32 = 48;
    pub(super) const VMX_EPT_MISCONFIG: u32 = 49;
    pub(super) const ARM64_WFX: u32 = 0x01;
    pub(super) const ARM64_INSTRUCTION_ABORT: u32 = 0x20;
    pub(super) const ARM64_DATA_ABORT: u32 = 0x24;
}

/// The reason itself of a VMX exit. Above it are flags, such as a bus lock that was detected
/// (bit 26) or an exit out of an enclave (27): `union vmx_exit_reason`, arch/x86/kvm/vmx/vmx.h.
const VMX_REASON: u32 = 0xffff;
/// In `info1` of `npf`: a reserved bit was set, which KVM does for a device's memory
/// (`PFERR_RSVD_MASK`).
const SVM_RESERVED_BIT: u64 = 1 << 3;
/// In `info1` of `npf` (`PFERR_PRESENT_MASK`) and of an EPT violation (bits 3 to 5 of the exit
/// qualification, `EPT_VIOLATION_RWX_MASK`): there was an entry, which did not allow it.
const SVM_PRESENT: u64 = 1;
const VMX_PRESENT: u64 = 0x38;

/// `ARM_EXCEPTION_TRAP` (arch/arm64/include/asm/kvm_asm.h): the exit has a class.
const ARM64_TRAP: u32 = 2;
/// Above the classes: an exit without one, by its code.
const ARM64_WITHOUT_CLASS: u32 = 0x100;
/// In a syndrome of arm64 (`ESR_ELx_FSC_TYPE`, `…_ACCESS` and `…_PERM`, arch/arm64/include/asm/esr.h):
/// there was an entry, which the host had marked as not accessed, or which did not allow it.
const ARM64_FAULT_TYPE: u64 = 0x3c;
const ARM64_NOT_ACCESSED: u64 = 0x08;
const ARM64_PERMISSION: u64 = 0x0c;

/// One number for an exit of arm64, whose record has a class only where the guest was trapped
/// (`kvm_exit`, arch/arm64/kvm/trace_arm.h): an interrupt has none.
#[inline(always)]
pub const fn arm64_reason(code: u32, class: u32) -> u32 {
    if code == ARM64_TRAP { class } else { ARM64_WITHOUT_CLASS | (code & 0xff) }
}

/// Whether what a memory exit was for is read at its end, by its [`exit_key`].
#[inline(always)]
pub const fn has_qualification(key: u32) -> bool {
    key == exit_key(ISA_VMX, reason::VMX_EPT_VIOLATION)
}

/// What the qualification of an EPT violation adds to [`marks`].
#[inline(always)]
pub const fn vmx_fault_marks(qualification: u64) -> u64 {
    if qualification & VMX_PRESENT != 0 { PROTECTED } else { 0 }
}

/// What the syndrome of a memory exit on arm64 adds to [`marks`].
#[inline(always)]
pub const fn arm64_fault_marks(syndrome: u64) -> u64 {
    match syndrome & ARM64_FAULT_TYPE {
        ARM64_NOT_ACCESSED | ARM64_PERMISSION => PROTECTED,
        _ => 0,
    }
}

/// An asynchronous page fault that is open for longer was dropped: a guest that starts anew is not
/// told of what it waited for (`kvm_clear_async_pf_completion_queue`). It is forgotten within
/// twice that time, see [`aged`].
pub const APF_DROPPED_NS: u64 = 30_000_000_000;

/// What an exit is taken for; `info1` reads that field of `kvm_exit`.
#[inline(always)]
pub fn marks(isa: u32, reason: u32, info1: impl FnOnce() -> u64) -> u64 {
    let reason = if isa == ISA_VMX { reason & VMX_REASON } else { reason };
    match (isa, reason) {
        (ISA_SVM, reason::SVM_NPF) => {
            let info = info1();
            let protected = if info & SVM_PRESENT != 0 { PROTECTED } else { 0 };
            if info & SVM_RESERVED_BIT != 0 { MEMORY | MMIO } else { MEMORY | protected }
        }
        (ISA_VMX, reason::VMX_EPT_VIOLATION) => MEMORY | vmx_fault_marks(info1()),
        (ISA_ARM64, reason::ARM64_INSTRUCTION_ABORT | reason::ARM64_DATA_ABORT) => MEMORY,
        (ISA_VMX, reason::VMX_EPT_MISCONFIG) => MEMORY | MMIO,
        (
            ISA_SVM,
            reason::SVM_HLT | reason::SVM_MWAIT | reason::SVM_MWAIT_COND | reason::SVM_IDLE_HLT,
        )
        | (ISA_VMX, reason::VMX_HLT | reason::VMX_MWAIT)
        | (ISA_ARM64, reason::ARM64_WFX) => HALT,
        _ => 0,
    }
}

/// Those of [`Window::apf_open`](crate::layout::Window::apf_open) that are younger, and older.
#[inline(always)]
pub const fn by_age(open: u64) -> (u64, u64) {
    (open & u32::MAX as u64, open >> APF_OLDER_AT)
}

/// Those that are open once the younger ones are that old, in nanoseconds, and how many were
/// dropped: the younger ones are the older ones from then on, and the older ones of before will not
/// come any more. `None` as long as nothing changes.
#[inline(always)]
pub fn aged(open: u64, age_ns: u64) -> Option<(u64, u64)> {
    if open == 0 || age_ns < APF_DROPPED_NS {
        return None;
    }
    let (younger, older) = by_age(open);
    Some(if age_ns < 2 * APF_DROPPED_NS {
        (younger << APF_OLDER_AT, older)
    } else {
        (0, younger + older)
    })
}

/// Those that are open once one has come: one of the older ones if that is known, or if there are
/// no others.
#[inline(always)]
pub fn without_one(open: u64, is_older: bool) -> u64 {
    let (younger, older) = by_age(open);
    if older != 0 && (is_older || younger == 0) {
        open - (1 << APF_OLDER_AT)
    } else if younger != 0 {
        open - 1
    } else {
        open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_taken_for_what_it_is() {
        for (isa, reason, info1, taken_for) in [
            (ISA_SVM, 0x400, 0, MEMORY),
            (ISA_SVM, 0x400, 1, MEMORY | PROTECTED),
            (ISA_SVM, 0x400, 1 << 3, MEMORY | MMIO),
            (ISA_SVM, 0x400, 1 << 3 | 1, MEMORY | MMIO),
            (ISA_SVM, 0x78, 0, HALT),
            (ISA_SVM, 0x64, 0, 0),
            (ISA_VMX, 48, 0, MEMORY),
            (ISA_VMX, 48, 0x20, MEMORY | PROTECTED),
            // What the guest wanted is no entry that was there.
            (ISA_VMX, 48, 0x7, MEMORY),
            (ISA_VMX, 49, 0, MEMORY | MMIO),
            (ISA_VMX, 12, 0, HALT),
            // A bus lock, or an enclave, beside it.
            (ISA_VMX, 48 | 1 << 26, 0, MEMORY),
            (ISA_VMX, 48 | 1 << 27, 0x8, MEMORY | PROTECTED),
            (ISA_VMX, 12 | 1 << 26, 0, HALT),
            (ISA_VMX, 33 | 1 << 31, 0, 0),
            (ISA_ARM64, 0x24, 0, MEMORY),
            (ISA_ARM64, 0x01, 0, HALT),
            // Interrupts, and not the class 0.
            (ISA_ARM64, arm64_reason(0, 0x24), 0, 0),
        ] {
            assert_eq!(marks(isa, reason, || info1), taken_for, "{isa} {reason:#x} {info1:#x}");
            // Where that is read at the end, it comes to the same.
            let late = has_qualification(exit_key(isa, reason));
            let later = if late { vmx_fault_marks(info1) } else { 0 };
            let first = marks(isa, reason, || if late { 0 } else { info1 });
            assert_eq!(first | later, taken_for, "{isa} {reason:#x} {info1:#x}");
        }
    }

    #[test]
    fn arm64_says_in_two_places_what_an_exit_was() {
        assert_eq!(arm64_reason(2, 0x24), 0x24);
        assert_eq!(arm64_reason(0, 0), 0x100);
        assert_eq!(arm64_reason(0xbad_ca11, 0), 0x111, "HVC_STUB_ERR");
        // A write to a page that is logged, at level 3; one that is not there; one that was aged.
        assert_eq!(arm64_fault_marks(0x9200_004f), PROTECTED);
        assert_eq!(arm64_fault_marks(0x9200_0047), 0);
        assert_eq!(arm64_fault_marks(0x9200_000b), PROTECTED);
    }

    const OLDER: u64 = 1 << APF_OLDER_AT;

    #[test]
    fn what_was_dropped_is_forgotten_and_what_lasts_is_not() {
        assert_eq!(aged(0, u64::MAX), None);
        assert_eq!(aged(2, APF_DROPPED_NS - 1), None);
        // Two that were open for up to that time are kept, once.
        assert_eq!(aged(2, APF_DROPPED_NS), Some((2 * OLDER, 0)));
        assert_eq!(aged(3 + 2 * OLDER, APF_DROPPED_NS), Some((3 * OLDER, 2)));
        assert_eq!(aged(3 + 2 * OLDER, 2 * APF_DROPPED_NS), Some((0, 5)));
    }

    #[test]
    fn one_that_comes_is_taken_from_those_of_its_age() {
        assert_eq!(without_one(2 + 3 * OLDER, true), 2 + 2 * OLDER);
        assert_eq!(without_one(2 + 3 * OLDER, false), 1 + 3 * OLDER);
        assert_eq!(without_one(3 * OLDER, false), 2 * OLDER);
        assert_eq!(without_one(2, true), 1);
        assert_eq!(without_one(0, true), 0, "nobody was waited for");
    }
}
