//! What /proc tells of programs and maps by their descriptors (`bpf_prog_show_fdinfo` and
//! `bpf_map_show_fdinfo`, kernel/bpf/syscall.c).

use aya::programs::ProgramFd;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};

/// A number of a program, by the name that stands before it.
pub(super) fn of_program(program: &ProgramFd, name: &str) -> Option<u64> {
    let fd = program.as_fd().as_raw_fd();
    field(&fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?, name)
}

/// A number in what /proc tells of a descriptor.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}
