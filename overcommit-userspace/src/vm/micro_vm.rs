//! Command lines of Cloud Hypervisor and crosvm, which do not speak QEMU's.

use crate::vm::cmdline::{ARGUMENT_MAX, CommandLine};
use crate::vm::options::{pairs, size, value};
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

/// Names of sockets that say what they are for, and not whose: their folder does.
const ANYBODYS: [&[u8]; 8] =
    [b"api", b"clh", b"cloud-hypervisor", b"ch", b"chv", b"vmm", b"crosvm", b"crosvm_control"];

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
    /// there is. A VM that is made through the socket has neither on it but the socket.
    pub fn parse<'a>(self, words: impl IntoIterator<Item = &'a [u8]>) -> CommandLine {
        let mut line = CommandLine::default();
        let mut words = words.into_iter().skip(1);
        while let Some(word) = words.next() {
            let joined = word.iter().position(|byte| *byte == b'=').map(|at| word.split_at(at));
            let (option, argument) = match joined {
                Some((option, argument)) if word.starts_with(b"--") => (option, &argument[1..]),
                _ if self.knows(word) => (word, words.next().unwrap_or_default()),
                _ => continue,
            };
            let argument = argument.get(..ARGUMENT_MAX).unwrap_or(argument);
            match (self, option) {
                (Self::CloudHypervisor, b"--api-socket") => {
                    line.api_socket = value(&pairs(argument, b"path"), b"path");
                }
                (Self::CloudHypervisor, b"--memory") => {
                    line.memory_bytes = memory(argument, 0).or(line.memory_bytes);
                }
                (Self::Crosvm, b"-s" | b"--socket") => line.api_socket = Some(argument.to_vec()),
                (Self::Crosvm, b"--name") if !argument.is_empty() => {
                    line.id = Some(argument.to_vec())
                }
                (Self::Crosvm, b"-m" | b"--mem") => {
                    line.memory_bytes = memory(argument, MEBIBYTES).or(line.memory_bytes);
                }
                _ => {}
            }
        }
        line
    }

    fn knows(self, word: &[u8]) -> bool {
        match self {
            Self::CloudHypervisor => matches!(word, b"--api-socket" | b"--memory"),
            Self::Crosvm => matches!(word, b"-s" | b"--socket" | b"--name" | b"-m" | b"--mem"),
        }
    }
}

/// crosvm counts memory in MiB.
const MEBIBYTES: u32 = 20;

fn memory(argument: &[u8], unit: u32) -> Option<u64> {
    let text = value(&pairs(argument, b"size"), b"size")?;
    size(&text, unit).filter(|bytes| *bytes > 0)
}

/// The name of a VM by the path of its API socket: that of the file, or of its folder where the file
/// is called as anybody's is.
pub fn name_of_socket(path: &[u8]) -> Option<&[u8]> {
    let path = Path::new(OsStr::from_bytes(path));
    let file = path.file_name()?.as_bytes();
    let endings: [&[u8]; 6] = [b".sock", b".socket", b"-socket", b".api", b"-api", b"_api"];
    let stem =
        endings.into_iter().fold(file, |name, ending| name.strip_suffix(ending).unwrap_or(name));
    let is_anybodys = stem.is_empty() || ANYBODYS.contains(&stem) || ANYBODYS.contains(&file);
    if is_anybodys { Some(path.parent()?.file_name()?.as_bytes()) } else { Some(stem) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> (String, Option<u64>) {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let program = line.split(' ').next().unwrap();
        let line = MicroVm::of(program).unwrap().parse(words);
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
                "db-1",
                1 << 30,
            ),
            // libvirt's driver for it, and Kata, which says all else through the socket.
            ("cloud-hypervisor --api-socket /run/libvirt/ch/mail-socket", "mail", 0),
            ("cloud-hypervisor --api-socket /run/vc/vm/6f1e/clh-api.sock", "6f1e", 0),
            ("cloud-hypervisor --api-socket fd=3 --memory size=no", "", 0),
            ("cloud-hypervisor --kernel --memory --cpus boot=1", "", 0),
            ("crosvm run -m 512 -s /run/crosvm/box.sock vmlinux", "box", 512 << 20),
            ("crosvm run --mem size=2048,x=1 --name arc --socket=/run/crosvm.sock", "arc", 2 << 30),
            ("crosvm run --socket /a/vm_2/crosvm_control.sock", "vm_2", 0),
            ("crosvm run -s", "", 0),
        ] {
            assert_eq!(parsed(line), (name.to_owned(), Some(memory).filter(|n| *n > 0)), "{line}");
        }
    }
}
