//! Finds the VMs of this host in /proc.
//!
//! A process counts as a VM for what it is: it executes QEMU's system emulator,
//! or it holds descriptors of KVM. What it calls itself decides nothing.

use crate::vm::cmdline::CommandLine;
use crate::vm::config_file;
use crate::vm::micro_vm::{MicroVm, name_of_socket};
use crate::vm::{memory, owner};
use anyhow::{Context, Result};
use overcommit_recording::model::name::{Name, escape};
use overcommit_recording::model::vm::{NamedBy, Vm, VmId};
use procfs::ProcError;
use procfs::process::{FDTarget, Process, Stat};
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest time until the descriptors of a process that is no VM are looked at
/// again. It doubles from one second, so that a host with thousands of processes
/// is not walked through every time.
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(64);

/// Time in which a VM of the last scan need not be read again.
const RECENT: Duration = Duration::from_secs(2);

/// A process that is no VM.
#[derive(Clone, Copy, Debug)]
struct Other {
    start_ticks: u64,
    /// When it is looked at again, and how long that is from the last time.
    next: Instant,
    wait: Duration,
}

/// Finds VMs again and again, and remembers what is none.
#[derive(Debug)]
pub struct Discovery {
    proc_root: PathBuf,
    /// Processes that are none, by their ids. The kernel gives those out in turn (`alloc_pid`,
    /// kernel/pid.c), so that another process hardly ever has one by the next scan; if one does, that is
    /// noticed only when the old one would have been looked at again.
    others: HashMap<i32, Other>,
    /// VMs that the last scan found, by their process ids, and when each was read.
    recent: HashMap<i32, (Vm, Instant)>,
    unreadable: usize,
}

impl Discovery {
    /// Looks below `proc_root`, which is /proc outside tests.
    pub fn new(proc_root: impl Into<PathBuf>) -> Self {
        Self {
            proc_root: proc_root.into(),
            others: HashMap::new(),
            recent: HashMap::new(),
            unreadable: 0,
        }
    }

    /// Processes of the last scan that we may not look into, so that any of them can be a VM.
    pub fn unreadable(&self) -> usize {
        self.unreadable
    }

    /// Every VM that runs now, in the order of process ids.
    ///
    /// # Errors
    /// The proc file system cannot be listed. A process that ends meanwhile, or
    /// that cannot be read, is left out.
    pub fn scan(&mut self) -> Result<Vec<Vm>> {
        self.scan_for_new(|_| false, |_| false)
    }

