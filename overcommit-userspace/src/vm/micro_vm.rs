//! Command lines of Cloud Hypervisor and crosvm, which do not speak QEMU's.

use crate::vm::cmdline::{ARGUMENT_MAX, CommandLine};
use crate::vm::options::{pairs, size, value};
use overcommit_recording::model::balloon::LARGEST;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Who reads a command line, by the file name of its executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MicroVm {
    /// `cloud-hypervisor`, whatever follows.
    CloudHypervisor,
    /// `crosvm`
    Crosvm,
}

/// Names of sockets that say what they are for, and not whose.
const ANYBODYS: [&[u8]; 7] =
    [b"api", b"clh-api", b"cloud-hypervisor", b"ch", b"vmm", b"crosvm", b"crosvm_control"];

/// Folders that are everybody's.
const SHARED: [&[u8]; 5] = [b"tmp", b"run", b"shm", b"var", b"internal"];

/// How libvirt calls the file in which Cloud Hypervisor tells it what happens, after the VM's name;
/// the API's socket it hands over as a descriptor (`virCHMonitorNew`, src/ch/ch_monitor.c).
const EVENTS: &[u8] = b"-event-monitor-fifo";

impl MicroVm {
    /// The one whose executable is called so.
    pub fn of(executable: &str) -> Option<Self> {
        match executable {
            // Releases are called cloud-hypervisor-static and the like.
            name if name.starts_with("cloud-hypervisor") => Some(Self::CloudHypervisor),
            "crosvm" => Some(Self::Crosvm),
            _ => None,
        }
    }

    /// Reads the words of a command line, the program's own name first: a name, and how much memory
    /// there is at the start. A VM that is made through the socket has neither on it but the socket.
    pub fn parse<'a>(self, words: impl IntoIterator<Item = &'a [u8]>) -> CommandLine {
        let mut line = CommandLine::default();
        let mut option: &[u8] = b"";
        for word in words.into_iter().skip(1) {
            // An option of Cloud Hypervisor may have several arguments, each a word of its own.
            let argument = match word.iter().position(|byte| *byte == b'=') {
                _ if !word.starts_with(b"-") => word,
                Some(at) => {
                    option = &word[..at];
                    &word[at + 1..]
                }
                None => {
                    option = word;
                    continue;
                }
            };
            let argument = argument.get(..ARGUMENT_MAX).unwrap_or(argument);
            match self {
                Self::CloudHypervisor => cloud_hypervisor(&mut line, option, argument),
                Self::Crosvm => {
                    crosvm(&mut line, option, argument);
                    option = b"";
                }
            }
        }
        line.memory_bytes = line.memory_bytes.filter(|bytes| (1..=LARGEST).contains(bytes));
        line
    }
}

fn cloud_hypervisor(line: &mut CommandLine, option: &[u8], argument: &[u8]) {
    let key = |name: &[u8]| value(&pairs(argument, b"path"), name);
    match option {
        b"--api-socket" => line.api_socket = key(b"path"),
        b"--event-monitor" => {
            let path = key(b"path").unwrap_or_default();
            let file = path.rsplit(|byte| *byte == b'/').next();
            line.id = file.and_then(|file| file.strip_suffix(EVENTS)).map(<[u8]>::to_vec);
        }
        b"--memory" | b"--memory-zone" => {
            for bytes in [b"size".as_slice(), b"hotplugged_size"] {
                let bytes = key(bytes).and_then(|text| size(&text, 0)).unwrap_or(0);
                line.memory_bytes = Some(line.memory_bytes.unwrap_or(0).saturating_add(bytes));
            }
        }
        _ => {}
    }
}

fn crosvm(line: &mut CommandLine, option: &[u8], argument: &[u8]) {
    match option {
        b"-s" | b"--socket" => line.api_socket = Some(argument.to_vec()),
        b"--name" if !argument.is_empty() => line.id = Some(argument.to_vec()),
        b"-m" | b"--mem" => {
            let text = value(&pairs(argument, b"size"), b"size");
            line.memory_bytes = text.and_then(|text| size(&text, MEBIBYTES));
        }
        _ => {}
    }
}

