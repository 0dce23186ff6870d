//! VMs that are gone, and what their monitors or libvirt say of it: a monitor before its QEMU ends,
//! libvirt afterwards.

use crate::host::balloon::libvirt;
use crate::host::working_set::follow::Target;
use overcommit_recording::model::exit::Departure;
use overcommit_recording::model::vm::VmId;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Times that libvirt is asked about a domain that is gone: it may not know yet.
const LOOKS: u32 = 3;

/// What is known of VMs, should they be gone at the next look.
#[derive(Debug, Default)]
pub(super) struct Departed {
    said: BTreeMap<VmId, Departure>,
    /// Those of libvirt, and how often it is still asked about each.
    domains: BTreeMap<VmId, (Uuid, u32)>,
}

impl Departed {
    /// What a VM's monitor said last.
    pub(super) fn heard(&mut self, id: VmId, departure: Option<Departure>) {
        match departure {
            Some(departure) => self.said.insert(id, departure),
            None => self.said.remove(&id),
        };
    }

    /// A VM is a domain of libvirt.
    pub(super) fn is_domain(&mut self, id: VmId, uuid: Uuid) {
        self.domains.insert(id, (uuid, LOOKS));
    }

    /// Those of which something is known that are no longer there.
    pub(super) async fn of(&mut self, targets: &[Target]) -> BTreeMap<VmId, Departure> {
        let runs = |id: &VmId| targets.iter().any(|target| target.vm.id == *id);
        let mut gone: BTreeMap<VmId, Departure> =
            self.said.extract_if(.., |id, _| !runs(id)).collect();
        let missing = self.domains.iter_mut().filter(|(id, _)| !runs(id));
        let asked: Vec<(VmId, Uuid)> = missing
            .map(|(id, (uuid, looks))| {
                *looks -= 1;
                (*id, *uuid)
            })
            .collect();
        if asked.is_empty() {
            return gone;
        }
        let uuids: Vec<Uuid> = asked.iter().map(|(_, uuid)| *uuid).collect();
        // One that hangs is asked again at the next look.
        let told = libvirt::departures(&uuids).await.unwrap_or_default();
        gone.extend(asked.iter().filter_map(|(id, uuid)| Some((*id, *told.get(uuid)?))));
        self.domains.retain(|id, (_, looks)| *looks > 0 && !gone.contains_key(id));
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overcommit_recording::model::vm::Vm;

    #[test]
    fn what_a_monitor_said_holds_once_its_vm_is_gone() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let [web, db] = [1, 2].map(|pid| VmId { pid, start_ticks: 1 });
        let there = |id| Target { vm: Vm::gone(id), has_page_tables: false, cgroup: None };
        let mut departed = Departed::default();
        departed.heard(web, Some(Departure::Migrated));
        departed.heard(db, Some(Departure::ShutDown));
        // Its guest was started again.
        departed.heard(db, None);
        let mut gone = |targets: &[Target]| runtime.block_on(departed.of(targets));
        assert!(gone(&[there(web), there(db)]).is_empty());
        assert_eq!(gone(&[there(db)]), BTreeMap::from([(web, Departure::Migrated)]));
        assert!(gone(&[]).is_empty());
    }
}
