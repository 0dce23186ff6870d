//! Memory that is plugged in beside what `-m` says: `-device pc-dimm` or `virtio-mem-pci`, with the
//! `-object memory-backend-…` that it names.

use crate::vm::options::{properties, size, value};
use overcommit_recording::model::vm::Plugged;
use std::collections::HashMap;

/// What the command line says of it. Persistent memory (nvdimm, virtio-pmem) is no RAM, and counts
/// for nothing but its size.
#[derive(Debug, Default)]
pub(super) struct MemoryDevices {
    /// Bytes of each backend, by its id.
    backends: HashMap<Vec<u8>, u64>,
    /// Backends of DIMMs, each of which is there as a whole.
    dimms: Vec<Vec<u8>>,
    /// Backends of all devices.
    all: Vec<Vec<u8>>,
    /// Bytes of virtio-mem that the guest was asked to take.
    requested: u64,
}

impl MemoryDevices {
    /// Takes up an option with its argument.
    pub(super) fn option(&mut self, option: &[u8], argument: &[u8]) {
        let bytes = |text: Option<Vec<u8>>| size(&text?, 0);
        match option {
            b"object" => {
                let of = properties(argument, b"qom-type");
                let is_memory = |kind: Vec<u8>| kind.starts_with(b"memory-backend-");
                if value(&of, b"qom-type").is_some_and(is_memory)
                    && let Some((id, bytes)) = value(&of, b"id").zip(bytes(value(&of, b"size")))
                {
                    self.backends.insert(id, bytes);
                }
            }
            b"device" => {
                let of = properties(argument, b"driver");
                self.all.extend(value(&of, b"memdev"));
                match value(&of, b"driver") {
                    Some(driver) if driver == b"pc-dimm" => {
                        self.dimms.extend(value(&of, b"memdev"));
                    }
                    Some(driver) if driver.starts_with(b"virtio-mem-") => {
                        let requested = bytes(value(&of, b"requested-size")).unwrap_or(0);
                        self.requested = self.requested.saturating_add(requested);
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// What is plugged in.
    pub(super) fn plugged(&self) -> Plugged {
        let sizes = |of: &[Vec<u8>]| -> Vec<u64> {
            of.iter().filter_map(|backend| self.backends.get(backend)).copied().collect()
        };
        Plugged {
            dimms: sizes(&self.dimms).into_iter().fold(0, u64::saturating_add),
            virtio_mem: self.requested,
            largest: sizes(&self.all).into_iter().max().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugged(options: &[(&str, &str)]) -> Plugged {
        let mut devices = MemoryDevices::default();
        options.iter().for_each(|(name, of)| devices.option(name.as_bytes(), of.as_bytes()));
        devices.plugged()
    }

    #[test]
    fn dimms_count_in_full_and_virtio_mem_as_far_as_it_is_asked_for() {
        let dimm = [
            ("object", r#"{"qom-type":"memory-backend-ram","id":"mem0","size":536870912}"#),
            ("device", r#"{"driver":"pc-dimm","memdev":"mem0","id":"dimm0"}"#),
        ];
        let of = |dimms, virtio_mem, largest| Plugged { dimms, virtio_mem, largest };
        assert_eq!(plugged(&dimm), of(512 << 20, 0, 512 << 20));
        let pairs = [
            ("device", "pc-dimm,id=dimm0,memdev=mem0"),
            ("object", "memory-backend-memfd,id=mem0,size=1G,share=on"),
        ];
        assert_eq!(plugged(&pairs), of(1 << 30, 0, 1 << 30));
        let virtio = [
            ("object", "memory-backend-ram,id=vmem0,size=8G"),
            ("device", "virtio-mem-pci,memdev=vmem0,requested-size=2G"),
            ("device", r#"{"driver":"virtio-mem-pci","memdev":"vmem1","requested-size":1048576}"#),
        ];
        assert_eq!(plugged(&virtio), of(0, (2 << 30) + (1 << 20), 8 << 30));
    }

    #[test]
    fn what_is_no_memory_or_cannot_be_read_counts_nothing() {
        let none = [
            ("object", "memory-backend-file,id=nv,size=4G,mem-path=/pmem"),
            ("device", "nvdimm,memdev=nv"),
            ("device", "virtio-pmem-pci,memdev=nv"),
            ("device", "pc-dimm,memdev=missing"),
            ("object", "{\"qom-type\":\"memory-backend-ram\""),
            ("device", "{"),
            ("device", "virtio-mem-pci,requested-size=all"),
        ];
        assert_eq!(plugged(&none), Plugged { largest: 4 << 30, ..Plugged::default() });
    }
}