/// crosvm counts memory in MiB.
const MEBIBYTES: u32 = 20;

/// The name of a VM by the path of its API socket: that of the file, or of its folder where the file
/// is called as anybody's is. `None` where neither says whose it is.
pub fn name_of_socket(path: &[u8]) -> Option<&[u8]> {
    let path = Path::new(OsStr::from_bytes(path));
    let file = path.file_name()?.as_bytes();
    let ending = [b".sock".as_slice(), b".socket", b"-socket"];
    // Else it may be a folder, in which the socket has a name without meaning.
    let stem = ending.into_iter().find_map(|ending| file.strip_suffix(ending))?;
    if !stem.is_empty() && !ANYBODYS.contains(&stem) {
        return Some(stem);
    }
    let folders =
        path.ancestors().skip(1).filter_map(|folder| Some(folder.file_name()?.as_bytes()));
    let mut folders = folders.skip_while(|name| *name == b"internal");
    folders.next().filter(|name| !SHARED.contains(name) && !name.iter().all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> (String, Option<u64>) {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let program = line.split(' ').next().unwrap();
        let line = MicroVm::of(program).unwrap_or(MicroVm::CloudHypervisor).parse(words);
        let socket = line.api_socket.as_deref().and_then(name_of_socket);
        let name = line.id.as_deref().or(socket).unwrap_or_default();
        (String::from_utf8_lossy(name).into_owned(), line.memory_bytes)
    }

    #[test]
    fn micro_vms_are_called_by_their_name_or_socket() {
        for (line, name, memory) in [
            (
                "cloud-hypervisor --memory size=2G,shared=on --api-socket path=/tmp/web.sock",
                "web",
                2 << 30,
            ),
            (
                "cloud-hypervisor --api-socket=/run/vms/db-1-api.sock --memory=size=1024M",
                "db-1-api",
                1 << 30,
            ),
            (
                "cloud-hypervisor --memory size=0 --memory-zone id=a,size=1G id=b,size=1G --kernel x",
                "",
                2 << 30,
            ),
            ("cloud-hypervisor --memory size=1G,hotplugged_size=1G,hotplug_size=4G", "", 2 << 30),
            ("cloud-hypervisor --disk path=/a.sock path=/b.sock --api-socket /run/c.sock", "c", 0),
            // Kata, which says all else through the socket, and libvirt's driver.
            ("cloud-hypervisor --api-socket /run/vc/vm/6f1e/clh-api.sock", "6f1e", 0),
            (
                "ch --api-socket fd=9 --event-monitor path=/run/libvirt/ch/mail-event-monitor-fifo",
                "mail",
                0,
            ),
            ("cloud-hypervisor --api-socket fd=3 --memory size=no", "", 0),
            ("cloud-hypervisor --kernel --memory --cpus boot=1", "", 0),
            ("cloud-hypervisor --api-socket /tmp/cloud-hypervisor.sock", "", 0),
            ("cloud-hypervisor --api-socket /run/user/1000/ch.sock", "", 0),
            ("crosvm run -m 512 -s /run/crosvm/box.sock vmlinux", "box", 512 << 20),
            ("crosvm run --mem size=2048,x=1 --name arc --socket=/run/crosvm.sock", "arc", 2 << 30),
            ("crosvm run -m=512 -s=/run/a.socket", "a", 512 << 20),
            ("crosvm run --socket /tmp/cf/cvd-2/internal/crosvm_control.sock", "cvd-2", 0),
            ("crosvm run -s /run/crosvm.sock", "", 0),
            ("crosvm run -s /run/sockets", "", 0),
            ("crosvm run -s", "", 0),
        ] {
            assert_eq!(parsed(line), (name.to_owned(), Some(memory).filter(|n| *n > 0)), "{line}");
        }
    }
}
