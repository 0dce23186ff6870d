//! Where can a QEMU be asked? Its monitors that speak QMP, from its command line.

use crate::vm::chardev::{Sockets, listening};
use crate::vm::options::{pairs, value};
use overcommit_recording::model::vm::{Listening, Monitor};

/// Of each kind that are collected: real VMs have a few.
const MOST: usize = 64;

/// Collects them option by option: a character device may come after what uses it.
#[derive(Default)]
pub(super) struct Monitors {
    /// Ids of those that speak QMP.
    controls: Vec<Vec<u8>>,
    found: Vec<Monitor>,
}

impl Monitors {
    /// Takes an option with its argument.
    pub(super) fn option(&mut self, option: &[u8], argument: &[u8]) {
        // Whoever wrote the command line could have them multiply.
        if self.controls.len().max(self.found.len()) >= MOST {
            return;
        }
        match option {
            b"mon" => {
                let pairs = pairs(argument, b"chardev");
                if value(&pairs, b"mode").is_some_and(|mode| mode == b"control") {
                    self.controls.extend(value(&pairs, b"chardev"));
                }
            }
            // As `monitor_parse` and `qemu_chr_parse_compat` take it (system/vl.c,
            // chardev/char.c).
            b"qmp" | b"qmp-pretty" => {
                if let Some(id) = argument.strip_prefix(b"chardev:") {
                    self.controls.push(id.to_vec());
                } else if let Some(rest) = argument.strip_prefix(b"unix:") {
                    self.found.extend(listening(&pairs(rest, b"path")).map(monitor));
                }
            }
            _ => {}
        }
    }

    /// All of them.
    pub(super) fn found(mut self, sockets: &Sockets) -> Vec<Monitor> {
        let behind = self.controls.iter().filter_map(|id| sockets.listening(id));
        self.found.extend(behind.cloned().map(monitor));
        self.found
    }
}

fn monitor(socket: Listening) -> Monitor {
    match socket {
        Listening::At(path) => Monitor::Socket(path),
        Listening::Descriptor(_) => Monitor::Held,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::cmdline::CommandLine;

    fn monitors(words: &[&str]) -> Vec<Monitor> {
        let program: &[u8] = b"qemu-system-x86_64";
        let words = words.iter().map(|word| word.as_bytes());
        CommandLine::parse([program].into_iter().chain(words), |_| None).monitors
    }

    #[test]
    fn each_way_to_ask_for_one() {
        let at = |path: &str| Monitor::Socket(path.into());
        assert_eq!(monitors(&["-qmp", "unix:/run/a,,b,server=on,wait=off"]), [at("/run/a,b")]);
        assert_eq!(monitors(&["-qmp", "unix:a,server,nowait"]), [at("a")]);
        let late = ["-mon", "chardev=m,mode=control", "-chardev", "socket,id=m,path=/q,server=on"];
        assert_eq!(monitors(&late), [at("/q")]);
        let libvirt =
            ["-chardev", "socket,id=charmonitor,fd=22,server=on,wait=off", "-mon"].into_iter();
        let libvirt: Vec<_> =
            libvirt.chain(["chardev=charmonitor,id=monitor,mode=control"]).collect();
        assert_eq!(monitors(&libvirt), [Monitor::Held]);
        for none in [
            &["-qmp", "unix:/run/out"][..],
            &["-qmp", "tcp:localhost:4444,server=on"],
            &["-qmp", "stdio"],
            &["-monitor", "unix:/run/hmp,server=on"],
            &["-mon", "chardev=m", "-chardev", "socket,id=m,path=/hmp,server=on"],
        ] {
            assert_eq!(monitors(none), [], "{none:?}");
        }
    }
}