    /// The same without those that are known. One whose process id is known to be a VM's that still
    /// runs costs nothing, any other one its stat.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub fn scan_for_new(
        &mut self,
        is_running: impl Fn(i32) -> bool,
        is_known: impl Fn(VmId) -> bool,
    ) -> Result<Vec<Vm>> {
        let root = &self.proc_root;
        let failed = || format!("cannot list the processes in {}", root.display());
        let entries = std::fs::read_dir(root).with_context(failed)?;
        let mut pids: Vec<i32> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        pids.retain(|pid| !is_running(*pid));
        pids.sort_unstable();
        let mut others = HashMap::new();
        let mut vms = Vec::new();
        let mut unreadable = 0;
        for pid in pids {
            let other = self.others.get(&pid);
            if let Some(other) = other.filter(|other| Instant::now() < other.next) {
                others.insert(pid, *other);
                continue;
            }
            let Ok(process) = self.process(pid) else {
                continue;
            };
            let Ok(stat) = process.stat() else { continue };
            if is_known(id(&stat)) {
                continue;
            }
            let now = Instant::now();
            let read = || Some((vm(&process, &stat, &self.folder(stat.pid))?, now));
            match self.recent(&process, &stat, now).cloned().or_else(read) {
                Some(found) => vms.push(found),
                None => {
                    unreadable += usize::from(is_refused(&process));
                    let start_ticks = stat.starttime;
                    let last = other.filter(|other| other.start_ticks == start_ticks);
                    let wait = last.map_or(Duration::ZERO, |last| last.wait * 2);
                    let wait = wait.clamp(Duration::from_secs(1), LOOK_AGAIN_MAX);
                    others.insert(pid, Other { start_ticks, next: Instant::now() + wait, wait });
                }
            }
        }
        self.others = others;
        self.recent = vms.iter().map(|found| (found.0.id.pid, found.clone())).collect();
        self.unreadable = unreadable;
        Ok(vms.into_iter().map(|(vm, _)| vm).collect())
    }

    /// As it was read a moment ago, if it still executes a file of the same name.
    fn recent(&self, process: &Process, stat: &Stat, now: Instant) -> Option<&(Vm, Instant)> {
        let found = self.recent.get(&stat.pid)?;
        let (vm, read) = found;
        let is_recent = now.duration_since(*read) < RECENT && vm.id == id(stat);
        (is_recent && executable(process).as_ref() == Some(&vm.executable)).then_some(found)
    }

    /// Which run of that process runs now, if one does.
    pub fn id(&self, pid: i32) -> Option<VmId> {
        Some(id(&self.process(pid).ok()?.stat().ok()?))
    }

    /// The process as a VM, or `None` if it is none, or is gone.
    pub fn inspect(&self, pid: i32) -> Option<Vm> {
        let process = self.process(pid).ok()?;
        vm(&process, &process.stat().ok()?, &self.folder(pid))
    }

    /// The same of a process that has just begun to execute a hypervisor, which may not have
    /// opened KVM yet; `None` of one that is only asked what it is.
    pub fn inspect_new(&self, pid: i32) -> Option<Vm> {
        let process = self.process(pid).ok()?;
        if !executable(&process).is_some_and(|name| is_micro_vm(&name)) {
            return self.inspect(pid);
        }
        let is_asked = |word: &String| ["--version", "-V", "--help", "-h"].contains(&word.as_str());
        let words = process.cmdline().ok()?;
        (!words.iter().any(is_asked)).then(|| self.describe(pid).ok())?
    }

    /// See [`owner::login_user`].
    pub fn login_user(&self, vm: &Vm) -> Option<u32> {
        owner::login_user(&self.process(vm.id.pid).ok()?, vm)
    }

    /// What a process calls itself, as it may be shown.
    pub fn command(&self, pid: i32) -> Option<String> {
        Some(escape(self.process(pid).ok()?.stat().ok()?.comm.as_bytes()))
    }

    /// The process described as a VM because the user says that it is one.
    ///
    /// # Errors
    /// There is no such process, or it cannot be read.
    pub fn describe(&self, pid: i32) -> Result<Vm> {
        let failed = || format!("no process {pid} can be read in {}", self.proc_root.display());
        let process = self.process(pid).with_context(failed)?;
        let stat = process.stat().with_context(failed)?;
        let executable = executable(&process).unwrap_or_else(|| escape(stat.comm.as_bytes()));
        let line = command_line(&process, &self.folder(pid), &executable).unwrap_or_default();
        Ok(describe(&process, &stat, executable, line, KvmHeld::of(&process)))
    }

    /// A handle that keeps meaning this process, also when its PID is used again.
    ///
    /// # Errors
    /// The process is gone, or another one has its PID.
    pub fn open(&self, id: VmId) -> Result<Process> {
        let process = self.process(id.pid)?;
        let start_ticks = process.stat()?.starttime;
        anyhow::ensure!(start_ticks == id.start_ticks, "process {} was replaced", id.pid);
        Ok(process)
    }

    fn process(&self, pid: i32) -> Result<Process, ProcError> {
        Process::new_with_root(self.folder(pid))
    }

    fn folder(&self, pid: i32) -> PathBuf {
        self.proc_root.join(pid.to_string())
    }
}

/// Whether the kernel does not let us look at what a process executes, as without CAP_SYS_PTRACE.
fn is_refused(process: &Process) -> bool {
    matches!(process.exe(), Err(ProcError::PermissionDenied(_)))
}

fn id(stat: &Stat) -> VmId {
    VmId { pid: stat.pid, start_ticks: stat.starttime }
}

