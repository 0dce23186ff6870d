//! What is a KVM exit called? The names of the kernel's own headers, in lower case.

use overcommit_ebpf::layout::{ISA_ARM64, ISA_SVM, ISA_VMX, REASON_MMIO};
use std::borrow::Cow;

/// AMD: `SVM_EXIT_REASONS`, arch/x86/include/uapi/asm/svm.h (7.3).
const SVM: [(u32, &str); 101] = [
    (0x0, "read_cr0"),
    (0x2, "read_cr2"),
    (0x3, "read_cr3"),
    (0x4, "read_cr4"),
    (0x8, "read_cr8"),
    (0x10, "write_cr0"),
    (0x12, "write_cr2"),
    (0x13, "write_cr3"),
    (0x14, "write_cr4"),
    (0x18, "write_cr8"),
    (0x20, "read_dr0"),
    (0x21, "read_dr1"),
    (0x22, "read_dr2"),
    (0x23, "read_dr3"),
    (0x24, "read_dr4"),
    (0x25, "read_dr5"),
    (0x26, "read_dr6"),
    (0x27, "read_dr7"),
    (0x30, "write_dr0"),
    (0x31, "write_dr1"),
    (0x32, "write_dr2"),
    (0x33, "write_dr3"),
    (0x34, "write_dr4"),
    (0x35, "write_dr5"),
    (0x36, "write_dr6"),
    (0x37, "write_dr7"),
    (0x40, "excp_de"),
    (0x41, "excp_db"),
    (0x43, "excp_bp"),
    (0x44, "excp_of"),
    (0x45, "excp_br"),
    (0x46, "excp_ud"),
    (0x47, "excp_nm"),
    (0x48, "excp_df"),
    (0x4a, "excp_ts"),
    (0x4b, "excp_np"),
    (0x4c, "excp_ss"),
    (0x4d, "excp_gp"),
    (0x4e, "excp_pf"),
    (0x50, "excp_mf"),
    (0x51, "excp_ac"),
    (0x52, "excp_mc"),
    (0x53, "excp_xm"),
    (0x60, "interrupt"),
    (0x61, "nmi"),
    (0x62, "smi"),
    (0x63, "init"),
    (0x64, "vintr"),
    (0x65, "cr0_sel_write"),
    (0x66, "read_idtr"),
    (0x67, "read_gdtr"),
    (0x68, "read_ldtr"),
    (0x69, "read_tr"),
    (0x6a, "write_idtr"),
    (0x6b, "write_gdtr"),
    (0x6c, "write_ldtr"),
    (0x6d, "write_tr"),
    (0x6e, "rdtsc"),
    (0x6f, "rdpmc"),
    (0x70, "pushf"),
    (0x71, "popf"),
    (0x72, "cpuid"),
    (0x73, "rsm"),
    (0x74, "iret"),
    (0x75, "swint"),
    (0x76, "invd"),
    (0x77, "pause"),
    (0x78, "hlt"),
    (0x79, "invlpg"),
    (0x7a, "invlpga"),
    (0x7b, "io"),
    (0x7c, "msr"),
    (0x7d, "task_switch"),
    (0x7e, "ferr_freeze"),
    (0x7f, "shutdown"),
    (0x80, "vmrun"),
    (0x81, "hypercall"),
    (0x82, "vmload"),
    (0x83, "vmsave"),
    (0x84, "stgi"),
    (0x85, "clgi"),
    (0x86, "skinit"),
    (0x87, "rdtscp"),
    (0x88, "icebp"),
    (0x89, "wbinvd"),
    (0x8a, "monitor"),
    (0x8b, "mwait"),
    (0x8c, "mwait_cond"),
    (0x8d, "xsetbv"),
    (0x8e, "rdpru"),
    (0x8f, "write_efer_trap"),
    (0x90, "write_cr0_trap"),
    (0x94, "write_cr4_trap"),
    (0x98, "write_cr8_trap"),
    (0xa2, "invpcid"),
    (0xa5, "bus_lock"),
    (0xa6, "idle_halt"),
    (0x400, "npf"),
    (0x401, "avic_incomplete_ipi"),
    (0x402, "avic_unaccelerated_access"),
    (0x403, "vmgexit"),
];

