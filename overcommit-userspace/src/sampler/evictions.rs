//! Who took pages of whom in an interval, by name.

use crate::probes::evictions::Taken;
use overcommit_ebpf::layout::AggressorKind;
use overcommit_recording::model::evictions::{Aggressor, AggressorClass, Eviction};
use overcommit_recording::model::vm::Vm;

/// Puts names to what was taken. `member` knows the VM of a slot, `inspect` one that is
/// not recorded, `process` what a process is called.
pub fn name(
    taken: Vec<Taken>,
    member: impl Fn(u32) -> Option<(usize, Aggressor)>,
    inspect: impl Fn(i32) -> Option<Vm>,
    process: impl Fn(i32) -> Option<String>,
) -> Vec<Eviction> {
    let named = taken.into_iter().filter_map(|taken| {
        let Taken { key, thread, counts } = taken;
        let kind = AggressorKind::ALL.into_iter().find(|kind| *kind as u32 == key.kind)?;
        let pid = key.by.cast_signed();
        let aggressor = match kind {
            AggressorKind::Vm => member(key.by)?.1,
            AggressorKind::Process => match inspect(pid) {
                Some(vm) => of_vm(&vm),
                None => of_process(pid, process(pid).unwrap_or(thread)),
            },
            AggressorKind::Kernel => of_kernel(pid, thread),
            AggressorKind::Others => of_others(),
        };
        let victim = member(key.victim).map(|(member, _)| member);
        Some(Eviction { victim, aggressor, counts })
    });
    named.collect()
}

/// A VM as an aggressor.
pub fn of_vm(vm: &Vm) -> Aggressor {
    Aggressor { class: AggressorClass::Vm, id: vm.id.to_string(), name: vm.name.to_string() }
}

/// A process that is no VM.
pub fn of_process(pid: i32, name: String) -> Aggressor {
    Aggressor { class: AggressorClass::Process, id: pid.to_string(), name }
}

/// A thread of the kernel by its id and name; 0 is any of its workers.
pub fn of_kernel(tid: i32, name: String) -> Aggressor {
    if tid == 0 {
        let name = "kworker".to_owned();
        return Aggressor { class: AggressorClass::Kernel, id: String::new(), name };
    }
    Aggressor { class: AggressorClass::of_thread(&name), id: tid.to_string(), name }
}

/// Several, of whom none is known: the matrix was full.
fn of_others() -> Aggressor {
    Aggressor { class: AggressorClass::Other, id: String::new(), name: "others".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overcommit_ebpf::layout::{EvictionKey, NOBODY};
    use overcommit_recording::model::evictions::EvictionCounts;
    use overcommit_recording::model::name::Name;
    use overcommit_recording::model::vm::VmId;

    fn vm(name: &str) -> Vm {
        Vm { name: Name::new(name), ..Vm::gone(VmId { pid: 42, start_ticks: 4711 }) }
    }

    fn taken(victim: u32, kind: AggressorKind, by: u32, thread: &str) -> Taken {
        let key = EvictionKey { victim, kind: kind as u32, by, reserved: 0 };
        let counts = EvictionCounts { written_pages: 5, written_folios: 5, ..Default::default() };
        Taken { key, thread: thread.to_owned(), counts }
    }

    #[test]
    fn each_kind_of_aggressor_has_its_name() {
        let recorded = vm("web");
        let left_out = vm("batch");
        let all = vec![
            taken(3, AggressorKind::Vm, 3, "CPU 0/KVM"),
            taken(3, AggressorKind::Process, 8, "CPU 0/KVM"),
            taken(3, AggressorKind::Process, 9, "worker-thread"),
            taken(3, AggressorKind::Process, 10, "gone"),
            taken(3, AggressorKind::Kernel, 60, "kswapd0"),
            taken(3, AggressorKind::Kernel, 61, "kdamond.0"),
            taken(3, AggressorKind::Kernel, 0, "kworker/u8:2"),
            taken(3, AggressorKind::Others, 0, "CPU 0/KVM"),
            taken(NOBODY, AggressorKind::Vm, 3, "CPU 0/KVM"),
            taken(3, AggressorKind::Vm, 4, "a VM that is not recorded any more"),
        ];
        let named = name(
            all,
            |slot| (slot == 3).then(|| (0, of_vm(&recorded))),
            |pid| (pid == 8).then(|| left_out.clone()),
            |pid| (pid == 9).then(|| "make".to_owned()),
        );
        let seen: Vec<_> = named
            .iter()
            .map(|sample| (sample.victim, sample.aggressor.class, sample.aggressor.name.as_str()))
            .collect();
        use AggressorClass::{Damon, Kernel, Kswapd, Other, Process, Vm};
        let expected = [
            (Some(0), Vm, "web"),
            (Some(0), Vm, "batch"),
            (Some(0), Process, "make"),
            (Some(0), Process, "gone"),
            (Some(0), Kswapd, "kswapd0"),
            (Some(0), Damon, "kdamond.0"),
            (Some(0), Kernel, "kworker"),
            (Some(0), Other, "others"),
            (None, Vm, "web"),
        ];
        assert_eq!(seen, expected);
    }
}