/// `folder` is its folder in /proc.
fn vm(process: &Process, stat: &Stat, folder: &Path) -> Option<Vm> {
    let executable = executable(process)?;
    let kvm = KvmHeld::of(process);
    if !kvm.is_held && !is_system_emulator(&executable) {
        return None;
    }
    let line = command_line(process, folder, &executable)?;
    // libvirt asks a QEMU without a machine what it can do.
    let probes_only = line.machine.as_ref().is_some_and(|machine| machine == b"none");
    // The device model of a guest of Xen, whose memory is not in this process.
    let is_of_xen = line.is_of_xen
        || line.accelerator.as_ref().is_some_and(|accelerator| accelerator == b"xen");
    (!probes_only && !is_of_xen).then(|| describe(process, stat, executable, line, kvm))
}

fn describe(
    process: &Process,
    stat: &Stat,
    executable: String,
    line: CommandLine,
    kvm: KvmHeld,
) -> Vm {
    let emulator = is_system_emulator(&executable);
    let (name, named_by) = match (&line.guest, &line.process) {
        (Some(guest), _) if !guest.is_empty() => (Name::new(guest.clone()), NamedBy::Guest),
        (_, Some(process)) if !process.is_empty() => (Name::new(process.clone()), NamedBy::Process),
        _ if !emulator && line.id.is_some() => {
            (Name::new(line.id.clone().unwrap_or_default()), NamedBy::Id)
        }
        _ => match line.api_socket.as_deref().and_then(name_of_socket) {
            Some(name) => (Name::new(name), NamedBy::Socket),
            None => {
                let kind = if emulator { "qemu" } else { executable.as_str() };
                (Name::new(format!("{kind}-{}", stat.pid)), NamedBy::Pid)
            }
        },
    };
    let declared = line.accelerator.filter(|accelerator| accelerator != b"kvm");
    let accelerator = match (kvm.is_held, declared) {
        (true, _) => Some("kvm".to_owned()),
        (false, Some(declared)) => Some(escape(&declared)),
        (false, None) => emulator.then(|| "tcg".to_owned()),
    };
    Vm {
        id: id(stat),
        name,
        named_by,
        uuid: line.uuid.or(line.smbios_uuid).map(|uuid| escape(&uuid)),
        proxmox_id: line.id.filter(|_| emulator).map(|id| escape(&id)),
        executable,
        // One for each descriptor, whatever the command line says, or a file that it names.
        vcpus: (kvm.vcpus > 0).then_some(kvm.vcpus).or(line.vcpus).or(emulator.then_some(1)),
        memory_bytes: line.memory_bytes,
        plugged: line.plugged,
        mapping: memory::mapping(process),
        accelerator,
        cgroup: cgroup(process),
        monitors: line.monitors,
        channels: line.channels,
    }
}

/// The file name of the executable; `None` for kernel threads.
fn executable(process: &Process) -> Option<String> {
    let path = process.exe().ok()?;
    let name = escape(path.file_name()?.as_bytes());
    Some(name.strip_suffix(" (deleted)").unwrap_or(&name).to_owned())
}

/// `qemu-system-ARCH`, Red Hat's `qemu-kvm`, and `kvm`. QEMU's user-mode
/// emulators are `qemu-ARCH`.
fn is_system_emulator(executable: &str) -> bool {
    executable.starts_with("qemu-system-") || matches!(executable, "qemu-kvm" | "kvm")
}

/// Whether that is Firecracker, whose releases are called `firecracker-v1.7.0-x86_64`, or Cloud
/// Hypervisor; as the programs that see an exec have it.
pub(crate) fn is_micro_vm(executable: &str) -> bool {
    is_firecracker(executable) || MicroVm::of(executable) == Some(MicroVm::CloudHypervisor)
}

/// Not `firecracker-containerd`, which starts them.
fn is_firecracker(executable: &str) -> bool {
    executable == "firecracker" || executable.starts_with("firecracker-v")
}

/// What a process holds of KVM.
#[derive(Clone, Copy, Default)]
struct KvmHeld {
    /// /dev/kvm, or a VM made with it.
    is_held: bool,
    /// vCPUs.
    vcpus: u32,
}

