//! What is left on the NUMA nodes that a VM is bound to? It cannot have the rest of the
//! host's memory, however much there is.

use crate::host::overcommit::VmMemory;
use overcommit_recording::model::memory::NodeSet;
use overcommit_recording::model::memory::{Headroom, Range};
use overcommit_recording::model::vm::VmId;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The nodes of the host, and who is bound to which.
#[derive(Clone, Debug, Default)]
pub struct Numa {
    /// What could be had on each, in bytes.
    available: BTreeMap<u32, u64>,
    bound: BTreeMap<VmId, NodeSet>,
}

impl Numa {
    /// Reads them; nothing where there is one node. What is available is the host's,
    /// divided as what is free, or of files and could be reclaimed, lies on the nodes.
    pub fn read(proc: &Path, sys: &Path, available: Option<u64>, vms: &BTreeSet<VmId>) -> Self {
        let root = sys.join("devices/system/node");
        let all = fs::read_to_string(root.join("has_memory")).ok();
        let Some(all) = all.and_then(|list| NodeSet::parse(&list)) else { return Self::default() };
        let Some(available) = available.filter(|_| all.nodes().count() > 1) else {
            return Self::default();
        };
        let lies = |node| Some((node, reclaimable(&root.join(format!("node{node}/meminfo")))?));
        let lies: BTreeMap<u32, u64> = all.nodes().filter_map(lies).collect();
        let sum = lies.values().sum::<u64>().max(1) as f64;
        let part = |(node, bytes)| (node, (available as f64 * bytes as f64 / sum) as u64);
        let bound = vms.iter().filter_map(|id| Some((*id, binding(proc, id.pid, all)?)));
        Self { available: lies.into_iter().map(part).collect(), bound: bound.collect() }
    }

    /// The nodes to which a VM is bound, if it is.
    pub fn nodes_of(&self, id: VmId) -> Option<NodeSet> {
        self.bound.get(&id).copied()
    }

    /// What is left on these nodes beside the working sets of the VMs that are bound to them,
    /// or to a part of them.
    pub fn headroom(&self, nodes: NodeSet, vms: &[(VmId, VmMemory)]) -> Option<Headroom> {
        let available: Option<Vec<u64>> =
            nodes.nodes().map(|node| self.available.get(&node).copied()).collect();
        let is_within = |id| self.nodes_of(id).is_some_and(|own| own.is_within(nodes));
        let within = || vms.iter().filter(|(id, vm)| is_within(*id) && !vm.is_hugetlb);
        let held: u64 = within().map(|(_, vm)| vm.freed).sum();
        let mut sets = Range::default();
        for (_, vm) in within() {
            let set = vm.working_set?;
            (sets.lower, sets.upper) = (sets.lower + set.lower, sets.upper + set.upper);
        }
        Headroom::of(available?.iter().sum::<u64>() + held, sets)
    }
}

/// What its cpuset allows a process, if that is not every node.
fn binding(proc: &Path, pid: i32, all: NodeSet) -> Option<NodeSet> {
    let status = fs::read_to_string(proc.join(pid.to_string()).join("status")).ok()?;
    let list = status.lines().find_map(|line| line.strip_prefix("Mems_allowed_list:"))?;
    let allowed = NodeSet::parse(list)?.within(all);
    (allowed != all && allowed != NodeSet::default()).then_some(allowed)
}

/// Bytes of a node that are free, or could be: lines such as `Node 0 MemFree: 12 kB`.
fn reclaimable(meminfo: &Path) -> Option<u64> {
    let text = fs::read_to_string(meminfo).ok()?;
    let figure = |name: &str| {
        let line = text.lines().find_map(|line| line.split_once(name))?;
        line.1.split_whitespace().next()?.parse::<u64>().ok()
    };
    let others = ["Active(file):", "Inactive(file):", "SReclaimable:"];
    let others: u64 = others.into_iter().filter_map(figure).sum();
    Some((figure("MemFree:")? + others) << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn host(dir: &Path, allowed: &[(i32, &str)]) -> Numa {
        let node = dir.join("devices/system/node");
        for (number, free) in [(0, 30u64), (1, 10)] {
            let own = node.join(format!("node{number}"));
            fs::create_dir_all(&own).unwrap();
            let free = free << 20;
            let text =
                format!("Node {number} MemFree: {free} kB\nNode {number} Inactive(file): 0 kB\n");
            fs::write(own.join("meminfo"), text).unwrap();
        }
        fs::write(node.join("has_memory"), "0-1\n").unwrap();
        for (pid, list) in allowed {
            let own = dir.join(pid.to_string());
            fs::create_dir_all(&own).unwrap();
            fs::write(own.join("status"), format!("Name:\tqemu\nMems_allowed_list:\t{list}\n"))
                .unwrap();
        }
        let ids = allowed.iter().map(|(pid, _)| id(*pid)).collect();
        Numa::read(dir, dir, Some(20 * GIB), &ids)
    }

    fn id(pid: i32) -> VmId {
        VmId { pid, start_ticks: 1 }
    }

    fn vm(resident: u64, need: u64) -> VmMemory {
        let working_set = Some(Range { lower: need * GIB, upper: need * GIB });
        VmMemory { freed: resident * GIB, working_set, ..VmMemory::default() }
    }

    #[test]
    fn a_bound_vm_has_its_nodes_alone() {
        let dir = tempfile::tempdir().unwrap();
        let numa = host(dir.path(), &[(1, "1"), (2, "1"), (3, "0-1")]);
        let vms = [(id(1), vm(2, 4)), (id(2), vm(1, 1)), (id(3), vm(8, 8))];
        let nodes = numa.nodes_of(id(1)).unwrap();
        assert_eq!((nodes.to_string().as_str(), numa.nodes_of(id(3))), ("1", None));
        // A quarter of the 20 GiB lies there, and the two hold 3 GiB and need 5.
        let left = numa.headroom(nodes, &vms).unwrap();
        assert_eq!((left.lower, left.upper), (3 * GIB as i64, 3 * GIB as i64));
        let unknown = [(id(1), VmMemory::default())];
        assert_eq!(numa.headroom(nodes, &unknown), None);
    }

    #[test]
    fn lists_of_the_kernel_are_read_and_odd_ones_refused() {
        let nodes = |list| NodeSet::parse(list).map(|set| set.to_string());
        assert_eq!(nodes("0,2-3\n").as_deref(), Some("0 2 3"));
        assert_eq!(nodes("").as_deref(), Some(""));
        assert_eq!((nodes("64"), nodes("1-x")), (None, None));
    }
}