/// Intel: `VMX_EXIT_REASONS`, arch/x86/include/uapi/asm/vmx.h (7.3).
const VMX: [(u32, &str); 66] = [
    (0, "exception_nmi"),
    (1, "external_interrupt"),
    (2, "triple_fault"),
    (3, "init_signal"),
    (4, "sipi_signal"),
    (6, "other_smi"),
    (7, "interrupt_window"),
    (8, "nmi_window"),
    (9, "task_switch"),
    (10, "cpuid"),
    (12, "hlt"),
    (13, "invd"),
    (14, "invlpg"),
    (15, "rdpmc"),
    (16, "rdtsc"),
    (18, "vmcall"),
    (19, "vmclear"),
    (20, "vmlaunch"),
    (21, "vmptrld"),
    (22, "vmptrst"),
    (23, "vmread"),
    (24, "vmresume"),
    (25, "vmwrite"),
    (26, "vmoff"),
    (27, "vmon"),
    (28, "cr_access"),
    (29, "dr_access"),
    (30, "io_instruction"),
    (31, "msr_read"),
    (32, "msr_write"),
    (33, "invalid_state"),
    (34, "msr_load_fail"),
    (36, "mwait_instruction"),
    (37, "monitor_trap_flag"),
    (39, "monitor_instruction"),
    (40, "pause_instruction"),
    (41, "mce_during_vmentry"),
    (43, "tpr_below_threshold"),
    (44, "apic_access"),
    (45, "eoi_induced"),
    (46, "gdtr_idtr"),
    (47, "ldtr_tr"),
    (48, "ept_violation"),
    (49, "ept_misconfig"),
    (50, "invept"),
    (51, "rdtscp"),
    (52, "preemption_timer"),
    (53, "invvpid"),
    (54, "wbinvd"),
    (55, "xsetbv"),
    (56, "apic_write"),
    (57, "rdrand"),
    (58, "invpcid"),
    (59, "vmfunc"),
    (60, "encls"),
    (61, "rdseed"),
    (62, "pml_full"),
    (63, "xsaves"),
    (64, "xrstors"),
    (67, "umwait"),
    (68, "tpause"),
    (74, "bus_lock"),
    (75, "notify"),
    (77, "tdcall"),
    (84, "msr_read_imm"),
    (85, "msr_write_imm"),
];

/// arm64: `ESR_ELx_EC_*`, arch/arm64/include/asm/esr.h. Not tested on such a host.
const ARM64: [(u32, &str); 11] = [
    (0x00, "unknown"),
    (0x01, "wfx"),
    (0x07, "fp_asimd"),
    (0x16, "hvc64"),
    (0x17, "smc64"),
    (0x18, "sys64"),
    (0x19, "sve"),
    (0x20, "iabt_low"),
    (0x24, "dabt_low"),
    (0x2f, "serror"),
    (0x3c, "brk64"),
];

/// The name of an exit by its key ([`overcommit_ebpf::layout::exit_key`]): a number
/// where the headers had none yet.
pub fn name(key: u32) -> Cow<'static, str> {
    let (isa, reason) = (key >> 24, key & 0xff_ffff);
    let table: &[(u32, &str)] = match isa {
        ISA_SVM => &SVM,
        ISA_VMX => &VMX,
        ISA_ARM64 => &ARM64,
        _ if reason == REASON_MMIO => return Cow::Borrowed("mmio"),
        _ => &[],
    };
    match table.iter().find(|(number, _)| *number == reason) {
        Some((_, name)) => Cow::Borrowed(name),
        None => Cow::Owned(format!("{reason:#x}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overcommit_ebpf::layout::exit_key;

    #[test]
    fn names_go_by_architecture() {
        assert_eq!(name(exit_key(ISA_SVM, 0x400)), "npf");
        assert_eq!(name(exit_key(ISA_VMX, 48)), "ept_violation");
        assert_eq!(name(exit_key(ISA_ARM64, 0x24)), "dabt_low");
        assert_eq!(name(exit_key(0, REASON_MMIO)), "mmio");
        assert_eq!(name(exit_key(ISA_SVM, u32::MAX)), "0xffffff", "SVM_EXIT_ERR");
    }

    #[test]
    fn tables_are_sorted_and_names_fit_a_metric() {
        for table in [&SVM[..], &VMX, &ARM64] {
            assert!(table.is_sorted_by(|one, next| one.0 < next.0));
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(table.iter().all(|(_, name)| name.chars().all(fits)));
        }
    }
}