impl KvmHeld {
    /// By its descriptors: `anon_inode:kvm-vm`, and `anon_inode:kvm-vcpu:N` of each vCPU
    /// (`create_vcpu_fd`, virt/kvm/kvm_main.c).
    fn of(process: &Process) -> Self {
        let mut held = Self::default();
        let Ok(fds) = process.fd() else { return held };
        for fd in fds.flatten() {
            match fd.target {
                FDTarget::Path(path) => held.is_held |= path == Path::new("/dev/kvm"),
                FDTarget::AnonInode(kind) => {
                    held.is_held |= kind.contains("kvm-vm");
                    // Not kvm-vcpu-stats, of which QEMU holds one for each as well.
                    held.vcpus += u32::from(kind == "kvm-vcpu" || kind.starts_with("kvm-vcpu:"));
                }
                _ => {}
            }
        }
        held
    }
}

/// The command line of a system emulator, of Firecracker, whose name is its `--id`, or of another
/// micro VM. `None` if it has none yet.
fn command_line(process: &Process, folder: &Path, executable: &str) -> Option<CommandLine> {
    let micro_vm = MicroVm::of(executable);
    if !is_system_emulator(executable) && !is_firecracker(executable) && micro_vm.is_none() {
        return Some(CommandLine::default());
    }
    let mut bytes = Vec::new();
    let read = process
        .open_relative("cmdline")
        .ok()
        .and_then(|mut file| std::io::Read::read_to_end(&mut file, &mut bytes).ok());
    if read.is_none() {
        return Some(CommandLine::default());
    }
    if bytes.is_empty() && is_executing(process) {
        return None;
    }
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    let words = bytes.split(|byte| *byte == 0);
    let read = |path: &[u8]| config_file::read(folder, path);
    Some(match micro_vm {
        Some(micro_vm) => micro_vm.parse(words),
        None => CommandLine::parse(words, read),
    })
}

/// Whether a process that showed no arguments may get some: while it executes a file the
/// kernel files where they end last (`create_elf_tables`, fs/binfmt_elf.c, 6.1 to 7.3).
fn is_executing(process: &Process) -> bool {
    let Ok(stat) = process.stat() else { return false };
    stat.arg_end == Some(0) || stat.arg_end != stat.arg_start
}

