//! What the host's processes, and those who serve them, say.

use overcommit::host::balloon::qmp::GuestPolling;
use overcommit::host::balloon::{libvirt, qmp};
use overcommit::host::memory_cgroup::Hierarchy;
use overcommit::host::memory_use::ProcessMemory;
use overcommit::host::oom::OomKills;
use overcommit::host::vm_processes::VmProcesses;
use overcommit::kernel::btf::Btf;
use overcommit::vm::Discovery;
use overcommit::vm::cmdline::CommandLine;
use overcommit::vm::micro_vm::{MicroVm, name_of_socket};
use overcommit_recording::model::vm::Vm;
use std::cell::RefCell;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

/// Longest data that a socket takes without a reader.
const AT_ONCE: usize = 1 << 16;

/// Words of a command line, each ended by NUL; the same as a file that it names.
pub(crate) fn command_line(data: &[u8]) {
    let words = || data.split(|byte| *byte == 0);
    let config = |_: &[u8]| String::from_utf8(data.to_vec()).ok();
    let _ = CommandLine::parse(words(), config);
    for micro_vm in [MicroVm::CloudHypervisor, MicroVm::Crosvm] {
        if let Some(socket) = micro_vm.parse(words()).api_socket {
            let _ = name_of_socket(&socket);
        }
    }
}

thread_local! {
    static PROC: RefCell<Option<Proc>> = const { RefCell::new(None) };
    static RUNTIME: Option<Runtime> = Builder::new_current_thread().enable_all().build().ok();
}

/// A made-up /proc with one process.
struct Proc(TempDir);

/// Its id.
const PID: i32 = 101;

impl Proc {
    fn new() -> std::io::Result<Self> {
        let proc = Self(in_memory()?);
        let dir = proc.process();
        fs::create_dir_all(dir.join("fd"))?;
        fs::create_dir_all(proc.0.path().join("self"))?;
        symlink("/dev/kvm", dir.join("fd/0"))?;
        symlink("/usr/bin/qemu-system-x86_64", dir.join("exe"))?;
        Ok(proc)
    }

    fn process(&self) -> std::path::PathBuf {
        self.0.path().join(PID.to_string())
    }

    /// Writes what a process may choose for itself, and its manager for it.
    fn write(&self, data: &[u8]) -> std::io::Result<()> {
        let mut parts = data.splitn(5, |byte| *byte == 0xff);
        let mut next = || parts.next().unwrap_or_default();
        let (command, cgroup) = (line(next()), line(next()));
        let (file, mount, words) = (line(next()), line(next()), next());
        let dir = self.process();
        let with = |before: &str, between: &[u8], after: &str| {
            [before.as_bytes(), between, after.as_bytes()].concat()
        };
        fs::write(dir.join("stat"), with("101 (", &command[..command.len().min(15)], STAT))?;
        fs::write(dir.join("cgroup"), with("5:memory:/", &cgroup, "\n0::/unified\n"))?;
        fs::write(dir.join("maps"), with(MAP, &file, "\n"))?;
        fs::write(dir.join("smaps"), with(MAP, &file, FIGURES))?;
        let mount: Vec<u8> = mount.into_iter().filter(|byte| !b" \t\\#".contains(byte)).collect();
        fs::write(dir.join("mountinfo"), [MOUNTS, &mount, MOUNTED, &mount, b" rw\n"].concat())?;
        fs::copy(dir.join("mountinfo"), self.0.path().join("self/mountinfo"))?;
        fs::write(dir.join("cmdline"), words)
    }
}

/// The kernel writes the end of a line in another way.
fn line(text: &[u8]) -> Vec<u8> {
    text.iter().filter(|byte| !b"\n\0".contains(byte)).copied().collect()
}

const STAT: &str = ") S 1 7 7 0 -1 4194560 100 0 3 0 5 6 0 0 20 0 4 0 4711 1000000 500 \
    18446744073709551615 1 1 0 0 0 0 0 4096 0 0 0 0 17 1 0 0 0 0 0 0 0 0 77 99 0 0 0\n";
const MAP: &str = "7f0000000000-7f0040000000 rw-s 00000000 00:01 77 /";
const FIGURES: &str = "\nSize: 1048576 kB\nRss: 4096 kB\nPss: 2048 kB\nSwap: 64 kB\n";
/// Who mounts something chooses its place and its source, and some of its options.
const MOUNTS: &[u8] = b"30 1 0:25 / /c rw,nosuid - cgroup cgroup rw,memory\n31 1 0:26 /x /";
const MOUNTED: &[u8] = b" rw - fuse.x ";

/// A folder that costs no disk, where the host has such a place.
pub(crate) fn in_memory() -> std::io::Result<TempDir> {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())
}

/// A process of which all is chosen: its name, its cgroup, the file that it maps, what it has mounted,
/// and its command line, with 0xff between them.
pub(crate) fn process(data: &[u8]) {
    PROC.with_borrow_mut(|proc| {
        if proc.is_none() {
            *proc = Proc::new().ok();
        }
        if let Some(proc) = proc.as_ref().filter(|proc| proc.write(data).is_ok()) {
            look(proc.0.path());
        }
    });
}

fn look(proc: &Path) {
    let discovery = Discovery::new(proc);
    let _ = discovery.command(PID);
    let _ = ProcessMemory::read(proc, PID);
    let vm: Option<Vm> = discovery.inspect(PID);
    if let (Some(vm), Some(hierarchy)) = (vm, Hierarchy::find(proc)) {
        let _ = hierarchy.own(&VmProcesses::new(proc), &vm);
    }
}

/// What a monitor says, whatever it is asked.
pub(crate) fn qmp(data: &[u8]) {
    RUNTIME.with(|runtime| {
        let (Some(runtime), Ok((ours, mut theirs))) = (runtime, UnixStream::pair()) else { return };
        let said = theirs.write_all(&data[..data.len().min(AT_ONCE)]);
        let ready = said.and_then(|()| theirs.shutdown(std::net::Shutdown::Write));
        if ready.and_then(|()| ours.set_nonblocking(true)).is_err() {
            return;
        }
        let _ = runtime.block_on(async {
            qmp::converse(tokio::net::UnixStream::from_std(ours)?, GuestPolling::TurnOn).await
        });
    });
}

/// What virsh prints.
pub(crate) fn libvirt(data: &[u8]) {
    for balloon in libvirt::parse(&String::from_utf8_lossy(data)).into_values() {
        let _ = libvirt::told_apart(balloon, balloon.current);
    }
}

/// Records of the kernel's log, one a line.
pub(crate) fn kernel_log(data: &[u8]) {
    let mut kills = OomKills::default();
    String::from_utf8_lossy(data).lines().for_each(|record| kills.note(record));
    let _ = kills.of(PID, Some("/machine.slice/vm.scope"));
}

/// The kernel's types.
pub(crate) fn btf(data: &[u8]) {
    if let Ok(btf) = Btf::parse(data) {
        let _ = btf.field("task_struct", "mm");
        let _ = btf.field("vm_area_struct", "vm_file.f_inode");
        let _ = btf.enumerator("vm_fault_reason", "VM_FAULT_RETRY");
        let _ = btf.returned("zswap_load");
    }
}
