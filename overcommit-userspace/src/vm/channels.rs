//! By which ways does a guest reach its host? Its ports and its CID, from QEMU's command line.

use crate::vm::chardev::Sockets;
use crate::vm::options::{properties, value};
use overcommit_recording::model::vm::{Channels, Dialect, Port};

/// Ports that are collected: real VMs have a few.
const MOST: usize = 64;

/// Collects them option by option.
#[derive(Default)]
pub(super) struct ChannelDevices {
    /// Ports, with the ids of the character devices behind them.
    ports: Vec<(Dialect, Vec<u8>)>,
    cid: Option<u32>,
}

impl ChannelDevices {
    /// Takes an option with its argument.
    pub(super) fn option(&mut self, option: &[u8], argument: &[u8]) {
        // Devices of other kinds are most of a command line.
        let is_of_interest = |word: &[u8]| argument.windows(word.len()).any(|part| part == word);
        if option != b"device" || !(is_of_interest(b"virtserialport") || is_of_interest(b"vsock")) {
            return;
        }
        let of = properties(argument, b"driver");
        let Some(driver) = value(&of, b"driver") else { return };
        if driver == b"virtserialport" && self.ports.len() < MOST {
            let dialect = value(&of, b"name").and_then(|name| Dialect::of(&name));
            self.ports.extend(dialect.zip(value(&of, b"chardev")));
        } else if driver.starts_with(b"vhost-vsock-") {
            let cid = value(&of, b"guest-cid").and_then(|cid| number(&cid));
            self.cid = cid.or(self.cid);
        }
    }

    /// All of them, of each dialect the first.
    pub(super) fn found(self, sockets: &Sockets) -> Channels {
        let mut ports: Vec<Port> = Vec::new();
        for (dialect, id) in self.ports {
            if let Some(place) = sockets.listening(&id)
                && !ports.iter().any(|port| port.dialect == dialect)
            {
                ports.push(Port { dialect, place: place.clone() });
            }
        }
        Channels { ports, cid: self.cid }
    }
}

/// A number as `qemu_strtou64` reads it, but for octal ones.
fn number(text: &[u8]) -> Option<u32> {
    let text = str::from_utf8(text).ok()?;
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::cmdline::CommandLine;
    use overcommit_recording::model::vm::Listening;

    fn channels(words: &[&str]) -> Channels {
        let program: &[u8] = b"qemu-system-x86_64";
        let words = words.iter().map(|word| word.as_bytes());
        CommandLine::parse([program].into_iter().chain(words), |_| None).channels
    }

    #[test]
    fn ports_are_known_by_their_names_and_found_by_their_sockets() {
        let plain = channels(&[
            "-device",
            "virtserialport,chardev=t,name=org.overcommit.truth.0",
            "-chardev",
            "socket,id=t,path=/run/t,server=on,wait=off",
            "-device",
            "virtserialport,chardev=t,name=org.overcommit.truth.0,id=second",
            "-device",
            "virtserialport,chardev=qga,name=org.qemu.guest_agent.0",
            "-device",
            "vhost-vsock-pci,id=v,guest-cid=0x7",
        ]);
        let place = Listening::At("/run/t".into());
        let expected =
            Channels { ports: vec![Port { dialect: Dialect::Own, place }], cid: Some(7) };
        assert_eq!(plain, expected);
    }

    #[test]
    fn libvirt_writes_objects_and_hands_descriptors_over() {
        let libvirt = channels(&[
            "-chardev",
            "socket,id=charchannel0,fd=35,server=on,wait=off",
            "-device",
            r#"{"driver":"virtserialport","bus":"virtio-serial0.0","nr":1,"chardev":"charchannel0","id":"channel0","name":"org.github.vhostmd.1"}"#,
            "-device",
            r#"{"driver":"vhost-vsock-pci","id":"vsock0","guest-cid":4,"vhostfd":"36"}"#,
        ]);
        let place = Listening::Descriptor(35);
        let expected =
            Channels { ports: vec![Port { dialect: Dialect::Vhostmd, place }], cid: Some(4) };
        assert_eq!(libvirt, expected);
    }

    #[test]
    fn what_nobody_can_connect_to_is_no_channel() {
        for none in [
            &["-device", "virtserialport,chardev=t,name=org.overcommit.truth.0"][..],
            &[
                "-device",
                "virtserialport,chardev=t,name=org.overcommit.truth.0",
                "-chardev",
                "socket,id=t,path=/run/t",
            ],
            &[
                "-device",
                "virtserialport,chardev=t,name=org.overcommit.truth.0",
                "-chardev",
                "pty,id=t",
            ],
            &["-device", "vhost-vsock-pci,guest-cid=many"],
        ] {
            assert_eq!(channels(none), Channels::default(), "{none:?}");
        }
    }
}