/// The path in the memory controller's hierarchy: its own in version 1, the
/// unified one otherwise.
fn cgroup(process: &Process) -> Option<String> {
    let groups = process.cgroups().ok()?.0;
    let memory = groups.iter().find(|group| group.controllers.iter().any(|name| name == "memory"));
    let unified = || groups.iter().find(|group| group.hierarchy == 0);
    Some(escape(memory.or_else(unified)?.pathname.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use overcommit_recording::model::vm::Backing;
    use std::fs;
    use std::os::unix::fs::symlink;

    const STAT: &str = "S 1 7 7 0 -1 4194560 100 0 3 0 5 6 0 0 20 0 4 0 4711 1000000 500 \
        18446744073709551615 1 1 0 0 0 0 0 4096 0 0 0 0 17 1 0 0 0 0 0 0 0 0 77 99 0 0 0";

    /// Makes a process in a made-up /proc.
    fn process(root: &Path, pid: i32, executable: &str, cmdline: &[u8], fds: &[&str]) {
        let dir = root.join(pid.to_string());
        fs::create_dir_all(dir.join("fd")).unwrap();
        fs::write(dir.join("stat"), format!("{pid} (liar (qemu)) {STAT}")).unwrap();
        fs::write(dir.join("cmdline"), cmdline).unwrap();
        fs::write(dir.join("cgroup"), "5:memory:/vms/a\n0::/unified\n").unwrap();
        fs::write(dir.join("mountinfo"), "").unwrap();
        fs::write(
            dir.join("maps"),
            "7f0000000000-7f0040000000 rw-s 00000000 00:01 77 /memfd:ram (deleted)\n\
             7f0050000000-7f0050001000 rw-p 00000000 00:00 0 \n",
        )
        .unwrap();
        symlink(executable, dir.join("exe")).unwrap();
        for (number, target) in fds.iter().enumerate() {
            symlink(target, dir.join("fd").join(number.to_string())).unwrap();
        }
    }

    fn scan(make: impl FnOnce(&Path)) -> Vec<Vm> {
        let root = tempfile::tempdir().unwrap();
        make(root.path());
        Discovery::new(root.path()).scan().unwrap()
    }

    #[test]
    fn a_qemu_is_read_in_full() {
        let vms = scan(|root| {
            process(
                root,
                101,
                "/usr/bin/qemu-system-x86_64",
                b"qemu\0-name\0guest=web\xff01,debug-threads=on\0-m\x001G\0-smp\x002\0-uuid\0AB\0",
                &["/dev/kvm", "anon_inode:kvm-vm"],
            );
        });
        let [vm] = &vms[..] else { panic!("{vms:?}") };
        assert_eq!(vm.name.to_string(), "web\\xFF01");
        assert_eq!(vm.id.to_string(), "101-4711");
        assert_eq!(vm.uuid.as_deref(), Some("ab"));
        assert_eq!((vm.vcpus, vm.memory_bytes), (Some(2), Some(1 << 30)));
        assert_eq!(vm.accelerator.as_deref(), Some("kvm"));
        assert_eq!(vm.backing(), Some(Backing::Memfd));
        assert_eq!(vm.cgroup.as_deref(), Some("/vms/a"));
    }

    #[test]
    fn one_that_is_known_to_run_is_not_even_looked_at() {
        let root = tempfile::tempdir().unwrap();
        for pid in [7, 8] {
            process(root.path(), pid, "/usr/bin/qemu-system-x86_64", b"qemu\0", &[]);
        }
        let mut discovery = Discovery::new(root.path());
        let found = discovery.scan_for_new(|pid| pid == 7, |_| false).unwrap();
        assert_eq!(found.iter().map(|vm| vm.id.pid).collect::<Vec<_>>(), [8]);
        let found = discovery.scan_for_new(|pid| pid == 7, |id| id.pid == 8).unwrap();
        assert!(found.is_empty());
    }

    #[test]
    fn a_vm_is_read_again_when_that_was_a_while_ago_or_it_executes_something_else() {
        let root = tempfile::tempdir().unwrap();
        let remake = |executable, line| process(root.path(), 7, executable, line, &[]);
        remake("/usr/bin/qemu-kvm", b"q\0-name\0one\0");
        let mut discovery = Discovery::new(root.path());
        let name = |discovery: &mut Discovery| discovery.scan().unwrap()[0].name.to_string();
        assert_eq!(name(&mut discovery), "one");
        fs::write(root.path().join("7/cmdline"), b"q\0-name\0two\0").unwrap();
        assert_eq!(name(&mut discovery), "one");
        discovery.recent.values_mut().for_each(|(_, read)| *read -= RECENT);
        assert_eq!(name(&mut discovery), "two");
        fs::remove_dir_all(root.path().join("7")).unwrap();
        remake("/usr/bin/qemu-system-arm", b"q\0-name\0three\0");
        assert_eq!(name(&mut discovery), "three");
    }

    #[test]
    fn vcpus_are_counted_by_their_descriptors() {
        let vcpus = [
            "anon_inode:kvm-vm",
            "anon_inode:kvm-vcpu:0",
            "anon_inode:kvm-vcpu-stats:0",
            "anon_inode:kvm-vcpu:1",
            "anon_inode:kvm-vcpu-stats:1",
        ];
        let vms = scan(|root| {
            // Incus has all but the name in a file, which is out of reach here.
            process(root, 7, "/opt/qemu-system-x86_64", b"q\0-readconfig\0/etc/none\0", &vcpus);
            process(root, 8, "/firecracker", b"/firecracker\0--id\0ab-1\0", &vcpus);
            process(root, 9, "/usr/bin/qemu-system-i386", b"q\0-xen-domid\x0031\0", &[]);
            let cloud = b"ch\0--memory\0size=1G\0--api-socket\0path=/run/web.sock\0";
            process(root, 10, "/opt/cloud-hypervisor-static", cloud, &vcpus);
        });
        let found: Vec<_> = vms.iter().map(|vm| (vm.name.to_string(), vm.vcpus)).collect();
        let names = ["qemu-7", "ab-1", "web"].map(|name| (name.to_owned(), Some(2)));
        assert_eq!(found, names);
        assert_eq!((vms[1].named_by, vms[1].proxmox_id.as_deref()), (NamedBy::Id, None));
        assert_eq!((vms[2].named_by, vms[2].memory_bytes), (NamedBy::Socket, Some(1 << 30)));
    }

    #[test]
    fn a_process_counts_for_what_it_is() {
        let vms = scan(|root| {
            process(root, 1, "/usr/bin/sleep", b"qemu-system-x86_64\0-name\0fake\0", &[]);
            process(root, 2, "/usr/bin/qemu-x86_64", b"qemu-x86_64\0", &[]);
            process(root, 3, "/usr/bin/firecracker", b"-name\0fake\0", &["anon_inode:kvm-vm"]);
            process(root, 4, "/usr/bin/qemu-system-arm (deleted)", b"whatever\0", &[]);
            process(root, 5, "/usr/bin/qemu-system-x86_64", b"q\0-M\0none,accel=kvm\0", &[]);
        });
        let names: Vec<String> = vms.iter().map(|vm| vm.name.to_string()).collect();
        assert_eq!(names, ["firecracker-3", "qemu-4"]);
        assert_eq!(vms[1].accelerator.as_deref(), Some("tcg"));
    }

    /// Its file is there, its arguments are not: its name would be wrong for good.
    #[test]
    fn a_process_that_is_just_executing_is_left_for_later() {
        let root = tempfile::tempdir().unwrap();
        process(root.path(), 9, "/usr/bin/qemu-kvm", b"", &[]);
        let stat = format!("9 (qemu) {}", STAT.replace("77 99", "77 0"));
        fs::write(root.path().join("9/stat"), stat).unwrap();
        let mut discovery = Discovery::new(root.path());
        assert!(discovery.scan().unwrap().is_empty());
        // One that has none at all is a VM.
        let stat = format!("9 (qemu) {}", STAT.replace("77 99", "77 77"));
        fs::write(root.path().join("9/stat"), stat).unwrap();
        discovery.others.clear();
        assert_eq!(discovery.scan().unwrap().len(), 1);
    }

    #[test]
    fn a_process_that_opens_kvm_later_is_found() {
        let root = tempfile::tempdir().unwrap();
        process(root.path(), 9, "/usr/bin/vmm", b"vmm\0", &[]);
        let mut discovery = Discovery::new(root.path());
        assert!(discovery.scan().unwrap().is_empty());
        symlink("/dev/kvm", root.path().join("9/fd/3")).unwrap();
        assert!(discovery.scan().unwrap().is_empty(), "its descriptors are not walked every time");
        discovery.others.values_mut().for_each(|other| other.next = Instant::now());
        assert_eq!(discovery.scan().unwrap().len(), 1);
    }

    #[test]
    fn a_micro_vm_is_one_before_it_opens_kvm() {
        let root = tempfile::tempdir().unwrap();
        let discovery = Discovery::new(root.path());
        for (pid, program, line, name) in [
            (1, "/firecracker", &b"/firecracker\0--id\0ab-1\0"[..], Some("ab-1")),
            (2, "/opt/firecracker-v1.13.1-x86_64", b"f\0", Some("firecracker-v1.13.1-x86_64-2")),
            (3, "/firecracker", b"/firecracker\0--version\0", None),
            (4, "/usr/bin/cloud-hypervisor", b"cloud-hypervisor\0-V\0", None),
            (5, "/usr/bin/firecracker-containerd", b"firecracker-containerd\0", None),
        ] {
            process(root.path(), pid, program, line, &[]);
            let found = discovery.inspect_new(pid).map(|vm| vm.name.to_string());
            assert_eq!(found.as_deref(), name, "{program}");
            assert!(discovery.inspect(pid).is_none(), "nothing says that it runs a VM");
        }
    }

    #[test]
    fn another_process_with_the_pid_is_not_the_vm() {
        let root = tempfile::tempdir().unwrap();
        process(root.path(), 9, "/usr/bin/qemu-kvm", b"q\0", &[]);
        let discovery = Discovery::new(root.path());
        assert!(discovery.open(VmId { pid: 9, start_ticks: 4711 }).is_ok());
        assert!(discovery.open(VmId { pid: 9, start_ticks: 4712 }).is_err());
    }
}
