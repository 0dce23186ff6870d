//! Real VMs.

use crate::host::{MemoryCgroup, quote, read};
use crate::payload::{self, Guest};
use crate::undo::{Running, Undo};
use crate::{PATIENCE, await_some};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How [`Vm::explain`] begins where a guest never left its firmware, as nested in an
/// emulated host happens now and then.
pub const IN_FIRMWARE: &str = "the guest is still in its firmware";

/// How [`Vm::await_boot`] begins where it comes to nothing. The emulated processor hands a Linux guest
/// an interrupt inside its handler now and then, and the guest waits for itself: in its
/// `native_queued_spin_lock_slowpath` for a lock of `async_pf_sleepers` (arch/x86/kernel/kvm.c).
pub const IN_BOOT: &str = "the guest did not boot";

/// Time in which a guest boots and walks its memory once.
const BOOT: Duration = Duration::from_secs(30);

/// The emulator.
pub const QEMU: &str =
    if cfg!(target_arch = "aarch64") { "qemu-system-aarch64" } else { "qemu-system-x86_64" };

/// What it needs beside: on arm64 it has no machine of its own accord, and KVM no other processor.
const MACHINE: &[&str] = if cfg!(target_arch = "aarch64") {
    &["-machine", "virt,gic-version=3", "-cpu", "host"]
} else {
    &[]
};

/// Says in the environment on which CPU every VM shall run. Emulated KVM needs it: a
/// guest that moves between emulated CPUs hangs now and then.
pub const CPU: &str = "OVERCOMMIT_VM_CPU";

/// Whether KVM works here, tried.
pub fn kvm_works() -> bool {
    fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

/// How to start a VM.
pub struct Config<'a> {
    /// `-name guest=`
    pub name: &'a str,
    /// MiB that the guest walks; Linux walks what its program was built for.
    pub walk: u64,
    /// MiB of them, and every how many pages, that it walks from the second pass on.
    pub hot: Option<(u64, u64)>,
    /// How many of the first passes only read.
    pub reads: u32,
    /// vCPUs; one walks.
    pub vcpus: u32,
    /// Whether threads carry telling names.
    pub debug_threads: bool,
    /// `kvm` or `tcg`.
    pub accel: &'a str,
    /// Where its memory is limited.
    pub cgroup: Option<&'a MemoryCgroup>,
    /// Whether it waits for [`Vm::resume`].
    pub stopped: bool,
    /// What its guest does.
    pub guest: Guest,
    /// Whether its memory is a shared memfd.
    pub shared: bool,
    /// MiB of memory of a [`Guest::Shell`]; what others have follows from what they walk.
    pub memory: u64,
    /// What the shell of a [`Guest::Shell`] runs.
    pub script: &'a str,
    /// More of QEMU's command line; `DIR` stands for the VM's folder.
    pub more: &'a [&'a str],
}

impl<'a> Config<'a> {
    /// One vCPU, under KVM where it works.
    pub fn new(name: &'a str, walk: u64) -> Self {
        Self {
            name,
            walk,
            hot: None,
            reads: 0,
            vcpus: 1,
            debug_threads: true,
            accel: if kvm_works() { "kvm" } else { "tcg" },
            cgroup: None,
            stopped: false,
            guest: Guest::Walker,
            shared: false,
            memory: 0,
            script: "",
            more: &[],
        }
    }

    /// Linux under emulation, with that much memory, in MiB, and a script.
    pub fn shell(name: &'a str, memory: u64, script: &'a str) -> Self {
        let guest = Guest::Shell;
        // Code that is translated anew all the time would fill a gigabyte.
        let accel = "tcg,tb-size=64";
        Self { guest, memory, script, accel, ..Self::new(name, 0) }
    }

    /// The command line.
    fn command(&self, dir: &Path) -> Result<Command> {
        // The shell moves itself into the cgroup, and becomes the VM there.
        let mut command = Command::new("sh");
        let procs = self.cgroup.map_or_else(|| "/dev/null".into(), MemoryCgroup::procs);
        command.args(["-c", r#"echo $$ > "$0" && exec "$@""#]).arg(procs);
        if let Some(cpu) = std::env::var_os(CPU) {
            command.args(["taskset", "--cpu-list"]).arg(cpu);
        }
        command.arg(QEMU).args(MACHINE);
        let threads = if self.debug_threads { "on" } else { "off" };
        let name = self.name.replace(',', ",,");
        command.arg("-name").arg(format!("guest={name},debug-threads={threads}"));
        let memory = match self.guest {
            Guest::Shell => self.memory,
            Guest::Linux => self.walk + 128,
            _ => self.walk + 64,
        };
        command.args(["-accel", self.accel, "-m", &memory.to_string()]);
        command.args(["-smp", &self.vcpus.to_string()]);
        command.args("-nodefaults -vga none -display none -no-reboot".split(' '));
        command.arg("-serial").arg(format!("file:{}", dir.join("serial").display()));
        let socket = format!("unix:{},server=on,wait=off", dir.join("qmp").display());
        command.arg("-qmp").arg(socket);
        command.arg("-kernel").arg(payload::kernel(self.guest)?);
        if matches!(self.guest, Guest::Linux | Guest::Nested) {
            command.args(["-cpu", "host"]);
        }
        match self.guest {
            Guest::Linux => {
                command.args(["-append", LINUX]);
                command.arg("-initrd").arg(payload::named_file(payload::LINUX_INITRAMFS)?);
            }
            Guest::Shell => self.share_root(&mut command, dir)?,
            _ => {
                let (hot, step) = self.hot.unwrap_or((self.walk, 1));
                let reads = self.reads;
                let line = format!("mib={} hot={hot} step={step} reads={reads}", self.walk);
                command.args(["-append", &line]);
            }
        }
        if self.shared {
            let backend = format!("memory-backend-memfd,id=ram,share=on,size={memory}M");
            command.args(["-object", &backend]);
            command.args(["-machine", "memory-backend=ram"]);
        }
        if self.stopped {
            command.arg("-S");
        }
        let folder = dir.display().to_string();
        command.args(self.more.iter().map(|word| word.replace("DIR", &folder)));
        let complaints = fs::File::create(dir.join("stderr"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(complaints);
        Ok(command)
    }
}

/// Arguments of a Linux guest's kernel.
const LINUX: &str = if cfg!(target_arch = "aarch64") {
    "console=ttyAMA0 quiet loglevel=0 panic=-1 mitigations=off"
} else {
    "console=ttyS0 quiet loglevel=0 panic=-1 mitigations=off tsc=reliable"
};

impl Config<'_> {
    /// This machine's root, read-only, and a folder with the script.
    fn share_root(&self, command: &mut Command, dir: &Path) -> Result<()> {
        let results = dir.join("results");
        fs::create_dir(&results)?;
        fs::write(results.join("command"), self.script)?;
        command.args(["-append", LINUX]);
        command.arg("-initrd").arg(payload::named_file(payload::SHELL_INITRAMFS)?);
        for (tag, path, more) in
            [("root", Path::new("/"), ",readonly=on"), ("results", &results, "")]
        {
            let path = path.display().to_string().replace(',', ",,");
            let share = format!("local,path={path},id={tag},security_model=none,multidevs=remap");
            command.arg("-fsdev").arg(share + more);
            command.args(["-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
        }
        Ok(())
    }
}

/// A running VM. Dropping it kills it.
pub struct Vm {
    process: Running,
    dir: PathBuf,
    qmp: BufReader<UnixStream>,
    /// Dropped after the process, which writes there.
    _folder: Undo,
}

impl Vm {
    /// Starts a VM and connects to its monitor.
    ///
    /// # Errors
    /// QEMU is missing, or fails.
    pub fn start(config: &Config<'_>) -> Result<Self> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Relaxed);
        let dir = std::env::temp_dir().join(format!("overcommit-{}-{number}", std::process::id()));
        let script = format!("rm -rf {}", quote(&dir.display().to_string()));
        let folder = Undo::script("the folder of a VM", &script)?;
        fs::create_dir_all(&dir)?;
        let mut command = config.command(&dir)?;
        let process = Running::start("a VM", &mut command, |child| Ok(child.kill()?))?;
        let pid = process.id;
        let socket = await_some("monitor of the VM", PATIENCE, || {
            let alive = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            let complaints = || fs::read_to_string(dir.join("stderr")).unwrap_or_default();
            ensure!(!alive.contains(") Z "), "QEMU ended at once: {}", complaints());
            Ok(UnixStream::connect(dir.join("qmp")).ok())
        })?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut vm = Self { process, dir, qmp: BufReader::new(socket), _folder: folder };
        vm.line().context("the monitor does not greet")?;
        vm.execute("qmp_capabilities", json!({}))?;
        Ok(vm)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id
    }

    /// PID-STARTTIME.
    ///
    /// # Errors
    /// It is gone.
    pub fn id(&self) -> Result<String> {
        Ok(format!("{}-{}", self.pid(), stat_field(self.pid(), 22)?))
    }

    /// min_flt and maj_flt of the process.
    ///
    /// # Errors
    /// It is gone.
    pub fn faults(&self) -> Result<[u64; 2]> {
        Ok([stat_field(self.pid(), 10)?, stat_field(self.pid(), 12)?])
    }

    /// Waits for so many major faults more.
    ///
    /// # Errors
    /// They do not come.
    pub fn await_majors(&self, count: u64) -> Result<()> {
        let before = self.faults()?[1];
        await_some("major faults", PATIENCE, || {
            Ok((self.faults()?[1] >= before + count).then_some(()))
        })
    }

    /// Stops the vCPUs.
    ///
    /// # Errors
    /// The monitor refuses.
    pub fn stop(&mut self) -> Result<()> {
        self.execute("stop", json!({})).map(drop)
    }

    /// Lets the vCPUs run.
    ///
    /// # Errors
    /// The monitor refuses.
    pub fn resume(&mut self) -> Result<()> {
        self.execute("cont", json!({})).map(drop)
    }

    /// Stops the whole process for good: without its vCPUs it goes on faulting where its
    /// memory is tight.
    ///
    /// # Errors
    /// It is gone, or goes on.
    pub fn freeze(&self) -> Result<()> {
        kill(Pid::from_raw(self.pid().cast_signed()), Signal::SIGSTOP)?;
        await_some("stop of QEMU's threads", PATIENCE, || {
            for thread in glob::glob(&format!("/proc/{}/task/[0-9]*/stat", self.pid()))? {
                // A thread may end meanwhile.
                let stat = fs::read_to_string(thread?).unwrap_or_default();
                if stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('T')) {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
    }

    /// Waits until the guest has walked its memory that many times.
    ///
    /// # Errors
    /// It does not come so far.
    pub fn await_passes(&mut self, passes: usize) -> Result<()> {
        let come = await_some("pass of the guest", PATIENCE, || {
            Ok((self.passes()? >= passes).then_some(()))
        });
        self.explain(come)
    }

    /// Waits until the guest has booted and walked its memory once.
    ///
    /// # Errors
    /// It does not come so far.
    pub fn await_boot(&mut self) -> Result<()> {
        let come = await_some("pass of the guest", BOOT, || Ok((self.passes()? > 0).then_some(())));
        self.explain(come).context(IN_BOOT)
    }

    /// Adds to an error what the VM does.
    ///
    /// # Errors
    /// That one.
    pub fn explain<T>(&mut self, outcome: Result<T>) -> Result<T> {
        let mut ask = |command: &str| {
            let line = json!({ "command-line": command });
            self.execute("human-monitor-command", line)
                .map_or_else(|error| format!("{error:#}"), |text| text.to_string())
        };
        outcome.map_err(|error| {
            let registers = ask("info registers");
            let place = if is_in_firmware(&registers) { IN_FIRMWARE } else { "the guest runs" };
            error.context(format!("{place}: {} {registers}", ask("info status")))
        })
    }

    /// Waits until the guest has printed something.
    ///
    /// # Errors
    /// It does not come so far.
    pub fn await_text(&mut self, text: &str) -> Result<()> {
        let come = await_some(&format!("{text:?} of the guest"), PATIENCE, || {
            Ok(self.serial()?.contains(text).then_some(()))
        });
        let serial = self.serial().unwrap_or_default();
        self.explain(come).with_context(|| format!("the guest printed:\n{serial}"))
    }

    /// What the guest has printed so far.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn serial(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.dir.join("serial"))?).into_owned())
    }

    /// Its own folder, with what it shares.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Passes a second over that time.
    ///
    /// # Errors
    /// The serial log cannot be read.
    pub fn pace(&self, time: Duration) -> Result<f64> {
        let (before, start) = (self.passes()?, Instant::now());
        std::thread::sleep(time);
        Ok((self.passes()? - before) as f64 / start.elapsed().as_secs_f64())
    }

    /// Passes so far.
    ///
    /// # Errors
    /// The serial log cannot be read.
    pub fn passes(&self) -> Result<usize> {
        Ok(read(self.dir.join("serial"))?.matches('.').count())
    }

    /// Runs a command of the monitor.
    ///
    /// # Errors
    /// The monitor refuses.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.ask(command, &arguments).with_context(|| {
            let complaints = fs::read_to_string(self.dir.join("stderr")).unwrap_or_default();
            format!("{command} of a VM that says: {complaints}")
        })
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        // In one piece: QEMU may be gone before the second one of `quit`.
        let request = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.qmp.get_mut().write_all(request.as_bytes())?;
        loop {
            let answer = self.line()?;
            if let Some(error) = answer.get("error") {
                bail!("the monitor refuses {command}: {error}");
            }
            if let Some(result) = answer.get("return") {
                return Ok(result.clone());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.qmp.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}

/// Whether the vCPU is below 1 MiB, where no guest of ours is.
fn is_in_firmware(registers: &str) -> bool {
    let place = registers.split("IP=").nth(1).and_then(|rest| rest.split_whitespace().next());
    place.is_some_and(|place| u64::from_str_radix(place, 16).is_ok_and(|place| place < 1 << 20))
}

/// A field of /proc/PID/stat, counted from 1 as in proc(5).
///
/// # Errors
/// The process is gone.
pub fn stat_field(pid: u32, field: usize) -> Result<u64> {
    let stat = read(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("no name in stat")?;
    let word = rest.split_whitespace().nth(field - 3).context("too few fields in stat")?;
    Ok(word.parse()?)
}
